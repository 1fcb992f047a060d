/* q5_k.h: the block of q5_k and the packing of its codes; drawn in q5_k.c. */
#ifndef QM_Q5_K_H
#define QM_Q5_K_H

#include "k32.h"

struct qm_q5_k {
    struct qm_k32 head;
    uint8_t fifth[32];
    uint8_t pair[128];
};
_Static_assert(sizeof(struct qm_q5_k) == 176, "q5_k: head, 256 bits and 128 pairs, no padding");

QM_TABLE qm_affine_search qm_q5_k_search = {.most = 31, .first = -0.5f, .step = 0.1f, .last = 15};

QM_FN void qm_q5_k_pack(const uint8_t *code, uint8_t *fifth, uint8_t *pair)
{
    memset(fifth, 0, 32);
    for (int g = 0; g < 4; g++, code += 64, pair += 32)
        for (int l = 0; l < 32; l++) {
            pair[l] = (uint8_t)((code[l] & 15) | (code[l + 32] & 15) << 4);
            fifth[l] = (uint8_t)(fifth[l] | (code[l] >> 4 | code[l + 32] >> 4 << 1) << 2 * g);
        }
}

QM_FN void qm_q5_k_unpack(const uint8_t *fifth, const uint8_t *pair, uint8_t *code)
{
    for (int g = 0; g < 4; g++, code += 64, pair += 32)
        for (int l = 0; l < 32; l++) {
            code[l] = (uint8_t)((pair[l] & 15) | (fifth[l] >> 2 * g & 1) << 4);
            code[l + 32] = (uint8_t)(pair[l] >> 4 | (fifth[l] >> (2 * g + 1) & 1) << 4);
        }
}

#endif
