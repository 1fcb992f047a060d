/* ops.h: the kernels that the ops of core/ops are made of on a GPU; defined in ops.cu.
 *
 * Activations are f32, [tokens, cols], and begin on 16 bytes.  Every kernel begins early and waits for the one before it
 * (programmatic dependent launch), so all that is put on a stream between captures is one chain.  Sums have one order,
 * which the shape fixes: results are the same bits every time. */
#ifndef QM_CUDA_OPS_H
#define QM_CUDA_OPS_H

#include "../core/kv.h"
#include "matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Position of a token: of the first of a call, and how many more have passed since a graph was captured. */
typedef struct qm_position {
    int32_t first;
    const int32_t *passed; /* on the GPU, or NULL: none */
} qm_position;

cudaError_t qm_to_half(const float *x, uint32_t tokens, uint32_t cols, const qm_half *h, cudaStream_t s);

/* Runs of d values; h, or NULL, takes y as well, in rows of d. */
cudaError_t qm_rmsnorm(const float *x, const float *w, float add, float eps, uint64_t runs, uint32_t d,
                       float *y, const qm_half *h, cudaStream_t s);

typedef enum qm_each_op {
    QM_EACH_ADD,
    QM_EACH_MUL,
    QM_EACH_SCALE,   /* x * by */
    QM_EACH_SOFTCAP, /* by * tanh(x / by) */
    QM_EACH_SILU,
    QM_EACH_GELU_TANH,
    QM_EACH_GELU,
    QM_EACH_RELU,
    QM_EACH_SWIGLU, /* silu(x) * y */
    QM_EACH_GEGLU,  /* gelu_tanh(x) * y */
    QM_EACH_GATED,  /* x * sigmoid(y), y one a row */
} qm_each_op;

/* out[i] = f(x[i], y[i]), rows of cols; h takes it as well, or is NULL. */
cudaError_t qm_each_value(qm_each_op f, const float *x, const float *y, float by, uint32_t rows,
                          uint32_t cols, float *out, const qm_half *h, cudaStream_t s);
cudaError_t qm_columns(const float *x, uint32_t rows, uint32_t cols, uint32_t from, uint32_t n, float *out,
                       cudaStream_t s);

/* Rows of a plain table (f32, f16, bf16) that ids, on the GPU, name. */
cudaError_t qm_rows_of(const void *table, qm_dtype dtype, const int32_t *ids, uint32_t n, uint32_t cols,
                       float *out, cudaStream_t s);

typedef struct qm_rotation {
    const float *x;
    float *y;
    uint32_t cols; /* heads * head_dim */
} qm_rotation;

/* One or two tensors of the same tokens.  inverse: rotary_dim / 2 frequencies; neox: pairs are half a head apart. */
cudaError_t qm_rope(const qm_rotation *r, int n, uint32_t tokens, uint32_t head_dim, uint32_t rotary_dim,
                    bool neox, const float *inverse, float scale, qm_position at, cudaStream_t s);

/* Attention of `tokens` queries, the last of which are at `at`, to the cache of one layer, after appending k and v to it. */
typedef struct qm_attention {
    const float *q, *k, *v;
    void *keys,
        *values; /* [kv_heads][context][head_dim], and scales_at bytes behind their start the scales (core/kv.h) */
    qm_dtype dtype; /* f32, f16, bf16 or i8 */
    uint64_t scales_at;
    uint32_t tokens, heads, kv_heads, head_dim, context;
    qm_position at;
    float scale, softcap; /* softcap 0: none */
    uint32_t window;      /* 0: all */
    const float *sinks;   /* one a head, or NULL */
    float *y;
    float *partial;     /* qm_attention_scratch bytes */
    uint32_t *counters; /* one for a token and key head, zero before and after */
    void *unpacked;     /* qm_attention_unpacked bytes */
    const qm_half *h;   /* or NULL */
} qm_attention;
uint64_t qm_attention_scratch(uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t head_dim);
uint64_t qm_attention_unpacked(
    const qm_attention *a); /* room for keys and values that are codes, as f16; 0 where that is not done */
cudaError_t qm_attend(const qm_attention *a, cudaStream_t s);

/* Its part for many tokens where qm_matrix_takes_wide: keys and values are there already, as f16; heads of 64 or 128, no sinks. */
cudaError_t qm_attend_wide(const qm_attention *a, cudaStream_t s);

/* y = x W^T + bias for plain weights, up to 8 tokens; slower where cols is no multiple of 8 or addresses are none of 16. */
cudaError_t qm_plain_decode(const void *w, qm_dtype dtype, uint32_t rows, uint32_t cols, const float *x,
                            uint32_t tokens, const qm_product *p, cudaStream_t s);

/* The index of the largest of each row; the first of equals; -1 of a row with a NaN.  best: rows zeros of 8 bytes
 * and of 4, zero again after. */
cudaError_t qm_argmax_rows(const float *x, uint32_t rows, uint32_t cols, uint64_t *best, uint32_t *count,
                           int32_t *ids, cudaStream_t s);

