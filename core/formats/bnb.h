/* bnb.h: the first steps of every bitsandbytes quantiser, as its CUDA kernels do them.
 *
 *     absmax = max |x|          NaN is passed over; of nothing but NaN, -FLT_MAX
 *     scale  = 1 / absmax       by the approximate reciprocal
 *     v      = x * scale        no clamp: v may exceed 1 by one unit in the last place
 *
 * The kernels are built with --use_fast_math: subnormal operands and results are zeros.
 */
#ifndef QM_BNB_H
#define QM_BNB_H

#include "../rcp.h"
#include "numeric.h"

QM_FN float qm_bnb_absmax(const float *x, uint32_t n)
{
    float most = -0x1.fffffep127f;
    for (uint32_t i = 0; i < n; i++) {
        float a = qm_ftz(qm_abs(x[i]));
        most = a > most ? a : most;
    }
    return most;
}

/* A product in flush-to-zero arithmetic. */
QM_FN float qm_bnb_times(float x, float y) { return qm_ftz(qm_ftz(x) * qm_ftz(y)); }

/* For codes that are to be the nearest ones (qm_codec.nearest) there are neither approximations nor flushing:
 * the steps of bitsandbytes' CPU code.  A block of zeros is zeros. */
QM_FN float qm_bnb_plain_absmax(const float *x, uint32_t n)
{
    float most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = qm_abs(x[i]) > most ? qm_abs(x[i]) : most;
    return most;
}

QM_FN float qm_bnb_quotient(float x, float absmax)
{
    if (absmax >= 0x1p-126f)
        return x * (1 / absmax);
    return absmax > 0 ? x / absmax : 0; /* the reciprocal might overflow */
}

/* Between these, neither the reciprocal nor a scaled value of any consequence is subnormal, which
 * is what the vector code wants to rely on. */
#define QM_BNB_TAME_MIN 0x1p-60f
#define QM_BNB_TAME_MAX 0x1p60f

#endif
