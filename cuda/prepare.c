/* prepare.c: a weight laid out for multiplication, once, when a model is loaded; see matrix.h. */
#include <math.h>
#include <string.h>

#include "../core/codebook.h"
#include "../core/double_quant.h"
#include "../core/tensor.h"
#include "run.h"

/* ---- what a matrix is ---------------------------------------------------------------------------- */

/* Blocks of a scale and 16 bytes with elements j and j + 16 in each. */
static bool is_block32(const qm_format *f)
{
    return !f->made && (!strcmp(f->name, "q4_0") || !strcmp(f->name, "iq4_nl") || !strcmp(f->name, "mxfp4"));
}

/* Codes of four bits, and one f32 a group in another plane. */
static bool is_flat(const qm_format *f)
{
    return f->plane[0].bits == 4 && f->plane[1].bytes == 4 && f->plane[1].dtype == QM_F32 && !f->plane[2].name
           && f->decode && f->tensor_range == 0;
}

static qm_scale_type block_scale(const qm_format *f)
{
    return strcmp(f->name, "mxfp4") ? QM_SCALE_F16 : QM_SCALE_E8M0;
}

/* What codes 0 ... 15 decode to with a scale of one. */
static void read_levels(const qm_format *f, float level[16])
{
    float value[32];
    if (is_block32(f)) {
        uint8_t block[18] = {0},
                *pair = block + f->plane[0].bytes; /* 1.0 as f16; 2^(128 - 128) as mxfp4 has it */
        block[0] = f->plane[0].bytes == 1 ? 128 : 0x00;
        block[1] = f->plane[0].bytes == 1 ? block[1] : 0x3c;
        for (int i = 0; i < 16; i++)
            pair[i] = (uint8_t)i;
        f->decode((const uint8_t *const[QM_MAX_PLANES]){block}, 32, &(qm_codec){.block = 32}, value);
    } else {
        const float one = 1;
        uint8_t codes[8];
        for (int i = 0; i < 8; i++)
            codes[i] = (uint8_t)(2 * i << 4 | (2 * i + 1));
        f->decode((const uint8_t *const[QM_MAX_PLANES]){codes, (const uint8_t *)&one}, 16,
                  &(qm_codec){.block = 16, .table = f->table}, value);
    }
    memcpy(level, value, 16 * sizeof *level);
}

/* Divides by a power of two, so that the largest magnitude is in (1/2, 1]. */
static float bring_to_one(float level[16])
{
    float most = 0, factor = 1;
    for (int i = 0; i < 16; i++) {
        float v = level[i] < 0 ? -level[i] : level[i];
        most = v > most ? v : most;
    }
    while (most > factor && factor < 0x1p100f)
        factor *= 2;
    while (most > 0 && most <= factor / 2 && factor > 0x1p-100f)
        factor /= 2;
    for (int i = 0; i < 16; i++)
        level[i] /= factor;
    return factor;
}

/* The tensor cores take levels as f16.  Of the factors from 1 to 2, that with which they lose least by it:
 * none at all for FP4, which are twelfths, and for whole numbers; NF4 loses a third less than as it is. */
static float round_well(float level[16])
{
    enum { STEPS = 4096 };
    double least = INFINITY;
    float best = 1;
    for (int i = 0; i < STEPS && least > 0; i++) {
        float by = 1 + (float)i / STEPS;
        double lost = 0;
        for (int k = 0; k < 16; k++) {
            double d = (double)qm_f16_to_f32(qm_f32_to_f16(level[k] * by)) / (double)by - (double)level[k];
            lost += d * d;
        }
        best = lost < least ? by : best;
        least = lost < least ? lost : least;
    }
    for (int k = 0; k < 16; k++)
        level[k] *= best;
    return 1 / best;
}

