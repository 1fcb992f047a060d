/* iq4_nl.h: the block of iq4_nl. */
#ifndef QM_IQ4_NL_H
#define QM_IQ4_NL_H

#include "iq4.h"

struct qm_iq4_nl {
    uint16_t d;
    uint8_t pair[QM_IQ4_SUB / 2];
};
_Static_assert(sizeof(struct qm_iq4_nl) == 18, "iq4_nl: an f16 scale and 16 pairs, no padding");

#endif
