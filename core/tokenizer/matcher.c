/* matcher.c: see matcher.h. */
#include "matcher.h"

#include "pieces.h"
#include "unicode.h"

struct qm_matcher {
    qm_pieces pieces; /* the id of a piece is its place in tokens */
    qm_added_token *tokens;
    uint32_t *length; /* those that there are, longest first */
    size_t n_lengths;
    bool starts[256]; /* bytes that a token starts with */
};

static int longer_first(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

static bool fill(qm_matcher *m, const qm_added_token *tokens, size_t n, qm_err *e)
{
    m->tokens = malloc((n + 1) * sizeof *m->tokens);
    m->length = malloc((n + 1) * sizeof *m->length);
    if (!m->tokens || !m->length)
        return qm_fail(e, QM_EFAIL, "%zu added tokens: out of memory", n);
    if (!qm_pieces_init(&m->pieces, n, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (tokens[i].n == 0)
            continue;
        m->tokens[i] = tokens[i];
        m->tokens[i].text = NULL; /* the pieces have it */
        m->length[m->n_lengths++] = (uint32_t)tokens[i].n;
        m->starts[(uint8_t)*tokens[i].text] = true;
        if (!qm_pieces_add(&m->pieces, tokens[i].text, tokens[i].n, (uint32_t)i, e))
            return false;
    }
    qsort(m->length, m->n_lengths, sizeof *m->length, longer_first);
    size_t kept = 0;
    for (size_t i = 0; i < m->n_lengths; i++)
        if (kept == 0 || m->length[i] != m->length[kept - 1])
            m->length[kept++] = m->length[i];
    m->n_lengths = kept;
    return true;
}

qm_matcher *qm_matcher_new(const qm_added_token *tokens, size_t n, qm_err *e)
{
    qm_matcher *m = calloc(1, sizeof *m);
    if (!m) {
        qm_fail(e, QM_EFAIL, "%zu added tokens: out of memory", n);
        return NULL;
    }
    if (!fill(m, tokens, n, e)) {
        qm_matcher_free(m);
        return NULL;
    }
    return m;
}

void qm_matcher_free(qm_matcher *m)
{
    if (!m)
        return;
    qm_pieces_free(&m->pieces);
    free(m->tokens);
    free(m->length);
    free(m);
}

/* The longest token at p, or NULL; *length: its bytes. */
static const qm_added_token *longest(const qm_matcher *m, const char *p, size_t n, size_t *length)
{
    for (size_t i = 0; i < m->n_lengths; i++) {
        if (m->length[i] > n)
            continue;
        uint32_t entry = qm_pieces_find(&m->pieces, p, m->length[i]);
        if (entry != QM_NO_PIECE) {
            *length = m->length[i];
            return &m->tokens[m->pieces.id.at[entry]];
        }
    }
    return NULL;
}

static bool stands_alone(const char *text, size_t n, size_t from, size_t to)
{
    size_t step;
    return !(from > 0 && qm_unicode_is_word(qm_unicode_read_back(text, text + from)))
           && !(to < n && qm_unicode_is_word(qm_unicode_read(text + to, n - to, &step)));
}

static size_t over_blanks_before(const char *text, size_t from, size_t floor)
{
    while (from > floor && qm_unicode_is_space(qm_unicode_read_back(text, text + from)))
        while (--from > floor && ((uint8_t)text[from] & 0xc0) == 0x80)
            ;
    return from;
}

static size_t over_blanks_behind(const char *text, size_t n, size_t to)
{
    for (size_t step; to < n && qm_unicode_is_space(qm_unicode_read(text + to, n - to, &step));)
        to += step;
    return to;
}

bool qm_matcher_next(const qm_matcher *m, const char *text, size_t n, bool special, size_t floor, size_t *at,
                     qm_match *match)
{
    for (size_t i = *at; i < n; i++) {
        size_t length = 0;
        const qm_added_token *token = m->starts[(uint8_t)text[i]] ? longest(m, text + i, n - i, &length)
                                                                  : NULL;
        if (!token)
            continue;
        size_t end = i + length;
        if ((token->special && !special) || (token->single_word && !stands_alone(text, n, i, end))) {
            i = end - 1;
            continue;
        }
        *at = end;
        match->id = token->id;
        match->from = token->lstrip && i > floor ? over_blanks_before(text, i, floor) : i;
        match->to = token->rstrip ? over_blanks_behind(text, n, end) : end;
        return true;
    }
    *at = n;
    return false;
}

size_t qm_matcher_here(const qm_matcher *m, const char *text, size_t n)
{
    size_t length = 0;
    return n > 0 && m->starts[(uint8_t)*text] && longest(m, text, n, &length) ? length : 0;
}
