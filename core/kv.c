/* kv.c: see kv.h. */
#include "kv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

size_t qm_kv_item(const qm_kv *kv) { return kv->dtype == QM_F16 ? 2 : 4; }

/* Bytes of one head's keys. */
static uint64_t head_size(const qm_kv *kv)
{
    return (uint64_t)kv->context * (uint64_t)kv->head_dim * qm_kv_item(kv);
}

uint64_t qm_kv_bytes(const qm_kv *kv)
{
    return 2 * (uint64_t)kv->layers * (uint64_t)kv->kv_heads * head_size(kv);
}

qm_kv *qm_kv_new(int layers, int kv_heads, int head_dim, int context, qm_dtype dtype, qm_device *d, qm_err *e)
{
    qm_kv shape = {layers, kv_heads, head_dim, context, dtype, NULL, NULL, NULL};
    double bytes = 2.0 * layers * kv_heads * head_dim * context * (double)qm_kv_item(&shape);
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
            "give a smaller context, or dtype=\"f16\"",
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
    size_t token = (size_t)kv->head_dim * qm_kv_item(kv);
    for (int layer = 0; layer < kv->layers; layer++)
        for (int head = 0; head < kv->kv_heads; head++) {
            size_t used = (size_t)kv->count[layer] * token;
            memcpy(qm_kv_keys(copy, layer, head), qm_kv_keys(kv, layer, head), used);
            memcpy(qm_kv_values(copy, layer, head), qm_kv_values(kv, layer, head), used);
        }
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

uint8_t *qm_kv_keys(const qm_kv *kv, int layer, int head)
{
    return kv->data + ((uint64_t)layer * 2 * (uint64_t)kv->kv_heads + (uint64_t)head) * head_size(kv);
}

uint8_t *qm_kv_values(const qm_kv *kv, int layer, int head)
{
    return qm_kv_keys(kv, layer, head) + (uint64_t)kv->kv_heads * head_size(kv);
}
