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

#endif
