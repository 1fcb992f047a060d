/* q8_0.h: the block of q8_0. */
#ifndef QM_Q8_0_H
#define QM_Q8_0_H

#include "numeric.h"

enum { QM_Q8_0_BLOCK = 32 };

struct qm_q8_0 {
    uint16_t d;
    int8_t code[QM_Q8_0_BLOCK];
};
_Static_assert(sizeof(struct qm_q8_0) == 34, "q8_0: an f16 scale and 32 codes, no padding");

#endif
