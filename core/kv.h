/* kv.h: keys and values of the tokens a model has seen: what attention remembers.
 *
 *   layer 0:  keys    [kv_heads][context][head_dim]
 *             values  [kv_heads][context][head_dim]
 *   layer 1:  …
 *
 * f16 (as llama.cpp keeps them) or f32.  Every layer counts its own tokens: in the middle of a forward pass
 * the first layers are ahead of the last ones.  Pages of the context that were never used take no memory.
 */
#ifndef QM_KV_H
#define QM_KV_H

#include "device.h"

typedef struct qm_kv {
    int layers, kv_heads, head_dim, context;
    qm_dtype dtype; /* QM_F16 or QM_F32 */
    int *count;     /* tokens, of each layer */
    uint8_t *data;
    qm_device *device; /* where data is; NULL: here.  One reference */
} qm_kv;

/* d: NULL for this machine's memory. */
qm_kv *qm_kv_new(int layers, int kv_heads, int head_dim, int context, qm_dtype dtype, qm_device *d, qm_err *e);
void qm_kv_free(qm_kv *kv); /* NULL is fine */
qm_kv *qm_kv_copy(const qm_kv *kv, qm_err *e);

uint64_t qm_kv_bytes(const qm_kv *kv);
int qm_kv_length(const qm_kv *kv);          /* tokens that every layer holds */
void qm_kv_truncate(qm_kv *kv, int tokens); /* forgets all but the first */
size_t qm_kv_item(const qm_kv *kv);         /* bytes of one number */

/* Of one layer and head: position 0's first number. */
uint8_t *qm_kv_keys(const qm_kv *kv, int layer, int head);
uint8_t *qm_kv_values(const qm_kv *kv, int layer, int head);

#endif
