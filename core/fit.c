/* fit.c: see fit.h. */
#include "fit.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* ---- counting ----------------------------------------------------------------------------------- */

static int bin_of(double v)
{
    int i = (int)((v + 1) / 2 * QM_FIT_BINS);
    return i < 0 ? 0 : i >= QM_FIT_BINS ? QM_FIT_BINS - 1 : i;
}

static bool fail_value(size_t i, const char *what, qm_err *e)
{
    return qm_fail(e, QM_EFAIL, "fitting levels: %s number %zu is not finite, or is a negative weight", what,
                   i + 1);
}

static bool add_block(qm_fit *f, const float *x, size_t first, size_t n, const qm_fit_weights *w, qm_err *e)
{
    float absmax = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i]))
            return fail_value(first + i, "value", e);
        absmax = fmaxf(absmax, fabsf(x[i]));
    }
    if (absmax == 0)
        return true;
    double size = w->by_size ? (double)absmax * (double)absmax : 1;
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i] / (double)absmax, weight = size;
        if (w->weight) {
            float own = w->weight[(first + i) % w->period];
            if (!isfinite(own) || own < 0)
                return fail_value((first + i) % w->period, "weight", e);
            weight *= (double)own;
        }
        int b = bin_of(v);
        f->weight[b] += weight;
        f->sum[b] += weight * v;
    }
    return true;
}

bool qm_fit_add(qm_fit *f, const float *x, size_t n, uint32_t block, const qm_fit_weights *w, qm_err *e)
{
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < block ? n - i : block;
        if (!add_block(f, x + i, i, m, w, e))
            return false;
    }
    return true;
}

/* ---- k-means ------------------------------------------------------------------------------------ */

/* The bins that hold something, and sums of those before each of them. */
typedef struct points {
    int n;
    double *weight, *sum; /* [n + 1] */
} points;

/* What a level at the mean of points i ... j - 1 saves: their sum squared over their weight.  The squared
 * error is the sum of squares of all values, which no choice changes, less what all levels save. */
static double saved(const points *p, int i, int j)
{
    double weight = p->weight[j] - p->weight[i], sum = p->sum[j] - p->sum[i];
    return weight > 0 ? sum * sum / weight : 0;
}

/* One more level: after[j] is the most that k levels save on points 0 ... j - 1, the last of them starting at
 * start[j]; before[] is the same for k - 1.  A longer run's last level never starts earlier, so each half of
 * a range searches its own part only. */
static void add_level(const points *p, const double *before, double *after, uint16_t *start, int low,
                      int high, int start_low, int start_high)
{
    if (low > high)
        return;
    int j = low + (high - low) / 2, best = start_low;
    after[j] = -1;
    for (int i = start_low; i <= start_high && i < j; i++) {
        double s = before[i] + saved(p, i, j);
        if (s > after[j]) {
            after[j] = s;
            best = i;
        }
    }
    start[j] = (uint16_t)best;
    add_level(p, before, after, start, low, j - 1, start_low, best);
    add_level(p, before, after, start, j + 1, high, best, start_high);
}

/* points needs room for QM_FIT_BINS + 1 of each. */
static void gather(const qm_fit *f, points *p)
{
    p->n = 0;
    p->weight[0] = p->sum[0] = 0;
    for (int b = 0; b < QM_FIT_BINS; b++)
        if (f->weight[b] > 0) {
            p->weight[p->n + 1] = p->weight[p->n] + f->weight[b];
            p->sum[p->n + 1] = p->sum[p->n] + f->sum[b];
            p->n++;
        }
}

static float mean(const points *p, int i, int j)
{
    return (float)((p->sum[j] - p->sum[i]) / (p->weight[j] - p->weight[i]));
}

/* start[k * (n + 1) + j]: see add_level; the levels are read off from the last to the first. */
static void best_levels(const points *p, int count, double *before, double *after, uint16_t *start,
                        float *level)
{
    int n = p->n, row = n + 1;
    before[0] = 0;
    for (int j = 1; j <= n; j++)
        before[j] = saved(p, 0, j);
    for (int k = 1; k < count; k++) {
        add_level(p, before, after, start + k * row, k + 1, n, k, n - 1);
        double *swap = before;
        before = after;
        after = swap;
    }
    for (int k = count - 1, j = n; k >= 0; k--) {
        int i = k ? start[k * row + j] : 0;
        level[k] = mean(p, i, j);
        j = i;
    }
}

static bool fail_empty(qm_err *e)
{
    return qm_fail(e, QM_EFAIL, "fitting levels: there is no value other than 0 to fit them to");
}

bool qm_fit_kmeans(const qm_fit *f, int count, float *level, qm_err *e)
{
    enum { MOST = QM_FIT_BINS + 1 };
    double *room = malloc(4 * MOST * sizeof *room);
    uint16_t *start = malloc((size_t)count * MOST * sizeof *start);
    bool ok = room && start;
    if (ok) {
        points p = {.weight = room, .sum = room + MOST};
        gather(f, &p);
        int used = p.n < count ? p.n : count;
        if (used > 0)
            best_levels(&p, used, room + 2 * MOST, room + 3 * MOST, start, level);
        for (int k = used; used > 0 && k < count; k++)
            level[k] = level[used - 1];
        ok = used > 0 || fail_empty(e);
    } else {
        qm_fail(e, QM_ENOFIT, "out of memory to fit %d levels", count);
    }
    free(room);
    free(start);
    return ok;
}

/* ---- quantiles ---------------------------------------------------------------------------------- */

bool qm_fit_quantiles(const qm_fit *f, int count, float *level, qm_err *e)
{
    double total = 0, below = 0;
    for (int b = 0; b < QM_FIT_BINS; b++)
        total += f->weight[b];
    if (!(total > 0))
        return fail_empty(e);
    int k = 0;
    for (int b = 0, last = 0; k < count; b++) {
        if (b < QM_FIT_BINS && f->weight[b] > 0)
            last = b;
        below += b < QM_FIT_BINS ? f->weight[b] : total;
        for (; k < count && below >= (k + 0.5) / count * total; k++)
            level[k] = (float)(f->sum[last] / f->weight[last]);
    }
    return true;
}

/* Newton's steps on P(X <= x), from a rough start; five are enough from the far tail, too. */
double qm_normal_quantile(double p)
{
    if (p > 0.5)
        return -qm_normal_quantile(1 - p);
    const double root_half = 0.70710678118654752440, root_two_pi = 2.50662827463100050242;
    double t = sqrt(-2 * log(p));
    double x = -(t - (2.30753 + 0.27061 * t) / (1 + 0.99229 * t + 0.04481 * t * t));
    for (int i = 0; i < 5; i++) {
        double d = (0.5 * erfc(-x * root_half) - p) * root_two_pi * exp(x * x / 2);
        x -= d / (1 + x * d / 2);
    }
    return x;
}
