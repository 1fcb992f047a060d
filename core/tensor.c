/* tensor.c: see tensor.h. */
#include "tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "codebook.h"
#include "double_quant.h"
#include "pack.h"

static qm_buf *buf_new(uint64_t size, qm_device *d, qm_err *e)
{
    qm_buf *b = calloc(1, sizeof *b);
    if (b)
        b->heap = d ? d->alloc(d, size, e) : malloc(size ? size : 1);
    if (!b || !b->heap) {
        free(b);
        return NULL;
    }
    b->device = qm_device_ref(d);
    b->refs = 1;
    return b;
}

static void buf_unref(qm_buf *b)
{
    if (!b || --b->refs > 0)
        return;
    if (b->device)
        b->device->release(b->device, b->heap);
    else
        free(b->heap);
    qm_device_unref(b->device);
    qm_infile_unref(b->file);
    free(b);
}

uint8_t *qm_tensor_plane_new(qm_tensor *t, int i, uint64_t size, qm_device *d, qm_err *e)
{
    qm_buf *b = buf_new(size, d, e);
    if (!b) {
        qm_tensor_no_memory(t->name, &t->shape, size, e);
        return NULL;
    }
    t->plane[i] = (qm_slice){b, b->heap, size};
    return b->heap;
}

void qm_tensor_drop_plane(qm_tensor *t, int i)
{
    buf_unref(t->plane[i].buf);
    t->plane[i] = (qm_slice){0};
}

/* Gives plane i a fresh heap buffer. */
static uint8_t *plane_new(qm_tensor *t, int i, uint64_t size, qm_err *e)
{
    return qm_tensor_plane_new(t, i, size, NULL, e);
}

