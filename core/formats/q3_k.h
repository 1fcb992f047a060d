/* q3_k.h: the block of q3_k and the packing of its scales; drawn in q3_k.c. */
#ifndef QM_Q3_K_H
#define QM_Q3_K_H

#include "numeric.h"

enum { QM_Q3_K_BLOCK = 256, QM_Q3_K_SUB = 16, QM_Q3_K_SUBS = 16 };

/* Sub-blocks below this are taken for zero. */
#define QM_Q3_K_TINY 1e-15f

struct qm_q3_k {
    uint8_t third[32], quad[64], packed[12];
    uint16_t d;
};
_Static_assert(sizeof(struct qm_q3_k) == 110, "q3_k: 3-bit codes, 16 six-bit scales and an f16, no padding");

/* Scales of six bits. */
QM_FN void qm_q3_k_pack_scales(const uint8_t scale[QM_Q3_K_SUBS], uint8_t packed[12])
{
    for (int j = 0; j < 8; j++)
        packed[j] = (uint8_t)((scale[j] & 15) | (scale[j + 8] & 15) << 4);
    for (int j = 0; j < 4; j++)
        packed[j + 8] = (uint8_t)(scale[j] >> 4 | scale[j + 4] >> 4 << 2 | scale[j + 8] >> 4 << 4
                                  | scale[j + 12] >> 4 << 6);
}

QM_FN void qm_q3_k_unpack_scales(const uint8_t packed[12], uint8_t scale[QM_Q3_K_SUBS])
{
    for (int j = 0; j < QM_Q3_K_SUBS; j++) {
        uint32_t low = j < 8 ? packed[j] & 15u : packed[j - 8] >> 4,
                 high = packed[8 + j % 4] >> 2 * (j / 4) & 3;
        scale[j] = (uint8_t)(low | high << 4);
    }
}

/* Six bits for each scale, 0 … 63 standing for -32 … 31, in units of the result. */
QM_FN float qm_q3_k_six_bits(const float v[QM_Q3_K_SUBS], uint8_t six[QM_Q3_K_SUBS])
{
    float max = qm_signed_max(v, QM_Q3_K_SUBS);
    if (max == 0) {
        memset(six, 0, QM_Q3_K_SUBS);
        return 0;
    }
    float inverse = -32.0f / max;
    for (int j = 0; j < QM_Q3_K_SUBS; j++)
        six[j] = (uint8_t)(qm_clamp(qm_wrap8(qm_nearest_int(inverse * v[j])), -32, 31) + 32);
    return 1.0f / inverse;
}

#endif
