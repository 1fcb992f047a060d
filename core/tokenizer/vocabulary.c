/* vocabulary.c: see vocabulary.h. */
#include "vocabulary_parts.h"

/* Words are addressed by 32-bit numbers; what is longer is no word. */
#define LONGEST_WORD ((size_t)1 << 31)

/* ---- making ------------------------------------------------------------------------------ */

static bool copy(void **to, const void *from, size_t n, size_t size, qm_err *e)
{
    if (!from || n == 0)
        return true;
    *to = malloc(n * size);
    if (!*to)
        return qm_fail(e, QM_EFAIL, "a vocabulary of %zu pieces: out of memory", n);
    memcpy(*to, from, n * size);
    return true;
}

static bool copy_text(char **to, const char *from, qm_err *e)
{
    return copy((void **)to, from, from && *from ? strlen(from) + 1 : 0, 1, e);
}

static bool fill(qm_vocabulary *v, const qm_vocabulary_rules *rules, const qm_merge *merges, size_t n_merges,
                 const uint32_t *rank, const double *score, const bool *unused, qm_err *e)
{
    size_t n = v->pieces.end.n;
    if (!copy_text(&v->prefix, rules->prefix, e) || !copy_text(&v->suffix, rules->suffix, e)
        || !copy((void **)&v->rank, rank, n, sizeof *rank, e)
        || !copy((void **)&v->score, score, n, sizeof *score, e)
        || !copy((void **)&v->unused, unused, n, sizeof *unused, e))
        return false;
    v->words = calloc(REMEMBERED_WORDS, sizeof *v->words);
    v->first = unused ? calloc(n + 1, sizeof *v->first) : NULL;
    if (!v->words || (unused && !v->first))
        return qm_fail(e, QM_EFAIL, "a vocabulary of %zu pieces: out of memory", n);
    return rules->kind == QM_UNIGRAM ? qm_unigram_init(v, e) : qm_merging_init(v, merges, n_merges, e);
}

qm_vocabulary *qm_vocabulary_new(qm_pieces *pieces, const qm_vocabulary_rules *rules, const qm_merge *merges,
                                 size_t n_merges, const uint32_t *rank, const double *score,
                                 const bool *unused, qm_err *e)
{
    qm_vocabulary *v = calloc(1, sizeof *v);
    if (!v) {
        qm_pieces_free(pieces);
        qm_fail(e, QM_EFAIL, "a vocabulary: out of memory");
        return NULL;
    }
    v->pieces = *pieces;
    *pieces = (qm_pieces){0};
    v->rules = *rules;
    if (!fill(v, rules, merges, n_merges, rank, score, unused, e)) {
        qm_vocabulary_free(v);
        return NULL;
    }
    return v;
}

void qm_vocabulary_free(qm_vocabulary *v)
{
    if (!v)
        return;
    qm_pieces_free(&v->pieces);
    void *owned[] = {v->prefix, v->suffix,  v->words, v->merges, v->rank,  v->unused,
                     v->first,  v->symbols, v->heap,  v->score,  v->edges, v->cuts};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        free(owned[i]);
    qm_bytes_free(&v->scratch);
    qm_ids_free(&v->piece_at);
    qm_ids_free(&v->path);
    free(v);
}

/* ---- encoding ---------------------------------------------------------------------------- */

uint32_t qm_vocabulary_id(const qm_vocabulary *v, const char *text, size_t n)
{
    uint32_t entry = qm_pieces_find(&v->pieces, text, n);
    return entry == QM_NO_PIECE ? QM_NO_PIECE : v->pieces.id.at[entry];
}

static bool all_bytes(const qm_vocabulary *v, const char *text, size_t n)
{
    if (!v->rules.byte_fallback)
        return false;
    for (size_t i = 0; i < n; i++)
        if (v->rules.byte_id[(uint8_t)text[i]] == QM_NO_PIECE)
            return false;
    return true;
}

bool qm_vocabulary_unknown(const qm_vocabulary *v, const char *text, size_t n, qm_ids *ids, qm_err *e)
{
    if (all_bytes(v, text, n)) {
        for (size_t i = 0; i < n; i++)
            qm_ids_add(ids, v->rules.byte_id[(uint8_t)text[i]]);
        return true;
    }
    if (v->rules.unknown == QM_NO_PIECE)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "the vocabulary has no piece for '%.*s', and none for what is unknown",
                       n < 80 ? (int)n : 80, text);
    qm_ids_add(ids, v->rules.unknown);
    return true;
}

static bool encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e)
{
    if (v->rules.kind == QM_UNIGRAM)
        return qm_unigram_encode(v, word, n, ids, e);
    if (v->rules.whole_words) {
        uint32_t id = qm_vocabulary_id(v, word, n);
        if (id != QM_NO_PIECE) {
            qm_ids_add(ids, id);
            return true;
        }
    }
    return qm_merging_encode(v, word, n, ids, e);
}

/* Most words of a text have come before: they are kept, one for each value of the hash. */
bool qm_vocabulary_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e)
{
    if (n == 0)
        return true;
    if (n >= LONGEST_WORD)
        return qm_fail(e, QM_EUNSUPPORTED, "a word of %zu bytes: words of 2 GiB and more cannot be cut", n);
    remembered *r = n <= REMEMBERED_BYTES ? &v->words[qm_hash(word, n) % REMEMBERED_WORDS] : NULL;
    if (r && r->length == n && memcmp(r->text, word, n) == 0) {
        for (int i = 0; i < r->count; i++)
            qm_ids_add(ids, r->id[i]);
    } else {
        size_t before = ids->n;
        if (!encode(v, word, n, ids, e))
            return false;
        size_t count = ids->n - before;
        if (r && !ids->failed && count <= REMEMBERED_IDS) {
            r->length = (uint8_t)n;
            r->count = (uint8_t)count;
            memcpy(r->text, word, n);
            memcpy(r->id, ids->at + before, count * sizeof *r->id);
        }
    }
    return !ids->failed || qm_fail(e, QM_EFAIL, "%zu ids: out of memory", ids->n);
}
