/* tensor.c: tensors whose planes lie on a GPU: what core/device.h asks for.  Everything is waited for. */
#include <string.h>

#include "../core/codebook.h"
#include "../core/double_quant.h"
#include "../core/tensor.h"
#include "run.h"

/* Everything that tensors are for is done on the GPU's own stream, so nothing has to be waited for. */
static uint8_t *alloc(qm_device *d, uint64_t size, qm_err *e)
{
    qm_cuda *g = (qm_cuda *)d;
    qm_cuda_enter(g);
    return g->ops ? qm_cuda_take(g, size, e) : qm_cuda_scratch(g, g->stream, size, e);
}

static void release(qm_device *d, uint8_t *data)
{
    qm_cuda *g = (qm_cuda *)d;
    qm_err late = {0}; /* told by whoever waits next */
    qm_cuda_enter(g);
    qm_cuda_flush(g, &late);
    qm_cuda_give(g, data);
}

static bool write(qm_device *d, uint8_t *to, const void *from, uint64_t size, qm_err *e)
{
    return qm_cuda_upload((qm_cuda *)d, to, from, size, e);
}

static bool read(qm_device *d, void *to, const uint8_t *from, uint64_t size, qm_err *e)
{
    return qm_cuda_flush((qm_cuda *)d, e) && qm_cuda_download((qm_cuda *)d, to, from, size, e);
}

static bool memory(qm_device *d, uint64_t *free, uint64_t *total, qm_err *e)
{
    return qm_cuda_memory((qm_cuda *)d, free, total, e);
}

/* A GPU's own stream as others see it. */
static qm_cuda_stream stream_of(qm_cuda *d) { return (qm_cuda_stream){d, d->stream}; }

static const char *name_of(const qm_tensor *t) { return t->name ? t->name : ""; }

qm_cuda_coded qm_cuda_coded_of(const qm_tensor *t)
{
    qm_cuda_coded c = {
        .format = t->format, .codec = t->codec, .double_quant = t->double_quant, .offset = t->offset};
    for (int i = 0; i < QM_MAX_PLANES; i++)
        c.plane[i] = (uint8_t *)(uintptr_t)t->plane[i].data;
    if (t->double_quant)
        c.nested = (float *)(void *)c.plane[2];
    return c;
}

/* What a tensor's values are decoded to: nothing is lost by it. */
static qm_dtype decoded_type(const qm_tensor *t)
{
    return t->round == QM_ROUND_F16 ? QM_F16 : t->round == QM_ROUND_BF16 ? QM_BF16 : QM_F32;
}

typedef struct values {
    const void *data;
    qm_dtype dtype;
    void *owned; /* or NULL: they are the tensor's own */
} values;

static void drop_values(qm_cuda *d, values *v) { qm_cuda_unscratch(v->owned, d->stream); }

/* The values of t, decoded where it is not plain. */
static bool values_of(qm_cuda *d, const qm_tensor *t, values *v, qm_err *e)
{
    qm_dtype plain = qm_cuda_plain_type(t->format);
    uint64_t n = (uint64_t)qm_tensor_count(t);
    *v = (values){t->plane[0].data, plain, NULL};
    if (t->laid_out)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "tensor '%s' is laid out for products on %s; bring it here first: t:to(qm.cpu)",
                       name_of(t), d->device.name);
    if (!qm_cuda_flush(d, e))
        return false;
    if (plain != QM_DTYPE_COUNT)
        return true;
    if (!t->format)
        return qm_fail(e, QM_EUNSUPPORTED, "tensor '%s' holds %s elements, which have no decoder on %s",
                       name_of(t), qm_dtypes[t->dtype].name, d->device.name);
    v->dtype = decoded_type(t);
    v->data = v->owned = qm_cuda_scratch(d, d->stream, n * qm_dtypes[v->dtype].bits / 8, e);
    if (!v->owned)
        return false;
    qm_cuda_stream s = stream_of(d);
    qm_cuda_coded c = qm_cuda_coded_of(t);
    if (qm_cuda_decode(&s, &c, n, v->owned, v->dtype, e))
        return true;
    drop_values(d, v);
    return false;
}

