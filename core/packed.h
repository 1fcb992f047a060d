/* packed.h: activations times a weight laid out as pack.h has it.
 *
 * Where codes are integers the activations become integers too, of 15 bits: 32 columns of a token share a
 * scale,
 *
 *     x = scale * (128 high + low),   high -127 … 127, low -64 … 63,
 *
 * products of bytes are summed exactly in 32 bits, and every 32 (or 16) columns one f32 fused multiply-add
 * takes in both scales.  What is lost is the rounding of x to 2^-15 of the largest of 32; of levels in two
 * bytes also the product of both low bytes, but for its mean.  Columns that hold a NaN or an infinity give
 * NaN.
 */
#ifndef QM_PACKED_H
#define QM_PACKED_H

#include "pack.h"

typedef struct qm_ints {
    int64_t tokens, cols;
    int8_t *high, *low; /* [tokens][cols] */
    float *scale;       /* [tokens][cols / 32] */
    int32_t *start;     /* [tokens][cols / sub]: what the sums begin with, which takes the codes' zero off */
    float *sum;         /* [tokens][cols / sub]: of x; mins are multiplied with it */
    int64_t sub;        /* 16 or 32 columns */
    uint8_t *memory;
} qm_ints;

/* Room for tokens of activations for this weight. */
bool qm_ints_new(qm_ints *q, const qm_pack *p, int64_t tokens, qm_err *e);
void qm_ints_free(qm_ints *q);

/* Token t of x. */
void qm_ints_set(qm_ints *q, const qm_pack *p, int64_t t, const float *x);

/* One panel times all tokens: y[t * stride + r] for rows r < n of it.  q where codes are integers, x [tokens,
 * cols] where they are floats; bias, of these rows, may be NULL. */
typedef struct qm_packed_job {
    const qm_pack *pack;
    const qm_ints *q;
    const float *x;
    int64_t from, to, stride;
} qm_packed_job;

void qm_packed_panel(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y);

#endif
