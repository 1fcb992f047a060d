/* lanes.h: eight floats at a time; what the AVX2 codecs have in common.
 *
 * They take whole groups of well-behaved numbers.  Whatever is rare (a short tail, NaN, infinity,
 * zeros, subnormals) they hand to the format's own group function, so the odd cases are written once.
 */
#ifndef QM_AVX2_LANES_H
#define QM_AVX2_LANES_H

#include <immintrin.h>

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
