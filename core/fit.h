/* fit.h: levels for a codebook, from the values it is to hold.
 *
 * Every value is divided by the largest magnitude of its block, as the encoder will do, and counted into one
 * of QM_FIT_BINS bins of -1 ... 1.  Blocks of zeros are left out: any levels decode them to zeros.  All that
 * follows sees bins only, so the levels are those of the values to about a bin's width, 2 / QM_FIT_BINS, and
 * fitting takes the same time for any number of values.  Sums run in the order of the values.
 */
#ifndef QM_FIT_H
#define QM_FIT_H

#include "qm.h"

enum { QM_FIT_BINS = 1 << 14 };

typedef struct qm_fit {
    double weight[QM_FIT_BINS], sum[QM_FIT_BINS]; /* of the values in each bin: weights, weight * value */
} qm_fit;

/* How much a value counts. */
typedef struct qm_fit_weights {
    const float *weight; /* of value i: weight[i % period], not negative; NULL: all count the same */
    size_t period;
    bool by_size; /* times the square of the block's largest magnitude: errors then count as they do in the
                     tensor */
} qm_fit_weights;

/* Counts n values in blocks of `block`.  Fails when one of them, or a weight, is NaN or infinite. */
bool qm_fit_add(qm_fit *f, const float *x, size_t n, uint32_t block, const qm_fit_weights *w, qm_err *e);

/* The levels with the least weighted sum of squared errors, ascending: what Lloyd's algorithm looks for
 * (Lloyd 1957, Max 1960), found outright by dynamic programming over the bins.  2 <= count <= 256.  Where
 * there are fewer distinct values than levels, the highest is repeated. */
bool qm_fit_kmeans(const qm_fit *f, int count, float *level, qm_err *e);

/* The levels that cut the weight in equal parts: level i is the quantile (i + 1/2) / count. */
bool qm_fit_quantiles(const qm_fit *f, int count, float *level, qm_err *e);

/* p in (0, 1) -> x with P(X <= x) = p for a normal X of mean 0 and deviation 1. */
double qm_normal_quantile(double p);

#endif
