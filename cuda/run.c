/* run.c: the ops of core/ops on a GPU.
 *
 * Results are made on the GPU's own stream and not waited for; reading a tensor waits.  Activations that a
 * product is likely to follow have a second part behind their values: the same as f16 (qm_half).
 *
 * A product or a turn is not launched at once but waits for the next call, because products of the same x,
 * and an addition to one of their results, are one launch, and so are the turns of queries and keys. Anything
 * else launches what waits first, and so does giving back or reading memory (qm_cuda_flush). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/formats/dynamic8.h"
#include "run.h"

/* ---- memory -------------------------------------------------------------------------------------- */

static uint64_t whole(uint64_t size) { return (size + 255) / 256 * 256; }

void *qm_cuda_take(qm_cuda *d, uint64_t size, qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    if (!o->capturing)
        return qm_cuda_scratch(d, d->stream, size, e);
    if (o->arena_used + whole(size) > QM_STEP_ARENA) {
        qm_fail(e, QM_ENOFIT, "%s: a captured step needs more than %d MiB for its activations",
                d->device.name, QM_STEP_ARENA >> 20);
        return NULL;
    }
    void *p = o->arena + o->arena_used;
    o->arena_used += whole(size);
    return p;
}

static bool in_arena(const qm_cuda_ops *o, const void *p)
{
    return o->arena && (const uint8_t *)p >= o->arena && (const uint8_t *)p < o->arena + QM_STEP_ARENA;
}

void qm_cuda_give(qm_cuda *d, void *p)
{
    if (!p || (d->ops && in_arena(d->ops, p)))
        return;
    for (int i = 0; d->ops && i < d->ops->ropes; i++)
        if (d->ops->rope[i].factors == p)
            d->ops->rope[i].dim = 0;
    if (d->ops && d->ops->capturing)
        qm_cuda_give_later(d, p);
    else
        qm_cuda_unscratch(p, d->stream);
}

/* ---- activations --------------------------------------------------------------------------------- */

typedef struct activation {
    float *x;
    uint32_t rows, cols;
    qm_half half; /* or .half NULL */
} activation;

static uint32_t rows_of(const qm_tensor *t)
{
    int64_t cols = qm_tensor_cols(t);
    return cols ? (uint32_t)(qm_tensor_count(t) / cols) : 0;
}

static activation activation_of(const qm_tensor *t)
{
    activation a = {
        (float *)(void *)(uintptr_t)t->plane[0].data, rows_of(t), (uint32_t)qm_tensor_cols(t), {0}};
    if (t->with_half)
        a.half = qm_half_at((char *)a.x + whole((uint64_t)qm_tensor_count(t) * 4), a.rows, a.cols);
    return a;
}

static activation arg(const qm_call *c, int i) { return activation_of(c->arg[i].tensor); }

/* The result of a call, on the GPU; with room for a half where that is of use: single tokens need it soonest.
 */
static bool make_out(qm_cuda *d, qm_call *c, bool with_half, activation *a, qm_err *e)
{
    uint64_t count = (uint64_t)qm_shape_count(&c->shape),
             cols = c->shape.ndim ? (uint64_t)c->shape.dim[c->shape.ndim - 1] : 1;
    uint32_t rows = cols ? (uint32_t)(count / cols) : 0;
    with_half = with_half && rows && rows <= QM_HALF_TOKENS;
    qm_tensor *t = qm_tensor_new(NULL, &c->shape, e);
    if (!t)
        return false;
    t->dtype = QM_F32;
    t->format = qm_format_find("f32");
    t->codec.block = 1;
    t->with_half = with_half;
    if (!qm_tensor_plane_new(t, 0, whole(count * 4) + (with_half ? qm_half_bytes(rows, (uint32_t)cols) : 0),
                             &d->device, e)) {
        qm_tensor_free(t);
        return false;
    }
    t->plane[0].size = count * 4;
    c->out = t;
    *a = activation_of(t);
    return true;
}

/* What an op read of a weight that need not be f32: its values, in memory that is given back after the
 * launch. */
typedef struct vector {
    const float *values;
    void *taken;
} vector;

static bool read_vector(qm_cuda *d, const qm_arg *a, vector *v, qm_err *e)
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

