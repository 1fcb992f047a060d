/* tensor.c: see tensor.h. */
#include "tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "double_quant.h"

static bool no_memory(qm_err *e, uint64_t bytes)
{
    return qm_fail(e, QM_ENOFIT, "out of memory: %" PRIu64 " bytes for a tensor", bytes);
}

static qm_buf *buf_new(uint64_t size, qm_err *e)
{
    qm_buf *b = calloc(1, sizeof *b);
    if (b)
        b->heap = malloc(size ? size : 1);
    if (!b || !b->heap) {
        free(b);
        no_memory(e, size);
        return NULL;
    }
    b->refs = 1;
    return b;
}

static void buf_unref(qm_buf *b)
{
    if (!b || --b->refs > 0)
        return;
    free(b->heap);
    qm_infile_unref(b->file);
    free(b);
}

/* Gives plane i a fresh heap buffer. */
static uint8_t *plane_new(qm_tensor *t, int i, uint64_t size, qm_err *e)
{
    qm_buf *b = buf_new(size, e);
    if (!b)
        return NULL;
    t->plane[i] = (qm_slice){b, b->heap, size};
    return b->heap;
}

static qm_tensor *tensor_new(const char *name, const qm_shape *shape, qm_err *e)
{
    qm_tensor *t = calloc(1, sizeof *t);
    if (t && name && !(t->name = strdup(name))) {
        free(t);
        t = NULL;
    }
    if (!t) {
        no_memory(e, sizeof *t);
        return NULL;
    }
    t->shape = *shape;
    return t;
}

void qm_tensor_free(qm_tensor *t)
{
    if (!t)
        return;
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        buf_unref(t->plane[i].buf);
    free(t->name);
    free(t);
}

qm_tensor *qm_tensor_view(const char *name, qm_infile *f, uint64_t at, uint64_t size, const qm_shape *shape,
                          qm_dtype dtype, const qm_format *format, qm_err *e)
{
    qm_tensor *t = tensor_new(name, shape, e);
    if (!t)
        return NULL;
    t->dtype = dtype;
    t->format = format;
    if (format && !qm_codec_init(&t->codec, format, qm_tensor_cols(t), 0, name, e)) {
        qm_tensor_free(t);
        return NULL;
    }
    qm_buf *b = calloc(1, sizeof *b);
    if (!b) {
        no_memory(e, sizeof *b);
        qm_tensor_free(t);
        return NULL;
    }
    b->refs = 1;
    b->file = qm_infile_ref(f);
    t->plane[0] = (qm_slice){b, size ? f->map + at : NULL, size};
    return t;
}

qm_tensor *qm_tensor_f32(const qm_shape *shape, float **values, qm_err *e)
{
    int64_t n = qm_shape_count(shape);
    if (n < 0) {
        qm_fail(e, QM_EFAIL, "a tensor of that shape has more values than can be counted");
        return NULL;
    }
    qm_tensor *t = tensor_new(NULL, shape, e);
    if (!t)
        return NULL;
    t->dtype = QM_F32;
    t->format = qm_format_find("f32");
    t->codec.block = t->format->block;
    *values = (float *)(void *)plane_new(t, 0, (uint64_t)n * sizeof(float), e);
    if (!*values) {
        qm_tensor_free(t);
        return NULL;
    }
    return t;
}

int64_t qm_tensor_count(const qm_tensor *t) { return qm_shape_count(&t->shape); }

int64_t qm_tensor_cols(const qm_tensor *t)
{
    return t->shape.ndim ? t->shape.dim[t->shape.ndim - 1] : 1;
}

uint64_t qm_tensor_bytes(const qm_tensor *t)
{
    uint64_t sum = 0;
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        sum += t->plane[i].size;
    return sum;
}

/* ---- reading values --------------------------------------------------------------------- */

/* Plain elements without a codec. */
static bool plain_values(const qm_tensor *t, float *dst, qm_err *e)
{
    const uint8_t *p = t->plane[0].data;
    size_t n = (size_t)qm_tensor_count(t);
#define CASE(dt, type)                                                                                       \
    case dt:                                                                                                 \
        for (size_t i = 0; i < n; i++) {                                                                     \
            type v;                                                                                          \
            memcpy(&v, p + i * sizeof v, sizeof v);                                                          \
            dst[i] = (float)v;                                                                               \
        }                                                                                                    \
        return true
    switch (t->dtype) {
        CASE(QM_BOOL, uint8_t);
        CASE(QM_U8, uint8_t);
        CASE(QM_I8, int8_t);
        CASE(QM_I16, int16_t);
        CASE(QM_U16, uint16_t);
        CASE(QM_I32, int32_t);
        CASE(QM_U32, uint32_t);
        CASE(QM_I64, int64_t);
        CASE(QM_U64, uint64_t);
        CASE(QM_F64, double);
    default: break;
    }
#undef CASE
    return qm_fail(e, QM_EUNSUPPORTED, "tensor '%s' holds %s elements, which have no decoder here",
                   t->name ? t->name : "", qm_dtypes[t->dtype].name);
}

