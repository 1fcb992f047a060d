/* charsmap.h: SentencePiece's table of what characters become, such as half-width letters and ligatures.
 *
 *   u32 size | a double array (darts-clone): key -> offset | strings, each ended by a zero byte
 *
 * Source: google/sentencepiece, normalizer.cc; s-yata/darts-clone, darts.h; huggingface/spm_precompiled.
 */
#ifndef QM_TOKENIZER_CHARSMAP_H
#define QM_TOKENIZER_CHARSMAP_H

#include "matcher.h"

typedef struct qm_charsmap qm_charsmap;

/* n == 0: a table that changes nothing.  The bytes are copied. */
qm_charsmap *qm_charsmap_new(const void *bytes, size_t n, qm_err *e);
void qm_charsmap_free(qm_charsmap *m); /* NULL is fine */

/* As tokenizers' "Precompiled" does: by grapheme if it is short, else by character; the shortest key wins. */
void qm_charsmap_graphemes(const qm_charsmap *m, const char *text, size_t n, qm_bytes *to);

typedef struct qm_sentence_rules {
    bool prefix;  /* a blank is put in front, */
    bool suffix;  /* or rather behind */
    bool squeeze; /* blanks at both ends go, and of several one stays */
    bool escape;  /* blanks become U+2581 */
} qm_sentence_rules;

/* As SentencePiece does: the longest key wins, and tokens of `kept` (NULL for none) stay as they are. */
void qm_charsmap_sentence(const qm_charsmap *m, const qm_sentence_rules *rules, const qm_matcher *kept,
                          const char *text, size_t n, qm_bytes *to);

#endif
