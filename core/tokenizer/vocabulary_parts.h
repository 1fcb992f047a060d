/* vocabulary_parts.h: what the files of a vocabulary share.  Nobody else includes it. */
#ifndef QM_TOKENIZER_VOCABULARY_PARTS_H
#define QM_TOKENIZER_VOCABULARY_PARTS_H

#include "vocabulary.h"

/* Pairs of ids with their merge: open addressing, at most half full. */
typedef struct merge_slot {
    uint32_t left, right, rank, made; /* made == QM_NO_PIECE: free */
} merge_slot;

/* A character or more of the word that is being cut; they form a list. */
typedef struct symbol {
    uint32_t from, length; /* bytes of the word; length 0: it was joined to the one before */
    uint32_t id;           /* by merges */
    uint32_t before, after;
} symbol;

/* Neighbours that could be joined: a heap, smallest rank and leftmost on top. */
typedef struct candidate {
    uint32_t rank, at, made;
} candidate;

/* A word, remembered with its ids.  One line of the processor's cache. */
enum { REMEMBERED_BYTES = 38, REMEMBERED_IDS = 6, REMEMBERED_WORDS = 1 << 15 };
typedef struct remembered {
    uint8_t length, count; /* length 0: free */
    char text[REMEMBERED_BYTES];
    uint32_t id[REMEMBERED_IDS];
} remembered;

/* A tree of the pieces' bytes, as a table of its edges: (node, byte) -> node.  Node 0 is the root. */
typedef struct edge {
    uint32_t node, to; /* to == 0: free */
    uint8_t byte;
} edge;

typedef struct best_cut { /* of the word up to some byte */
    double score;
    uint32_t from, piece; /* its last piece: where it starts (QM_NO_PIECE: none ends here), and its entry */
} best_cut;

struct qm_vocabulary {
    qm_pieces pieces;
    qm_vocabulary_rules rules;
    char *prefix, *suffix;
    remembered *words;
    /* merging */
    merge_slot *merges;
    uint32_t merge_mask;
    uint32_t *rank;  /* of each entry */
    bool *unused;    /* of each entry, or NULL */
    uint32_t *first; /* beside `unused`: bytes of the left of the two parts it was last made of */
    symbol *symbols;
    size_t n_symbols, symbol_room;
    candidate *heap;
    size_t n_heap, heap_room;
    qm_bytes scratch;
    /* unigram */
    double *score;
    double unknown_score;
    edge *edges;
    uint32_t edge_mask;
    qm_ids piece_at; /* of each node: an entry or QM_NO_PIECE */
    best_cut *cuts;
    size_t cut_room;
    qm_ids path;
};

/* Appends what stands for bytes that are no piece: bytes, or the unknown piece. */
bool qm_vocabulary_unknown(const qm_vocabulary *v, const char *text, size_t n, qm_ids *ids, qm_err *e);

bool qm_merging_init(qm_vocabulary *v, const qm_merge *merges, size_t n, qm_err *e);
bool qm_merging_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e);
bool qm_unigram_init(qm_vocabulary *v, qm_err *e);
bool qm_unigram_encode(qm_vocabulary *v, const char *word, size_t n, qm_ids *ids, qm_err *e);

#endif
