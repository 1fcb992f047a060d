/* against.c: a chunk's values against another source's; see parts.h. */
#include <math.h>

#include "parts.h"

/* What the second level may change of group g's scale: the 8-bit map's bound, of the largest of its 256. Only
 * formats whose scale is the absmax itself are read with a second level. */
static double nested_slack(const qm_source *s, const float *x, uint64_t n, uint64_t g)
{
    static const char *const map = "dynamic8";
    uint64_t block = s->codec.block ? s->codec.block : 1,
             first = g / QM_DOUBLE_QUANT_BLOCK * QM_DOUBLE_QUANT_BLOCK * block;
    uint64_t last = first + QM_DOUBLE_QUANT_BLOCK * block < n ? first + QM_DOUBLE_QUANT_BLOCK * block : n;
    double largest = 0, absmax = 0;
    for (uint64_t i = first; i < last; i++) {
        absmax = fmax(absmax, fabs((double)x[i]));
        if ((i + 1) % block == 0 || i + 1 == last) {
            largest = fmax(largest, fabs(absmax - (double)s->offset));
            absmax = 0;
        }
    }
    return qm_format_find(map)->bound * largest;
}

/* Values of y further from x than the format allows: its bound times the group's absmax, and what rounding x
 * to 16 bits on the way there may have changed. */
static uint64_t count_beyond(const qm_against *a, const float *x, const float *y, uint64_t n, int64_t cols)
{
    const qm_source *s = &a->source;
    const qm_format *f = s->format;
    uint64_t row = cols > 0 ? (uint64_t)cols : 1, block = s->codec.block > 1 ? s->codec.block : row,
             beyond = 0;
    double nested = 0;
    for (uint64_t first = 0; first < n; first += block) {
        uint64_t last = first + block < n ? first + block : n, g = first / block;
        double absmax = 0;
        for (uint64_t i = first; i < last; i++)
            absmax = fmax(absmax, fabs((double)x[i]));
        if (s->double_quant && g % QM_DOUBLE_QUANT_BLOCK == 0)
            nested = nested_slack(s, x, n, g);
        double limit = a->slack * (f->bound + f->bound_abs) * absmax + nested + ldexp(absmax, -8)
                       + ldexp(1, -24);
        for (uint64_t i = first; i < last; i++)
            beyond += !(fabs((double)y[i] - (double)x[i])
                        <= limit + (f->bound_rel + ldexp(1, -8)) * fabs((double)x[i]));
    }
    return beyond;
}

bool qm_against_hold(const stream *st, const chunk *c, qm_err *e)
{
    const qm_against *a = st->job->against;
    chunk_sums *sums = &st->sums[c->part];
    float *y = c->b->y;
    if (!qm_source_load(&a->source, c, y, e))
        return false;
    for (uint64_t i = 0; a->add != 0 && i < c->n; i++)
        y[i] -= a->add;
    for (uint64_t i = 0; i < c->n; i++)
        sums->nonfinite += !isfinite(y[i]);
    qm_vec_get()->errors(c->b->x, y, c->n, &sums->against);
    sums->beyond = count_beyond(a, c->b->x, y, c->n, a->source.cols);
    return true;
}
