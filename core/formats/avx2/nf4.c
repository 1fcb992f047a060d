/* nf4 with AVX2: the scalar bisection, eight weights at a time. */
#include "../nf4.h"
#include "blocks.h"
#include "nibbles.h"

extern const qm_format qm_format_nf4;

/* Comparing gives -1 for yes, so what builds up is the negative of the code, and after k steps its
 * low three bits pick the next threshold: table entry -i & 7 belongs to partial code i. */
static inline __m256i negative_code(__m256 v)
{
    const float *t = qm_nf4_threshold;
    __m256 third = _mm256_setr_ps(t[1], 0, 0, 0, 0, t[13], t[9], t[5]);
    __m256 fourth = _mm256_setr_ps(t[0], t[14], t[12], t[10], t[8], t[6], t[4], t[2]);
    __m256 m = _mm256_cmp_ps(v, _mm256_set1_ps(t[7]), _CMP_GT_OQ);
    __m256i i = _mm256_castps_si256(m);
    m = _mm256_cmp_ps(v, _mm256_blendv_ps(_mm256_set1_ps(t[3]), _mm256_set1_ps(t[11]), m), _CMP_GT_OQ);
    i = _mm256_add_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(m));
    m = _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(third, i), _CMP_GT_OQ);
    i = _mm256_add_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(m));
    m = _mm256_cmp_ps(v, _mm256_permutevar8x32_ps(fourth, i), _CMP_GT_OQ);
    return _mm256_add_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(m));
}

static inline __m256i negative_code_at(const float *x, __m256 scale)
{
    return negative_code(_mm256_mul_ps(_mm256_loadu_ps(x), scale));
}

static void encode_block(const float *x, uint32_t n, float scale, uint8_t *codes)
{
    __m256 s = _mm256_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += 32) {
        __m256i negative = qm_bytes32(negative_code_at(x + i, s), negative_code_at(x + i + 8, s),
                                      negative_code_at(x + i + 16, s), negative_code_at(x + i + 24, s));
        _mm_storeu_si128((__m128i *)(codes + i / 2), qm_pair_nibbles32(_mm256_abs_epi8(negative)));
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    qm_blocks_encode(&qm_format_nf4, encode_block, x, n, c, plane);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    qm_nibbles_decode(&qm_format_nf4, qm_nf4_value, plane, n, c, y);
}

const qm_fast qm_avx2_nf4 = {.encode = encode, .decode = decode};