static void drop_vector(qm_cuda *d, vector *v) { qm_cuda_give(d, v->taken); }

static bool ran(qm_cuda *d, const qm_call *c, cudaError_t r, qm_err *e)
{
    return qm_cuda_check(d, r, c->op->name, e);
}

/* ---- what waits ---------------------------------------------------------------------------------- */

bool qm_cuda_flush(qm_cuda *d, qm_err *e)
{
    qm_waiting *w = d->ops ? &d->ops->waiting : NULL;
    cudaError_t r = cudaSuccess;
    if (!w)
        return true;
    if (w->products)
        r = qm_matrix_decode(w->w, w->p, w->products, &w->x, d->stream);
    if (w->rotations)
        r = qm_rope(w->r, w->rotations, w->rope.tokens, w->rope.head_dim, w->rope.rotary_dim, w->rope.neox,
                    w->rope.inverse, w->rope.scale, w->rope.at, d->stream);
    w->products = w->rotations = 0;
    return qm_cuda_check(d, r, "multiplying", e);
}

static bool same_kind(const qm_matrix *a, const qm_matrix *b)
{
    return a->group == b->group && a->scale == b->scale && a->cols == b->cols
           && memcmp(a->level, b->level, sizeof a->level) == 0;
}

static bool add_product(qm_cuda *d, const qm_matrix *w, const qm_product *p, const qm_half *x,
                        const float *values, qm_err *e)
{
    qm_waiting *k = &d->ops->waiting;
    bool joins = k->products && k->products < QM_TOGETHER && k->x_values == values && k->x.half == x->half
                 && same_kind(k->w, w);
    if (!joins && !qm_cuda_flush(d, e))
        return false;
    k->w[k->products] = *w;
    k->p[k->products++] = *p;
    k->x = *x;
    k->x_values = values;
    return true;
}

/* ---- linear -------------------------------------------------------------------------------------- */

enum {
    FEW = 8,
    SOME = 40
}; /* tokens: at once by our kernels; and from where on cuBLAS is faster than those in turns */
enum {
    SLICE = 128 << 20,
    SLICE_ROWS = 256
}; /* bytes of f16 that a matrix is decoded to at a time, in so many rows */

/* x of eight tokens at a time as f16, made where its producer did not. */
static bool half_of(qm_cuda *d, const activation *x, uint32_t from, uint32_t n, qm_half *h, void **taken,
                    qm_err *e)
{
    *taken = NULL;
    if (x->half.half && from == 0 && n == x->rows) {
        *h = x->half;
        return true;
    }
    *taken = qm_cuda_take(d, qm_half_bytes(n, x->cols), e);
    if (!*taken || !qm_cuda_flush(d, e))
        return false;
    *h = qm_half_at(*taken, n, x->cols);
    return qm_cuda_check(d, qm_to_half(x->x + (uint64_t)from * x->cols, n, x->cols, h, d->stream),
                         "converting", e);
}

static bool packed_few(qm_cuda *d, const qm_matrix *m, const activation *x, uint32_t from, uint32_t n,
                       const qm_product *p, qm_err *e)
{
    qm_half h;
    void *taken;
    qm_product q = *p;
    q.y += (uint64_t)from * p->y_stride;
    bool ok = half_of(d, x, from, n, &h, &taken, e)
              && add_product(d, m, &q, &h, x->x + (uint64_t)from * x->cols, e);
    if (taken && !qm_cuda_flush(d, e))
        ok = false;
    qm_cuda_give(d, taken);
    return ok;
}