bool qm_cuda_decode_tensor(qm_cuda *d, const qm_tensor *t, int64_t first, int64_t n, void *y, qm_dtype dtype,
                           qm_err *e)
{
    qm_cuda_stream s = stream_of(d);
    qm_cuda_coded c = qm_cuda_coded_of(t);
    int64_t block = t->format->block == 1 ? 1 : t->codec.block, all = qm_tensor_count(t);
    if (first % block || (n % block && first + n != all) || (t->double_quant && first))
        return qm_fail(e, QM_EUNSUPPORTED,
                       "tensor '%s': on %s, rows are read alone only where groups do not run over their ends",
                       name_of(t), d->device.name);
    for (int i = 0; i < qm_format_planes(t->format) && first; i++)
        c.plane[i] += qm_plane_size(t->format, &t->codec, i, (uint64_t)first);
    return qm_cuda_decode(&s, &c, (uint64_t)n, y, dtype, e);
}

static bool new_planes(qm_tensor *t, qm_device *d, uint64_t n, qm_err *e)
{
    for (int i = 0; i < qm_format_planes(t->format) + t->double_quant; i++)
        if (!qm_tensor_plane_new(t, i, qm_tensor_plane_size(t, i, n), d, e))
            return false;
    return true;
}

/* Returns with the offset in to->offset. */
static bool encode_double(qm_cuda *d, const values *v, qm_tensor *to, uint64_t n,
                          const qm_quantize_options *o, qm_err *e)
{
    qm_cuda_stream s = stream_of(d);
    qm_cuda_coded c = qm_cuda_coded_of(to);
    c.offset = o->offset;
    float *offset = qm_cuda_scratch(d, d->stream, sizeof *offset, e);
    bool ok = offset && qm_cuda_encode_double(&s, v->data, v->dtype, n, &c, o->offset_given, offset, e)
              && qm_cuda_download(d, &to->offset, offset, sizeof *offset, e);
    qm_cuda_unscratch(offset, d->stream);
    return ok;
}

static bool encode_values(qm_cuda *d, const values *v, qm_tensor *to, uint64_t n,
                          const qm_quantize_options *o, qm_err *e)
{
    qm_cuda_stream s = stream_of(d);
    if (to->double_quant)
        return encode_double(d, v, to, n, o, e);
    if (!qm_cuda_measure(&s, &to->codec, to->format, v->data, v->dtype, n, e))
        return false;
    qm_cuda_coded c = qm_cuda_coded_of(to);
    return qm_cuda_encode(&s, v->data, v->dtype, n, &c, e) && qm_cuda_wait(&s, e);
}

/* Quantised values that are wanted as f32, f16 or bf16 need no step between. */
static bool decode_into(qm_cuda *d, const qm_tensor *t, qm_tensor *to, uint64_t n, qm_err *e)
{
    qm_cuda_stream s = stream_of(d);
    qm_cuda_coded c = qm_cuda_coded_of(t);
    return qm_cuda_decode(&s, &c, n, (void *)(uintptr_t)to->plane[0].data, qm_cuda_plain_type(to->format), e)
           && qm_cuda_wait(&s, e);
}

static bool fill(qm_cuda *d, const qm_tensor *t, qm_tensor *to, const qm_quantize_options *o, qm_err *e)
{
    uint64_t n = (uint64_t)qm_tensor_count(t);
    values v;
    if (t->format && qm_cuda_plain_type(t->format) == QM_DTYPE_COUNT
        && qm_cuda_plain_type(to->format) != QM_DTYPE_COUNT && t->round == QM_ROUND_NONE)
        return decode_into(d, t, to, n, e);
    if (!values_of(d, t, &v, e))
        return false;
    bool ok = encode_values(d, &v, to, n, o, e);
    drop_values(d, &v);
    return ok;
}

