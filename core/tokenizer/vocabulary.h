/* vocabulary.h: how a word becomes ids: byte-pair encoding, or the likeliest of all cuts.
 *
 * What a word is, is decided before (splitter.h): something between a few letters and the whole text.  All
 * three ways take time n log n in its length, or n times the length of the longest piece.
 *
 *   QM_BY_MERGES   characters become ids; then, again and again, the neighbours whose merge stands first in
 *                  the list are joined, leftmost first (Sennrich et al. 2016; huggingface/tokenizers)
 *   QM_BY_SCORES   the same, but any two neighbours may be joined that make a piece together, and the piece
 *                  with the higher score goes first (google/sentencepiece, bpe_model.cc; llama.cpp)
 *   QM_UNIGRAM     the cut whose pieces' scores, which are log probabilities, have the greatest sum: Viterbi
 *                  (Kudo 2018; both of the above projects)
 */
#ifndef QM_TOKENIZER_VOCABULARY_H
#define QM_TOKENIZER_VOCABULARY_H

#include "pieces.h"

typedef enum { QM_BY_MERGES, QM_BY_SCORES, QM_UNIGRAM } qm_vocabulary_kind;

/* left and right are ids and so is made.  The earlier of two merges in a list goes first; the later of two of
 * the same pair counts. */
typedef struct qm_merge {
    uint32_t left, right, made;
} qm_merge;

/* Characters that are no piece become bytes if every one of theirs has an id here; else the unknown piece;
 * else nothing (by merges), or a failure (the others). */
typedef struct qm_vocabulary_rules {
    qm_vocabulary_kind kind;
    uint32_t unknown; /* id or QM_NO_PIECE */
    bool byte_fallback;
    uint32_t byte_id[256]; /* ids or QM_NO_PIECE */
    bool fuse_unknown;     /* a run of unknown characters is one piece */
    bool whole_words;      /* by merges: a word that is a piece is taken without merging */
    bool single;           /* unigram: sums are rounded to 32-bit floats, as SentencePiece's are */
    double unknown_score;  /* unigram */
    const char *prefix;    /* by merges: what pieces inside a word begin with, and those that end one, */
    const char *suffix;    /* end with; NULL for nothing */
} qm_vocabulary_rules;

typedef struct qm_vocabulary qm_vocabulary;

/* Takes the pieces over, on failure too.  By scores: rank[i] of entry i, smaller goes first.  Unigram:
 * score[i]. unused[i] (NULL for none; by scores): the piece takes part in merging but is cut up again in the
 * end. Only one thread at a time may use a vocabulary: it remembers words. */
qm_vocabulary *qm_vocabulary_new(qm_pieces *pieces, const qm_vocabulary_rules *rules, const qm_merge *merges,
                                 size_t n_merges, const uint32_t *rank, const double *score,
                                 const bool *unused, qm_err *e);
void qm_vocabulary_free(qm_vocabulary *v); /* NULL is fine */

uint32_t qm_vocabulary_id(const qm_vocabulary *v, const char *text, size_t n); /* or QM_NO_PIECE */

/* Appends the ids of one word, which is UTF-8. */
bool qm_vocabulary_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e);

#endif