/* A slice of rows at a time as f16, which the library multiplies by. */
static bool packed_many(qm_cuda *d, const qm_matrix *m, const activation *x, const qm_product *p, qm_err *e)
{
    uint64_t n = (uint64_t)x->rows * x->cols;
    uint32_t most = SLICE / 2 / m->cols / SLICE_ROWS * SLICE_ROWS;
    most = most < SLICE_ROWS ? SLICE_ROWS : most;
    most = most < m->rows ? most : m->rows;
    char *taken = qm_cuda_take(d, whole(n * 2) + whole((uint64_t)most * m->cols * 2) + 512, e);
    if (!taken)
        return false;
    char *weights = taken + whole(n * 2);
    float *alpha = (float *)(void *)(weights + whole((uint64_t)most * m->cols * 2));
    cudaError_t r = qm_to_half_plain(x->x, n, taken, alpha, (uint32_t *)(void *)(alpha + 64), d->stream);
    bool ok = qm_cuda_check(d, r, "converting", e);
    for (uint32_t at = 0; ok && at < m->rows; at += most) {
        uint32_t rows = m->rows - at < most ? m->rows - at : most;
        ok = qm_cuda_check(d, qm_matrix_values(m, weights, at, rows, d->stream), "decoding a weight", e)
             && qm_cuda_blas(d, weights, QM_F16, rows, m->cols, taken, x->rows, alpha, false, p->y + at,
                             m->rows, e);
    }
    if (ok && (p->bias || p->add))
        ok = qm_cuda_check(d, qm_finish_product(p->y, x->rows, m->rows, p, d->stream), "multiplying", e);
    qm_cuda_give(d, taken);
    return ok;
}

static bool packed(qm_cuda *d, const qm_matrix *m, const activation *x, const qm_product *p, qm_err *e)
{
    if (x->rows > SOME && qm_cuda_has_blas(d))
        return qm_cuda_flush(d, e) && packed_many(d, m, x, p, e);
    for (uint32_t at = 0; at < x->rows; at += FEW)
        if (!packed_few(d, m, x, at, x->rows - at < FEW ? x->rows - at : FEW, p, e))
            return false;
    return true;
}

/* f16 weights with x as f16; bf16 with x as the sum of two bf16, so that nothing is lost; f32 as they are. */
static bool plain_many(qm_cuda *d, const void *w, qm_dtype t, uint32_t rows, const activation *x,
                       const qm_product *p, qm_err *e)
{
    uint64_t n = (uint64_t)x->rows * x->cols;
    bool ok;
    if (t == QM_F32) {
        ok = qm_cuda_blas(d, w, t, rows, x->cols, x->x, x->rows, NULL, false, p->y, rows, e);
    } else {
        char *taken = qm_cuda_take(d, 2 * whole(n * 2) + 512, e);
        float *alpha = (float *)(void *)(taken + 2 * whole(n * 2));
        if (!taken)
            return false;
        cudaError_t r = t == QM_F16 ? qm_to_half_plain(x->x, n, taken, alpha,
                                                       (uint32_t *)(void *)(alpha + 64), d->stream)
                                    : qm_split_bf16(x->x, n, taken, taken + whole(n * 2), d->stream);
        ok = qm_cuda_check(d, r, "converting", e)
             && qm_cuda_blas(d, w, t, rows, x->cols, taken, x->rows, t == QM_F16 ? alpha : NULL, false, p->y,
                             rows, e)
             && (t == QM_F16
                 || qm_cuda_blas(d, w, t, rows, x->cols, taken + whole(n * 2), x->rows, NULL, true, p->y,
                                 rows, e));
        qm_cuda_give(d, taken);
    }
    if (ok && (p->bias || p->add))
        ok = qm_cuda_check(d, qm_finish_product(p->y, x->rows, rows, p, d->stream), "multiplying", e);
    return ok;
}

static bool plain(qm_cuda *d, const void *w, qm_dtype t, uint32_t rows, const activation *x,
                  const qm_product *p, qm_err *e)
{
    if (!qm_cuda_flush(d, e))
        return false;
    if (x->rows > FEW && qm_cuda_has_blas(d))
        return plain_many(d, w, t, rows, x, p, e);
    for (uint32_t at = 0; at < x->rows; at += FEW) {
        uint32_t n = x->rows - at < FEW ? x->rows - at : FEW;
        qm_product q = *p;
        q.y += (uint64_t)at * p->y_stride;
        if (!qm_cuda_check(
                d, qm_plain_decode(w, t, rows, x->cols, x->x + (uint64_t)at * x->cols, n, &q, d->stream),
                "multiplying", e))
            return false;
    }
    return true;
}

