/* merging.c: byte-pair encoding, by a list of merges or by scores; see vocabulary.h.
 *
 *   symbols     l o w e r        a list; joining two empties the right one and takes it out
 *   heap        (lo, 3) (er, 1)  every pair that may be joined; those overtaken by events are dropped
 *                                when they come up
 *
 * Every join adds two candidates at most, so a word of n characters costs n log n.
 */
#include "../utf8.h"
#include "vocabulary_parts.h"

#define NONE QM_NO_PIECE

/* ---- merges ---------------------------------------------------------------------------- */

static uint32_t merge_hash(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

/* The slot that has this pair, or the free one where it belongs. */
static merge_slot *merge_seek(const qm_vocabulary *v, uint32_t left, uint32_t right)
{
    uint32_t at = merge_hash(left, right) & v->merge_mask;
    while (v->merges[at].made != NONE && !(v->merges[at].left == left && v->merges[at].right == right))
        at = (at + 1) & v->merge_mask;
    return &v->merges[at];
}

bool qm_merging_init(qm_vocabulary *v, const qm_merge *merges, size_t n, qm_err *e)
{
    size_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    if (n > UINT32_MAX / 4 || !(v->merges = malloc(slots * sizeof *v->merges)))
        return qm_fail(e, QM_EFAIL, "%zu merges: out of memory", n);
    memset(v->merges, 0xff, slots * sizeof *v->merges);
    v->merge_mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < n; i++)
        *merge_seek(v, merges[i].left, merges[i].right) = (merge_slot){merges[i].left, merges[i].right,
                                                                       (uint32_t)i, merges[i].made};
    return true;
}

/* What two neighbours make: .made is NONE when nothing. */
static candidate joined(const qm_vocabulary *v, const char *word, uint32_t left)
{
    const symbol *l = &v->symbols[left], *r = &v->symbols[l->after];
    if (v->rules.kind == QM_BY_MERGES) {
        const merge_slot *slot = merge_seek(v, l->id, r->id);
        return (candidate){slot->rank, left, slot->made};
    }
    uint32_t entry = qm_pieces_find(&v->pieces, word + l->from, l->length + r->length);
    return (candidate){entry == NONE ? 0 : v->rank[entry], left, entry};
}

/* ---- heap ------------------------------------------------------------------------------ */

