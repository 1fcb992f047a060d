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

/* Scales become six bits in units of which the largest is -32; d[j] is the product that codes are made with,
 * the unit in it not yet rounded to an f16. */
QM_FN void qm_iq4_xs_round(const float scale[QM_IQ4_XS_SUBS], struct qm_iq4_xs *b, float d[QM_IQ4_XS_SUBS])
{
    float unit = -qm_signed_max(scale, QM_IQ4_XS_SUBS) / 32.0f, inverse = unit != 0 ? 1.0f / unit : 0.0f;
    memset(b, 0, sizeof *b);
    b->d = qm_f32_to_f16(unit);
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        int32_t l = qm_clamp(qm_nearest_int(inverse * scale[j]), -32, 31);
        uint32_t six = (uint32_t)(l + 32);
        b->lower[j / 2] = (uint8_t)(b->lower[j / 2] | (six & 15) << 4 * (j % 2));
        b->upper = (uint16_t)(b->upper | six >> 4 << 2 * j);
        d[j] = unit * (float)l;
    }
}

#endif
