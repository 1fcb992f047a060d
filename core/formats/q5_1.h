/* q5_1.h: the block of q5_1. */
#ifndef QM_Q5_1_H
#define QM_Q5_1_H

#include "five_bits.h"

enum { QM_Q5_1_BLOCK = 32 };

struct qm_q5_1 {
    uint16_t d, least;
    uint8_t fifth[4];
    uint8_t pair[QM_Q5_1_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_q5_1) == 24, "q5_1: two f16, 32 bits and 16 pairs, no padding");

QM_FN void qm_q5_1_pack(float d, float least, const uint8_t code[QM_Q5_1_BLOCK], uint8_t *out)
{
    struct qm_q5_1 b = {.d = qm_f32_to_f16(d), .least = qm_f32_to_f16(least)};
    qm_five_bits_pack(code, b.fifth, b.pair);
    memcpy(out, &b, sizeof b);
}

#endif
