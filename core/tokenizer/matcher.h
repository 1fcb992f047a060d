/* matcher.h: finds added tokens in a text: those that are matched whole before anything is cut.
 *
 * At every place the longest one wins; one that is found is gone over, used or not.  Then its flags decide:
 *
 *   single_word   not if a letter, digit, mark or _ stands right before or behind it
 *   lstrip        takes the blanks before it along, up to the match before
 *   rstrip        takes the blanks behind it along
 *
 * Source: huggingface/tokenizers, added_vocabulary.rs.
 */
#ifndef QM_TOKENIZER_MATCHER_H
#define QM_TOKENIZER_MATCHER_H

#include "buffers.h"

typedef struct qm_matcher qm_matcher;

typedef struct qm_added_token {
    const char *text;
    size_t n;
    uint32_t id;
    bool single_word, lstrip, rstrip;
    bool special;
} qm_added_token;

typedef struct qm_match {
    size_t from, to;
    uint32_t id;
} qm_match;

qm_matcher *qm_matcher_new(const qm_added_token *tokens, size_t n, qm_err *e);
void qm_matcher_free(qm_matcher *m); /* NULL is fine */

/* The next match from byte *at on, moving *at behind the token itself; `floor` is where the last match given
 * ended.  special: whether tokens that are special count.  Text is UTF-8. */
bool qm_matcher_next(const qm_matcher *m, const char *text, size_t n, bool special, size_t floor, size_t *at,
                     qm_match *match);

/* Bytes of the longest token that the text starts with, or 0. */
size_t qm_matcher_here(const qm_matcher *m, const char *text, size_t n);

#endif
