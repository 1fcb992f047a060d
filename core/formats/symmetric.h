/* symmetric.h: the search behind q6_k (and, where columns differ in importance, q3_k, q4_0 and q5_0): a scale
 * for a few weights, so that scale * l comes near them, l from -N to N - 1.
 *
 * Nineteen roundings are tried, from the obvious one outwards in tenths of a step; each is judged by the
 * error that its best scale leaves (least squares, one unknown).  ggml, make_qx_quants; sums run in index
 * order.
 */
#ifndef QM_SYMMETRIC_H
#define QM_SYMMETRIC_H

#include "numeric.h"

/* Groups below this are taken for zero. */
#define QM_SYMMETRIC_TINY 1e-15f

typedef struct qm_symmetric_sums {
    float top, bottom; /* of w x l and of w l l */
} qm_symmetric_sums;

QM_FN qm_symmetric_sums qm_symmetric_try(const float *x, const float *w, int n, int reach, float inverse)
{
    qm_symmetric_sums s = {0, 0};
    for (int i = 0; i < n; i++) {
        float l = (float)qm_clamp(qm_nearest_int(inverse * x[i]), -reach, reach - 1);
        s.top += w[i] * x[i] * l;
        s.bottom += w[i] * l * l;
    }
    return s;
}

/* The scale, and codes l + reach.  Where all is taken for zero, the scale and the codes are 0. */
QM_FN float qm_symmetric_fit(const float *x, const float *w, int n, int reach, uint8_t *code)
{
    float max = qm_signed_max(x, n);
    if (qm_abs(max) < QM_SYMMETRIC_TINY) {
        memset(code, 0, (size_t)n);
        return 0;
    }
    float inverse = -(float)reach / max;
    qm_symmetric_sums s = qm_symmetric_try(x, w, n, reach, inverse);
    float scale = s.bottom != 0 ? s.top / s.bottom : 0.0f, best = scale * s.top;
    for (int k = -9; k <= 9; k++) {
        if (k == 0)
            continue;
        float other = -((float)reach + 0.1f * (float)k) / max;
        s = qm_symmetric_try(x, w, n, reach, other);
        if (s.bottom > 0 && s.top * s.top > best * s.bottom) {
            inverse = other;
            scale = s.top / s.bottom;
            best = scale * s.top;
        }
    }
    for (int i = 0; i < n; i++)
        code[i] = (uint8_t)(qm_clamp(qm_nearest_int(inverse * x[i]), -reach, reach - 1) + reach);
    return scale;
}

#endif
