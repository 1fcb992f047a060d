/* symmetric_lanes.h: symmetric.h with a group to a lane; included after wide.h.  What is explained there is
 * not explained again. */
#ifndef QM_SYMMETRIC_LANES_H
#define QM_SYMMETRIC_LANES_H

#include "symmetric.h"

enum { SYMMETRIC_LONGEST = 32 };

typedef struct symmetric_lanes {
    lanes scale, inverse; /* codes are nearest to inverse * x; both 0 in groups taken for zero */
} symmetric_lanes;

/* 0 … 2 reach - 1; 0 in groups taken for zero. */
static inline lanes symmetric_code(const symmetric_lanes *s, lanes x, float reach)
{
    lanes code = lanes_code(s->inverse * x, -reach, reach - 1) + lanes_of(reach);
    return lanes_choose(lanes_differ(s->inverse, lanes_of(0)), code, lanes_of(0));
}

typedef struct symmetric_sums {
    lanes top, bottom;
} symmetric_sums;

static inline symmetric_sums symmetric_try(const lanes *x, const lanes *w, const lanes *wx, int n,
                                           float reach, lanes inverse)
{
    symmetric_sums s = {lanes_of(0), lanes_of(0)};
    for (int i = 0; i < n; i++) {
        lanes l = lanes_small_code(inverse * x[i], -reach, reach - 1); /* the largest is reach + 0.9 */
        s.top += wx[i] * l;
        s.bottom += w[i] * l * l;
    }
    return s;
}

static symmetric_lanes symmetric_fit(const lanes *x, const lanes *w, int n, float reach)
{
    const lanes zero = lanes_of(0);
    lanes wx[SYMMETRIC_LONGEST], max = lanes_signed_max(x, n);
    for (int i = 0; i < n; i++)
        wx[i] = w[i] * x[i];
    symmetric_lanes fit = {.inverse = lanes_of(-reach) / max};
    symmetric_sums s = symmetric_try(x, w, wx, n, reach, fit.inverse);
    fit.scale = lanes_choose(lanes_differ(s.bottom, zero), s.top / s.bottom, zero);
    lanes best = fit.scale * s.top;
    for (int k = -9; k <= 9; k++) {
        if (k == 0)
            continue;
        lanes other = lanes_of(-(reach + 0.1f * (float)k)) / max, scale;
        s = symmetric_try(x, w, wx, n, reach, other);
        lanes_mask better = lanes_both(lanes_above(s.bottom, zero),
                                       lanes_above(s.top * s.top, best * s.bottom));
        scale = s.top / s.bottom;
        fit.inverse = lanes_choose(better, other, fit.inverse);
        fit.scale = lanes_choose(better, scale, fit.scale);
        best = lanes_choose(better, scale * s.top, best);
    }
    lanes_mask tiny = lanes_above(lanes_of(QM_SYMMETRIC_TINY), lanes_abs(max));
    fit.inverse = lanes_choose(tiny, zero, fit.inverse);
    fit.scale = lanes_choose(tiny, zero, fit.scale);
    return fit;
}

#endif
