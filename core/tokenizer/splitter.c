/* splitter.c: see splitter.h. */
#include "splitter.h"

#include "../regex.h"

typedef struct step {
    qm_split rule;
    qm_regex *regex;
    char *blank;
} step;

struct qm_splitter {
    step *step;
    size_t n;
};

/* ---- words ------------------------------------------------------------------------------- */

static void add(qm_words *w, size_t from, size_t to)
{
    if (from == to || w->failed)
        return;
    void *grown = qm_grown(w->span, &w->room, w->n, 1, sizeof *w->span);
    if (!grown) {
        w->failed = true;
        return;
    }
    w->span = grown;
    w->span[w->n++] = (qm_span){from, to};
}

void qm_words_free(qm_words *w)
{
    qm_bytes_free(&w->text);
    free(w->span);
    *w = (qm_words){0};
}

/* ---- patterns ------------------------------------------------------------------------------ */

/* One piece after the other of a word, matches and what is between them, in order.  `open` is where the word
 * that is being put together starts. */
typedef struct cutting {
    const qm_split *split;
    qm_words *to;
    size_t open;
    bool after_match; /* the piece before was a match */
} cutting;

static void cut(cutting *c, size_t from, size_t to, bool match)
{
    match = match != c->split->invert;
    switch (c->split->behaviour) {
    case QM_REMOVED:
        if (!match)
            add(c->to, from, to);
        break;
    case QM_ISOLATED:
        add(c->to, from, to);
        break;
    case QM_CONTIGUOUS:
        if (match != c->after_match) {
            add(c->to, c->open, from);
            c->open = from;
        }
        break;
    case QM_WITH_BEFORE: /* a match ends a word, unless a match stands before it */
        if (!match || c->after_match) {
            add(c->to, c->open, from);
            c->open = from;
        }
        break;
    case QM_WITH_AFTER: /* a match starts a word */
        if (match || !c->after_match) {
            add(c->to, c->open, from);
            c->open = from;
        }
        break;
    }
    c->after_match = match;
}

static bool split_word(const qm_split *split, qm_regex_scan *scan, const char *text, qm_span word,
                       qm_words *to, qm_err *e)
{
    cutting c = {split, to, word.from, false};
    size_t from, end, last = 0;
    bool found;
    qm_regex_start(scan, text + word.from, word.to - word.from);
    while (qm_regex_next(scan, &found, &from, &end, e)) {
        if (!found) {
            if (last < word.to - word.from)
                cut(&c, word.from + last, word.to, false);
            if (split->behaviour >= QM_CONTIGUOUS)
                add(to, c.open, word.to);
            return true;
        }
        if (last < from)
            cut(&c, word.from + last, word.from + from, false);
        cut(&c, word.from + from, word.from + end, true);
        last = end;
    }
    return false;
}

static bool split_all(const step *s, const qm_words *in, qm_words *out, qm_err *e)
{
    qm_regex_scan *scan = qm_regex_scan_new(s->regex, e);
    bool fine = scan != NULL;
    for (size_t i = 0; fine && i < in->n; i++)
        fine = split_word(&s->rule, scan, in->text.at, in->span[i], out, e);
    qm_regex_scan_free(scan);
    return fine;
}

/* ---- bytes as characters --------------------------------------------------------------------- */

/* Bytes that are printable in Latin-1 stand for themselves, and the others, in order, for U+0100 …: 00-20
 * become Ā … Ġ, 7f-a0 become ġ … ł, ad becomes Ń.  Source: openai/gpt-2, bytes_to_unicode. */
static unsigned visible(uint8_t byte)
{
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121u + byte - 0x7fu;
    return byte == 0xad ? 0x143u : byte;
}

static void spell_bytes(const qm_words *in, qm_words *out)
{
    char spelt[256][2];
    uint8_t length[256];
    for (unsigned b = 0; b < 256; b++) {
        unsigned c = visible((uint8_t)b);
        length[b] = c < 0x80 ? 1 : 2;
        spelt[b][0] = (char)(c < 0x80 ? c : 0xc0 | c >> 6);
        spelt[b][1] = (char)(0x80 | (c & 0x3f));
    }
    for (size_t i = 0; i < in->n; i++) {
        size_t from = out->text.n;
        for (size_t k = in->span[i].from; k < in->span[i].to; k++) {
            uint8_t b = (uint8_t)in->text.at[k];
            qm_bytes_add(&out->text, spelt[b], length[b]);
        }
        add(out, from, out->text.n);
    }
}

/* ---- blanks ---------------------------------------------------------------------------------- */

static bool starts_with(const char *p, size_t n, const char *what, size_t length)
{
    return n >= length && memcmp(p, what, length) == 0;
}

/* Tells whether a word that starts at byte `from` has to get something in front.  Only the first word of the
 * first text stands where the text does. */