/* Weights that nobody prepared are decoded for this once. */
static bool decoded(qm_cuda *d, const qm_tensor *w, uint32_t rows, const activation *x, const qm_product *p,
                    qm_err *e)
{
    uint64_t count = (uint64_t)rows * x->cols;
    void *values = qm_cuda_take(d, count * sizeof(float), e);
    bool ok = values && qm_cuda_flush(d, e)
              && qm_cuda_decode_tensor(d, w, 0, (int64_t)count, values, QM_F32, e)
              && plain(d, values, QM_F32, rows, x, p, e);
    qm_cuda_give(d, values);
    return ok;
}

static bool product(qm_cuda *d, const qm_tensor *w, const activation *x, const float *bias, float *y,
                    qm_err *e)
{
    qm_matrix m;
    uint32_t rows = rows_of(w);
    qm_product p = {.bias = bias, .y = y, .y_stride = rows};
    if (qm_cuda_matrix_of(d, w, &m))
        return packed(d, &m, x, &p, e);
    if (w->laid_out)
        return qm_fail(e, QM_EFAIL, "linear: a weight that was prepared for another device");
    return qm_cuda_plain_type(w->format) != QM_DTYPE_COUNT ? plain(d, w->plane[0].data, w->dtype, rows, x, &p, e)
                                                           : decoded(d, w, rows, x, &p, e);
}

static bool linear(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), y;
    vector bias;
    bool ok = make_out(d, c, false, &y, e) && read_vector(d, &c->arg[2], &bias, e);
    if (!ok)
        return false;
    ok = product(d, c->arg[1].tensor, &x, bias.values, y.x, e) && (!bias.taken || qm_cuda_flush(d, e));
    drop_vector(d, &bias);
    return ok;
}

/* y + scale * (x A^T) B^T */
static bool lora(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { Y, X, A, B, SCALE };
    activation y = arg(c, Y), x = arg(c, X), out;
    const qm_tensor *a = c->arg[A].tensor, *b = c->arg[B].tensor;
    uint32_t rank = rows_of(a);
    if (!make_out(d, c, false, &out, e) || !qm_cuda_flush(d, e))
        return false;
    float *inner = qm_cuda_take(d, whole((uint64_t)x.rows * rank * 4) + (uint64_t)y.rows * y.cols * 4, e);
    if (!inner)
        return false;
    float *delta = inner + whole((uint64_t)x.rows * rank * 4) / 4;
    activation in = {inner, x.rows, rank, {0}};
    bool ok = product(d, a, &x, NULL, inner, e) && qm_cuda_flush(d, e) && product(d, b, &in, NULL, delta, e)
              && qm_cuda_flush(d, e)
              && ran(d, c,
                     qm_each_value(QM_EACH_SCALE, delta, NULL, (float)c->arg[SCALE].number, y.rows, y.cols,
                                   delta, NULL, d->stream),
                     e)
              && ran(d, c, qm_each_value(QM_EACH_ADD, y.x, delta, 0, y.rows, y.cols, out.x, NULL, d->stream),
                     e);
    qm_cuda_give(d, inner);
    return ok;
}

/* ---- values -------------------------------------------------------------------------------------- */

static bool each(qm_cuda *d, qm_call *c, qm_each_op f, bool two, float by, bool with_half, qm_err *e)
{
    activation x = arg(c, 0), out;
    const float *y = two ? arg(c, 1).x : NULL;
    if (!make_out(d, c, with_half, &out, e) || !qm_cuda_flush(d, e))
        return false;
    return ran(
        d, c,
        qm_each_value(f, x.x, y, by, x.rows, x.cols, out.x, out.half.half ? &out.half : NULL, d->stream), e);
}

/* To the result of a product that waits, an addition is free. */
static bool add(qm_cuda *d, qm_call *c, qm_err *e)
{
    qm_waiting *k = &d->ops->waiting;
    qm_product *last = k->products ? &k->p[k->products - 1] : NULL;
    const float *x = arg(c, 0).x, *y = arg(c, 1).x;
    bool here = last && !last->add && (x == last->y) != (y == last->y);
    const float *other = here ? (x == last->y ? y : x) : NULL;
    for (int i = 0; here && i < k->products; i++)
        here = other != k->p[i].y && other != k->p[i].sum;
    if (!here)
        return each(d, c, QM_EACH_ADD, true, 0, false, e);
    activation out;
    if (!make_out(d, c, false, &out, e))
        return false;
    last->add = other;
    last->sum = out.x;
    return qm_cuda_flush(d, e);
}

