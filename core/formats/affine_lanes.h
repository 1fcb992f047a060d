/* affine_lanes.h: affine.h with a group to a lane; included after wide.h.  What is explained there is not
 * explained again. */
#ifndef QM_AFFINE_LANES_H
#define QM_AFFINE_LANES_H

#include "affine.h"

typedef struct affine_lanes {
    lanes scale, least;
    lanes inverse, base; /* codes are nearest to inverse * (x - base) */
} affine_lanes;

static inline lanes affine_code(const affine_lanes *a, lanes x, int most)
{
    return lanes_code(a->inverse * (x - a->base), 0, (float)most);
}

static inline lanes affine_error(lanes scale, lanes least, const lanes *code, const lanes *x, const lanes *w,
                                 int n, bool absolute)
{
    lanes sum = lanes_of(0);
    for (int i = 0; i < n && absolute; i++)
        sum += w[i] * lanes_abs(scale * code[i] + least - x[i]);
    for (int i = 0; i < n && !absolute; i++) {
        lanes off = scale * code[i] + least - x[i];
        sum += w[i] * (off * off);
    }
    return sum;
}

typedef struct affine_sums {
    lanes l, ll, xl;
} affine_sums;

/* Rounds, keeps the codes, and adds up what the solution needs. */
static inline affine_sums affine_try(const affine_lanes *a, const lanes *x, const lanes *w, int n, int most,
                                     lanes *code)
{
    affine_sums s = {lanes_of(0), lanes_of(0), lanes_of(0)};
    for (int i = 0; i < n; i++) {
        lanes l = code[i] = affine_code(a, x[i], most), wl = w[i] * l;
        s.l += wl;
        s.ll += wl * l;
        s.xl += wl * x[i];
    }
    return s;
}

static affine_lanes affine_fit(const qm_affine_search *s, const lanes *x, const lanes *w, int n)
{
    const lanes zero = lanes_of(0);
    lanes low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0], code[QM_AFFINE_LONGEST];
    for (int i = 1; i < n; i++) {
        low = lanes_min(x[i], low);
        high = lanes_max(x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = lanes_min(zero, low);
    lanes_mask flat = lanes_same(high, low);
    affine_lanes best = {.least = low, .inverse = lanes_of((float)s->most) / (high - low), .base = low};
    best.scale = lanes_of(1) / best.inverse;
    affine_try(&best, x, w, n, s->most, code);
    lanes least_error = affine_error(best.scale, best.least, code, x, w, n, s->absolute);
    for (int k = 0; k <= s->last; k++) {
        affine_lanes a = {.base = best.least};
        a.inverse = lanes_of(s->first + s->step * (float)k + (float)s->most) / (high - best.least);
        affine_sums sum = affine_try(&a, x, w, n, s->most, code);
        lanes determinant = sum_w * sum.ll - sum.l * sum.l;
        a.scale = (sum_w * sum.xl - sum_x * sum.l) / determinant;
        a.least = (sum.ll * sum_x - sum.l * sum.xl) / determinant;
        lanes_mask up = lanes_above(a.least, zero);
        a.scale = lanes_choose(up, sum.xl / sum.ll, a.scale);
        a.least = lanes_choose(up, zero, a.least);
        lanes error = affine_error(a.scale, a.least, code, x, w, n, s->absolute);
        lanes_mask better = lanes_both(lanes_above(determinant, zero), lanes_above(least_error, error));
        least_error = lanes_choose(better, error, least_error);
        best.scale = lanes_choose(better, a.scale, best.scale);
        best.least = lanes_choose(better, a.least, best.least);
        best.inverse = lanes_choose(better, a.inverse, best.inverse);
        best.base = lanes_choose(better, a.base, best.base);
    }
    best.scale = lanes_choose(flat, zero, best.scale);
    best.least = lanes_choose(flat, low, best.least);
    best.inverse = lanes_choose(flat, zero, best.inverse);
    best.base = lanes_choose(flat, zero, best.base);
    return best;
}

#endif
