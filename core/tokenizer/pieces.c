/* pieces.c: see pieces.h. */
#include "pieces.h"

uint64_t qm_hash(const char *text, size_t n)
{
    const uint64_t odd = 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: spreads neighbours */
    uint64_t h = n * odd, word;
    for (; n >= 8; n -= 8, text += 8) {
        memcpy(&word, text, 8);
        h = (h ^ word) * odd;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, text, n);
    h = (h ^ word) * odd;
    return h ^ h >> 29;
}

bool qm_pieces_init(qm_pieces *p, size_t count, qm_err *e)
{
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    *p = (qm_pieces){.mask = (uint32_t)(slots - 1)};
    if (count > UINT32_MAX / 4 || !(p->slot = malloc(slots * sizeof *p->slot)))
        return qm_fail(e, QM_EFAIL, "a vocabulary of %zu pieces: out of memory", count);
    memset(p->slot, 0xff, slots * sizeof *p->slot); /* QM_NO_PIECE */
    return true;
}

void qm_pieces_free(qm_pieces *p)
{
    qm_bytes_free(&p->text);
    qm_ids_free(&p->end);
    qm_ids_free(&p->id);
    free(p->slot);
    p->slot = NULL;
}

/* The slot that holds these bytes, or the free one where they belong. */
static uint32_t *seek(const qm_pieces *p, const char *text, size_t n)
{
    for (uint32_t at = (uint32_t)qm_hash(text, n) & p->mask;; at = (at + 1) & p->mask) {
        if (p->slot[at] == QM_NO_PIECE)
            return &p->slot[at];
        size_t length;
        const char *there = qm_pieces_text(p, p->slot[at], &length);
        if (length == n && memcmp(there, text, n) == 0)
            return &p->slot[at];
    }
}

bool qm_pieces_add(qm_pieces *p, const char *text, size_t n, uint32_t id, qm_err *e)
{
    uint32_t *slot = seek(p, text, n);
    if (*slot != QM_NO_PIECE) {
        p->id.at[*slot] = id;
        return true;
    }
    if (p->end.n > p->mask / 2 || p->text.n + n >= UINT32_MAX)
        return qm_fail(e, QM_EFAIL, "a vocabulary has more than %u pieces or 4 GiB of text", p->mask / 2);
    *slot = (uint32_t)p->end.n;
    qm_bytes_add(&p->text, text, n);
    qm_ids_add(&p->end, (uint32_t)p->text.n);
    qm_ids_add(&p->id, id);
    return !(p->text.failed || p->end.failed || p->id.failed)
           || qm_fail(e, QM_EFAIL, "a vocabulary of %zu bytes: out of memory", p->text.n);
}

uint32_t qm_pieces_find(const qm_pieces *p, const char *text, size_t n) { return *seek(p, text, n); }
