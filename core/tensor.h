/* tensor.h: a value in memory: shape, format, and one byte array per plane of that format.
 *
 * Row-major and contiguous, no strides.  Planes are slices of refcounted buffers, on the heap or in a
 * file's map, so a view of a checkpoint copies nothing.  Tensors are never changed once made.
 *
 * All planes of a tensor may lie on a device instead (device.h); then only qm_tensor_to reads them.
 */
#ifndef QM_TENSOR_H
#define QM_TENSOR_H

#include "device.h"
#include "file.h"
#include "format.h"
#include "strided.h"
#include "vec.h"

typedef struct qm_buf {
    uint8_t *heap;     /* owned, or NULL; memory of the device, if there is one */
    qm_infile *file;   /* owned reference, or NULL */
    qm_device *device; /* owned reference, or NULL */
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
    const qm_format *format; /* NULL: plain elements that no codec reads (integers, f64 …); one reference */
    qm_codec codec;
    qm_slice plane[QM_MAX_PLANES + 1];
    /* bitsandbytes' double quantisation: plane 1 holds one u8 a group, plane 2 one f32 per 256 groups. */
    bool double_quant;
    float offset;
    qm_round round;       /* values are rounded to this as they are decoded (quant_state's dtype) */
    struct qm_pack *pack; /* its codes once more, laid out for speed (pack.h), or NULL; one reference */
    /* Its planes were given back (qm_tensor_give_back): they have sizes and no bytes, and are made again of this
     * when somebody asks for them.  Owned, or NULL. */
    struct qm_tensor *origin;
    /* For the device alone: planes lie as it multiplies by them; the values are there as f16 besides. */
    bool laid_out, with_half;
} qm_tensor;

/* A view of bytes at..at+size of a mapped file; the caller has checked that they lie in it. */
qm_tensor *qm_tensor_view(const char *name, qm_infile *f, uint64_t at, uint64_t size, const qm_shape *shape,
                          qm_dtype dtype, const qm_format *format, qm_err *e);

/* A quantised tensor where it lies in a file, or several: a place for every plane and, behind them, for the
 * nested scales of a double-quantised one.  Fails when a plane does not lie in its file. */
typedef struct qm_planes {
    const char *name;
    qm_shape shape;
    const qm_format *format;
    uint32_t block;
    int64_t cols; /* row length as the format sees it */
    bool double_quant;
    float offset, factor; /* factor: of a format with a tensor_range */
    qm_round round;
    qm_infile *file[QM_MAX_PLANES + 1];
    uint64_t at[QM_MAX_PLANES + 1];
} qm_planes;

qm_tensor *qm_tensor_planes(const qm_planes *p, qm_err *e);

/* A copy, in order, of elements that lie otherwise; the caller has checked that they lie in the file. */
qm_tensor *qm_tensor_gather(const char *name, const qm_infile *f, uint64_t at, const qm_strided *s,
                            const char *dtype, qm_err *e);

/* New f32 tensor with its values not yet set; *values points at them until the tensor is shared. */
qm_tensor *qm_tensor_f32(const qm_shape *shape, float **values, qm_err *e);

void qm_tensor_free(qm_tensor *t); /* NULL is fine */

/* Another tensor of the same bytes. */
qm_tensor *qm_tensor_again(const qm_tensor *t, qm_err *e);

/* Where its bytes are; NULL: in this machine's memory. */
qm_device *qm_tensor_device(const qm_tensor *t);

/* A copy of all planes in the device's memory, or in this machine's when d is NULL; of a tensor that has given
 * its planes back, with them. */
qm_tensor *qm_tensor_to(const qm_tensor *t, qm_device *d, qm_err *e);

/* For backends: a tensor without planes yet, one that is like t in all else, and a fresh buffer for plane i,
 * which is freed with the tensor. */
qm_tensor *qm_tensor_new(const char *name, const qm_shape *shape, qm_err *e);
qm_tensor *qm_tensor_like(const qm_tensor *t, qm_err *e);
uint8_t *qm_tensor_plane_new(qm_tensor *t, int i, uint64_t size, qm_device *d, qm_err *e);

void qm_tensor_drop_plane(qm_tensor *t, int i); /* gives its buffer back */

/* Fails: so many bytes for a tensor of this name (or NULL) and shape are not to be had. */
static inline bool qm_tensor_no_memory(const char *name, const qm_shape *shape, uint64_t bytes, qm_err *e)
{
    char text[160];
    return qm_fail(e, QM_ENOFIT, "%s %s: out of memory for %llu bytes", name ? name : "tensor",
                   qm_shape_text(shape, text, sizeof text), (unsigned long long)bytes);
}

/* Fails where the planes were given back: for those who read them as they lie. */
bool qm_tensor_has_planes(const qm_tensor *t, qm_err *e);

/* Bytes of plane i for n values, from the first one on, as a tensor like t holds them. */
uint64_t qm_tensor_plane_size(const qm_tensor *t, int i, uint64_t n);

/* t's values from `first` on as a tensor of one row, of the same buffers and without a reference to them.
 * first begins a group, and of a double-quantised tensor 256 of them. */
qm_tensor qm_tensor_part(const qm_tensor *t, int64_t first, int64_t n);

/* shape, as rows of the last dimension: a 1-D tensor or a scalar is one row. */
int64_t qm_tensor_cols(const qm_tensor *t);
int64_t qm_tensor_count(const qm_tensor *t);
uint64_t qm_tensor_bytes(const qm_tensor *t); /* all planes */

/* All values as f32, into dst[count].  Fails for plain elements other than floats and integers. */
bool qm_tensor_values(const qm_tensor *t, float *dst, qm_err *e);

/* Values first ... first+n-1 only: no more is decoded than the groups they lie in. */
bool qm_tensor_range(const qm_tensor *t, int64_t first, int64_t n, float *dst, qm_err *e);

qm_tensor *qm_tensor_dequantize(const qm_tensor *t, qm_err *e); /* new f32 tensor */

typedef struct qm_quantize_options {
    uint32_t block; /* 0: the format's default */
    bool double_quant, exact_zero, nearest;
    bool offset_given; /* of the double quantisation */
    float offset;
} qm_quantize_options;

qm_tensor *qm_tensor_quantize(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o,
                              qm_err *e);

/* What that makes of a tensor like t before it has planes; before they are written, on d or here; and, where
 * o asks for it, the second level once they are: qm_tensor_nest is the one here. */
qm_tensor *qm_tensor_coded(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e);
qm_tensor *qm_tensor_blank(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_device *d,
                           qm_err *e);
bool qm_tensor_nest(qm_tensor *t, const qm_quantize_options *o, qm_err *e);

/* Of bytes encoded elsewhere, which are copied; each plane's size is checked. */
qm_tensor *qm_tensor_of_planes(const char *name, const qm_shape *shape, const qm_format *f, uint32_t block,
                               const qm_slice *plane, qm_err *e);

/* Transposed copy of a 2-D tensor, as f32. */
qm_tensor *qm_tensor_transpose(const qm_tensor *t, qm_err *e);

/* Error sums of b against a; same number of values. */
bool qm_tensor_errors(const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e);

#endif