static bool mul(qm_cuda *d, qm_call *c, qm_err *e) { return each(d, c, QM_EACH_MUL, true, 0, true, e); }
static bool scale(qm_cuda *d, qm_call *c, qm_err *e)
{
    return each(d, c, QM_EACH_SCALE, false, (float)c->arg[1].number, false, e);
}
static bool softcap(qm_cuda *d, qm_call *c, qm_err *e)
{
    return each(d, c, QM_EACH_SOFTCAP, false, (float)c->arg[1].number, false, e);
}
static bool swiglu(qm_cuda *d, qm_call *c, qm_err *e) { return each(d, c, QM_EACH_SWIGLU, true, 0, true, e); }
static bool geglu(qm_cuda *d, qm_call *c, qm_err *e) { return each(d, c, QM_EACH_GEGLU, true, 0, true, e); }
static bool gated(qm_cuda *d, qm_call *c, qm_err *e) { return each(d, c, QM_EACH_GATED, true, 0, false, e); }

static bool activate(qm_cuda *d, qm_call *c, qm_err *e)
{
    static const qm_each_op kinds[] = {QM_EACH_SILU, QM_EACH_GELU_TANH, QM_EACH_GELU, QM_EACH_RELU};
    return each(d, c, kinds[c->arg[1].choice], false, 0, false, e);
}

static bool columns(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), out;
    if (!make_out(d, c, false, &out, e) || !qm_cuda_flush(d, e))
        return false;
    return ran(d, c, qm_columns(x.x, x.rows, x.cols, (uint32_t)c->arg[1].number, out.cols, out.x, d->stream),
               e);
}

static bool rows(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), out;
    if (!make_out(d, c, false, &out, e) || !qm_cuda_flush(d, e))
        return false;
    return ran(d, c,
               cudaMemcpyAsync(out.x, x.x + (uint64_t)c->arg[1].number * x.cols,
                               (uint64_t)out.rows * out.cols * 4, cudaMemcpyDeviceToDevice, d->stream),
               e);
}

static bool rmsnorm(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), y;
    vector w;
    uint32_t run = (uint32_t)qm_tensor_cols(c->arg[1].tensor);
    if (!make_out(d, c, run == x.cols, &y, e) || !read_vector(d, &c->arg[1], &w, e) || !qm_cuda_flush(d, e))
        return false;
    cudaError_t r = qm_rmsnorm(x.x, w.values, (float)c->arg[3].number, (float)c->arg[2].number,
                               (uint64_t)x.rows * x.cols / run, run, y.x, y.half.half ? &y.half : NULL,
                               d->stream);
    drop_vector(d, &w);
    return ran(d, c, r, e);
}

static bool softmax(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), y;
    if (!make_out(d, c, false, &y, e) || !qm_cuda_flush(d, e))
        return false;
    return ran(d, c, qm_softmax_rows(x.x, x.rows, x.cols, y.x, d->stream), e);
}

/* ---- ids ----------------------------------------------------------------------------------------- */

/* Where a call's ids are on the GPU: those of the step that is being captured, or a copy. */
static bool read_ids(qm_cuda *d, const qm_call *c, const qm_arg *a, const int32_t **ids, void **taken,
                     qm_err *e)
{
    *taken = NULL;
    if (d->ops->capturing) {
        *ids = d->ops->ids;
        return a->count == 1
               || qm_call_fail(c, e, "a captured step has one id, not %lld", (long long)a->count);
    }
    *ids = *taken = qm_cuda_take(d, (uint64_t)a->count * sizeof **ids, e);
    return *taken
           && qm_cuda_check(d,
                            cudaMemcpyAsync(*taken, a->ids, (size_t)a->count * sizeof **ids,
                                            cudaMemcpyHostToDevice, d->stream),
                            "copying ids", e);
}

/* A quantised table's rows, one by one. */
static bool decode_rows(qm_cuda *d, const qm_call *c, const qm_tensor *w, activation *y, qm_err *e)
{
    if (d->ops->capturing)
        return qm_call_fail(c, e, "a quantised table cannot be captured");
    for (int64_t i = 0; i < c->arg[1].count; i++)
        if (!qm_cuda_decode_tensor(d, w, c->arg[1].ids[i] * (int64_t)y->cols, y->cols, y->x + i * y->cols,
                                   QM_F32, e))
            return false;
    return true;
}

