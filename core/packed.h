/* packed.h: activations times a weight laid out as pack.h has it; one source (packed.c), compiled for AVX2
 * and for AVX-512 with VNNI.
 *
 * Where codes are integers the activations become integers too, of 15 bits: 32 columns of a token share a
 * scale,
 *
 *     x = scale * v,   v = 128 high + low,   high -127 … 127, low -64 … 63,
 *
 * products are summed exactly in 32 bits, and every 32 (or 16) columns one f32 fused multiply-add takes in
 * both scales.  What is lost is the rounding of x to 2^-15 of the largest of 32; of levels in two bytes also
 * the product of both low bytes, but for its mean.  Columns that hold a NaN or an infinity give NaN.  Both
 * levels give the same bits, because sums of integers are exact and everything else is done in the same
 * order.
 */
#ifndef QM_PACKED_H
#define QM_PACKED_H

#include "pack.h"

/* Activations as a level multiplies them: with VNNI bytes, high and low (of levels in two bytes 2 low);
 * with AVX2 words, v (of those levels 2 v, and high), of four columns the even ones in front. */
typedef struct qm_ints {
    int64_t cols;            /* of all steps */
    int64_t sub;             /* 16 or 32 columns */
    uint8_t *first, *second; /* [tokens][cols] */
    float *scale;            /* [tokens][cols / 32] */
    int32_t *start; /* [tokens][cols / sub]: what the sums begin with, which takes the codes' zero off */
    float *sum;     /* [tokens][cols / sub]: of x; mins are multiplied with it */
    uint8_t *memory;
} qm_ints;

/* One panel times some tokens: y[t * stride + r] for rows r < n of it and tokens from … to - 1.  q where
 * codes are integers, x [tokens, cols] where they are floats; bias, of these rows, may be NULL. */
typedef struct qm_packed_job {
    const qm_pack *pack;
    const qm_ints *q;
    const float *x;
    int64_t from, to, stride;
} qm_packed_job;

typedef void qm_panel_fn(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y);

typedef struct qm_packed {
    size_t item; /* bytes of first and second for a column */
    /* Token t of x. */
    void (*set)(qm_ints *q, const qm_pack *p, int64_t t, const float *x);
    /* What multiplies by packs of this kind. */
    qm_panel_fn *(*find)(const qm_pack *p);
} qm_packed;

extern const qm_packed qm_packed_avx2, qm_packed_vnni;

const qm_packed *qm_packed_get(void); /* for this CPU and the level of qm_cpu_simd(); NULL: none */

/* Room for tokens of activations for this weight. */
bool qm_ints_new(qm_ints *q, const qm_packed *with, const qm_pack *p, int64_t tokens, qm_err *e);
void qm_ints_free(qm_ints *q);

#endif