static qm_tensor *quantize(qm_device *device, const qm_tensor *t, const qm_format *f,
                           const qm_quantize_options *o, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_tensor *out = qm_tensor_new(t->name, &t->shape, e);
    if (!out)
        return NULL;
    out->format = qm_format_ref(f);
    out->dtype = f->plane[0].dtype;
    out->double_quant = o->double_quant;
    bool ok = qm_codec_init(&out->codec, f, qm_tensor_cols(t), o->block, t->name ? t->name : "tensor", e);
    out->codec.exact_zero = o->exact_zero;
    out->codec.nearest = o->nearest;
    if (ok && o->double_quant && !qm_can_double_quant(f))
        ok = qm_fail(e, QM_EUNSUPPORTED, "%s: format %s has no f32 scales to quantise again", name_of(t),
                     f->name);
    qm_cuda_enter(d);
    if (ok && new_planes(out, device, (uint64_t)qm_tensor_count(t), e) && fill(d, t, out, o, e))
        return out;
    qm_tensor_free(out);
    return NULL;
}

/* The second level of f32 scales that lie there. */
static bool nest(qm_device *device, qm_tensor *t, const qm_quantize_options *o, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_stream s = stream_of(d);
    uint64_t n = (uint64_t)qm_tensor_count(t);
    qm_tensor single = {.plane[0] = t->plane[1]}; /* its buffer goes with it */
    t->plane[1] = (qm_slice){0};
    t->double_quant = true;
    qm_cuda_enter(d);
    float *offset = qm_cuda_scratch(d, d->stream, sizeof *offset, e);
    bool ok = offset != NULL;
    for (int i = 1; ok && i <= 2; i++)
        ok = qm_tensor_plane_new(t, i, qm_tensor_plane_size(t, i, n), device, e) != NULL;
    if (ok && n) {
        qm_cuda_coded c = qm_cuda_coded_of(t);
        c.offset = o->offset;
        ok = qm_cuda_encode_scales(&s, (const float *)(const void *)single.plane[0].data,
                                   single.plane[0].size / sizeof(float), &c, o->offset_given, offset, e)
             && qm_cuda_download(d, &t->offset, offset, sizeof *offset, e);
    }
    qm_cuda_unscratch(offset, d->stream);
    qm_tensor_drop_plane(&single, 0);
    return ok;
}

static bool wait(qm_device *device, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_stream s = stream_of(d);
    return qm_cuda_flush(d, e) && qm_cuda_wait(&s, e);
}

static bool errors(qm_device *device, const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_stream s = stream_of(d);
    values v, w = {0};
    qm_cuda_enter(d);
    if (!values_of(d, a, &v, e))
        return false;
    qm_cuda_coded c = qm_cuda_coded_of(b);
    bool ok = true;
    if (!b->format || b->round != QM_ROUND_NONE) { /* what it decodes to is not all: go by its values */
        ok = values_of(d, b, &w, e);
        c = (qm_cuda_coded){.format = qm_format_find(qm_dtypes[w.dtype].name),
                            .codec.block = 1,
                            .plane = {(uint8_t *)(uintptr_t)w.data}};
    }
    ok = ok && qm_cuda_errors(&s, v.data, v.dtype, &c, (uint64_t)qm_tensor_count(a), sum, e);
    drop_values(d, &w);
    drop_values(d, &v);
    return ok;
}

void qm_cuda_tensor_table(qm_device *device)
{
    device->alloc = alloc;
    device->release = release;
    device->write = write;
    device->read = read;
    device->quantize = quantize;
    device->errors = errors;
    device->op = qm_cuda_op;
    device->prepare = qm_cuda_prepare;
    device->restore = qm_cuda_restore;
    device->prepared = qm_cuda_prepared;
    device->op_memory = qm_cuda_op_memory;
    device->kept_memory = qm_cuda_kept_memory;
    device->nest = nest;
    device->wait = wait;
    device->courier_takes = qm_cuda_courier_takes;
    device->courier_new = qm_cuda_courier_new;
    device->courier_memory = qm_cuda_courier_memory;
    device->memory = memory;
}
