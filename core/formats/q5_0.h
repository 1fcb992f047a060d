/* q5_0.h: the block of q5_0. */
#ifndef QM_Q5_0_H
#define QM_Q5_0_H

#include "five_bits.h"

enum { QM_Q5_0_BLOCK = 32 };

struct qm_q5_0 {
    uint16_t d;
    uint8_t fifth[4];
    uint8_t pair[QM_Q5_0_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_q5_0) == 22, "q5_0: an f16 scale, 32 bits and 16 pairs, no padding");

QM_FN void qm_q5_0_pack(float d, const uint8_t code[QM_Q5_0_BLOCK], uint8_t *out)
{
    struct qm_q5_0 b = {.d = qm_f32_to_f16(d)};
    qm_five_bits_pack(code, b.fifth, b.pair);
    memcpy(out, &b, sizeof b);
}

#endif
