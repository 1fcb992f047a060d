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
