/* kv.c: see kv.h. */
#include "kv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "formats/q8_0.h"
#include "vec.h"

/* ---- sizes -------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    qm_dtype dtype;
} types[] = {{"f32", QM_F32}, {"f16", QM_F16}, {"bf16", QM_BF16}, {"q8_0", QM_I8}};

const char qm_kv_types[] = "f32, f16, bf16 or q8_0";

qm_dtype qm_kv_type(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].dtype;
    return QM_DTYPE_COUNT;
}

const char *qm_kv_type_name(qm_dtype dtype)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].dtype == dtype)
            return types[i].name;
    return "unknown";
}

static uint64_t item_size(const qm_kv *kv) { return qm_dtypes[kv->dtype].bits / 8; }

/* Where a position of a head is among all of its part's. */
static uint64_t place_of(const qm_kv *kv, int head, int64_t position)
{
    return ((uint64_t)head * (uint64_t)kv->context + (uint64_t)position) * (uint64_t)kv->head_dim;
}

uint64_t qm_kv_scales_at(const qm_kv *kv) { return place_of(kv, kv->kv_heads, 0) * item_size(kv); }

static uint64_t part_size(const qm_kv *kv)
{
    uint64_t scales = kv->dtype == QM_I8 ? place_of(kv, kv->kv_heads, 0) / QM_KV_RUN * sizeof(uint16_t) : 0;
    return qm_kv_scales_at(kv)
           + (scales + 15) / 16 * 16; /* so that the next part begins on 16 bytes as well */
}

uint64_t qm_kv_bytes(const qm_kv *kv) { return 2 * (uint64_t)kv->layers * part_size(kv); }

/* ---- making one --------------------------------------------------------------------------------------- */

qm_kv *qm_kv_new(int layers, int kv_heads, int head_dim, int context, qm_dtype dtype, qm_device *d, qm_err *e)
{
    qm_kv shape = {layers, kv_heads, head_dim, context, dtype, NULL, NULL, NULL};
    double bytes = 2.0 * layers * kv_heads * head_dim * context * (double)item_size(&shape);
    if (dtype == QM_I8 && head_dim % QM_KV_RUN) {
        qm_fail(e, QM_EUNSUPPORTED,
                "kv_cache: q8_0 has a scale for %d values, and heads of %d are no multiple of that; give "
                "dtype=\"f16\"",
                QM_KV_RUN, head_dim);
        return NULL;
    }
    qm_kv *kv = bytes < 0x1p52 ? malloc(sizeof *kv) : NULL;
    if (kv) {
        *kv = shape;
        kv->count = calloc((size_t)layers, sizeof *kv->count);
        kv->device = qm_device_ref(d);
        kv->data = d ? d->alloc(d, qm_kv_bytes(kv), e) : calloc(qm_kv_bytes(kv), 1);
    }
    if (kv && kv->count && kv->data)
        return kv;
    qm_kv_free(kv);
    qm_fail(e, QM_ENOFIT,
            "kv_cache: out of memory for %.0f bytes (%d layers of %d heads of %d, %d tokens of context); "
            "give a smaller context, or dtype=\"f16\" or \"q8_0\"",
            bytes, layers, kv_heads, head_dim, context);
    return NULL;
}

void qm_kv_free(qm_kv *kv)
{
    if (!kv)
        return;
    free(kv->count);
    if (kv->device && kv->data)
        kv->device->release(kv->device, kv->data);
    else
        free(kv->data);
    qm_device_unref(kv->device);
    free(kv);
}

/* What is used of a head, and no page more. */
static void copy_head(const qm_kv *from, qm_kv *to, int part, int head)
{
    uint8_t *source = qm_kv_part(from, part / 2, part % 2), *target = qm_kv_part(to, part / 2, part % 2);
    uint64_t at = place_of(from, head, 0), used = (uint64_t)from->count[part / 2] * (uint64_t)from->head_dim;
    uint64_t scales = qm_kv_scales_at(from) + at / QM_KV_RUN * sizeof(uint16_t);
    memcpy(target + at * item_size(from), source + at * item_size(from), used * item_size(from));
    if (from->dtype == QM_I8)
        memcpy(target + scales, source + scales, used / QM_KV_RUN * sizeof(uint16_t));
}

