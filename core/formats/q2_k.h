/* q2_k.h: the block of q2_k. */
#ifndef QM_Q2_K_H
#define QM_Q2_K_H

#include "affine.h"

enum { QM_Q2_K_BLOCK = 256, QM_Q2_K_SUB = 16, QM_Q2_K_SUBS = 16 };

struct qm_q2_k {
    uint8_t scales[QM_Q2_K_SUBS]; /* scale low, min high */
    uint8_t quad[64];
    uint16_t d, dmin;
};
_Static_assert(sizeof(struct qm_q2_k) == 84, "q2_k: 16 pairs of scales, 256 codes and two f16, no padding");

QM_TABLE qm_affine_search qm_q2_k_search = {
    .most = 3, .first = -0.5f, .step = 0.1f, .last = 15, .absolute = true};

/* Four bits for each of sixteen numbers, in units of the result: the largest, if positive, becomes 15. */
QM_FN float qm_q2_k_four_bits(const float v[QM_Q2_K_SUBS], uint8_t four[QM_Q2_K_SUBS])
{
    float max = 0;
    for (int j = 0; j < QM_Q2_K_SUBS; j++)
        max = v[j] > max ? v[j] : max;
    float inverse = max > 0 ? 15.0f / max : 0.0f;
    for (int j = 0; j < QM_Q2_K_SUBS; j++)
        four[j] = (uint8_t)qm_nearest_int(inverse * v[j]);
    return max / 15.0f;
}

#endif
