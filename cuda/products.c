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
    if (w->products)
        r = w->panel.half ? qm_matrix_wide(w->w, w->p, w->products, &w->panel, d->ops->join, d->stream)
                          : qm_matrix_decode(w->w, w->p, w->products, &w->x, d->stream);
    if (w->rotations)
        r = qm_rope(w->r, w->rotations, w->rope.tokens, w->rope.head_dim, w->rope.rotary_dim, w->rope.neox,
                    w->rope.inverse, w->rope.scale, w->rope.at, d->stream);
    w->products = w->rotations = 0;
    w->panel.half = NULL;
    while (w->memories)
        qm_cuda_give(d, w->memory[--w->memories]);
    return qm_cuda_check(d, r, "multiplying", e) && qm_cuda_play(d, e);
}

/* Gives back what a product reads that may wait still. */
static void give_after(qm_cuda *d, void *p)
{
    qm_waiting *w = &d->ops->waiting;
    if (w->products)
        w->memory[w->memories++] = p;
    else
        qm_cuda_give(d, p);
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

/* What is in the panel that x may have behind it, or one of its own; *taken: that one's memory, or NULL. */
static bool panel_for(qm_cuda *d, const qm_matrix *m, const activation *x, qm_panel *panel, void **taken,
                      qm_err *e)
{
    *taken = NULL;
    *panel = x->panel;
    if (x->panel.half && m->group >= x->panel.group)
        return true;
    if (!(*taken = qm_cuda_take(d, qm_panel_bytes(x->rows, x->cols), e)))
        return false;
    *panel = qm_panel_at(*taken, x->rows, x->cols, m->group);
    if (qm_cuda_check(d, qm_to_panel(x->x, panel, d->stream), "converting", e))
        return true;
    qm_cuda_give(d, *taken);
    *taken = NULL;
    return false;
}

/* All tokens at once.  Products of one x share what is made of it. */
static bool packed_wide(qm_cuda *d, const qm_matrix *m, const activation *x, const qm_product *p, qm_err *e)
{
    qm_waiting *k = &d->ops->waiting;
    bool joins = k->products && k->products < QM_TOGETHER && k->panel.half && k->x_values == x->x
                 && k->panel.tokens == x->rows && qm_cuda_same_kind(k->w, m);
    void *taken = NULL;
    if (!joins && (!qm_cuda_flush(d, e) || !panel_for(d, m, x, &k->panel, &taken, e)))
        return false;
    k->x_values = x->x;
    k->w[k->products] = *m;
    k->p[k->products++] = *p;
    if (taken)
        give_after(d, taken);
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

/* ---- feed-forwards ------------------------------------------------------------------------------- */

enum { FF_X, FF_GATE, FF_UP, FF_DOWN, FF_KIND, FF_GATE_BIAS, FF_UP_BIAS, FF_DOWN_BIAS };

/* Whether gate, up and what is between them and down are one launch, which leaves a panel: of weights that mean the same by
 * their codes. */
static bool gated_at_once(const qm_call *c)
{
    const qm_tensor *gate = c->arg[FF_GATE].tensor, *up = c->arg[FF_UP].tensor;
    return rows_of(c->arg[FF_X].tensor) >= QM_GLU_TOKENS && qm_matrix_takes_wide() && gate->laid_out
           && up->laid_out && c->arg[FF_DOWN].tensor->laid_out && gate->format == up->format
           && gate->codec.block == up->codec.block && gate->double_quant == up->double_quant
           && rows_of(gate) % QM_TILE_ROWS == 0;
}

static uint64_t inner_bytes(const qm_call *c)
{
    return whole((uint64_t)rows_of(c->arg[FF_X].tensor) * rows_of(c->arg[FF_GATE].tensor) * sizeof(float));
}

/* The middle's panel, in memory of its own. */
static bool gate_at_once(qm_cuda *d, const qm_call *c, const vector *bias, activation *mid, void **taken,
                         qm_err *e)
{
    static const qm_gate kinds[] = {QM_GATE_SILU, QM_GATE_GELU_TANH};
    const float *const values[] = {bias[0].values, bias[1].values};
    const activation x = arg(c, FF_X);
    const uint64_t room = whole(qm_panel_bytes(mid->rows, mid->cols));
    qm_matrix w[2], down;
    qm_panel panel;
    void *of_x = NULL;
    if (!qm_cuda_matrix_of(d, c->arg[FF_GATE].tensor, &w[0])
        || !qm_cuda_matrix_of(d, c->arg[FF_UP].tensor, &w[1])
        || !qm_cuda_matrix_of(d, c->arg[FF_DOWN].tensor, &down))
        return qm_fail(e, QM_EFAIL, "feed_forward: a weight that was prepared for another device");
    bool ok = qm_cuda_flush(d, e) && panel_for(d, w, &x, &panel, &of_x, e)
              && (*taken = qm_cuda_take(d, room + qm_glu_bytes(mid->rows, mid->cols), e));
    if (ok) {
        mid->x = *taken; /* there are none, but this tells one x from another */
        mid->panel = qm_panel_at(*taken, mid->rows, mid->cols, down.group);
        float *by = (float *)(void *)((char *)*taken + room);
        cudaError_t r = qm_matrix_glu(w, values, kinds[c->arg[FF_KIND].choice], &panel, &mid->panel, by,
                                      d->ops->join, d->stream);
        ok = qm_cuda_check(d, r, "multiplying", e);
    }
    qm_cuda_give(d, of_x);
    return ok;
}

/* Or in turn; what a program makes of that notes.c knows. */
static bool gate_in_turn(qm_cuda *d, const qm_call *c, const vector *bias, activation *mid, void **taken,
                         qm_err *e)
{
    static const qm_each_op kinds[] = {QM_EACH_SWIGLU, QM_EACH_GEGLU};
    const activation x = arg(c, FF_X);
    const uint64_t size = inner_bytes(c);
    const bool noted = mid->rows == 1 && qm_cuda_notes(d), few = mid->rows <= QM_HALF_TOKENS;
    const uint64_t behind = noted ? size
                            : few ? qm_half_bytes(mid->rows, mid->cols)
                                  : panel_room(mid->rows, mid->cols);
    float *up = qm_cuda_take(d, size, e), *gate;
    *taken = up ? qm_cuda_take(d, size + behind, e) : NULL;
    if (!*taken) {
        qm_cuda_give(d, up);
        return false;
    }
    mid->x = gate = *taken;
    void *next = (char *)*taken + size;
    if (noted) /* a phase does not write where it has read */
        gate = next;
    else if (few)
        mid->half = qm_half_at(next, mid->rows, mid->cols);
    else if (behind)
        mid->panel = qm_panel_at(next, mid->rows, mid->cols, QM_UNIT_COLS);
    bool ok = qm_cuda_product(d, c->arg[FF_GATE].tensor, &x, bias[0].values, gate, e)
              && qm_cuda_product(d, c->arg[FF_UP].tensor, &x, bias[1].values, up, e)
              && qm_cuda_each(d, c, kinds[c->arg[FF_KIND].choice], gate, up, 0, mid, e);
    qm_cuda_give(d, up);
    return ok;
}

static bool feed_forward(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation out, mid = {.rows = rows_of(c->arg[FF_X].tensor), .cols = rows_of(c->arg[FF_GATE].tensor)};
    vector bias[3] = {{0}};
    void *taken = NULL;
    bool ok = make_out(d, c, false, &out, e);
    for (int i = 0; ok && i < 3; i++)
        ok = read_vector(d, &c->arg[FF_GATE_BIAS + i], &bias[i], e);
    ok = ok && (gated_at_once(c) ? gate_at_once : gate_in_turn)(d, c, bias, &mid, &taken, e)
         && qm_cuda_product(d, c->arg[FF_DOWN].tensor, &mid, bias[2].values, out.x, e);
    if (taken)
        give_after(d, taken);
    ok = ok && (!bias[2].taken || qm_cuda_notes(d) || qm_cuda_flush(d, e));
    for (int i = 0; i < 3; i++)
        drop_vector(d, &bias[i]);
    return ok;
}

static uint64_t feed_forward_memory(const qm_call *c, uint64_t *kept)
{
    const uint32_t tokens = rows_of(c->arg[FF_X].tensor), inner = rows_of(c->arg[FF_GATE].tensor);
    uint64_t product[3], most = 0;
    *kept = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t more;
        product[i] = qm_cuda_product_memory(c->arg[FF_GATE + i].tensor, tokens, &more);
        *kept = more > *kept ? more : *kept;
    }
    if (gated_at_once(c)) /* the panels of x and of the middle */
        return product[0] + whole(qm_panel_bytes(tokens, inner)) + qm_glu_bytes(tokens, inner);
    for (int i = 0; i < 2; i++)
        most = product[i] > most ? product[i] : most;
    most += inner_bytes(c); /* up */
    most = product[2] > most ? product[2] : most;
    return most + inner_bytes(c) + panel_room(tokens, inner);
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
    {"feed_forward", feed_forward, feed_forward_memory},
    {"linear", linear, linear_memory},
    {"lora", lora, NULL},
    {NULL, NULL, NULL},
};
