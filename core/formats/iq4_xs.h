/* iq4_xs.h: the block of iq4_xs. */
#ifndef QM_IQ4_XS_H
#define QM_IQ4_XS_H

#include "iq4.h"

enum { QM_IQ4_XS_BLOCK = 256, QM_IQ4_XS_SUBS = 8 };

struct qm_iq4_xs {
    uint16_t d, upper; /* upper: two bits of each scale */
    uint8_t lower[QM_IQ4_XS_SUBS / 2];
    uint8_t pair[QM_IQ4_XS_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_iq4_xs) == 136, "iq4_xs: an f16, 8 six-bit scales and 128 pairs, no padding");

QM_FN uint32_t qm_iq4_xs_scale(const struct qm_iq4_xs *b, int j)
{
    uint32_t low = b->lower[j / 2] >> 4 * (j % 2) & 15u, high = b->upper >> 2 * j & 3u;
    return low | high << 4;
}

#endif
