/* iq4_lanes.h: iq4.h with 32 weights to a lane; included after wide.h. */
#ifndef QM_IQ4_LANES_H
#define QM_IQ4_LANES_H

#include "importance_lanes.h"
#include "iq4.h"

/* The levels, and what lies halfway from each to the next. */
typedef struct iq4_tables {
    lanes_table level, middle;
} iq4_tables;

static inline iq4_tables iq4_tables_of(void)
{
    float level[16], middle[16];
    for (int i = 0; i < 16; i++) {
        level[i] = (float)qm_iq4_level[i];
        middle[i] = i < 15 ? 0.5f * (float)(qm_iq4_level[i] + qm_iq4_level[i + 1]) : 1e30f;
    }
    return (iq4_tables){lanes_table_of(level), lanes_table_of(middle)};
}

/* qm_iq4_code for |x| < 134.7.  The levels lie almost on a parabola, so that this one, rounded down, gives
 * the code or the one before: at every middle it is at least 0.4 from being wrong.  A look at the middle
 * above settles it. */
static inline lanes_int iq4_code(const iq4_tables *t, lanes x)
{
    lanes guess = lanes_of(7.82f) + x * (lanes_of(0.092f) - lanes_of(0.000255f) * lanes_abs(x));
    lanes_int code = lanes_truncate(guess);
    return lanes_one_more(code, lanes_not_below(x, lanes_look_up(t->middle, code)));
}

typedef struct iq4_sums {
    lanes top, bottom;
} iq4_sums;

static inline iq4_sums iq4_try(const iq4_tables *t, const lanes *x, const lanes *w, lanes inverse)
{
    iq4_sums s = {lanes_of(0), lanes_of(0)};
    for (int i = 0; i < QM_IQ4_SUB; i++) {
        lanes l = lanes_look_up(t->level, iq4_code(t, inverse * x[i])), wl = w[i] * l;
        s.top += wl * x[i];
        s.bottom += wl * l;
    }
    return s;
}

/* Scales of LANES times 32 weights. */
static inline lanes iq4_fit(const iq4_tables *t, const lanes *x, const lanes *w)
{
    const lanes zero = lanes_of(0);
    lanes max = lanes_signed_max(x, QM_IQ4_SUB);
    iq4_sums s = iq4_try(t, x, w, lanes_of(1) / (-max / lanes_of(qm_iq4_level[0])));
    lanes scale = lanes_choose(lanes_above(s.bottom, zero), s.top / s.bottom, zero), best = scale * s.top;
    for (int k = -QM_IQ4_TRIALS; k <= QM_IQ4_TRIALS; k++) {
        s = iq4_try(t, x, w, lanes_of((float)(k + qm_iq4_level[0])) / max);
        lanes_mask better = lanes_both(lanes_above(s.bottom, zero),
                                       lanes_above(s.top * s.top, best * s.bottom));
        lanes other = s.top / s.bottom;
        scale = lanes_choose(better, other, scale);
        best = lanes_choose(better, other * s.top, best);
    }
    return lanes_choose(lanes_above(lanes_of(QM_IQ4_TINY), lanes_abs(max)), zero, scale);
}

/* The pairs of LANES times 32 weights, 16 bytes each, with d the step of each. */
static inline void iq4_pack(const iq4_tables *t, const lanes *x, lanes d, uint8_t pair[LANES][QM_IQ4_SUB / 2])
{
    const lanes zero = lanes_of(0), most = lanes_of(130);
    lanes inverse = lanes_choose(lanes_differ(d, zero), lanes_of(1) / d, zero), code[QM_IQ4_SUB];
    for (int i = 0; i < QM_IQ4_SUB; i++)
        code[i] = lanes_float(iq4_code(t, lanes_max(lanes_min(inverse * x[i], most), -most)));
    for (int j = 0; j < 16; j++)
        code[j] += code[j + 16] * lanes_of(16);
    lanes_turn_back(code, pair[0], QM_IQ4_SUB / 2);
}

#endif
