/* pieces.h: the strings of a vocabulary, found by their bytes.
 *
 *   text   "!" "\"" … "Ġthe" …     end to end
 *   end     1   2      2081         where each stops
 *   id      0   1       262         what it counts as: any 32-bit number, in any order
 *   slot    a hash table of entry numbers, open addressing, at most half full
 */
#ifndef QM_TOKENIZER_PIECES_H
#define QM_TOKENIZER_PIECES_H

#include "buffers.h"

#define QM_NO_PIECE UINT32_MAX

typedef struct qm_pieces {
    qm_bytes text;
    qm_ids end, id;
    uint32_t *slot;
    uint32_t mask; /* slots - 1 */
} qm_pieces;

/* Room for `count` pieces; they are added in any order, and the last of several equal ones counts. */
bool qm_pieces_init(qm_pieces *p, size_t count, qm_err *e);
bool qm_pieces_add(qm_pieces *p, const char *text, size_t n, uint32_t id, qm_err *e);
void qm_pieces_free(qm_pieces *p);

/* The number of the entry with these bytes, or QM_NO_PIECE. */
uint32_t qm_pieces_find(const qm_pieces *p, const char *text, size_t n);

static inline const char *qm_pieces_text(const qm_pieces *p, uint32_t entry, size_t *n)
{
    size_t from = entry ? p->end.at[entry - 1] : 0;
    *n = p->end.at[entry] - from;
    return p->text.at + from;
}

/* A hash of bytes, for tables in memory only. */
uint64_t qm_hash(const char *text, size_t n);

#endif