/* Levels and factor of m, from its levels as they decode; what was found lately is not sought again. */
static void find_levels(qm_cuda_ops *o, qm_matrix *m)
{
    qm_levels found = {.factor = 1};
    memcpy(found.of, m->level, sizeof found.of);
    for (int i = 0; o && i < QM_KNOWN_LEVELS && i < o->levels_found; i++)
        if (memcmp(o->levels[i].of, found.of, sizeof found.of) == 0) {
            memcpy(m->level, o->levels[i].level, sizeof m->level);
            m->factor = o->levels[i].factor;
            return;
        }
    m->factor = bring_to_one(m->level);
    m->factor *= round_well(m->level);
    memcpy(found.level, m->level, sizeof found.level);
    found.factor = m->factor;
    if (o)
        o->levels[o->levels_found++ % QM_KNOWN_LEVELS] = found;
}

/* Fills in all of m but its addresses; false when a weight cannot be laid out so. */
static bool describe(qm_cuda_ops *o, const qm_tensor *t, qm_matrix *m)
{
    const qm_format *f = t->format;
    uint64_t cols = (uint64_t)qm_tensor_cols(t), count = (uint64_t)qm_tensor_count(t);
    uint32_t block = t->codec.block;
    if (t->shape.ndim != 2 || cols == 0 || cols > UINT32_MAX || count / cols > UINT32_MAX
        || !(is_flat(f) || is_block32(f)) || block < 16 || cols % block)
        return false;
    *m = (qm_matrix){
        .rows = (uint32_t)(count / cols), .cols = (uint32_t)cols, .group = block > 128 ? 128 : block};
    m->scale = is_block32(f) ? block_scale(f) : QM_SCALE_F32;
    if (t->double_quant && block >= 32 && block <= 128 && cols / m->group % (128 / m->group) == 0)
        m->scale = QM_SCALE_NESTED;
    m->offset = t->offset;
    read_levels(f, m->level);
    find_levels(o, m);
    return true;
}

bool qm_cuda_matrix_of(const qm_cuda *d, const qm_tensor *t, qm_matrix *m)
{
    if (!t->laid_out || !describe(d->ops, t, m))
        return false;
    m->items = t->plane[0].data;
    m->most = qm_matrix_most(m);
    m->nested = (const float *)(const void *)t->plane[2].data;
    m->dynamic = d->ops->dynamic;
    return true;
}

/* ---- there and back ------------------------------------------------------------------------------ */

static qm_matrix_source source_of(const qm_tensor *t)
{
    qm_matrix_source s = {.codes = (uint8_t *)(uintptr_t)t->plane[0].data,
                          .scales = (uint8_t *)(uintptr_t)t->plane[1].data,
                          .cols = (uint32_t)qm_tensor_cols(t),
                          .block = t->codec.block};
    if (is_block32(t->format))
        s.block_bytes = 16 + t->format->plane[0].bytes;
    return s;
}

static bool copy_nested(qm_cuda *d, const qm_tensor *t, qm_tensor *out, qm_err *e)
{
    return qm_cuda_check(d,
                         cudaMemcpyAsync((void *)(uintptr_t)out->plane[2].data, t->plane[2].data,
                                         t->plane[2].size, cudaMemcpyDeviceToDevice, d->stream),
                         "laying out a weight", e);
}

/* Scales of a second level that the kernels do not take: decoded, into *scratch. */
static bool single_scales(qm_cuda *d, const qm_tensor *t, qm_matrix_source *s, void **scratch, qm_err *e)
{
    uint64_t groups = t->plane[1].size;
    *scratch = qm_cuda_scratch(d, d->stream, groups * sizeof(float), e);
    s->scales = *scratch;
    return *scratch
           && qm_cuda_check(d,
                            qm_nested_decode(t->plane[1].data, (const float *)(const void *)t->plane[2].data,
                                             groups, t->offset, *scratch, d->stream),
                            "laying out a weight", e);
}

/* t laid out, but for the bytes of its planes, which are on `where`. */
static qm_tensor *blank(qm_device *where, const qm_tensor *t, const qm_matrix *m, qm_err *e)
{
    qm_tensor *out = qm_tensor_like(t, e);
    bool nested = m->scale == QM_SCALE_NESTED;
    if (!out)
        return NULL;
    out->laid_out = true;
    out->double_quant = t->double_quant && nested;
    if (qm_tensor_plane_new(out, 0, qm_matrix_bytes(m->scale, m->group, m->rows, m->cols), where, e)
        && (!nested || qm_tensor_plane_new(out, 2, t->plane[2].size, where, e)))
        return out;
    qm_tensor_free(out);
    return NULL;
}