qm_kv *qm_kv_copy(const qm_kv *kv, qm_err *e)
{
    if (kv->device) {
        qm_fail(e, QM_EUNSUPPORTED, "kv_cache: a cache on %s is not copied; make another", kv->device->name);
        return NULL;
    }
    qm_kv *copy = qm_kv_new(kv->layers, kv->kv_heads, kv->head_dim, kv->context, kv->dtype, NULL, e);
    if (!copy)
        return NULL;
    memcpy(copy->count, kv->count, (size_t)kv->layers * sizeof *kv->count);
    for (int part = 0; part < 2 * kv->layers; part++)
        for (int head = 0; head < kv->kv_heads; head++)
            copy_head(kv, copy, part, head);
    return copy;
}

int qm_kv_length(const qm_kv *kv)
{
    int least = kv->count[0];
    for (int layer = 1; layer < kv->layers; layer++)
        least = kv->count[layer] < least ? kv->count[layer] : least;
    return least;
}

void qm_kv_truncate(qm_kv *kv, int tokens)
{
    for (int layer = 0; layer < kv->layers; layer++)
        kv->count[layer] = kv->count[layer] < tokens ? kv->count[layer] : tokens;
}

/* ---- numbers ------------------------------------------------------------------------------------------ */

uint8_t *qm_kv_part(const qm_kv *kv, int layer, bool values)
{
    return kv->data + (2 * (uint64_t)layer + values) * part_size(kv);
}

/* By the format's own encoder, whose block has its scale in front. */
static void encode_run(const float *x, uint8_t *codes, uint8_t *scale)
{
    struct qm_q8_0 block;
    uint8_t *const plane[QM_MAX_PLANES] = {(uint8_t *)&block};
    bool finite = true;
    qm_format_find("q8_0")->encode(x, QM_KV_RUN, &(qm_codec){.block = QM_KV_RUN}, plane);
    for (int i = 0; i < QM_KV_RUN; i++)
        finite = finite && x[i] - x[i] == 0;
    block.d = finite ? block.d : 0x7e00; /* a NaN */
    memcpy(codes, block.code, sizeof block.code);
    memcpy(scale, &block.d, sizeof block.d);
}

void qm_kv_put(const qm_kv *kv, uint8_t *part, int head, int64_t position, const float *row)
{
    const size_t dim = (size_t)kv->head_dim;
    uint64_t at = place_of(kv, head, position);
    uint8_t *to = part + at * item_size(kv),
            *scale = part + qm_kv_scales_at(kv) + at / QM_KV_RUN * sizeof(uint16_t);
    switch (kv->dtype) {
    case QM_F16:
        qm_vec_get()->f32_to_f16(row, to, dim);
        return;
    case QM_BF16:
        qm_vec_get()->f32_to_bf16(row, to, dim);
        return;
    case QM_I8:
        for (size_t i = 0; i < dim; i += QM_KV_RUN, scale += sizeof(uint16_t))
            encode_run(row + i, to + i, scale);
        return;
    default:
        memcpy(to, row, dim * sizeof *row);
    }
}

const float *qm_kv_get(const qm_kv *kv, const uint8_t *part, int head, int64_t from, int64_t to, float *space)
{
    const size_t n = (size_t)((to - from) * kv->head_dim);
    uint64_t at = place_of(kv, head, from);
    const uint8_t *source = part + at * item_size(kv);
    switch (kv->dtype) {
    case QM_F16:
        qm_vec_get()->f16_to_f32(source, space, n);
        return space;
    case QM_BF16:
        qm_vec_get()->bf16_to_f32(source, space, n);
        return space;
    case QM_I8:
        qm_vec_get()->codes_to_f32((const int8_t *)source,
                                   part + qm_kv_scales_at(kv) + at / QM_KV_RUN * sizeof(uint16_t), space, n);
        return space;
    default:
        return (const float *)(const void *)source;
    }
}
