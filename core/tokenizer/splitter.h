/* splitter.h: cuts a text into the words that a vocabulary encodes one by one.
 *
 * A splitter is a list of steps. Each is given the words of the one before (the first: the whole text) and
 * makes words of them, or changes their text:
 *
 *   QM_SPLIT_REGEX   cuts at the matches of a pattern; what becomes of the matches is its behaviour
 *   QM_SPLIT_BYTES   writes every byte as a character that can be seen, GPT-2's byte alphabet: " " -> "Ġ"
 *   QM_SPLIT_SPACES  writes blanks as "▁", puts one in front, and cuts before every one, or not at all
 *   QM_SPLIT_PREFIX  puts a blank in front of every word that has none there
 *
 * Words that are empty are dropped.  Source of the behaviours: huggingface/tokenizers,
 * SplitDelimiterBehavior.
 */
#ifndef QM_TOKENIZER_SPLITTER_H
#define QM_TOKENIZER_SPLITTER_H

#include "buffers.h"

typedef enum { QM_SPLIT_REGEX, QM_SPLIT_BYTES, QM_SPLIT_SPACES, QM_SPLIT_PREFIX } qm_split_kind;

/* of "-" in "the-final--countdown" */
typedef enum {
    QM_REMOVED,     /* the final countdown */
    QM_ISOLATED,    /* the - final - - countdown */
    QM_CONTIGUOUS,  /* the - final -- countdown */
    QM_WITH_BEFORE, /* the- final- - countdown */
    QM_WITH_AFTER,  /* the -final - -countdown */
} qm_split_behaviour;

typedef enum { QM_PREPEND_NEVER, QM_PREPEND_FIRST, QM_PREPEND_ALWAYS } qm_prepend;

typedef struct qm_split {
    qm_split_kind kind;
    const char *pattern; /* regex */
    qm_split_behaviour behaviour;
    bool invert;        /* regex: what is between the matches counts as the match */
    const char *blank;  /* spaces: what a blank becomes */
    qm_prepend prepend; /* spaces: first: only to what starts the text */
    bool cut;           /* spaces: before every one */
} qm_split;

typedef struct qm_splitter qm_splitter;

qm_splitter *qm_splitter_new(const qm_split *steps, size_t n, qm_err *e);
void qm_splitter_free(qm_splitter *s); /* NULL is fine */

typedef struct qm_span {
    size_t from, to;
} qm_span;

typedef struct qm_words {
    qm_bytes text;
    qm_span *span;
    size_t n, room;
    bool failed;
} qm_words;

/* text is UTF-8; `first`: it starts at the start of what is encoded, rather than behind a special token.  The
 * words are added to none; free them with qm_words_free, on failure too. */
bool qm_splitter_cut(const qm_splitter *s, const char *text, size_t n, bool first, qm_words *words,
                     qm_err *e);
void qm_words_free(qm_words *w);

#endif
