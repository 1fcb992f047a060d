/* scaled_f8.h: what fp8_e4m3 and fp8_e5m2 share.
 *
 *   codes    one 8-bit float a weight       value = float(code) * scale
 *   scales   one f32 a group                scale = absmax / the float's largest value
 *
 * A group is a row unless another size is asked for (compressed-tensors' strategy "channel"; "group", and
 * "tensor" with as many values as there are).  NaN in a weight stays NaN.
 */
#ifndef QM_SCALED_F8_H
#define QM_SCALED_F8_H

#include "../format.h"
#include "f8.h"

QM_FN void qm_scaled_f8_encode(const float *x, uint32_t n, uint8_t (*code_of)(float), float most,
                               uint8_t *const plane[])
{
    float absmax = 0;
    for (uint32_t i = 0; i < n; i++)
        absmax = qm_abs(x[i]) > absmax ? qm_abs(x[i]) : absmax;
    float scale = absmax / most;
    memcpy(plane[1], &scale, sizeof scale);
    for (uint32_t i = 0; i < n; i++) /* by a scale of 0, which is an all-zero group, nothing is divided */
        plane[0][i] = code_of(scale > 0 ? x[i] / scale : x[i]);
}

QM_FN void qm_scaled_f8_decode(const uint8_t *const plane[], uint32_t n, float (*value_of)(uint8_t), float *y)
{
    float scale;
    memcpy(&scale, plane[1], sizeof scale);
    for (uint32_t i = 0; i < n; i++)
        y[i] = value_of(plane[0][i]) * scale;
}

#endif