static bool embedding(qm_cuda *d, qm_call *c, qm_err *e)
{
    const qm_tensor *w = c->arg[0].tensor;
    activation y;
    const int32_t *ids;
    void *taken;
    if (!make_out(d, c, false, &y, e) || !qm_cuda_flush(d, e))
        return false;
    if (qm_cuda_plain_type(w->format) == QM_DTYPE_COUNT)
        return decode_rows(d, c, w, &y, e);
    bool ok = read_ids(d, c, &c->arg[1], &ids, &taken, e)
              && ran(d, c, qm_rows_of(w->plane[0].data, w->dtype, ids, y.rows, y.cols, y.x, d->stream), e);
    qm_cuda_give(d, taken);
    return ok;
}

static bool logprobs(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), y;
    const int32_t *ids;
    void *taken;
    bool ok = make_out(d, c, false, &y, e) && qm_cuda_flush(d, e)
              && read_ids(d, c, &c->arg[1], &ids, &taken, e);
    if (!ok)
        return false;
    ok = ran(d, c, qm_logprob_rows(x.x, x.rows, x.cols, ids, y.x, d->stream), e);
    qm_cuda_give(d, taken);
    return ok;
}

/* An i32 tensor here: ids are for the one who asks. */
static bool make_ids(qm_call *c, int32_t **ids, qm_err *e)
{
    if (!(c->out = qm_tensor_new(NULL, &c->shape, e)))
        return false;
    c->out->dtype = QM_I32;
    *ids = (int32_t *)(void *)qm_tensor_plane_new(
        c->out, 0, (uint64_t)qm_shape_count(&c->shape) * sizeof **ids, NULL, e);
    return *ids != NULL;
}

static bool argmax(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0);
    int32_t *here;
    if (x.cols == 0)
        return qm_call_fail(c, e, "rows of no values have no largest");
    if (!make_ids(c, &here, e) || !qm_cuda_flush(d, e))
        return false;
    memset(here, 0, x.rows * sizeof *here);
    uint64_t *best = (uint64_t *)(void *)d->ops->counters;
    for (uint32_t at = 0, most = QM_COUNTERS / 32; at < x.rows; at += most) {
        uint32_t n = x.rows - at < most ? x.rows - at : most;
        int32_t *ids = d->ops->capturing ? d->ops->ids : qm_cuda_take(d, n * sizeof *ids, e);
        if (!ids
            || !ran(d, c,
                    qm_argmax_rows(x.x + (uint64_t)at * x.cols, n, x.cols, best,
                                   (uint32_t *)(void *)(best + n), ids, d->stream),
                    e))
            return false;
        if (d->ops->capturing)
            return x.rows == 1 || qm_call_fail(c, e, "a captured step has one row of logits, not %u", x.rows);
        bool ok = qm_cuda_download(d, here + at, ids, n * sizeof *ids, e);
        qm_cuda_give(d, ids);
        if (!ok)
            return false;
    }
    return true;
}

/* Ops that decide one number from one row run here, on a copy of it. */
static bool on_cpu(qm_cuda *d, qm_call *c, qm_err *e)
{
    if (d->ops->capturing)
        return qm_call_fail(c, e, "cannot be captured: it runs on the CPU");
    qm_tensor *here[QM_MAX_PARAMS] = {0};
    qm_call k = *c;
    bool ok = true;
    for (int i = 0; ok && i < qm_op_params(c->op); i++)
        if (c->arg[i].tensor) {
            ok = (here[i] = qm_tensor_to(c->arg[i].tensor, NULL, e)) != NULL;
            k.arg[i].tensor = here[i];
        }
    ok = ok && qm_op_call(&k, e);
    c->out = ok ? k.out : NULL;
    for (int i = 0; i < QM_MAX_PARAMS; i++)
        qm_tensor_free(here[i]);
    return ok;
}

/* ---- positions ----------------------------------------------------------------------------------- */

