/* lanes.h: eight floats at a time; what the AVX2 codecs have in common.
 *
 * They take whole groups of well-behaved numbers.  Whatever is rare (a short tail, NaN, infinity,
 * zeros, subnormals) they hand to the format's own group function, so the odd cases are written once.
 */
#ifndef QM_AVX2_LANES_H
#define QM_AVX2_LANES_H

#include <immintrin.h>
#include <stddef.h>

#include "../../format.h"

/* Bits of |x|, which order as the magnitudes do, NaN above infinity above all. */
static inline __m256i qm_magnitude8(__m256 x)
{
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

static inline uint32_t qm_largest8(__m256i x)
{
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* Bits of the largest |x| of n values, n a multiple of 32. */
static inline uint32_t qm_largest_magnitude(const float *x, size_t n)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < n; i += 32) {
        a = _mm256_max_epu32(a, qm_magnitude8(_mm256_loadu_ps(x + i)));
        b = _mm256_max_epu32(b, qm_magnitude8(_mm256_loadu_ps(x + i + 8)));
        c = _mm256_max_epu32(c, qm_magnitude8(_mm256_loadu_ps(x + i + 16)));
        d = _mm256_max_epu32(d, qm_magnitude8(_mm256_loadu_ps(x + i + 24)));
    }
    return qm_largest8(_mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d)));
}

/* One bit for each of eight weights whose magnitude is the largest. */
static inline uint32_t qm_largest_mask8(const float *x, __m256i most)
{
    __m256i same = _mm256_cmpeq_epi32(qm_magnitude8(_mm256_loadu_ps(x)), most);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(same));
}

/* Of 32 weights, the first of the largest magnitude, which is known. */
static inline float qm_signed_max32(const float *x, float absmax)
{
    __m256i most = _mm256_set1_epi32((int32_t)qm_f32_bits(absmax));
    uint32_t mask = qm_largest_mask8(x, most) | qm_largest_mask8(x + 8, most) << 8
                    | qm_largest_mask8(x + 16, most) << 16 | qm_largest_mask8(x + 24, most) << 24;
    return x[__builtin_ctz(mask)];
}

/* The f16 at an address of any alignment.  (Fields are read and written where they are: a block copied to a
 * structure and read from there in larger pieces would have to wait for the copy.)  Storing is for numbers
 * other than NaN. */
static inline float qm_load_half(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return qm_f16_to_f32(half);
}

static inline void qm_store_half(uint8_t *at, float x)
{
    uint16_t half = (uint16_t)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
    memcpy(at, &half, sizeof half);
}

static inline __m256i qm_load32(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }
static inline void qm_store32(uint8_t *at, __m256i x) { _mm256_storeu_si256((__m256i *)at, x); }

/* 32 integers of -128 … 127 to bytes.  The pack instructions work in 128-bit halves and leave groups
 * of four as a b c d | a b c d; qm_in_order32 puts those in order. */
static inline __m256i qm_bytes32(__m256i a, __m256i b, __m256i c, __m256i d)
{
    return _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}

static inline __m256i qm_in_order32(__m256i x)
{
    return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* 32 codes of four bits, as qm_bytes32 leaves them, to 16 bytes in order, even ones in high nibbles. */
static inline __m128i qm_pair_nibbles32(__m256i codes)
{
    __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
    pairs = _mm256_packus_epi16(pairs, pairs);
    return _mm_unpacklo_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

#endif