/* A token drawn from one row as core/ops/sample.c draws it, with the same bits. */
typedef struct qm_draw {
    const float *logits;
    uint32_t n;         /* up to QM_DRAW_MOST */
    double temperature; /* 0: the largest is taken */
    uint64_t top_k;     /* 0: all */
    double top_p;
    uint64_t seed, step;
    const int32_t *passed; /* on the GPU: added to step; or NULL */
    void *sums;            /* QM_DRAW_SUMS bytes, zero before and after */
    uint64_t *some;        /* room for n */
    int32_t *id;           /* the token; QM_DRAW_NAN; or QM_DRAW_NOTHING, of logits that are all -infinity */
} qm_draw;
enum { QM_DRAW_NAN = -1, QM_DRAW_NOTHING = -2, QM_DRAW_BINS = 2048, QM_DRAW_SUMS = QM_DRAW_BINS * 12 + 128 };
cudaError_t qm_draw_token(const qm_draw *j, cudaStream_t s); /* sample.cu */

cudaError_t qm_softmax_rows(const float *x, uint32_t rows, uint32_t cols, float *out, cudaStream_t s);
cudaError_t qm_logprob_rows(const float *x, uint32_t rows, uint32_t cols, const int32_t *ids, float *out,
                            cudaStream_t s);
cudaError_t qm_divergence_rows(const float *reference, const float *x, uint32_t rows, uint32_t cols,
                               float *out, cudaStream_t s);

/* As qm_each_value for QM_EACH_MUL, _SWIGLU and _GEGLU and as qm_rmsnorm of whole rows, and the result as f16 besides (qm_panel
 * for groups of 64 or more, whose shape is that of x), of up to QM_PANEL_COLS columns, a multiple of 16. */
enum { QM_PANEL_COLS = 48 << 10 };
cudaError_t qm_each_panel(qm_each_op f, const float *x, const float *y, float *out, const qm_panel *p,
                          cudaStream_t s);
cudaError_t qm_rmsnorm_panel(const float *x, const float *w, float add, float eps, float *y,
                             const qm_panel *p, cudaStream_t s);

/* For a captured step: keeps ids[0] as number *passed of `history`, and adds one to *passed; an id below 0 becomes 0. */
cudaError_t qm_step_done(int32_t *ids, int32_t *history, int32_t *passed, cudaStream_t s);

/* y[tokens][rows] of LLM.int8(), as core/ops/linear_int8.c has it and with the same bits (int8.cu). */
typedef struct qm_int8 {
    const float *x; /* [tokens][cols] */
    uint32_t tokens, cols, rows;
    float threshold;
    const int8_t *code;  /* [rows][cols] */
    const float *absmax; /* [rows] */
    const float *bias;   /* [rows], or NULL */
    float *y;
    /* What is made of x: codes in rows of `stride`, a multiple of 32 that is filled up with zeros; their scales; whether a
     * column has an outlier; those that have, in order, and how many. */
    int8_t *a;
    uint32_t stride;
    float *s;
    uint8_t *hit;
    int32_t *column, *outliers;
} qm_int8;
cudaError_t qm_linear_int8(const qm_int8 *j, cudaStream_t s);

/* A mixture of experts (experts.cuh): which experts tokens take and what those count, as core/ops/moe.c has it; and the slots
 * that come of it. */
enum { QM_MOST_EXPERTS = 512 };
typedef struct qm_routing {
    const float *logits;         /* [tokens][experts] */
    uint32_t tokens, experts, k; /* experts: up to QM_MOST_EXPERTS */
    bool normalise;
    qm_slots slots;
    int32_t *choice,
        *row;       /* [tokens][k]: experts in their order, and the slots' rows of each; -1 behind the last */
    float *part;    /* [tokens][k]: what each counts */
    const float *x; /* of one token: its values, which are brought to row 0 of half, where that is given */
    uint32_t cols;
    qm_half half;
} qm_routing;
cudaError_t qm_route(const qm_routing *j, cudaStream_t s);

/* Below, rows are those of the slots. x as f16; silu(gate) * up; the experts' results put together. */
cudaError_t qm_gather_half(const qm_slots *slots, const float *x, uint32_t cols, const qm_half *h,
                           cudaStream_t s);
cudaError_t qm_gate_rows(const qm_slots *slots, const float *gate, const float *up, uint32_t cols, float *y,
                         const qm_half *h, cudaStream_t s);
cudaError_t qm_add_experts(const qm_routing *j, const float *from, uint32_t cols, float *y, cudaStream_t s);

/* y[row] = x W^T with plain matrices.  x has a row for each token, or for each row of the slots.  wide: all matrices begin on 16
 * bytes. */
cudaError_t qm_plain_experts(const qm_expert *experts, qm_dtype dtype, bool wide, const float *x,
                             bool of_slots, uint32_t rows, uint32_t cols, const qm_slots *slots, float *y,
                             cudaStream_t s);

/* x rounded to f16 times one power of two for all, left in *alpha as its inverse; most: 4 bytes of scratch. */
cudaError_t qm_to_half_plain(const float *x, uint64_t n, void *half, float *alpha, uint32_t *most,
                             cudaStream_t s);
/* x as the sum of two bf16. */
cudaError_t qm_split_bf16(const float *x, uint64_t n, void *high, void *low, cudaStream_t s);
cudaError_t qm_finish_product(float *y, uint32_t tokens, uint32_t rows, const qm_product *p, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
