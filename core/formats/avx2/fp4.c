/* fp4 with AVX2: the scalar bisection, eight weights at a time. */
#include "../fp4.h"
#include "blocks.h"
#include "nibbles.h"

extern const qm_format qm_format_fp4;

/* The negative of the magnitude's rank, and of 8 more below zero; see negative_code in nf4.c.  What
 * flush-to-zero makes a zero is not below zero. */
static inline __m256i negative_rank_at(const float *at, __m256 scale)
{
    const float *t = qm_fp4_threshold;
    __m256 third = _mm256_setr_ps(t[0], 0, 0, 0, 0, t[6], t[4], t[2]);
    __m256 x = _mm256_loadu_ps(at), v = _mm256_mul_ps(x, scale);
    __m256 a = _mm256_castsi256_ps(qm_magnitude8(v));
    __m256 m = _mm256_cmp_ps(a, _mm256_set1_ps(t[3]), _CMP_GT_OQ);
    __m256i i = _mm256_castps_si256(m);
    m = _mm256_cmp_ps(a, _mm256_blendv_ps(_mm256_set1_ps(t[1]), _mm256_set1_ps(t[5]), m), _CMP_GT_OQ);
    i = _mm256_add_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(m));
    m = _mm256_cmp_ps(a, _mm256_permutevar8x32_ps(third, i), _CMP_GT_OQ);
    i = _mm256_add_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(m));
    __m256 below = _mm256_set1_ps(-0x1p-126f);
    __m256 negative = _mm256_and_ps(_mm256_cmp_ps(x, below, _CMP_LE_OQ), _mm256_cmp_ps(v, below, _CMP_LE_OQ));
    return _mm256_add_epi32(i, _mm256_slli_epi32(_mm256_castps_si256(negative), 3));
}

static inline __m256i codes_of_ranks(__m256i rank)
{
    __m128i magnitude = _mm_loadl_epi64((const __m128i *)qm_fp4_code);
    __m128i code = _mm_unpacklo_epi64(magnitude, _mm_or_si128(magnitude, _mm_set1_epi8(8)));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(code), rank);
}

static void encode_block(const float *x, uint32_t n, float scale, uint8_t *codes)
{
    __m256 s = _mm256_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += 32) {
        __m256i negative = qm_bytes32(negative_rank_at(x + i, s), negative_rank_at(x + i + 8, s),
                                      negative_rank_at(x + i + 16, s), negative_rank_at(x + i + 24, s));
        __m256i code = codes_of_ranks(_mm256_abs_epi8(negative));
        _mm_storeu_si128((__m128i *)(codes + i / 2), qm_pair_nibbles32(code));
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    qm_blocks_encode(&qm_format_fp4, encode_block, x, n, c, plane);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    qm_nibbles_decode(&qm_format_fp4, qm_fp4_value, plane, n, c, y);
}

const qm_fast qm_avx2_fp4 = {.encode = encode, .decode = decode};