qm_tensor *qm_tensor_new(const char *name, const qm_shape *shape, qm_err *e)
{
    qm_tensor *t = calloc(1, sizeof *t);
    if (t && name && !(t->name = strdup(name))) {
        free(t);
        t = NULL;
    }
    if (!t) {
        qm_tensor_no_memory(name, shape, sizeof *t, e);
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
    qm_format_unref(t->format);
    qm_pack_unref(t->pack);
    qm_tensor_free(t->origin);
    free(t->name);
    free(t);
}

qm_tensor *qm_tensor_like(const qm_tensor *t, qm_err *e)
{
    qm_tensor *out = qm_tensor_new(t->name, &t->shape, e);
    if (!out)
        return NULL;
    out->dtype = t->dtype;
    out->format = qm_format_ref(t->format);
    out->codec = t->codec;
    out->double_quant = t->double_quant;
    out->offset = t->offset;
    out->round = t->round;
    return out;
}

qm_tensor *qm_tensor_again(const qm_tensor *t, qm_err *e)
{
    qm_tensor *out = qm_tensor_new(t->name, &t->shape, e);
    if (!out)
        return NULL;
    char *name = out->name;
    *out = *t;
    out->name = name;
    qm_format_ref(t->format);
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        if (t->plane[i].buf)
            t->plane[i].buf->refs++;
    if (t->pack)
        t->pack->refs++;
    if (!t->origin || (out->origin = qm_tensor_again(t->origin, e)))
        return out;
    qm_tensor_free(out);
    return NULL;
}

qm_tensor *qm_tensor_view(const char *name, qm_infile *f, uint64_t at, uint64_t size, const qm_shape *shape,
                          qm_dtype dtype, const qm_format *format, qm_err *e)
{
    qm_tensor *t = qm_tensor_new(name, shape, e);
    if (!t)
        return NULL;
    t->dtype = dtype;
    t->format = qm_format_ref(format);
    if (format && !qm_codec_init(&t->codec, format, qm_tensor_cols(t), 0, name, e)) {
        qm_tensor_free(t);
        return NULL;
    }
    qm_buf *b = calloc(1, sizeof *b);
    if (!b) {
        qm_tensor_no_memory(name, shape, sizeof *b, e);
        qm_tensor_free(t);
        return NULL;
    }
    b->refs = 1;
    b->file = qm_infile_ref(f);
    t->plane[0] = (qm_slice){b, size ? f->map + at : NULL, size};
    return t; /* cppcheck-suppress memleak; the tensor has it */
}

/* A view of `size` bytes of a file as plane i. */
static bool plane_view(qm_tensor *t, int i, qm_infile *f, uint64_t at, uint64_t size, qm_err *e)
{
    if (at > f->size || size > f->size - at)
        return qm_fail(e, QM_ECORRUPT, "%s: tensor '%s': bytes %" PRIu64 " to %" PRIu64 " do not lie in it",
                       f->path, t->name, at, at + size);
    qm_buf *b = calloc(1, sizeof *b);
    if (!b)
        return qm_tensor_no_memory(t->name, &t->shape, sizeof *b, e);
    b->refs = 1;
    b->file = qm_infile_ref(f);
    t->plane[i] = (qm_slice){b, size ? f->map + at : NULL, size};
    return true; /* cppcheck-suppress memleak; the tensor has it */
}

qm_tensor *qm_tensor_planes(const qm_planes *p, qm_err *e)
{
    qm_tensor *t = qm_tensor_new(p->name, &p->shape, e);
    if (!t)
        return NULL;
    t->format = qm_format_ref(p->format);
    t->dtype = p->format->plane[0].dtype;
    t->double_quant = p->double_quant;
    t->offset = p->offset;
    t->round = p->round;
    bool ok = qm_codec_init(&t->codec, p->format, p->cols, p->block, p->name, e);
    t->codec.factor = p->factor;
    uint64_t n = (uint64_t)qm_tensor_count(t);
    for (int i = 0; ok && i < qm_format_planes(p->format) + p->double_quant; i++)
        ok = plane_view(t, i, p->file[i], p->at[i], qm_tensor_plane_size(t, i, n), e);
    if (ok)
        return t;
    qm_tensor_free(t);
    return NULL;
}

qm_tensor *qm_tensor_gather(const char *name, const qm_infile *f, uint64_t at, const qm_strided *s,
                            const char *dtype, qm_err *e)
{
    qm_tensor *t = qm_tensor_new(name, &s->shape, e);
    if (!t)
        return NULL;
    int i = 0;
    while (i < QM_DTYPE_COUNT - 1 && strcmp(qm_dtypes[i].name, dtype) != 0)
        i++;
    t->dtype = (qm_dtype)i;
    t->format = qm_format_find(dtype);
    t->codec.block = 1;
    unsigned item = qm_dtypes[i].bits / 8;
    uint64_t n = (uint64_t)qm_tensor_count(t);
    uint8_t *bytes = plane_new(t, 0, n * item, e);
    if (bytes && qm_strided_read(s, f, at, item, 0, n, bytes, e))
        return t;
    qm_tensor_free(t);
    return NULL;
}

qm_tensor *qm_tensor_of_planes(const char *name, const qm_shape *shape, const qm_format *f, uint32_t block,
                               const qm_slice *plane, qm_err *e)
{
    qm_tensor *t = qm_tensor_new(name, shape, e);
    if (!t)
        return NULL;
    t->format = qm_format_ref(f);
    t->dtype = f->plane[0].dtype;
    bool ok = qm_codec_init(&t->codec, f, qm_tensor_cols(t), block, name ? name : "tensor", e);
    for (int i = 0; ok && i < qm_format_planes(f); i++) {
        uint64_t size = qm_plane_size(f, &t->codec, i, (uint64_t)qm_tensor_count(t));
        uint8_t *to = NULL;
        if (plane[i].size != size)
            qm_fail(e, QM_EFAIL, "format %s: plane '%s' takes %" PRIu64 " bytes, not %" PRIu64, f->name,
                    f->plane[i].name, size, plane[i].size);
        else if ((to = plane_new(t, i, size, e)))
            memcpy(to, plane[i].data, size);
        ok = to != NULL;
    }
    if (ok)
        return t;
    qm_tensor_free(t);
    return NULL;
}

qm_tensor *qm_tensor_f32(const qm_shape *shape, float **values, qm_err *e)
{
    int64_t n = qm_shape_count(shape);
    if (n < 0) {
        qm_fail(e, QM_EFAIL, "a tensor of that shape has more values than can be counted");
        return NULL;
    }
    qm_tensor *t = qm_tensor_new(NULL, shape, e);
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

int64_t qm_tensor_cols(const qm_tensor *t) { return t->shape.ndim ? t->shape.dim[t->shape.ndim - 1] : 1; }

uint64_t qm_tensor_bytes(const qm_tensor *t)
{
    uint64_t sum = 0;
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        sum += t->plane[i].size;
    return sum;
}

uint64_t qm_tensor_plane_size(const qm_tensor *t, int i, uint64_t n)
{
    if (!t->format)
        return i == 0 ? n * qm_dtypes[t->dtype].bits / 8 : 0;
    if (!t->double_quant || i == 0)
        return i < qm_format_planes(t->format) ? qm_plane_size(t->format, &t->codec, i, n) : 0;
    uint64_t groups = (n + t->codec.block - 1) / t->codec.block;
    return i == 1   ? groups
           : i == 2 ? (groups + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK * sizeof(float)
                    : 0;
}

qm_tensor qm_tensor_part(const qm_tensor *t, int64_t first, int64_t n)
{
    qm_tensor part = *t;
    part.shape = (qm_shape){1, {n}};
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        if (t->plane[i].data) {
            part.plane[i].data += qm_tensor_plane_size(t, i, (uint64_t)first);
            part.plane[i].size = qm_tensor_plane_size(t, i, (uint64_t)n);
        }
    return part;
}

/* ---- devices ------------------------------------------------------------------------------ */

qm_device *qm_tensor_device(const qm_tensor *t) { return t->plane[0].buf ? t->plane[0].buf->device : NULL; }

static bool plane_copy(qm_tensor *to, const qm_tensor *from, int i, qm_device *d, qm_err *e)
{
    const qm_slice *s = &from->plane[i];
    qm_device *source = qm_tensor_device(from);
    uint8_t *data = qm_tensor_plane_new(to, i, s->size, d, e);
    if (!data)
        return false;
    if (source)
        return source->read(source, data, s->data, s->size, e);
    if (d)
        return d->write(d, data, s->data, s->size, e);
    if (s->size)
        memcpy(data, s->data, s->size);
    return true;
}

bool qm_tensor_has_planes(const qm_tensor *t, qm_err *e)
{
    return !t->origin
           || qm_fail(e, QM_EUNSUPPORTED,
                      "tensor '%s' is laid out for speed, and its codes were given back; t:to(qm.cpu) makes "
                      "them again",
                      t->name ? t->name : "");
}

/* As it was before it gave its planes back: quantised again. */
static qm_tensor *restored(const qm_tensor *t, qm_err *e)
{
    const qm_quantize_options o = {.block = t->format->block == 0 ? 0 : t->codec.block,
                                   .double_quant = t->double_quant,
                                   .exact_zero = t->codec.exact_zero,
                                   .nearest = t->codec.nearest,
                                   .offset_given = true,
                                   .offset = t->offset};
    qm_tensor *out = qm_tensor_quantize(t->origin, t->format, &o, e);
    if (out)
        out->round = t->round;
    return out;
}

qm_tensor *qm_tensor_to(const qm_tensor *t, qm_device *d, qm_err *e)
{
    qm_device *source = qm_tensor_device(t);
    if (t->origin) {
        qm_tensor *whole = restored(t, e), *there = whole && d ? qm_tensor_to(whole, d, e) : NULL;
        if (!d)
            return whole;
        qm_tensor_free(whole);
        return there;
    }
    if (source && d) {
        qm_fail(e, QM_EUNSUPPORTED, "tensor '%s' is on %s; bring it here first: t:to(qm.cpu)",
                t->name ? t->name : "", source->name);
        return NULL;
    }
    if (t->laid_out && source) {
        qm_tensor *restored = source->restore(source, t, e),
                  *here = restored ? qm_tensor_to(restored, NULL, e) : NULL;
        qm_tensor_free(restored);
        return here;
    }
    qm_tensor *out = qm_tensor_like(t, e);
    for (int i = 0; out && i <= QM_MAX_PLANES; i++)
        if (t->plane[i].buf && !plane_copy(out, t, i, d, e)) {
            qm_tensor_free(out);
            return NULL;
        }
    return out;
}