bool qm_tensor_values(const qm_tensor *t, float *dst, qm_err *e)
{
    if (!t->format)
        return plain_values(t, dst, e);
    size_t n = (size_t)qm_tensor_count(t);
    const uint8_t *plane[QM_MAX_PLANES] = {0};
    for (int i = 0; i < QM_MAX_PLANES; i++)
        plane[i] = t->plane[i].data;
    float *absmax = NULL;
    if (t->double_quant) {
        size_t groups = (size_t)t->plane[1].size;
        absmax = malloc(groups * sizeof *absmax + 1);
        if (!absmax)
            return no_memory(e, groups * sizeof *absmax);
        qm_double_dequant(t->plane[1].data, (const float *)(const void *)t->plane[2].data, groups, t->offset,
                          absmax);
        plane[1] = (const uint8_t *)absmax;
    }
    qm_decode(t->format, plane, n, &t->codec, dst);
    free(absmax);
    return true;
}

qm_tensor *qm_tensor_dequantize(const qm_tensor *t, qm_err *e)
{
    float *values;
    qm_tensor *out = qm_tensor_f32(&t->shape, &values, e);
    if (out && !qm_tensor_values(t, values, e)) {
        qm_tensor_free(out);
        return NULL;
    }
    return out;
}

qm_tensor *qm_tensor_transpose(const qm_tensor *t, qm_err *e)
{
    if (t->shape.ndim != 2) {
        qm_fail(e, QM_EFAIL, "only a 2-D tensor can be transposed");
        return NULL;
    }
    int64_t rows = t->shape.dim[0], cols = t->shape.dim[1];
    qm_shape turned = {2, {cols, rows}};
    float *to;
    qm_tensor *from = qm_tensor_dequantize(t, e), *out = NULL;
    if (from)
        out = qm_tensor_f32(&turned, &to, e);
    if (out) {
        const float *src = (const float *)(const void *)from->plane[0].data;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                to[j * rows + i] = src[i * cols + j];
    }
    qm_tensor_free(from);
    return out;
}

/* ---- quantising --------------------------------------------------------------------------- */

/* Plane 1 of f32 absmax becomes u8 codes and plane 2 their own absmax. */
static bool double_quantize(qm_tensor *t, const qm_quantize_options *o, qm_err *e)
{
    qm_slice absmax = t->plane[1];
    const float *a = (const float *)(const void *)absmax.data;
    size_t groups = absmax.size / sizeof *a;
    t->plane[1] = (qm_slice){0};
    t->double_quant = true;
    t->offset = o->offset_given ? o->offset : qm_double_quant_offset(a, groups);
    uint8_t *codes = plane_new(t, 1, groups, e);
    uint8_t *nested = codes ? plane_new(t, 2, (groups + 255) / 256 * sizeof(float), e) : NULL;
    if (nested)
        qm_double_quant(a, groups, t->offset, codes, (float *)(void *)nested);
    buf_unref(absmax.buf);
    return nested != NULL;
}

qm_tensor *qm_tensor_quantize(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e)
{
    qm_tensor *out = NULL;
    uint64_t n = (uint64_t)qm_tensor_count(t);
    const char *what = t->name ? t->name : "tensor";
    float *x = malloc(n * sizeof *x + 1);
    if (!x) {
        no_memory(e, n * sizeof *x);
        return NULL;
    }
    if (!qm_tensor_values(t, x, e) || !(out = tensor_new(t->name, &t->shape, e)))
        goto fail;
    out->format = f;
    out->dtype = f->plane[0].dtype;
    if (!qm_codec_init(&out->codec, f, qm_tensor_cols(t), o->block, what, e))
        goto fail;
    out->codec.exact_zero = o->exact_zero;
    if (o->double_quant && !qm_can_double_quant(f)) {
        qm_fail(e, QM_EUNSUPPORTED, "%s: format %s has no f32 absmax to quantise again; double_quant goes with nf4 and fp4",
                what, f->name);
        goto fail;
    }
    uint8_t *plane[QM_MAX_PLANES] = {0};
    for (int i = 0; i < qm_format_planes(f); i++)
        if (!(plane[i] = plane_new(out, i, qm_plane_size(f, &out->codec, i, n), e)))
            goto fail;
    qm_encode(f, x, n, &out->codec, plane);
    if (o->double_quant && !double_quantize(out, o, e))
        goto fail;
    free(x);
    return out;
fail:
    free(x);
    qm_tensor_free(out);
    return NULL;
}

bool qm_tensor_errors(const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e)
{
    size_t n = (size_t)qm_tensor_count(a);
    char left[96], right[96];
    if ((size_t)qm_tensor_count(b) != n)
        return qm_fail(e, QM_EFAIL, "shapes %s and %s hold different numbers of values",
                       qm_shape_text(&a->shape, left, sizeof left), qm_shape_text(&b->shape, right, sizeof right));
    float *x = malloc(2 * n * sizeof *x + 1);
    if (!x)
        return no_memory(e, 2 * n * sizeof *x);
    bool ok = qm_tensor_values(a, x, e) && qm_tensor_values(b, x + n, e);
    if (ok) {
        *sum = (qm_errsum){0};
        qm_vec_get()->errors(x, x + n, n, sum);
    }
    free(x);
    return ok;
}
