/* q4_0.h: the block of q4_0. */
#ifndef QM_Q4_0_H
#define QM_Q4_0_H

#include "numeric.h"

enum { QM_Q4_0_BLOCK = 32 };

struct qm_q4_0 {
    uint16_t d;
    uint8_t pair[QM_Q4_0_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_q4_0) == 18, "q4_0: an f16 scale and 16 pairs, no padding");

QM_FN void qm_q4_0_pack(float d, const uint8_t code[QM_Q4_0_BLOCK], uint8_t *out)
{
    struct qm_q4_0 b = {.d = qm_f32_to_f16(d)};
    for (int i = 0; i < QM_Q4_0_BLOCK / 2; i++)
        b.pair[i] = (uint8_t)(code[i] | code[i + QM_Q4_0_BLOCK / 2] << 4);
    memcpy(out, &b, sizeof b);
}

#endif
