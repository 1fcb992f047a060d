/* affine.h: the search behind q2_k, q4_k and q5_k (and q4_1 and q5_1 with weights): a scale and a least
 * value for a few weights, so that scale * code + least comes near them.
 *
 * Every trial rounds with a slightly different step and then asks which pair would have suited those
 * codes best: weighted least squares, two unknowns, solved in closed form.  The best pair seen wins.
 * ggml, make_qkx2_quants and make_qkx3_quants; sums run in index order.
 */
#ifndef QM_AFFINE_H
#define QM_AFFINE_H

#include <stdbool.h>

#include "numeric.h"

enum { QM_AFFINE_LONGEST = 32 };

typedef struct qm_affine_search {
    int most;          /* codes are 0 … most */
    float first, step; /* trial k cuts the range into first + step k + most parts, */
    int last;          /*   k = 0 … last */
    bool absolute;     /* a pair is judged by the errors' magnitudes; else by their squares */
} qm_affine_search;

typedef struct qm_affine {
    float scale, least; /* least <= 0 */
} qm_affine;

QM_FN void qm_affine_round(const float *x, int n, float inverse, float least, int most, uint8_t *code)
{
    for (int i = 0; i < n; i++)
        code[i] = (uint8_t)qm_clamp(qm_nearest_int(inverse * (x[i] - least)), 0, most);
}

QM_FN float qm_affine_error(qm_affine a, const uint8_t *code, const float *x, const float *w, int n,
                            bool absolute)
{
    float sum = 0;
    for (int i = 0; i < n; i++) {
        float off = a.scale * (float)code[i] + a.least - x[i];
        sum += w[i] * (absolute ? qm_abs(off) : off * off);
    }
    return sum;
}

/* The pair that suits these codes best; false when they do not tell (all are alike). */
QM_FN bool qm_affine_solve(const uint8_t *code, const float *x, const float *w, int n, float sum_w,
                           float sum_x, qm_affine *a)
{
    float sum_l = 0, sum_ll = 0, sum_xl = 0;
    for (int i = 0; i < n; i++) {
        float l = (float)code[i];
        sum_l += w[i] * l;
        sum_ll += w[i] * l * l;
        sum_xl += w[i] * l * x[i];
    }
    float determinant = sum_w * sum_ll - sum_l * sum_l;
    if (!(determinant > 0))
        return false;
    a->scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    a->least = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    if (a->least > 0) {
        a->least = 0;
        a->scale = sum_xl / sum_ll;
    }
    return true;
}

/* n <= QM_AFFINE_LONGEST values x with weights w.  A scale of 0 comes with codes of 0. */
QM_FN qm_affine qm_affine_fit(const qm_affine_search *s, const float *x, const float *w, int n, uint8_t *code)
{
    float low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = low > 0 ? 0 : low;
    if (high == low) {
        memset(code, 0, (size_t)n);
        return (qm_affine){0, low};
    }
    float inverse = (float)s->most / (high - low);
    qm_affine best = {1 / inverse, low};
    qm_affine_round(x, n, inverse, low, s->most, code);
    float least_error = qm_affine_error(best, code, x, w, n, s->absolute);
    for (int k = 0; k <= s->last; k++) {
        uint8_t trial[QM_AFFINE_LONGEST];
        qm_affine a;
        /* the range grows and shrinks with the best least value so far; its upper end stays */
        inverse = (s->first + s->step * (float)k + (float)s->most) / (high - best.least);
        qm_affine_round(x, n, inverse, best.least, s->most, trial);
        if (!qm_affine_solve(trial, x, w, n, sum_w, sum_x, &a))
            continue;
        float error = qm_affine_error(a, trial, x, w, n, s->absolute);
        if (error < least_error) {
            memcpy(code, trial, (size_t)n);
            least_error = error;
            best = a;
        }
    }
    return best;
}

/* What ggml searches where columns differ in importance. */
QM_FN qm_affine_search qm_affine_important(int most)
{
    qm_affine_search s = {.most = most, .first = -0.9f, .step = 0.05f, .last = 36};
    return s;
}

#endif
