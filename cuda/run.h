/* run.h: running ops on a GPU: what files of ops, prepare.c and step.c share. */
#ifndef QM_CUDA_RUN_H
#define QM_CUDA_RUN_H

#include "../core/op.h"
#include "internal.h"
#include "kernels.h"
#include "ops.h"

/* Products that share their right-hand side are launched together, and so are the two turns of queries and
 * keys.  What came last waits here for the call after it (products.c). */
typedef struct qm_waiting {
    int products, rotations;
    qm_matrix w[QM_TOGETHER];
    qm_product p[QM_TOGETHER];
    qm_half x;
    qm_panel panel;  /* or, of more than QM_HALF_TOKENS tokens, this; .half is NULL otherwise */
    void *memory[2]; /* to be given back after the launch: x's panel, what x is behind a gate */
    int memories;
    const float *x_values; /* what x was made of */
    qm_rotation r[2];
    struct {
        uint32_t tokens, head_dim, rotary_dim;
        bool neox;
        const float *inverse;
        float scale;
        qm_position at;
    } rope;
} qm_waiting;

/* Frequencies of pairs, kept for as long as the GPU is open, or their factors are there: a model has one or two sets. */
typedef struct qm_rope_table {
    double base;
    uint32_t dim;
    const void *factors; /* where they are, or NULL */
    float *inverse;
} qm_rope_table;

/* Where the matrices of a layer's experts are, kept likewise: the GPU chooses among them. */
typedef struct qm_expert_table {
    uint64_t hash;
    uint32_t n;
    qm_expert *here, *there;
} qm_expert_table;

/* Sixteen levels as tensor cores take them (prepare.c), found by search. */
typedef struct qm_levels {
    float of[16], level[16], factor;
} qm_levels;

enum { QM_KNOWN_LEVELS = 8 };
enum {
    QM_COUNTERS = 1 << 20,
    QM_STEP_ARENA = 96 << 20,
    QM_STEP_HISTORY = 1 << 20,
    QM_STEP_WORDS = 2 + QM_STEP_HISTORY,
    QM_BLAS_WORKSPACE = 32 << 20
};

/* What a captured step does with one token, until it is launched (notes.c). */
typedef enum qm_note_kind {
    QM_NOTE_PRODUCT,
    QM_NOTE_ADD,
    QM_NOTE_GATE, /* QM_EACH_SWIGLU or QM_EACH_GEGLU */
    QM_NOTE_NORM,
    QM_NOTE_ROPE,
    QM_NOTE_ATTEND,
} qm_note_kind;

typedef struct qm_note {
    qm_note_kind kind;
    union {
        struct {
            qm_matrix w;
            const float *x;
            qm_product p;
        } product;
        struct {
            qm_each_op f;
            const float *x, *y;
            float *out;
            uint32_t n;
        } values;
        struct {
            const float *x, *w;
            float add, eps;
            uint32_t d;
            float *y;
        } norm;
        struct {
            qm_rotation r;
            uint32_t head_dim, rotary_dim;
            bool neox;
            const float *inverse;
            float scale;
            qm_position at;
        } rope;
        qm_attention attend; /* without scratch */
    };
} qm_note;

typedef struct qm_notes qm_notes;

typedef struct qm_cuda_ops {
    qm_waiting waiting;
    qm_notes *notes;
    qm_rope_table *rope;
    int ropes, rope_room;
    qm_expert_table *experts;
    int expert_tables, expert_room;
    qm_levels levels[QM_KNOWN_LEVELS]; /* the last ones */
    int levels_found;
    float *dynamic;    /* the 256 values of the 8-bit map */
    uint8_t *counters; /* QM_COUNTERS bytes, zero between kernels */
    uint8_t *draw;     /* QM_DRAW_SUMS bytes, zero between draws */
    void *join;        /* of qm_matrix_wide, or NULL where it needs none */
    void *blas;        /* cuBLAS and its handle, or NULL: not there */
    bool blas_sought;

    /* While a step is being captured: its memory comes from the arena, its ids and its position from the GPU. */
    bool capturing, program; /* program: a step that becomes one (notes.c) */
    uint8_t *arena;
    uint64_t arena_used;
    int32_t *ids, *passed, *history; /* the last id; steps since the capture; all ids since then */
    int steps;                       /* graphs there are */
    void **late;                     /* what was given back meanwhile */
    int late_count, late_room;
} qm_cuda_ops;

