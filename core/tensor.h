/* tensor.h: a value in memory: shape, format, and one byte array per plane of that format.
 *
 * Row-major and contiguous, no strides.  Planes are slices of refcounted buffers, on the heap or in a
 * file's map, so a view of a checkpoint copies nothing.  Tensors are never changed once made.
 */
#ifndef QM_TENSOR_H
#define QM_TENSOR_H

#include "file.h"
#include "format.h"
#include "vec.h"

typedef struct qm_buf {
    uint8_t *heap;   /* owned, or NULL */
    qm_infile *file; /* owned reference, or NULL */
    int refs;
} qm_buf;

typedef struct qm_slice {
    qm_buf *buf; /* one reference */
    const uint8_t *data;
    uint64_t size;
} qm_slice;

typedef struct qm_tensor {
    char *name; /* or NULL */
    qm_shape shape;
    qm_dtype dtype;          /* of a plain tensor; of plane 0 otherwise */
    const qm_format *format; /* NULL: plain elements that no codec reads (integers, f64, f8 …) */
    qm_codec codec;
    qm_slice plane[QM_MAX_PLANES + 1];
    /* bitsandbytes' double quantisation: plane 1 holds one u8 a group, plane 2 one f32 per 256 groups. */
    bool double_quant;
    float offset;
} qm_tensor;

/* A view of bytes at..at+size of a mapped file; the caller has checked that they lie in it. */
qm_tensor *qm_tensor_view(const char *name, qm_infile *f, uint64_t at, uint64_t size, const qm_shape *shape,
                          qm_dtype dtype, const qm_format *format, qm_err *e);

/* New f32 tensor with its values not yet set; *values points at them until the tensor is shared. */
qm_tensor *qm_tensor_f32(const qm_shape *shape, float **values, qm_err *e);

void qm_tensor_free(qm_tensor *t); /* NULL is fine */

/* shape, as rows of the last dimension: a 1-D tensor or a scalar is one row. */
int64_t qm_tensor_cols(const qm_tensor *t);
int64_t qm_tensor_count(const qm_tensor *t);
uint64_t qm_tensor_bytes(const qm_tensor *t); /* all planes */

/* All values as f32, into dst[count].  Fails for plain elements other than floats and integers. */
bool qm_tensor_values(const qm_tensor *t, float *dst, qm_err *e);

qm_tensor *qm_tensor_dequantize(const qm_tensor *t, qm_err *e); /* new f32 tensor */

typedef struct qm_quantize_options {
    uint32_t block; /* 0: the format's default */
    bool double_quant, exact_zero;
    bool offset_given; /* of the double quantisation */
    float offset;
} qm_quantize_options;

qm_tensor *qm_tensor_quantize(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e);

/* Transposed copy of a 2-D tensor, as f32. */
qm_tensor *qm_tensor_transpose(const qm_tensor *t, qm_err *e);

/* Error sums of b against a; same number of values. */
bool qm_tensor_errors(const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e);

#endif
