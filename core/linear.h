/* linear.h: activations times a weight, for the ops that need it. */
#ifndef QM_LINEAR_H
#define QM_LINEAR_H

#include "pool.h"
#include "weight.h"

/* y[t][n] = sum over k of x[t][k] w[n][k] (+ bias[n]); x [T, K], y [T, N]; bias may be NULL. */
bool qm_linear(qm_pool *pool, const float *x, int64_t tokens, const qm_weight *w, const float *bias, float *y,
               qm_err *e);

#endif
