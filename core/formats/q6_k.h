/* q6_k.h: the block of q6_k and the packing of its codes; drawn in q6_k.c. */
#ifndef QM_Q6_K_H
#define QM_Q6_K_H

#include "numeric.h"

enum { QM_Q6_K_BLOCK = 256, QM_Q6_K_SUB = 16, QM_Q6_K_SUBS = 16 };

/* Sub-blocks and blocks below this are taken for zero. */
#define QM_Q6_K_TINY 1e-15f

struct qm_q6_k {
    uint8_t low[128], upper[64];
    int8_t scale[QM_Q6_K_SUBS];
    uint16_t d;
};
_Static_assert(sizeof(struct qm_q6_k) == 210, "q6_k: 6-bit codes, 16 scales and an f16, no padding");

/* The scales of all sub-blocks become d and eight bits each; d_of[s] is the product that the reader
 * will multiply codes with.
 * Returns 0 when the block is taken for zero. */
QM_FN int qm_q6_k_round_scales(const float *scale, struct qm_q6_k *b, float *d_of)
{
    float most = 0, max = 0;
    for (int s = 0; s < QM_Q6_K_SUBS; s++)
        if (qm_abs(scale[s]) > most) {
            most = qm_abs(scale[s]);
            max = scale[s];
        }
    if (most < QM_Q6_K_TINY)
        return 0;
    float inverse = -128.0f / max;
    b->d = qm_f32_to_f16(1.0f / inverse);
    float d = qm_f16_to_f32(b->d);
    for (int s = 0; s < QM_Q6_K_SUBS; s++) {
        int32_t rounded = qm_nearest_int(inverse * scale[s]);
        b->scale[s] = (int8_t)(rounded < 127 ? rounded : 127);
        d_of[s] = d * (float)b->scale[s];
    }
    return 1;
}

QM_FN void qm_q6_k_pack(const uint8_t *code, struct qm_q6_k *b)
{
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *q = code + 128 * h + l;
            b->low[64 * h + l] = (uint8_t)((q[0] & 15) | (q[64] & 15) << 4);
            b->low[64 * h + 32 + l] = (uint8_t)((q[32] & 15) | (q[96] & 15) << 4);
            b->upper[32 * h + l] = (uint8_t)(q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6);
        }
}

QM_FN void qm_q6_k_unpack(const struct qm_q6_k *b, uint8_t *code)
{
    for (int h = 0; h < 2; h++)
        for (int l = 0; l < 32; l++) {
            uint8_t *q = code + 128 * h + l;
            uint32_t a = b->low[64 * h + l], c = b->low[64 * h + 32 + l], u = b->upper[32 * h + l];
            q[0] = (uint8_t)((a & 15) | (u & 3) << 4);
            q[32] = (uint8_t)((c & 15) | (u >> 2 & 3) << 4);
            q[64] = (uint8_t)(a >> 4 | (u >> 4 & 3) << 4);
            q[96] = (uint8_t)(c >> 4 | u >> 6 << 4);
        }
}

#endif
