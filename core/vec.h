/* vec.h: loops over plain arrays, one source (vec.c) compiled for each SIMD level.
 *
 * Every function is elementwise or sums in a fixed order that does not depend on the vector
 * width, so all levels give the same bits.
 */
#ifndef QM_VEC_H
#define QM_VEC_H

#include "qm.h"

/* Error sums of y against x, to about 1e-7 of each; the same bits at every SIMD level. */
typedef struct qm_errsum {
    double sum_xx; /* sum of x*x */
    double sum_yy;
    double sum_xy;
    double sum_dd; /* sum of (y-x)^2 */
    double sum_d;  /* sum of y-x */
    double max_d;  /* max |y-x| */
    double max_x;  /* max |x| */
    uint64_t n;
} qm_errsum;

typedef enum { QM_ROUND_NONE, QM_ROUND_F16, QM_ROUND_BF16 } qm_round;

/* What it takes to follow a group's error when its decoded values y are scaled: sums, in f32. */
typedef struct qm_groupsum {
    float yd; /* of y * (y - x) */
    float yy;
    float y;
} qm_groupsum;

typedef struct qm_vec {
    void (*f16_to_f32)(const void *src, float *dst, size_t n); /* src may be unaligned */
    void (*bf16_to_f32)(const void *src, float *dst, size_t n);
    /* dst[i] = code[i] * scale[i / 32], scales being f16; n a multiple of 32 */
    void (*codes_to_f32)(const int8_t *code, const void *scale, float *dst, size_t n);
    void (*f32_to_f16)(const float *src, void *dst, size_t n);
    void (*f32_to_bf16)(const float *src, void *dst, size_t n);
    /* In place: x becomes the nearest f16 / bf16 value. */
    void (*round_f16)(float *x, size_t n);
    void (*round_bf16)(float *x, size_t n);
    /* Index of the first NaN or infinity, or n. */
    size_t (*first_nonfinite)(const float *x, size_t n);
    /* delta[i][j] = scale * sum over k of left[i*left_stride + k] * right[k*cols + j], k ascending,
     * product and sum rounded once together (a fused multiply-add, as the BLAS under peft does it), scale
     * applied last.  rows x cols. */
    void (*low_rank)(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                     float *delta, size_t rows, size_t cols);
    void (*add)(float *x, const float *y, size_t n);                          /* x += y */
    void (*scale)(float *x, float s, size_t n);                               /* x *= s */
    void (*errors)(const float *x, const float *y, size_t n, qm_errsum *sum); /* adds to *sum */
    /* One for every group of `block` values; the last may be short. */
    void (*group_sums)(const float *x, const float *y, size_t n, size_t block, qm_groupsum *group);
} qm_vec;

/* vec.c, compiled three times. */
extern const qm_vec qm_vec_scalar, qm_vec_avx2, qm_vec_avx512;

const qm_vec *qm_vec_get(void); /* for the level of qm_cpu_simd() */
void qm_round_values(qm_round how, float *x, size_t n);
void qm_errsum_add(qm_errsum *into, const qm_errsum *from);

#endif
