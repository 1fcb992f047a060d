/* codes.h: what AVX2 does with 32 codes, one a byte: packing them, and decoding. */
#ifndef QM_AVX2_CODES_H
#define QM_AVX2_CODES_H

#include "lanes.h"

static inline __m256 qm_floats8(__m128i codes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)); }

/* Codes -128 … 127 times d, the last sixteen times d16. */
static inline void qm_scale32(__m256i codes, __m256 d, __m256 d16, float *y)
{
    __m128i low = _mm256_castsi256_si128(codes), high = _mm256_extracti128_si256(codes, 1);
    _mm256_storeu_ps(y, _mm256_mul_ps(d, qm_floats8(low)));
    _mm256_storeu_ps(y + 8, _mm256_mul_ps(d, qm_floats8(_mm_srli_si128(low, 8))));
    _mm256_storeu_ps(y + 16, _mm256_mul_ps(d16, qm_floats8(high)));
    _mm256_storeu_ps(y + 24, _mm256_mul_ps(d16, qm_floats8(_mm_srli_si128(high, 8))));
}

/* d * code - min of 16 codes. */
static inline void qm_affine16(__m128i codes, float d, float min, float *y)
{
    const __m256 step = _mm256_set1_ps(d), below = _mm256_set1_ps(min);
    __m256 low = _mm256_mul_ps(step, qm_floats8(codes));
    __m256 high = _mm256_mul_ps(step, qm_floats8(_mm_srli_si128(codes, 8)));
    _mm256_storeu_ps(y, _mm256_sub_ps(low, below));
    _mm256_storeu_ps(y + 8, _mm256_sub_ps(high, below));
}

/* From 16 bytes: low nibbles, then high ones. */
static inline __m256i qm_unpair32(const uint8_t *pair)
{
    __m128i pairs = _mm_loadu_si128((const __m128i *)pair);
    __m256i codes = _mm256_set_m128i(_mm_srli_epi16(pairs, 4), pairs);
    return _mm256_and_si256(codes, _mm256_set1_epi8(15));
}

/* Codes 32 i … 32 i + 31 of those that ../two_bits.h packs. */
static inline __m256i qm_quarter32(const uint8_t packed[64], int i)
{
    __m256i four = _mm256_srl_epi16(qm_load32(packed + i / 4 * 32), _mm_cvtsi32_si128(i % 4 * 2));
    return _mm256_and_si256(four, _mm256_set1_epi8(3));
}

/* Bytes of all ones where a bit of 32 is set: byte i of the bits goes to bytes 8i … 8i + 7, and each
 * looks at a bit of its own. */
static inline __m256i qm_spread32(const uint8_t *bits)
{
    int32_t four;
    memcpy(&four, bits, sizeof four);
    const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(four), from);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, own), own);
}

#endif
