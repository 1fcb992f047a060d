/* positive.h: the search for the second level of q2_k, q4_k and q5_k where columns differ in importance: a
 * unit for the scales of a block, none negative, so that unit * code comes near them.
 *
 * First a few roundings are tried and judged by their error; then codes move by ones, each in turn, wherever
 * that leaves less error with the best unit for all of them.  ggml, make_qp_quants; sums run in index order.
 */
#ifndef QM_POSITIVE_H
#define QM_POSITIVE_H

#include "numeric.h"

/* Scales below this are taken for zero. */
#define QM_POSITIVE_TINY 1e-15f

QM_FN int32_t qm_positive_code(float x, float inverse, int most)
{
    int32_t l = qm_nearest_int(inverse * x);
    return l < most ? l : most;
}

QM_FN float qm_positive_error(const float *x, const float *w, int n, int most, float inverse)
{
    float unit = 1 / inverse, sum = 0;
    for (int i = 0; i < n; i++) {
        float off = x[i] - unit * (float)qm_positive_code(x[i], inverse, most);
        sum += w[i] * off * off;
    }
    return sum;
}

/* The same for the first rounding, where codes are bytes already: a scale below zero, which only importances
 * many orders of magnitude apart bring about, wraps. */
QM_FN float qm_positive_first_error(const float *x, const float *w, int n, float inverse)
{
    float unit = 1 / inverse, sum = 0;
    for (int i = 0; i < n; i++) {
        float off = x[i] - unit * (float)(uint8_t)qm_nearest_int(inverse * x[i]);
        sum += w[i] * off * off;
    }
    return sum;
}

/* Sums of w x l and w l l over all codes. */
typedef struct qm_positive_sums {
    float top, bottom;
} qm_positive_sums;

/* Returns how many codes changed. */
QM_FN int qm_positive_improve(const float *x, const float *w, int n, int most, uint8_t *code,
                              qm_positive_sums *s)
{
    int changed = 0;
    for (int i = 0; i < n; i++) {
        float l = (float)code[i], top = s->top - w[i] * x[i] * l, bottom = s->bottom - w[i] * l * l;
        if (!(top > 0 && bottom > 0))
            continue;
        int32_t other = qm_nearest_int(x[i] * bottom / top);
        other = other < most ? other : most;
        if (other == code[i])
            continue;
        top += w[i] * x[i] * (float)other;
        bottom += w[i] * (float)other * (float)other;
        if (top * top * s->bottom > s->top * s->top * bottom) {
            code[i] = (uint8_t)other;
            *s = (qm_positive_sums){top, bottom};
            changed++;
        }
    }
    return changed;
}

/* The unit, and codes 0 … most. */
QM_FN float qm_positive_fit(const float *x, const float *w, int n, int most, uint8_t *code)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    if (max < QM_POSITIVE_TINY) {
        memset(code, 0, (size_t)n);
        return 0;
    }
    float inverse = (float)most / max, least_error = qm_positive_first_error(x, w, n, inverse);
    for (int k = -4; k <= 4; k++) {
        if (k == 0)
            continue;
        float other = (0.1f * (float)k + (float)most) / max, error = qm_positive_error(x, w, n, most, other);
        if (error < least_error) {
            least_error = error;
            inverse = other;
        }
    }
    qm_positive_sums s = {0, 0};
    for (int i = 0; i < n; i++) {
        int32_t l = qm_positive_code(x[i], inverse, most);
        code[i] = (uint8_t)l;
        s.top += w[i] * x[i] * (float)l;
        s.bottom += w[i] * (float)l * (float)l;
    }
    for (int sweep = 0; sweep < 5; sweep++)
        if (!qm_positive_improve(x, w, n, most, code, &s))
            break;
    return s.bottom > 0 ? s.top / s.bottom : 0.0f;
}

#endif
