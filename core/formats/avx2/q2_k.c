/* q2_k with AVX2: half a block at a time; see q2_k_lanes.h. */
#include "codes.h"
#include "wide.h"

#include "../q2_k_lanes.h"

static inline void decode_block(const uint8_t *at, float *y)
{
    const float d = qm_load_half(at + offsetof(struct qm_q2_k, d));
    const float dmin = qm_load_half(at + offsetof(struct qm_q2_k, dmin));
    const uint8_t *quad = at + offsetof(struct qm_q2_k, quad); /* after the scales */
    float step[QM_Q2_K_SUBS], min[QM_Q2_K_SUBS];
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        step[j] = d * (float)(at[j] & 15);
        min[j] = dmin * (float)(at[j] >> 4);
    }
    for (int j = 0; j < QM_Q2_K_SUBS; j += 2) {
        __m256i codes = qm_quarter32(quad, j / 2);
        qm_affine16(_mm256_castsi256_si128(codes), step[j], min[j], y + QM_Q2_K_SUB * j);
        qm_affine16(_mm256_extracti128_si256(codes, 1), step[j + 1], min[j + 1], y + QM_Q2_K_SUB * (j + 1));
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q2_K_BLOCK, y += QM_Q2_K_BLOCK, at += sizeof(struct qm_q2_k))
        decode_block(at, y);
}

const qm_fast qm_avx2_q2_k = {.encode = encode, .decode = decode, .encode_important = encode_important};
