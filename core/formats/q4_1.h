/* q4_1.h: the block of q4_1. */
#ifndef QM_Q4_1_H
#define QM_Q4_1_H

#include "numeric.h"

enum { QM_Q4_1_BLOCK = 32 };

struct qm_q4_1 {
    uint16_t d, least;
    uint8_t pair[QM_Q4_1_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_q4_1) == 20, "q4_1: two f16 and 16 pairs, no padding");

QM_FN void qm_q4_1_pack(float d, float least, const uint8_t code[QM_Q4_1_BLOCK], uint8_t *out)
{
    struct qm_q4_1 b = {.d = qm_f32_to_f16(d), .least = qm_f32_to_f16(least)};
    for (int i = 0; i < QM_Q4_1_BLOCK / 2; i++)
        b.pair[i] = (uint8_t)(code[i] | code[i + QM_Q4_1_BLOCK / 2] << 4);
    memcpy(out, &b, sizeof b);
}

#endif
