/* int8.h: the one-value steps of int8. */
#ifndef QM_INT8_H
#define QM_INT8_H

#include <stdbool.h>

#include "../rcp.h"
#include "numeric.h"

/* 127 / absmax: as CUDA's fast division has it, or as it is. */
QM_FN float qm_int8_scale(float absmax, bool nearest)
{
    return nearest ? 127.0f / absmax : 127.0f * qm_rcp(absmax);
}

#define QM_INT8_STEP 7.874015718698502e-3f /* 1/127, as bitsandbytes writes it */

QM_FN float qm_int8_value(int8_t code, float absmax) { return (float)code * absmax * QM_INT8_STEP; }

#endif