/* The matrix that a laid-out weight is; false when it is none. */
bool qm_cuda_matrix_of(const qm_cuda *d, const qm_tensor *t, qm_matrix *m);

/* Takes the memory that products of many tokens share, before the first of them and before any capture. */

/* For the device's table. */
bool qm_cuda_op(qm_device *d, qm_call *c, qm_err *e);
bool qm_cuda_prepare(qm_device *d, const qm_tensor *t, qm_tensor **out, qm_err *e);
uint64_t qm_cuda_op_memory(qm_device *d, const qm_call *c, uint64_t *kept);
uint64_t qm_cuda_kept_memory(qm_device *d, bool decoding);
bool qm_cuda_prepared(qm_device *d, qm_device *where, const qm_tensor *t, qm_tensor **out, qm_err *e);
qm_tensor *qm_cuda_restore(qm_device *d, const qm_tensor *t, qm_err *e);

/* Whether ops on one token are noted now; notes one; launches what was noted; and, after a capture, brings programs to the
 * GPU, or forgets them when it failed. */
bool qm_cuda_notes(const qm_cuda *d);
bool qm_cuda_attend(qm_cuda *d, qm_attention *a, qm_err *e); /* with scratch of its own */
bool qm_cuda_note(qm_cuda *d, const qm_note *n, qm_err *e);
bool qm_cuda_play(qm_cuda *d, qm_err *e);
int qm_cuda_notes_programs(const qm_cuda *d); /* made since the capture began */
bool qm_cuda_notes_done(qm_cuda *d, bool captured, qm_err *e);
bool qm_cuda_notes_open(qm_cuda *d, qm_err *e);
void qm_cuda_notes_close(qm_cuda *d);

/* Launches what waits.  Before memory is given back or looked at. */
bool qm_cuda_flush(qm_cuda *d, qm_err *e);

/* Values first ... first + n - 1 of a tensor, whole groups of it, into y. */
bool qm_cuda_decode_tensor(qm_cuda *d, const qm_tensor *t, int64_t first, int64_t n, void *y, qm_dtype dtype,
                           qm_err *e);

void qm_cuda_forget_experts(qm_cuda *d);
void qm_cuda_forget_factors(qm_cuda *d, const void *factors); /* which are given back */

bool qm_cuda_ops_open(qm_cuda *d, qm_err *e);
void qm_cuda_ops_close(qm_cuda *d);

/* Memory for results and scratch of ops: of the step's arena while one is captured, else of the stream. */
void *qm_cuda_take(qm_cuda *d, uint64_t size, qm_err *e);
void qm_cuda_give(qm_cuda *d, void *p); /* NULL is fine */
void qm_cuda_give_later(qm_cuda *d, void *p);

/* y[tokens][stride] = alpha x W^T (or y + that), all row-major on the GPU: w f16, bf16 or f32; x as w; y f32.
 * alpha is on the GPU.  Fails with QM_EUNSUPPORTED when there is no cuBLAS (blas.c). */
bool qm_cuda_blas(qm_cuda *d, const void *w, qm_dtype dtype, uint32_t rows, uint32_t cols, const void *x,
                  uint32_t tokens, const float *alpha, bool accumulate, float *y, uint32_t stride, qm_err *e);
bool qm_cuda_has_blas(qm_cuda *d);
void qm_cuda_blas_close(qm_cuda *d);

#endif
