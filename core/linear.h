/* linear.h: activations times weights, for the ops that need it. */
#ifndef QM_LINEAR_H
#define QM_LINEAR_H

#include "pool.h"
#include "weight.h"

/* y[t][n] = sum over k of x[t][k] w[n][k] (+ bias[n]); x [T, K], y [T, N]; bias may be NULL. */
typedef struct qm_product {
    qm_weight w;
    const float *bias;
    float *y;
} qm_product;

/* Several weights times the same x.  Those that are laid out for speed are one run of the pool, so that no
 * thread waits between them; the sums are those of one after another. */
bool qm_linear(qm_pool *pool, const float *x, int64_t tokens, const qm_product *p, int n, qm_err *e);

#endif
