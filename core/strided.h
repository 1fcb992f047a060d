/* strided.h: tensors whose elements do not lie in the order they are counted in.
 *
 * PyTorch files hold views: a transposed matrix, a convolution in channels-last order, one row repeated.
 * Element (i, j, …) is stride[0]*i + stride[1]*j + … elements after the first.  Only readers know of this;
 * what they hand on is contiguous.
 */
#ifndef QM_STRIDED_H
#define QM_STRIDED_H

#include "file.h"

typedef struct qm_strided {
    int64_t stride[QM_MAX_DIMS]; /* in elements, 0 or more */
    qm_shape shape;              /* ndim 0: contiguous, nothing of this is used */
} qm_strided;

/* Whether reading in order is right all the same: dimensions of 1 do not count, and no elements are in order. */
bool qm_strided_is_contiguous(const qm_strided *s);

/* Elements from the first to the last that is used, both included; -1 when that overflows or a stride is
 * negative. */
int64_t qm_strided_span(const qm_strided *s);

/* Elements first … first + n - 1, in order of counting, of `item` bytes each from byte `at` of f.  The caller
 * has checked that the span lies in the file. */
bool qm_strided_read(const qm_strided *s, const qm_infile *f, uint64_t at, unsigned item, uint64_t first,
                     uint64_t n, void *dst, qm_err *e);

#endif