/* Frequencies as core/ops/rope.c has them: rounded to f32. */
static bool rope_table(qm_cuda *d, const qm_call *c, double base, uint32_t dim, const qm_tensor *factors,
                       const float **inverse, qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    const void *key = factors ? factors->plane[0].data : NULL;
    for (int i = 0; i < o->ropes; i++)
        if (o->rope[i].base == base && o->rope[i].dim == dim && o->rope[i].factors == key) {
            *inverse = o->rope[i].inverse;
            return true;
        }
    if (o->capturing || o->ropes == QM_ROPE_TABLES)
        return qm_call_fail(c, e, "frequencies that no call before had; run one step before it is captured");
    size_t pairs = dim / 2;
    float *f = malloc(2 * pairs * sizeof *f + 1), *made = f + pairs;
    bool ok = f && (!factors || qm_tensor_values(factors, f, e));
    for (size_t i = 0; ok && i < pairs; i++) {
        made[i] = (float)(1 / pow(base, 2.0 * (double)i / dim));
        made[i] = factors ? made[i] / f[i] : made[i];
    }
    qm_rope_table *t = &o->rope[o->ropes];
    *t = (qm_rope_table){base, dim, key, NULL};
    ok = ok && (t->inverse = qm_cuda_alloc(d, pairs * sizeof *made + 1, e))
         && qm_cuda_upload(d, t->inverse, made, pairs * sizeof *made, e);
    o->ropes += ok;
    *inverse = t->inverse;
    free(f);
    return ok;
}

static qm_position position(const qm_cuda *d, int64_t first)
{
    return (qm_position){(int32_t)first, d->ops->capturing ? d->ops->passed : NULL};
}

static bool rope(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { X, FIRST, HEAD_DIM, ROTARY_DIM, BASE, KIND, FACTORS, SCALE };
    qm_waiting *k = &d->ops->waiting;
    activation x = arg(c, X), y;
    uint32_t head = (uint32_t)c->arg[HEAD_DIM].number;
    uint32_t turned = c->arg[ROTARY_DIM].given ? (uint32_t)c->arg[ROTARY_DIM].number : head;
    const float *inverse = NULL;
    if (head % 2)
        return qm_call_fail(c, e, "heads of an odd number of values run on the CPU only");
    if (!rope_table(d, c, c->arg[BASE].number, turned, c->arg[FACTORS].tensor, &inverse, e)
        || !make_out(d, c, false, &y, e))
        return false;
    qm_waiting was = *k;
    was.rope.tokens = x.rows, was.rope.head_dim = head, was.rope.rotary_dim = turned,
    was.rope.neox = c->arg[KIND].choice == 0;
    was.rope.inverse = inverse, was.rope.scale = (float)c->arg[SCALE].number,
    was.rope.at = position(d, qm_arg_int(c, FIRST));
    bool joins = k->rotations == 1 && memcmp(&k->rope, &was.rope, sizeof k->rope) == 0 && x.x != k->r[0].y;
    if (!joins && !qm_cuda_flush(d, e))
        return false;
    k->rope = was.rope;
    k->r[k->rotations++] = (qm_rotation){x.x, y.x, x.cols};
    return k->rotations < 2 || qm_cuda_flush(d, e);
}

