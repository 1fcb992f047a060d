/* affine32.h: what q4_1 and q5_1 have in common with AVX2. */
#ifndef QM_AVX2_AFFINE32_H
#define QM_AVX2_AFFINE32_H

#include "codes.h"

typedef struct qm_range {
    float low, high;
} qm_range;

static inline qm_range qm_range32(const float *x)
{
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8), c = _mm256_loadu_ps(x + 16),
           d = _mm256_loadu_ps(x + 24);
    __m256 low = _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d));
    __m256 high = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    /* both at once from here: the largest of -x is -low */
    __m256 both = _mm256_max_ps(
        _mm256_permute2f128_ps(_mm256_xor_ps(low, _mm256_set1_ps(-0.0f)), high, 0x20),
        _mm256_permute2f128_ps(_mm256_xor_ps(low, _mm256_set1_ps(-0.0f)), high, 0x31));
    both = _mm256_max_ps(both, _mm256_permute_ps(both, 0x4e));
    both = _mm256_max_ps(both, _mm256_permute_ps(both, 0xb1));
    return (qm_range){-_mm256_cvtss_f32(both), _mm_cvtss_f32(_mm256_extractf128_ps(both, 1))};
}

/* Ordinary numbers, of which the reciprocal of the step is one too.  A low of 0 is left to the plain code,
 * which knows the zero's sign. */
static inline bool qm_range_tame(const float *x, qm_range r)
{
    return qm_largest_magnitude(x, 32) < 0x7e800000u && r.low != 0 && r.high - r.low >= 0x1p-100f;
}

static inline __m256i qm_affine8(const float *x, __m256 low, __m256 inverse)
{
    __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x), low), inverse);
    return _mm256_cvttps_epi32(_mm256_add_ps(v, _mm256_set1_ps(0.5f)));
}

/* 32 codes in order, each as large as the range says. */
static inline __m256i qm_affine32(const float *x, float low, float step)
{
    __m256 l = _mm256_set1_ps(low), inverse = _mm256_set1_ps(1.0f / step);
    __m256i codes = qm_bytes32(qm_affine8(x, l, inverse), qm_affine8(x + 8, l, inverse),
                               qm_affine8(x + 16, l, inverse), qm_affine8(x + 24, l, inverse));
    return qm_in_order32(codes);
}

/* d * code + least. */
static inline void qm_unaffine32(__m256i codes, float d, float least, float *y)
{
    __m128i low = _mm256_castsi256_si128(codes), high = _mm256_extracti128_si256(codes, 1);
    __m128i eight[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
    for (int i = 0; i < 4; i++) {
        __m256 v = _mm256_mul_ps(qm_floats8(eight[i]), _mm256_set1_ps(d));
        _mm256_storeu_ps(y + 8 * i, _mm256_add_ps(v, _mm256_set1_ps(least)));
    }
}

#endif
