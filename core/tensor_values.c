/* tensor_values.c: the part of tensor.h that goes from bytes to values and back. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codebook.h"
#include "double_quant.h"
#include "tensor.h"

/* ---- reading values --------------------------------------------------------------------- */

/* Values of a tensor on a device, or one that has no planes now: its bytes are brought here and decoded. */
static bool fetch_values(const qm_tensor *t, float *dst, qm_err *e)
{
    qm_tensor *here = qm_tensor_to(t, NULL, e);
    bool ok = here && qm_tensor_values(here, dst, e);
    qm_tensor_free(here);
    return ok;
}

/* Plain elements without a codec. */
static bool plain_values(const qm_tensor *t, float *dst, qm_err *e)
{
    const uint8_t *p = t->plane[0].data;
    size_t n = (size_t)qm_tensor_count(t);
#define CASE(dt, type)                              \
    case dt:                                        \
        for (size_t i = 0; i < n; i++) {            \
            type v;                                 \
            memcpy(&v, p + i * sizeof v, sizeof v); \
            dst[i] = (float)v;                      \
        }                                           \
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
    default:
        break;
    }
#undef CASE
    return qm_fail(e, QM_EUNSUPPORTED, "tensor '%s' holds %s elements, which have no decoder here",
                   t->name ? t->name : "", qm_dtypes[t->dtype].name);
}

bool qm_tensor_values(const qm_tensor *t, float *dst, qm_err *e)
{
    if (qm_tensor_device(t) || t->origin)
        return fetch_values(t, dst, e);
    if (!t->format)
        return plain_values(t, dst, e);
    if (!t->format->decode)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "tensor in format %s: only the functions it was made with can decode it",
                       t->format->name);
    size_t n = (size_t)qm_tensor_count(t);
    const uint8_t *plane[QM_MAX_PLANES] = {0};
    for (int i = 0; i < QM_MAX_PLANES; i++)
        plane[i] = t->plane[i].data;
    float *absmax = NULL;
    if (t->double_quant) {
        size_t groups = (size_t)t->plane[1].size;
        absmax = malloc(groups * sizeof *absmax + 1);
        if (!absmax)
            return qm_tensor_no_memory(t->name, &t->shape, groups * sizeof *absmax, e);
        qm_double_dequant(t->plane[1].data, (const float *)(const void *)t->plane[2].data, groups, t->offset,
                          absmax);
        plane[1] = (const uint8_t *)absmax;
    }
    qm_decode(t->format, plane, n, &t->codec, dst);
    qm_round_values(t->round, dst, n);
    free(absmax);
    return true;
}

/* A range that cannot be cut out of the planes: all values are decoded. */
static bool range_of_all(const qm_tensor *t, int64_t first, int64_t n, float *dst, qm_err *e)
{
    uint64_t bytes = (uint64_t)qm_tensor_count(t) * sizeof(float);
    float *all = malloc(bytes + 1);
    bool ok = (all || qm_tensor_no_memory(t->name, &t->shape, bytes, e)) && qm_tensor_values(t, all, e);
    if (ok)
        memcpy(dst, all + first, (size_t)n * sizeof *dst);
    free(all);
    return ok;
}

bool qm_tensor_range(const qm_tensor *t, int64_t first, int64_t n, float *dst, qm_err *e)
{
    int64_t count = qm_tensor_count(t), group = t->format ? t->codec.block : 1;
    if (first < 0 || n < 0 || first > count || n > count - first)
        return qm_fail(e, QM_EFAIL, "values %" PRId64 " to %" PRId64 " do not lie in %" PRId64, first + 1,
                       first + n, count);
    if (first == 0 && n == count)
        return qm_tensor_values(t, dst, e);
    if (n == 0)
        return true;
    if (qm_tensor_device(t) || t->origin
        || (t->format && (!t->format->decode || t->format->tensor_range != 0)))
        return range_of_all(t, first, n, dst, e);
    if (t->double_quant)
        group *= QM_DOUBLE_QUANT_BLOCK;
    int64_t from = first - first % group, to = first + n + (group - (first + n) % group) % group;
    to = to < count ? to : count;
    qm_tensor part = qm_tensor_part(t, from, to - from);
    if (from == first && to == first + n)
        return qm_tensor_values(&part, dst, e);
    float *groups = malloc((size_t)(to - from) * sizeof *groups);
    bool ok = (groups || qm_tensor_no_memory(t->name, &t->shape, (uint64_t)(to - from) * sizeof *groups, e))
              && qm_tensor_values(&part, groups, e);
    if (ok)
        memcpy(dst, groups + (first - from), (size_t)n * sizeof *dst);
    free(groups);
    return ok;
}