static bool before(candidate a, candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

static bool push(qm_vocabulary *v, candidate c)
{
    void *grown = qm_grown(v->heap, &v->heap_room, v->n_heap, 1, sizeof *v->heap);
    if (!grown)
        return false;
    v->heap = grown;
    size_t i = v->n_heap++;
    for (; i > 0 && before(c, v->heap[(i - 1) / 2]); i = (i - 1) / 2)
        v->heap[i] = v->heap[(i - 1) / 2];
    v->heap[i] = c;
    return true;
}

static candidate pop(qm_vocabulary *v)
{
    candidate top = v->heap[0], last = v->heap[--v->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < v->n_heap; i = child) {
        if (child + 1 < v->n_heap && before(v->heap[child + 1], v->heap[child]))
            child++;
        if (!before(v->heap[child], last))
            break;
        v->heap[i] = v->heap[child];
    }
    v->heap[i] = last;
    return top;
}

/* ---- joining ----------------------------------------------------------------------------- */

static bool consider(qm_vocabulary *v, const char *word, uint32_t left)
{
    if (left == NONE || v->symbols[left].after == NONE)
        return true;
    candidate c = joined(v, word, left);
    if (c.made == NONE)
        return true;
    if (v->unused && v->unused[c.made])
        v->first[c.made] = v->symbols[left].length;
    return push(v, c);
}

static void join(qm_vocabulary *v, const candidate *c)
{
    symbol *left = &v->symbols[c->at], *right = &v->symbols[left->after];
    left->length += right->length;
    left->id = c->made;
    right->length = 0;
    left->after = right->after;
    if (left->after != NONE)
        v->symbols[left->after].before = c->at;
}

static bool join_all(qm_vocabulary *v, const char *word)
{
    v->n_heap = 0;
    for (uint32_t i = 0; i < v->n_symbols; i++)
        if (!consider(v, word, i))
            return false;
    while (v->n_heap > 0) {
        candidate top = pop(v);
        const symbol *s = &v->symbols[top.at];
        if (s->length == 0 || s->after == NONE || joined(v, word, top.at).made != top.made)
            continue; /* one of the two has been joined to something else */
        join(v, &top);
        if (!consider(v, word, s->before) || !consider(v, word, top.at))
            return false;
    }
    return true;
}

/* ---- from characters to ids ---------------------------------------------------------------- */

static bool add_symbol(qm_vocabulary *v, size_t from, size_t length, uint32_t id)
{
    void *grown = qm_grown(v->symbols, &v->symbol_room, v->n_symbols, 1, sizeof *v->symbols);
    if (!grown)
        return false;
    v->symbols = grown;
    uint32_t i = (uint32_t)v->n_symbols++;
    if (i > 0)
        v->symbols[i - 1].after = i;
    v->symbols[i] = (symbol){(uint32_t)from, (uint32_t)length, id, i ? i - 1 : NONE, NONE};
    return true;
}

static size_t character(const char *p, size_t n)
{
    size_t step = qm_utf8_step((const uint8_t *)p, n);
    return step ? step : 1;
}

/* The id of a character, which inside a word and at its end may be spelled otherwise in the vocabulary. */
static uint32_t character_id(qm_vocabulary *v, const char *p, size_t n, bool first, bool last)
{
    bool prefix = v->prefix && !first, suffix = v->suffix && last;
    if (!prefix && !suffix)
        return qm_vocabulary_id(v, p, n);
    v->scratch.n = 0;
    qm_bytes_add(&v->scratch, v->prefix, prefix ? strlen(v->prefix) : 0);
    qm_bytes_add(&v->scratch, p, n);
    qm_bytes_add(&v->scratch, v->suffix, suffix ? strlen(v->suffix) : 0);
    return v->scratch.failed ? NONE : qm_vocabulary_id(v, v->scratch.at, v->scratch.n);
}

/* A character that is no piece, as bytes: whether every one has an id. */
static bool add_bytes(qm_vocabulary *v, const char *word, size_t from, size_t n, bool *enough)
{
    for (size_t i = from; i < from + n; i++)
        if (v->rules.byte_id[(uint8_t)word[i]] == NONE)
            return false;
    for (size_t i = from; *enough && i < from + n; i++)
        *enough = add_symbol(v, i, 1, v->rules.byte_id[(uint8_t)word[i]]);
    return true;
}

/* By merges: ids from the start.  An unknown character waits for the next known one, so that a run of them
 * can be one piece; bytes do not end its wait (so it is in tokenizers' merge_word). */
static bool symbols_with_ids(qm_vocabulary *v, const char *word, size_t n)
{
    size_t unknown = 0; /* bytes of it that wait */
    bool enough = true;
    for (size_t at = 0, step; at < n && enough; at += step) {
        step = character(word + at, n - at);
        uint32_t id = character_id(v, word + at, step, at == 0, at + step == n);
        if (id == NONE && v->rules.byte_fallback && add_bytes(v, word, at, step, &enough))
            continue;
        if (unknown && (id != NONE || !v->rules.fuse_unknown)) {
            enough = enough && add_symbol(v, at - unknown, unknown, v->rules.unknown);
            unknown = 0;
        }
        if (id != NONE)
            enough = enough && add_symbol(v, at, step, id);
        else if (v->rules.unknown != NONE)
            unknown += step;
    }
    return enough && (!unknown || add_symbol(v, n - unknown, unknown, v->rules.unknown));
}

static bool symbols_of_text(qm_vocabulary *v, const char *word, size_t n)
{
    for (size_t at = 0, step; at < n; at += step) {
        step = character(word + at, n - at);
        if (!add_symbol(v, at, step, NONE))
            return false;
    }
    return true;
}

/* By scores: the piece with these bytes, or those that an unused one was made of.  Bytes that are no piece
 * are left to *from: they may belong to a run. */
static bool emit(const qm_vocabulary *v, const char *word, size_t at, size_t n, size_t *from, qm_ids *ids,
                 qm_err *e)
{
    uint32_t entry = qm_pieces_find(&v->pieces, word + at, n);
    if (entry != NONE && v->unused && v->unused[entry] && v->first[entry]) {
        size_t left = v->first[entry];
        return emit(v, word, at, left, from, ids, e) && emit(v, word, at + left, n - left, from, ids, e);
    }
    if (*from < at && (entry != NONE || !v->rules.fuse_unknown)) {
        if (!qm_vocabulary_unknown(v, word + *from, at - *from, ids, e))
            return false;
        *from = at;
    }
    if (entry != NONE) {
        qm_ids_add(ids, v->pieces.id.at[entry]);
        *from = at + n;
    }
    return true;
}

static bool emit_all(const qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e)
{
    size_t from = 0;
    for (uint32_t i = 0; i < v->n_symbols; i = v->symbols[i].after) {
        const symbol *s = &v->symbols[i];
        if (v->rules.kind == QM_BY_MERGES)
            qm_ids_add(ids, s->id);
        else if (!emit(v, word, s->from, s->length, &from, ids, e))
            return false;
    }
    return v->rules.kind == QM_BY_MERGES || from == n
           || qm_vocabulary_unknown(v, word + from, n - from, ids, e);
}

bool qm_merging_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e)
{
    v->n_symbols = 0;
    bool made = v->rules.kind == QM_BY_MERGES ? symbols_with_ids(v, word, n) : symbols_of_text(v, word, n);
    if (!made || v->scratch.failed || !join_all(v, word))
        return qm_fail(e, QM_EFAIL, "a word of %zu bytes: out of memory", n);
    return v->n_symbols == 0 || emit_all(v, word, n, ids, e);
}
