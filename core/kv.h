/* kv.h: keys and values of the tokens a model has seen: what attention remembers.
 *
 *   layer 0:  keys    [kv_heads][context][head_dim]
 *             values  [kv_heads][context][head_dim]
 *   layer 1:  …
 *
 * Numbers are f32, f16 (as llama.cpp keeps them), bf16, or q8_0: 8-bit codes times a scale for every 32 of a
 * token's, which is that of the format q8_0.  Keys are then, and values too:
 *
 *     codes   i8   [kv_heads][context][head_dim]
 *     scales  f16  [kv_heads][context][head_dim / 32]      NaN where one of the 32 was no finite number
 *
 * Every layer counts its own tokens: in the middle of a forward pass
 * the first layers are ahead of the last ones.  Pages of the context that were never used take no memory.
 */
#ifndef QM_KV_H
#define QM_KV_H

#include "device.h"

enum { QM_KV_RUN = 32 }; /* codes to a scale */

typedef struct qm_kv {
    int layers, kv_heads, head_dim, context;
    qm_dtype dtype; /* QM_F32, QM_F16, QM_BF16, or QM_I8: q8_0 */
    int *count;     /* tokens, of each layer */
    uint8_t *data;
    qm_device *device; /* where data is; NULL: here.  One reference */
} qm_kv;

/* d: NULL for this machine's memory. */
qm_kv *qm_kv_new(int layers, int kv_heads, int head_dim, int context, qm_dtype dtype, qm_device *d,
                 qm_err *e);
void qm_kv_free(qm_kv *kv); /* NULL is fine */
qm_kv *qm_kv_copy(const qm_kv *kv, qm_err *e);

uint64_t qm_kv_bytes(const qm_kv *kv);
int qm_kv_length(const qm_kv *kv);          /* tokens that every layer holds */
void qm_kv_truncate(qm_kv *kv, int tokens); /* forgets all but the first */

/* Types by name: "f32", "f16", "bf16", "q8_0"; QM_DTYPE_COUNT: none of them. */
extern const char qm_kv_types[]; /* all of them, for messages */
qm_dtype qm_kv_type(const char *name);
const char *qm_kv_type_name(qm_dtype dtype);

/* A layer's keys, or values: the first head's first number; and how many bytes behind it the scales are. */
uint8_t *qm_kv_part(const qm_kv *kv, int layer, bool values);
uint64_t qm_kv_scales_at(const qm_kv *kv);

/* Of one head of a part: head_dim numbers into a position; and positions from … to - 1 as f32, where they are
 * or in `space`, which holds them. */
void qm_kv_put(const qm_kv *kv, uint8_t *part, int head, int64_t position, const float *row);
const float *qm_kv_get(const qm_kv *kv, const uint8_t *part, int head, int64_t from, int64_t to,
                       float *space);

#endif
