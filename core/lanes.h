/* lanes.h: loops over f32 activations, one source (lanes.c) compiled for each SIMD level.
 *
 * Sums are kept in sixteen lanes, value i in lane i % 16, and the lanes are folded in halves: the order is
 * the same on every machine.  The wider levels fuse multiplication and addition, so that results differ
 * between levels in their last bits, never between runs or thread counts.
 */
#ifndef QM_LANES_H
#define QM_LANES_H

#include "qm.h"

enum { QM_LANES_RUN = 64 };

typedef struct qm_lanes {
    float (*dot)(const float *x, const float *y, size_t n);
    void (*axpy)(float *y, float a, const float *x, size_t n); /* y += a x */
    /* y[j] = scale * sum over i of q[i] columns[i * QM_LANES_RUN + j], i ascending: a query against
     * QM_LANES_RUN keys. */
    void (*against)(const float *q, const float *columns, size_t dim, float scale, float *y);
    /* y += sum over p < n of weight[p] rows[p * dim …], p ascending. */
    void (*mix)(float *y, const float *weight, const float *rows, size_t n, size_t dim);
    float (*largest)(const float *x, size_t n); /* -infinity of none; NaN are passed over */
    /* y = exp(x - most); returns the sum. y may be x. */
    double (*exp_sum)(const float *x, float most, float *y, size_t n);
    /* y = x * r * (w + add) with r = 1 / sqrt(mean of x² + eps). */
    void (*rmsnorm)(const float *x, const float *w, float add, float eps, float *y, size_t n);
    void (*add)(const float *x, const float *y, float *z, size_t n);
    void (*mul)(const float *x, const float *y, float *z, size_t n);
    void (*scale)(const float *x, float s, float *y, size_t n);
    void (*softcap)(const float *x, float c, float *y, size_t n); /* c tanh(x / c) */
    void (*silu)(const float *x, float *y, size_t n);
    void (*gelu_tanh)(const float *x, float *y, size_t n);
    void (*silu_mul)(const float *x, const float *u, float *y, size_t n); /* silu(x) u */
    void (*gelu_tanh_mul)(const float *x, const float *u, float *y, size_t n);
} qm_lanes;

extern const qm_lanes qm_lanes_scalar, qm_lanes_avx2, qm_lanes_avx512;

const qm_lanes *qm_lanes_get(void); /* for the level of qm_cpu_simd() */

#endif
