/* products.c: matrix products on a GPU.
 *
 * A product or a turn is not launched at once but waits for the next call, because products of the same x,
 * and an addition to one of their results, are one launch, and so are the turns of queries and keys. Anything
 * else launches what waits first, and so does giving back or reading memory (qm_cuda_flush). */
#include <string.h>

#include "call.h"

/* ---- what waits ---------------------------------------------------------------------------------- */

bool qm_cuda_flush(qm_cuda *d, qm_err *e)
{
    qm_waiting *w = d->ops ? &d->ops->waiting : NULL;
    cudaError_t r = cudaSuccess;
    if (!w)
        return true;
    if (w->products && w->gate)
        r = qm_matrix_glu(w->w, w->p, w->gate, &w->panel, d->ops->join, d->stream);
    else if (w->products)
        r = w->panel.half ? qm_matrix_wide(w->w, w->p, w->products, &w->panel, d->ops->join, d->stream)
                          : qm_matrix_decode(w->w, w->p, w->products, &w->x, d->stream);
    if (w->rotations)
        r = qm_rope(w->r, w->rotations, w->rope.tokens, w->rope.head_dim, w->rope.rotary_dim, w->rope.neox,
                    w->rope.inverse, w->rope.scale, w->rope.at, d->stream);
    void *panel = w->panel_memory;
    w->products = w->rotations = 0;
    w->gate = QM_GATE_NONE;
    w->panel.half = w->panel_memory = NULL;
    qm_cuda_give(d, panel);
    return qm_cuda_check(d, r, "multiplying", e) && qm_cuda_play(d, e);
}

bool qm_cuda_same_codes(const qm_matrix *a, const qm_matrix *b)
{
    return a->group == b->group && a->scale == b->scale && memcmp(a->level, b->level, sizeof a->level) == 0;
}

bool qm_cuda_same_kind(const qm_matrix *a, const qm_matrix *b)
{
    return a->cols == b->cols && qm_cuda_same_codes(a, b);
}

static bool add_product(qm_cuda *d, const qm_matrix *w, const qm_product *p, const qm_half *x,
                        const float *values, qm_err *e)
{
    qm_waiting *k = &d->ops->waiting;
    bool joins = k->products && k->products < QM_TOGETHER && !k->panel.half && k->x_values == values
                 && k->x.half == x->half && qm_cuda_same_kind(k->w, w);
    if (!joins && !qm_cuda_flush(d, e))
        return false;
    k->w[k->products] = *w;
    k->p[k->products++] = *p;
    k->x = *x;
    k->x_values = values;
    return true;
}

/* ---- linear -------------------------------------------------------------------------------------- */

/* Tokens: at once by the kernel for few, above which Hopper takes them all at once (14336 x 4096: 8 by the one 13.4 us, 9 to 16 by
 * the other 15.5); and where other GPUs are faster with cuBLAS than with those few in turns. */
enum { FEW = 8, SOME = 40 };
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

static uint32_t slice_rows(uint32_t rows, uint32_t cols)
{
    uint32_t most = SLICE / 2 / cols / SLICE_ROWS * SLICE_ROWS;
    most = most < SLICE_ROWS ? SLICE_ROWS : most;
    return most < rows ? most : rows;
}

/* What the products of many tokens take beside their result: x and a slice of weights as f16; x as f16, or as the sum of
 * two bf16. */
static uint64_t packed_many_bytes(uint32_t rows, uint32_t cols, uint32_t tokens)
{
    return whole((uint64_t)tokens * cols * 2) + whole((uint64_t)slice_rows(rows, cols) * cols * 2) + 512;
}
static uint64_t plain_many_bytes(qm_dtype t, uint32_t cols, uint32_t tokens)
{
    return t == QM_F32 ? 0 : 2 * whole((uint64_t)tokens * cols * 2) + 512;
}

/* All tokens at once.  Products of one x share what is made of it. */
static bool packed_wide(qm_cuda *d, const qm_matrix *m, const activation *x, const qm_product *p, qm_err *e)
{
    qm_waiting *k = &d->ops->waiting;
    bool joins = k->products && k->products < QM_TOGETHER && k->panel.half && k->x_values == x->x
                 && k->panel.tokens == x->rows && qm_cuda_same_kind(k->w, m);
    if (!joins) {
        bool there = x->panel.half && m->group >= x->panel.group;
        if (!qm_cuda_flush(d, e)
            || (!there && !(k->panel_memory = qm_cuda_take(d, qm_panel_bytes(x->rows, x->cols), e))))
            return false;
        k->panel = there ? x->panel : qm_panel_at(k->panel_memory, x->rows, x->cols, m->group);
        k->x_values = x->x;
        if (!there && !qm_cuda_check(d, qm_to_panel(x->x, &k->panel, d->stream), "converting", e))
            return false;
    }
    k->w[k->products] = *m;
    k->p[k->products++] = *p;
    return true;
}

