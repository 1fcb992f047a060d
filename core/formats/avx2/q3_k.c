/* q3_k with AVX2: half a block at a time; see q3_k_lanes.h. */
#include "codes.h"
#include "wide.h"

#include "../q3_k_lanes.h"

/* Codes 32 i … 32 i + 31, less 4. */
static inline __m256i codes32(const uint8_t *third, const uint8_t *quad, int i)
{
    const __m256i four = _mm256_set1_epi8(4);
    __m256i bit = _mm256_and_si256(_mm256_srl_epi16(qm_load32(third), _mm_cvtsi32_si128(i)),
                                   _mm256_set1_epi8(1));
    __m256i codes = _mm256_or_si256(qm_quarter32(quad, i), _mm256_slli_epi16(bit, 2));
    return _mm256_sub_epi8(codes, four);
}

static inline void decode_block(const uint8_t *at, float *y)
{
    const float unit = qm_load_half(at + offsetof(struct qm_q3_k, d));
    const uint8_t *quad = at + offsetof(struct qm_q3_k, quad); /* after the upper bits */
    uint8_t six[QM_Q3_K_SUBS];
    float d[QM_Q3_K_SUBS];
    qm_q3_k_unpack_scales(at + offsetof(struct qm_q3_k, packed), six);
    for (int j = 0; j < QM_Q3_K_SUBS; j++)
        d[j] = unit * (float)(six[j] - 32);
    for (int i = 0; i < 8; i++)
        qm_scale32(codes32(at, quad, i), _mm256_set1_ps(d[2 * i]), _mm256_set1_ps(d[2 * i + 1]), y + 32 * i);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q3_K_BLOCK, y += QM_Q3_K_BLOCK, at += sizeof(struct qm_q3_k))
        decode_block(at, y);
}

const qm_fast qm_avx2_q3_k = {.encode = encode, .decode = decode, .encode_important = encode_important};