static bool attention(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { Q, K, V, CACHE, LAYER, HEADS, KV_HEADS, SCALE, WINDOW, SOFTCAP, SINKS };
    qm_kv *kv = c->arg[CACHE].cache;
    int layer = (int)c->arg[LAYER].number;
    activation q = arg(c, Q), y;
    vector sinks;
    if (kv->device != &d->device)
        return qm_call_fail(c, e, "queries are on %s and the cache is not; give kv_cache its device",
                            d->device.name);
    if (kv->head_dim % 8 || kv->head_dim > 512)
        return qm_call_fail(
            c, e, "heads of %d values run on the CPU only: here they are a multiple of 8, up to 512",
            kv->head_dim);
    if (!make_out(d, c, kv->head_dim % 64 == 0, &y, e) || !read_vector(d, &c->arg[SINKS], &sinks, e)
        || !qm_cuda_flush(d, e))
        return false;
    qm_attention a = {.q = q.x,
                      .k = arg(c, K).x,
                      .v = arg(c, V).x,
                      .keys = qm_kv_keys(kv, layer, 0),
                      .values = qm_kv_values(kv, layer, 0),
                      .dtype = kv->dtype,
                      .tokens = q.rows,
                      .heads = (uint32_t)c->arg[HEADS].number,
                      .kv_heads = (uint32_t)kv->kv_heads,
                      .head_dim = (uint32_t)kv->head_dim,
                      .context = (uint32_t)kv->context,
                      .at = position(d, kv->count[layer]),
                      .scale = c->arg[SCALE].given ? (float)c->arg[SCALE].number
                                                   : 1 / sqrtf((float)kv->head_dim),
                      .softcap = (float)c->arg[SOFTCAP].number,
                      .window = (uint32_t)c->arg[WINDOW].number,
                      .sinks = sinks.values,
                      .y = y.x,
                      .h = y.half.half ? &y.half : NULL};
    if ((uint64_t)a.tokens * a.kv_heads > QM_COUNTERS / 8)
        return qm_call_fail(c, e, "%u tokens at once are more than %d; give fewer", a.tokens,
                            QM_COUNTERS / 8 / kv->kv_heads);
    a.counters = (uint32_t *)(void *)(d->ops->counters + QM_COUNTERS / 2);
    a.partial = qm_cuda_take(d, qm_attention_scratch(a.tokens, a.heads, a.kv_heads, a.head_dim), e);
    bool ok = a.partial && ran(d, c, qm_attend(&a, d->stream), e);
    qm_cuda_give(d, a.partial);
    drop_vector(d, &sinks);
    if (ok)
        kv->count[layer] += (int)a.tokens;
    return ok;
}

/* ---- the table ----------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    bool (*run)(qm_cuda *d, qm_call *c, qm_err *e);
} table[] = {
    {"activation", activate}, {"add", add},         {"argmax", argmax},
    {"attention", attention}, {"columns", columns}, {"embedding", embedding},
    {"gated", gated},         {"geglu", geglu},     {"linear", linear},
    {"logprobs", logprobs},   {"kl", on_cpu},       {"rows", rows},
    {"lora", lora},           {"mul", mul},         {"rmsnorm", rmsnorm},
    {"rope", rope},           {"sample", on_cpu},   {"scale", scale},
    {"softcap", softcap},     {"softmax", softmax}, {"swiglu", swiglu},
};

bool qm_cuda_op(qm_device *device, qm_call *c, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_enter(d);
    if (!d->ops && !qm_cuda_ops_open(d, e))
        return false;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].name, c->op->name))
            continue;
        if (table[i].run(d, c, e))
            return true;
        qm_tensor_free(c->out);
        c->out = NULL;
        return false;
    }
    return qm_fail(e, QM_EUNSUPPORTED, "%s: does not run on %s yet; bring the tensors here: t:to(qm.cpu)",
                   c->op->name, device->name);
}

/* ---- opening and closing ------------------------------------------------------------------------- */

bool qm_cuda_ops_open(qm_cuda *d, qm_err *e)
{
    float dynamic[256];
    for (int i = 0; i < 256; i++)
        dynamic[i] = qm_dynamic8_value((uint32_t)i);
    qm_cuda_ops *o = d->ops = calloc(1, sizeof *o);
    if (!o)
        return qm_fail(e, QM_ENOFIT, "out of memory for the ops of %s", d->device.name);
    bool ok = (o->dynamic = qm_cuda_alloc(d, sizeof dynamic, e))
              && qm_cuda_upload(d, o->dynamic, dynamic, sizeof dynamic, e)
              && (o->counters = qm_cuda_alloc(d, QM_COUNTERS, e))
              && qm_cuda_check(d, cudaMemsetAsync(o->counters, 0, QM_COUNTERS, d->stream), "starting ops", e);
    if (!ok)
        qm_cuda_ops_close(d);
    return ok;
}

void qm_cuda_ops_close(qm_cuda *d)
{
    qm_cuda_ops *o = d->ops;
    if (!o)
        return;
    qm_cuda_blas_close(d);
    for (int i = 0; i < o->ropes; i++)
        qm_cuda_free(d, o->rope[i].inverse);
    void *const owned[] = {o->dynamic, o->counters, o->arena, o->ids};
    d->ops = NULL;
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        qm_cuda_free(d, owned[i]);
    free(o->late);
    free(o);
}