/* A slice of rows at a time as f16, which the library multiplies by. */
static bool packed_many(qm_cuda *d, const qm_matrix *m, const activation *x, const qm_product *p, qm_err *e)
{
    uint64_t n = (uint64_t)x->rows * x->cols;
    uint32_t most = slice_rows(m->rows, m->cols);
    char *taken = qm_cuda_take(d, packed_many_bytes(m->rows, m->cols, x->rows), e);
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
    if (x->rows == 1 && qm_cuda_notes(d))
        return qm_cuda_note(d, &(qm_note){QM_NOTE_PRODUCT, .product = {*m, x->x, *p}}, e);
    if (x->rows > FEW && qm_matrix_takes_wide())
        return packed_wide(d, m, x, p, e);
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
        char *taken = qm_cuda_take(d, plain_many_bytes(t, x->cols, x->rows), e);
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

bool qm_cuda_product(qm_cuda *d, const qm_tensor *w, const activation *x, const float *bias, float *y,
                     qm_err *e)
{
    qm_matrix m;
    uint32_t rows = rows_of(w);
    qm_product p = {.bias = bias, .y = y, .y_stride = rows};
    if (qm_cuda_matrix_of(d, w, &m))
        return packed(d, &m, x, &p, e);
    if (w->laid_out)
        return qm_fail(e, QM_EFAIL, "linear: a weight that was prepared for another device");
    return qm_cuda_plain_type(w->format) != QM_DTYPE_COUNT
               ? plain(d, w->plane[0].data, w->dtype, rows, x, &p, e)
               : decoded(d, w, rows, x, &p, e);
}

/* As with cuBLAS, which takes more than doing without. */
uint64_t qm_cuda_product_memory(const qm_tensor *w, uint32_t tokens, uint64_t *kept)
{
    uint32_t rows = rows_of(w), cols = (uint32_t)qm_tensor_cols(w);
    qm_dtype type = qm_cuda_plain_type(w->format);
    *kept = 0;
    if (w->laid_out && tokens > FEW && qm_matrix_takes_wide())
        return qm_panel_bytes(tokens, cols); /* of this call, or behind x */
    *kept = tokens > (w->laid_out ? SOME : FEW) ? QM_BLAS_WORKSPACE : 0;
    if (w->laid_out)
        return tokens > SOME ? packed_many_bytes(rows, cols, tokens) : qm_half_bytes(FEW, cols);
    if (type != QM_DTYPE_COUNT)
        return tokens > FEW ? plain_many_bytes(type, cols, tokens) : 0;
    return (uint64_t)rows * cols * sizeof(float);
}

static uint64_t linear_memory(const qm_call *c, uint64_t *kept)
{
    return qm_cuda_product_memory(c->arg[1].tensor, rows_of(c->arg[0].tensor), kept);
}

static bool linear(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, 0), y;
    vector bias;
    bool ok = make_out(d, c, false, &y, e) && read_vector(d, &c->arg[2], &bias, e);
    if (!ok)
        return false;
    ok = qm_cuda_product(d, c->arg[1].tensor, &x, bias.values, y.x, e)
         && (!bias.taken || qm_cuda_notes(d) || qm_cuda_flush(d, e));
    drop_vector(d, &bias);
    return ok;
}

/* ---- gated linear units --------------------------------------------------------------------------- */

enum { GLU_X, GLU_GATE, GLU_UP, GLU_KIND, GLU_GATE_BIAS, GLU_UP_BIAS };

/* Whether one launch does it, of two weights that mean the same by their codes. */
static bool at_once(const qm_tensor *gate, const qm_tensor *up, uint32_t tokens)
{
    return tokens >= QM_GLU_TOKENS && qm_matrix_takes_wide() && gate->laid_out && up->laid_out
           && gate->format == up->format && gate->codec.block == up->codec.block
           && gate->double_quant == up->double_quant && rows_of(gate) % QM_TILE_ROWS == 0;
}

