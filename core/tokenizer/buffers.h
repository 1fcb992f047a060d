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

/* Room for `more` further elements of `size` bytes at *at, of which n are in use. */
static inline bool qm_buffer_grow(void **at, size_t *room, size_t n, size_t more, size_t size)
{
    if (more <= *room - n)
        return true;
    size_t want = n + more > 2 * *room ? n + more : 2 * *room;
    void *grown = want < SIZE_MAX / 2 / size ? realloc(*at, want * size) : NULL;
    if (!grown)
        return false;
    *at = grown;
    *room = want;
    return true;
}

static inline void qm_bytes_add(qm_bytes *b, const void *bytes, size_t n)
{
    if (n == 0 || b->failed || (b->failed = !qm_buffer_grow((void **)&b->at, &b->room, b->n, n, 1)))
        return;
    memcpy(b->at + b->n, bytes, n);
    b->n += n;
}

static inline void qm_ids_add(qm_ids *ids, uint32_t id)
{
    if (ids->failed
        || (ids->failed = !qm_buffer_grow((void **)&ids->at, &ids->room, ids->n, 1, sizeof *ids->at)))
        return;
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