static bool pack(qm_cuda *d, const qm_tensor *t, const qm_matrix *m, qm_tensor *out, qm_err *e)
{
    qm_matrix_source s = source_of(t);
    void *scratch = NULL;
    uint8_t *items = (uint8_t *)(uintptr_t)out->plane[0].data;
    bool ok = !t->double_quant
              || (out->double_quant ? copy_nested(d, t, out, e) : single_scales(d, t, &s, &scratch, e));
    qm_matrix there = *m; /* its scales may be nested, and are decoded to be measured */
    there.nested = (const float *)(const void *)out->plane[2].data;
    there.dynamic = d->ops->dynamic;
    ok = ok && qm_cuda_check(d, qm_matrix_pack(m, items, &s, d->stream), "laying out a weight", e)
         && qm_cuda_check(d, qm_matrix_measure(&there, items, d->stream), "laying out a weight", e);
    qm_cuda_unscratch(scratch, d->stream);
    return ok;
}

/* Vectors, of norms and biases, are f32, so that no step has to decode them again. */
static bool is_vector(const qm_tensor *t) { return t->shape.ndim == 1 && t->format; }

/* What no kernel multiplies by is kept as f16. */
static const qm_format *plain_for(const qm_tensor *t) { return qm_format_find(is_vector(t) ? "f32" : "f16"); }

static bool stays(const qm_tensor *t)
{
    const qm_dtype plain = qm_cuda_plain_type(t->format);
    return t->laid_out || (is_vector(t) ? plain == QM_F32 : plain != QM_DTYPE_COUNT);
}

bool qm_cuda_prepared(qm_device *device, qm_device *where, const qm_tensor *t, qm_tensor **out, qm_err *e)
{
    qm_matrix m;
    *out = NULL;
    if (stays(t))
        return true;
    *out = t->format && describe(((qm_cuda *)device)->ops, t, &m)
               ? blank(where, t, &m, e)
               : qm_tensor_blank(t, plain_for(t), &(qm_quantize_options){0}, where, e);
    return *out != NULL;
}

bool qm_cuda_prepare(qm_device *device, const qm_tensor *t, qm_tensor **out, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_matrix m;
    *out = NULL;
    qm_cuda_enter(d);
    if (stays(t))
        return true;
    if (!d->ops && !qm_cuda_ops_open(d, e))
        return false;
    if (!t->format || !describe(d->ops, t, &m))
        return (*out = device->quantize(device, t, plain_for(t), &(qm_quantize_options){0}, e)) != NULL;
    *out = blank(device, t, &m, e);
    if (*out && pack(d, t, &m, *out, e))
        return true;
    qm_tensor_free(*out);
    *out = NULL;
    return false;
}

qm_tensor *qm_cuda_restore(qm_device *device, const qm_tensor *t, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_matrix m;
    qm_cuda_enter(d);
    if (!qm_cuda_matrix_of(d, t, &m)) {
        qm_fail(e, QM_EFAIL, "tensor '%s' is not laid out as %s has it", t->name ? t->name : "",
                device->name);
        return NULL;
    }
    uint64_t n = (uint64_t)m.rows * m.cols;
    qm_tensor *out = qm_tensor_like(t, e);
    bool ok = out != NULL;
    for (int i = 0; ok && i < qm_format_planes(t->format); i++)
        ok = qm_tensor_plane_new(out, i, qm_tensor_plane_size(t, i, n), device, e) != NULL;
    ok = ok
         && (!t->double_quant
             || (qm_tensor_plane_new(out, 2, t->plane[2].size, device, e) && copy_nested(d, t, out, e)));
    if (ok) {
        qm_matrix_source s = source_of(out);
        ok = qm_cuda_check(d, qm_matrix_unpack(&m, &s, d->stream), "bringing a weight back", e);
    }
    if (ok)
        return out;
    qm_tensor_free(out);
    return NULL;
}
