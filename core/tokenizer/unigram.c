/* unigram.c: the likeliest way to cut a word; see vocabulary.h.
 *
 * cuts[b] is the best way to cut the first b bytes.  From every character on, all pieces that the word goes
 * on with are tried, by walking down the tree of pieces; where none is one character long, the unknown piece
 * is, which costs 10 more than the unlikeliest piece.
 */
#include "../utf8.h"
#include "vocabulary_parts.h"

#define NONE QM_NO_PIECE

/* ---- the tree ------------------------------------------------------------------------------ */

/* The slot of this edge, or the free one where it belongs. */
static edge *edge_seek(const qm_vocabulary *v, uint32_t node, uint8_t byte)
{
    uint64_t h = ((uint64_t)node << 8 | byte) * 0x9e3779b97f4a7c15u;
    uint32_t at = (uint32_t)(h >> 32) & v->edge_mask;
    while (v->edges[at].to != 0 && !(v->edges[at].node == node && v->edges[at].byte == byte))
        at = (at + 1) & v->edge_mask;
    return &v->edges[at];
}

static void add_piece(qm_vocabulary *v, uint32_t entry)
{
    size_t n;
    const char *text = qm_pieces_text(&v->pieces, entry, &n);
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        edge *next = edge_seek(v, node, (uint8_t)text[i]);
        if (next->to == 0) {
            *next = (edge){node, (uint32_t)v->piece_at.n, (uint8_t)text[i]};
            qm_ids_add(&v->piece_at, NONE);
        }
        node = next->to;
    }
    v->piece_at.at[node] = entry;
}

bool qm_unigram_init(qm_vocabulary *v, qm_err *e)
{
    size_t nodes = v->pieces.text.n + 1, slots = 16; /* at most: most share their beginnings */
    while (slots < 2 * nodes)
        slots *= 2;
    v->edge_mask = (uint32_t)(slots - 1);
    v->edges = slots <= UINT32_MAX ? calloc(slots, sizeof *v->edges) : NULL;
    v->piece_at.at = qm_grown(NULL, &v->piece_at.room, 0, nodes, sizeof *v->piece_at.at);
    if (!v->edges || !v->piece_at.at)
        return qm_fail(e, QM_EFAIL, "a vocabulary of %zu bytes: out of memory", v->pieces.text.n);
    qm_ids_add(&v->piece_at, NONE); /* the root */
    for (uint32_t i = 0; i < v->pieces.end.n; i++)
        add_piece(v, i);
    v->unknown_score = v->rules.single ? (float)v->rules.unknown_score : v->rules.unknown_score;
    return true;
}

/* ---- cutting ------------------------------------------------------------------------------- */

static void offer(best_cut *to, double score, uint32_t from, uint32_t piece, bool single)
{
    if (single)
        score = (float)score;
    if (to->from == NONE || score > to->score)
        *to = (best_cut){score, from, piece};
}

static bool find_cuts(qm_vocabulary *v, const char *word, size_t n)
{
    void *grown = qm_grown(v->cuts, &v->cut_room, 0, n + 1, sizeof *v->cuts);
    if (!grown)
        return false;
    v->cuts = grown;
    for (size_t i = 0; i <= n; i++)
        v->cuts[i] = (best_cut){0, NONE, NONE};
    bool single = v->rules.single;
    for (size_t at = 0, step; at < n; at += step) {
        step = qm_utf8_step((const uint8_t *)word + at, n - at);
        step = step ? step : 1;
        double so_far = v->cuts[at].score;
        bool has_character = false;
        uint32_t node = 0;
        for (size_t end = at; end < n && (node = edge_seek(v, node, (uint8_t)word[end])->to) != 0;) {
            uint32_t entry = v->piece_at.at[node];
            end++;
            if (entry == NONE)
                continue;
            offer(&v->cuts[end], v->score[entry] + so_far, (uint32_t)at, entry, single);
            has_character = has_character || end == at + step;
        }
        if (!has_character) {
            offer(&v->cuts[at + step], v->unknown_score + so_far, (uint32_t)at, NONE, single);
        }
    }
    return true;
}

/* A run of unknown characters; as a whole it may be a piece after all, of a score too bad to be chosen. */
static bool emit_unknown(const qm_vocabulary *v, const char *text, size_t n, qm_ids *ids, qm_err *e)
{
    uint32_t id = qm_vocabulary_id(v, text, n);
    if (id == NONE)
        return qm_vocabulary_unknown(v, text, n, ids, e);
    qm_ids_add(ids, id);
    return true;
}

bool qm_unigram_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e)
{
    if (!find_cuts(v, word, n))
        return qm_fail(e, QM_EFAIL, "a word of %zu bytes: out of memory", n);
    v->path.n = 0;
    for (uint32_t end = (uint32_t)n; end > 0; end = v->cuts[end].from)
        qm_ids_add(&v->path, end); /* last to first */
    if (v->path.failed)
        return qm_fail(e, QM_EFAIL, "a word of %zu bytes: out of memory", n);
    size_t from = 0; /* of the run of unknown characters */
    for (size_t i = v->path.n; i-- > 0;) {
        const best_cut *cut = &v->cuts[v->path.at[i]];
        uint32_t id = cut->piece == NONE ? NONE : v->pieces.id.at[cut->piece];
        bool known = id != NONE && id != v->rules.unknown;
        if (from < cut->from && (known || !v->rules.fuse_unknown)) {
            if (!emit_unknown(v, word + from, cut->from - from, ids, e))
                return false;
            from = cut->from;
        }
        if (known) {
            qm_ids_add(ids, id);
            from = v->path.at[i];
        }
    }
    return from == n || emit_unknown(v, word + from, n - from, ids, e);
}
