/* q4_k.h: the block of q4_k and the packing of its codes; drawn in q4_k.c. */
#ifndef QM_Q4_K_H
#define QM_Q4_K_H

#include "k32.h"

struct qm_q4_k {
    struct qm_k32 head;
    uint8_t pair[128];
};
_Static_assert(sizeof(struct qm_q4_k) == 144, "q4_k: head and 128 pairs, no padding");

QM_TABLE qm_affine_search qm_q4_k_search = {.most = 15, .first = -1.0f, .step = 0.1f, .last = 20};

QM_FN void qm_q4_k_pack(const uint8_t *code, uint8_t *pair)
{
    for (int g = 0; g < 4; g++, code += 64, pair += 32)
        for (int l = 0; l < 32; l++)
            pair[l] = (uint8_t)(code[l] | code[l + 32] << 4);
}

QM_FN void qm_q4_k_unpack(const uint8_t *pair, uint8_t *code)
{
    for (int g = 0; g < 4; g++, code += 64, pair += 32)
        for (int l = 0; l < 32; l++) {
            code[l] = pair[l] & 15;
            code[l + 32] = pair[l] >> 4;
        }
}

#endif
