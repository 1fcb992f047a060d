/* call.h: what an op on a GPU is written with: arguments and the result of a call as rows of f32, vectors of any format.
 *
 * Activations that a product is likely to follow have a second part behind their values: the same as f16 (qm_half). */
#ifndef QM_CUDA_CALL_H
#define QM_CUDA_CALL_H

#include "run.h"

/* Ops and how they run here; each file of ops has a list, and run.c has them all. */
typedef struct qm_cuda_way {
    const char *name; /* as in core/ops; NULL ends a list */
    bool (*run)(qm_cuda *d, qm_call *c, qm_err *e);

    /* For plans: bytes that it takes beside its result while it runs, and in *kept what cuBLAS keeps from then on; NULL:
     * next to none.  Tensors have shapes and no bytes. */
    uint64_t (*memory)(const qm_call *c, uint64_t *kept);
} qm_cuda_way;

extern const qm_cuda_way qm_cuda_products[], qm_cuda_int8[], qm_cuda_experts[], qm_cuda_values[],
    qm_cuda_ids[], qm_cuda_positions[];

static inline uint64_t whole(uint64_t size) { return (size + 255) / 256 * 256; }

/* ---- activations --------------------------------------------------------------------------------- */

typedef struct activation {
    float *x;
    uint32_t rows, cols;
    qm_half half;   /* of up to QM_HALF_TOKENS rows, or .half NULL */
    qm_panel panel; /* of more, or .half NULL */
} activation;

static inline uint32_t rows_of(const qm_tensor *t)
{
    int64_t cols = qm_tensor_cols(t);
    return cols ? (uint32_t)(qm_tensor_count(t) / cols) : 0;
}

static inline activation activation_of(const qm_tensor *t)
{
    activation a = {
        (float *)(void *)(uintptr_t)t->plane[0].data, rows_of(t), (uint32_t)qm_tensor_cols(t), {0}, {0}};
    void *behind = (char *)a.x + whole((uint64_t)qm_tensor_count(t) * 4);
    if (t->with_half && a.rows <= QM_HALF_TOKENS)
        a.half = qm_half_at(behind, a.rows, a.cols);
    else if (t->with_half)
        a.panel = qm_panel_at(behind, a.rows, a.cols, QM_UNIT_COLS);
    return a;
}

static inline activation arg(const qm_call *c, int i) { return activation_of(c->arg[i].tensor); }

/* What a panel of a result takes, or 0: none is made. */
static inline uint64_t panel_room(uint32_t rows, uint32_t cols)
{
    bool can = rows > QM_HALF_TOKENS && cols % 16 == 0 && cols <= QM_PANEL_COLS && qm_matrix_takes_wide();
    return can ? qm_panel_bytes(rows, cols) : 0;
}

/* The result of a call, on the GPU; with room for a half or, of more tokens than that has, a panel, where the GPU
 * can use them. */
static inline bool make_out_with(qm_cuda *d, qm_call *c, bool half, bool panel, activation *a, qm_err *e)
{
    uint64_t count = (uint64_t)qm_shape_count(&c->shape),
             cols = c->shape.ndim ? (uint64_t)c->shape.dim[c->shape.ndim - 1] : 1;
    uint32_t rows = cols ? (uint32_t)(count / cols) : 0;
    half = half && rows && rows <= QM_HALF_TOKENS && !qm_cuda_notes(d); /* what is noted makes its own */
    uint64_t more = half ? qm_half_bytes(rows, (uint32_t)cols) : panel ? panel_room(rows, (uint32_t)cols) : 0;
    qm_tensor *t = qm_tensor_new(NULL, &c->shape, e);
    if (!t)
        return false;
    t->dtype = QM_F32;
    t->format = qm_format_find("f32");
    t->codec.block = 1;
    t->with_half = more > 0;
    if (!qm_tensor_plane_new(t, 0, whole(count * 4) + more, &d->device, e)) {
        qm_tensor_free(t);
        return false;
    }
    t->plane[0].size = count * 4;
    c->out = t;
    *a = activation_of(t);
    return true;
}

static inline bool make_out(qm_cuda *d, qm_call *c, bool half, activation *a, qm_err *e)
{
    return make_out_with(d, c, half, false, a, e);
}

/* What an op read of a weight that need not be f32: its values, in memory that is given back after the
 * launch. */
typedef struct vector {
    const float *values;
    void *taken;
} vector;

static inline bool read_vector(qm_cuda *d, const qm_arg *a, vector *v, qm_err *e)
{
    *v = (vector){0};
    if (!a->given)
        return true;
    const qm_tensor *t = a->tensor;
    if (t->dtype == QM_F32 && t->format && t->format->block == 1) {
        v->values = (const float *)(const void *)t->plane[0].data;
        return true;
    }
    v->taken = qm_cuda_take(d, (uint64_t)qm_tensor_count(t) * sizeof(float), e);
    v->values = v->taken;
    return v->taken && qm_cuda_decode_tensor(d, t, 0, qm_tensor_count(t), v->taken, QM_F32, e);
}

static inline void drop_vector(qm_cuda *d, vector *v) { qm_cuda_give(d, v->taken); }

static inline bool ran(qm_cuda *d, const qm_call *c, cudaError_t r, qm_err *e)
{
    return qm_cuda_check(d, r, c->op->name, e);
}

/* y = x W^T + bias with a weight of any kind; may wait for the next call (qm_cuda_flush). */
bool qm_cuda_product(qm_cuda *d, const qm_tensor *w, const activation *x, const float *bias, float *y,
                     qm_err *e);

/* What that takes besides; *kept: see qm_cuda_way. */
uint64_t qm_cuda_product_memory(const qm_tensor *w, uint32_t tokens, uint64_t *kept);

/* f of values x and, where it takes two, y, into `out`, which may be x unless a step is being noted. */
bool qm_cuda_each(qm_cuda *d, const qm_call *c, qm_each_op f, const float *x, const float *y, float by,
                  const activation *out, qm_err *e);

/* Whether codes mean the same in both; and whether they can be multiplied by in one launch. */
bool qm_cuda_same_codes(const qm_matrix *a, const qm_matrix *b);
bool qm_cuda_same_kind(const qm_matrix *a, const qm_matrix *b);

#endif