qm_tensor *qm_tensor_dequantize(const qm_tensor *t, qm_err *e)
{
    float *values;
    if (qm_tensor_device(t))
        return qm_tensor_quantize(t, qm_format_find("f32"), &(qm_quantize_options){0}, e);
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
    if (qm_tensor_device(t)) {
        qm_fail(e, QM_EUNSUPPORTED,
                "transposing on %s is not there yet; bring the tensor here first: t:to(qm.cpu)",
                qm_tensor_device(t)->name);
        return NULL;
    }
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
bool qm_tensor_nest(qm_tensor *t, const qm_quantize_options *o, qm_err *e)
{
    qm_tensor once = {.plane = {[1] = t->plane[1]}}; /* quantised: what goes when it has been twice */
    const float *a = (const float *)(const void *)t->plane[1].data;
    size_t groups = t->plane[1].size / sizeof *a;
    t->plane[1] = (qm_slice){0};
    t->double_quant = true;
    t->offset = o->offset_given ? o->offset : qm_double_quant_offset(a, groups);
    uint8_t *codes = qm_tensor_plane_new(t, 1, groups, NULL, e);
    uint8_t *nested = codes ? qm_tensor_plane_new(t, 2, (groups + 255) / 256 * sizeof(float), NULL, e) : NULL;
    if (nested)
        qm_double_quant(a, groups, t->offset, codes, (float *)(void *)nested);
    qm_tensor_drop_plane(&once, 1);
    return nested != NULL;
}

static bool code(qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e)
{
    const char *what = t->name ? t->name : "tensor";
    t->format = qm_format_ref(f);
    t->dtype = f->plane[0].dtype;
    if (!f->encode)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "%s: only the functions that format %s was made with can encode it", what, f->name);
    if (!qm_codec_init(&t->codec, f, qm_tensor_cols(t), o->block, what, e))
        return false;
    t->codec.exact_zero = o->exact_zero;
    t->codec.nearest = o->nearest;
    return !o->double_quant || qm_can_double_quant(f)
           || qm_fail(
               e, QM_EUNSUPPORTED,
               "%s: format %s has no f32 absmax to quantise again; double_quant goes with nf4, fp4 and "
               "others of less than 8 bits with one scale a block",
               what, f->name);
}

qm_tensor *qm_tensor_coded(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e)
{
    qm_tensor *out = qm_tensor_new(t->name, &t->shape, e);
    if (!out || code(out, f, o, e))
        return out;
    qm_tensor_free(out);
    return NULL;
}

qm_tensor *qm_tensor_blank(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_device *d,
                           qm_err *e)
{
    qm_tensor *out = qm_tensor_coded(t, f, o, e);
    for (int i = 0; out && i < qm_format_planes(f); i++)
        if (!qm_tensor_plane_new(out, i, qm_tensor_plane_size(out, i, (uint64_t)qm_tensor_count(out)), d,
                                 e)) {
            qm_tensor_free(out);
            out = NULL;
        }
    return out;
}

qm_tensor *qm_tensor_quantize(const qm_tensor *t, const qm_format *f, const qm_quantize_options *o, qm_err *e)
{
    qm_device *device = qm_tensor_device(t);
    if (device)
        return device->quantize(device, t, f, o, e);
    uint64_t n = (uint64_t)qm_tensor_count(t);
    qm_tensor *out = NULL;
    float *x = malloc(n * sizeof *x + 1);
    if (!x) {
        qm_tensor_no_memory(t->name, &t->shape, n * sizeof *x, e);
        return NULL;
    }
    bool ok = qm_tensor_values(t, x, e) && (out = qm_tensor_blank(t, f, o, NULL, e));
    if (ok) {
        uint8_t *plane[QM_MAX_PLANES] = {0};
        for (int i = 0; i < qm_format_planes(f); i++)
            plane[i] = out->plane[i].buf->heap;
        qm_codec_measure(&out->codec, f, x, n);
        qm_encode(f, x, n, &out->codec, plane);
    }
    free(x);
    if (ok && (!o->double_quant || qm_tensor_nest(out, o, e)))
        return out;
    qm_tensor_free(out);
    return NULL;
}

bool qm_tensor_errors(const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e)
{
    size_t n = (size_t)qm_tensor_count(a);
    char left[96], right[96];
    if ((size_t)qm_tensor_count(b) != n)
        return qm_fail(e, QM_EFAIL, "shapes %s and %s hold different numbers of values",
                       qm_shape_text(&a->shape, left, sizeof left),
                       qm_shape_text(&b->shape, right, sizeof right));
    qm_device *device = qm_tensor_device(a), *other = qm_tensor_device(b);
    if (device != other)
        return qm_fail(e, QM_EFAIL,
                       "one tensor is on %s, the other on %s; bring them together with t:to(...)",
                       device ? device->name : "the CPU", other ? other->name : "the CPU");
    if (device)
        return device->errors(device, a, b, sum, e);
    float *x = malloc(2 * n * sizeof *x + 1);
    if (!x)
        return qm_tensor_no_memory(a->name, &a->shape, 2 * n * sizeof *x, e);
    bool ok = qm_tensor_values(a, x, e) && qm_tensor_values(b, x + n, e);
    if (ok) {
        *sum = (qm_errsum){0};
        qm_vec_get()->errors(x, x + n, n, sum);
    }
    free(x);
    return ok;
}
