/* buffers.h: bytes and ids that grow.  Running out of memory sticks: add as much as you like, look once. */
#ifndef QM_TOKENIZER_BUFFERS_H
#define QM_TOKENIZER_BUFFERS_H

#include <stdlib.h>
#include <string.h>

#include "../qm.h"

typedef struct qm_bytes {
    char *at;
    size_t n, room;
    bool failed;
} qm_bytes;

typedef struct qm_ids {
    uint32_t *at;
    size_t n, room;
    bool failed;
} qm_ids;

/* Memory of elements of `size` bytes, n of which are in use, with room for `more`: at itself or what it has
 * been moved to; NULL when there is none, and then `at` stays as it is. */
static inline void *qm_grown(void *at, size_t *room, size_t n, size_t more, size_t size)
{
    if (at && more <= *room - n)
        return at;
    size_t want = n + more > 2 * *room ? n + more : 2 * *room;
    void *grown = want > n && want < SIZE_MAX / 2 / size ? realloc(at, want * size) : NULL;
    if (grown)
        *room = want;
    return grown;
}

static inline void qm_bytes_add(qm_bytes *b, const void *bytes, size_t n)
{
    if (n == 0 || b->failed)
        return;
    void *grown = qm_grown(b->at, &b->room, b->n, n, 1);
    if (!grown) {
        b->failed = true;
        return;
    }
    b->at = grown;
    memcpy(b->at + b->n, bytes, n);
    b->n += n;
}

static inline void qm_ids_add(qm_ids *ids, uint32_t id)
{
    if (ids->failed)
        return;
    void *grown = qm_grown(ids->at, &ids->room, ids->n, 1, sizeof *ids->at);
    if (!grown) {
        ids->failed = true;
        return;
    }
    ids->at = grown;
    ids->at[ids->n++] = id;
}

static inline void qm_bytes_free(qm_bytes *b)
{
    free(b->at);
    *b = (qm_bytes){0};
}

static inline void qm_ids_free(qm_ids *ids)
{
    free(ids->at);
    *ids = (qm_ids){0};
}

#endif