static bool prepends(const qm_split *split, size_t from, bool first)
{
    return split->prepend == QM_PREPEND_ALWAYS || (split->prepend == QM_PREPEND_FIRST && first && from == 0);
}

static void spell_spaces(const step *s, const qm_words *in, bool first, qm_words *out)
{
    const qm_split *split = &s->rule;
    size_t length = strlen(s->blank);
    for (size_t i = 0; i < in->n; i++) {
        const char *p = in->text.at + in->span[i].from;
        size_t n = in->span[i].to - in->span[i].from, from = out->text.n;
        if (prepends(split, in->span[i].from, first) && *p != ' ' && !starts_with(p, n, s->blank, length))
            qm_bytes_add(&out->text, s->blank, length);
        for (size_t k = 0; k < n; k++) {
            bool blank = p[k] == ' ';
            if (split->cut && (blank || starts_with(p + k, n - k, s->blank, length))) {
                /* unless this is where the word starts, or behind the blank put in front */
                if (out->text.n > from)
                    add(out, from, out->text.n);
                from = out->text.n;
            }
            qm_bytes_add(&out->text, blank ? s->blank : p + k, blank ? length : 1);
        }
        add(out, from, out->text.n);
    }
}

static void put_in_front(const qm_words *in, qm_words *out)
{
    for (size_t i = 0; i < in->n; i++) {
        const char *p = in->text.at + in->span[i].from;
        size_t from = out->text.n;
        if (*p != ' ')
            qm_bytes_add(&out->text, " ", 1);
        qm_bytes_add(&out->text, p, in->span[i].to - in->span[i].from);
        add(out, from, out->text.n);
    }
}

/* ---- all of it --------------------------------------------------------------------------------- */

static bool apply(const step *s, const qm_words *in, bool first, qm_words *out, qm_err *e)
{
    switch (s->rule.kind) {
    case QM_SPLIT_REGEX:
        if (!split_all(s, in, out, e))
            return false;
        break;
    case QM_SPLIT_BYTES:
        spell_bytes(in, out);
        break;
    case QM_SPLIT_SPACES:
        spell_spaces(s, in, first, out);
        break;
    case QM_SPLIT_PREFIX:
        put_in_front(in, out);
        break;
    }
    return !(out->failed || out->text.failed)
           || qm_fail(e, QM_EFAIL, "a text of %zu bytes: out of memory", in->text.n);
}

bool qm_splitter_cut(const qm_splitter *s, const char *text, size_t n, bool first, qm_words *words, qm_err *e)
{
    *words = (qm_words){0};
    qm_bytes_add(&words->text, text, n);
    add(words, 0, n);
    if (words->failed || words->text.failed)
        return qm_fail(e, QM_EFAIL, "a text of %zu bytes: out of memory", n);
    for (size_t i = 0; i < s->n; i++) {
        qm_words next = {0};
        bool fine = apply(&s->step[i], words, first, &next, e);
        if (s->step[i].rule.kind != QM_SPLIT_REGEX) { /* else the words are cut, and their text stays */
            qm_bytes_free(&words->text);
            words->text = next.text;
        }
        free(words->span);
        words->span = next.span;
        words->n = next.n;
        words->room = next.room;
        if (!fine)
            return false;
    }
    return true;
}

static bool prepare(step *to, const qm_split *from, qm_err *e)
{
    to->rule = *from;
    to->rule.pattern = to->rule.blank = NULL; /* those were the caller's */
    if (from->kind == QM_SPLIT_REGEX) {
        to->regex = qm_regex_new(from->pattern, strlen(from->pattern), e);
        if (!to->regex)
            return false;
        qm_regex_hasten(to->regex);
    } else if (from->kind == QM_SPLIT_SPACES) {
        to->blank = malloc(strlen(from->blank) + 1);
        if (!to->blank)
            return qm_fail(e, QM_EFAIL, "a way of cutting text: out of memory");
        strcpy(to->blank, from->blank);
    }
    return true;
}

qm_splitter *qm_splitter_new(const qm_split *steps, size_t n, qm_err *e)
{
    qm_splitter *s = calloc(1, sizeof *s);
    if (!s || !(s->step = calloc(n + 1, sizeof *s->step))) {
        free(s);
        qm_fail(e, QM_EFAIL, "a way of cutting text: out of memory");
        return NULL;
    }
    for (; s->n < n; s->n++)
        if (!prepare(&s->step[s->n], &steps[s->n], e)) {
            s->n++;
            qm_splitter_free(s);
            return NULL;
        }
    return s;
}

void qm_splitter_free(qm_splitter *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++) {
        qm_regex_free(s->step[i].regex);
        free(s->step[i].blank);
    }
    free(s->step);
    free(s);
}