static bool glu_at_once(qm_cuda *d, qm_call *c, const float *const bias[2], const activation *out, qm_err *e)
{
    static const qm_gate kinds[] = {QM_GATE_SILU, QM_GATE_GELU_TANH};
    activation x = arg(c, GLU_X);
    qm_matrix m[2];
    if (!qm_cuda_flush(d, e))
        return false;
    for (int i = 0; i < 2; i++) {
        qm_product p = {.bias = bias[i], .y = out->x, .y_stride = out->cols};
        if (!qm_cuda_matrix_of(d, c->arg[GLU_GATE + i].tensor, &m[i]))
            return qm_fail(e, QM_EFAIL, "linear_glu: a weight that was prepared for another device");
        if (!packed_wide(d, &m[i], &x, &p, e))
            return false;
    }
    d->ops->waiting.gate = kinds[c->arg[GLU_KIND].choice];
    return qm_cuda_flush(d, e)
           && (!out->panel.half
               || qm_cuda_check(d, qm_to_panel(out->x, &out->panel, d->stream), "converting", e));
}

/* A product after the other, and their gate; what a program does with that notes.c knows. */
static bool glu_in_turn(qm_cuda *d, qm_call *c, const float *const bias[2], const activation *out, qm_err *e)
{
    static const qm_each_op kinds[] = {QM_EACH_SWIGLU, QM_EACH_GEGLU};
    activation x = arg(c, GLU_X);
    const bool noted = out->rows == 1 && qm_cuda_notes(d);
    const uint64_t size = whole((uint64_t)out->rows * out->cols * sizeof(float));
    float *up = qm_cuda_take(d, noted ? 2 * size : size, e), *gate = noted ? up + size / sizeof *up : out->x;
    bool ok = up && qm_cuda_product(d, c->arg[GLU_GATE].tensor, &x, bias[0], gate, e)
              && qm_cuda_product(d, c->arg[GLU_UP].tensor, &x, bias[1], up, e)
              && qm_cuda_each(d, c, kinds[c->arg[GLU_KIND].choice], gate, up, 0, out, e);
    qm_cuda_give(d, up);
    return ok;
}

static bool linear_glu(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation out;
    vector bias[2] = {{0}};
    bool ok = make_out_with(d, c, true, true, &out, e) && read_vector(d, &c->arg[GLU_GATE_BIAS], &bias[0], e)
              && read_vector(d, &c->arg[GLU_UP_BIAS], &bias[1], e);
    const float *const values[] = {bias[0].values, bias[1].values};
    ok = ok
         && (at_once(c->arg[GLU_GATE].tensor, c->arg[GLU_UP].tensor, out.rows)
                 ? glu_at_once(d, c, values, &out, e)
                 : glu_in_turn(d, c, values, &out, e));
    drop_vector(d, &bias[0]);
    drop_vector(d, &bias[1]);
    return ok;
}

static uint64_t linear_glu_memory(const qm_call *c, uint64_t *kept)
{
    const qm_tensor *gate = c->arg[GLU_GATE].tensor, *up = c->arg[GLU_UP].tensor;
    const uint32_t tokens = rows_of(c->arg[GLU_X].tensor), wide = rows_of(gate);
    uint64_t more, first = qm_cuda_product_memory(gate, tokens, kept),
                   second = qm_cuda_product_memory(up, tokens, &more);
    *kept = more > *kept ? more : *kept;
    first = second > first ? second : first;
    const uint64_t between
        = at_once(gate, up, tokens) ? 0 : whole((uint64_t)tokens * wide * sizeof(float));
    return first + between + panel_room(tokens, wide);
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
    activation in = {.x = inner, .rows = x.rows, .cols = rank};
    bool ok = qm_cuda_product(d, a, &x, NULL, inner, e) && qm_cuda_flush(d, e)
              && qm_cuda_product(d, b, &in, NULL, delta, e) && qm_cuda_flush(d, e)
              && ran(d, c,
                     qm_each_value(QM_EACH_SCALE, delta, NULL, (float)c->arg[SCALE].number, y.rows, y.cols,
                                   delta, NULL, d->stream),
                     e)
              && ran(d, c, qm_each_value(QM_EACH_ADD, y.x, delta, 0, y.rows, y.cols, out.x, NULL, d->stream),
                     e);
    qm_cuda_give(d, inner);
    return ok;
}

const qm_cuda_way qm_cuda_products[] = {
    {"linear", linear, linear_memory},
    {"linear_glu", linear_glu, linear_glu_memory},
    {"lora", lora, NULL},
    {NULL, NULL, NULL},
};
