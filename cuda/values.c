/* values.c: ops on a GPU that work value by value or row by row. */
#include "call.h"

/* The panel behind the result of what products are likely to follow. */
static uint64_t panel_memory(const qm_call *c, uint64_t *kept)
{
    const qm_tensor *x = c->arg[0].tensor;
    *kept = 0;
    bool same = qm_tensor_cols(c->arg[1].tensor) == qm_tensor_cols(x); /* not the norm of heads */
    return same ? panel_room(rows_of(x), (uint32_t)qm_tensor_cols(x)) : 0;
}

bool qm_cuda_each(qm_cuda *d, const qm_call *c, qm_each_op f, const float *x, const float *y, float by,
                  const activation *out, qm_err *e)
{
    if (out->rows == 1 && qm_cuda_notes(d) && (f == QM_EACH_ADD || f == QM_EACH_SWIGLU || f == QM_EACH_GEGLU))
        return qm_cuda_note(
            d,
            &(qm_note){f == QM_EACH_ADD ? QM_NOTE_ADD : QM_NOTE_GATE, .values = {f, x, y, out->x, out->cols}},
            e);
    if (!qm_cuda_flush(d, e))
        return false;
    if (out->panel.half)
        return ran(d, c, qm_each_panel(f, x, y, out->x, &out->panel, d->stream), e);
    return ran(d, c,
               qm_each_value(f, x, y, by, out->rows, out->cols, out->x, out->half.half ? &out->half : NULL,
                             d->stream),
               e);
}

static bool each(qm_cuda *d, qm_call *c, qm_each_op f, bool two, float by, bool with_half, qm_err *e)
{
    activation out;
    return make_out_with(d, c, with_half, with_half, &out, e)
           && qm_cuda_each(d, c, f, arg(c, 0).x, two ? arg(c, 1).x : NULL, by, &out, e);
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
    bool of_rows = run == x.cols; /* whole ones, and not the heads of each */
    if (!make_out_with(d, c, of_rows, of_rows, &y, e) || !read_vector(d, &c->arg[1], &w, e))
        return false;
    const float add = (float)c->arg[3].number, eps = (float)c->arg[2].number;
    if (x.rows == 1 && of_rows && qm_cuda_notes(d))
        return qm_cuda_note(d, &(qm_note){QM_NOTE_NORM, .norm = {x.x, w.values, add, eps, run, y.x}}, e);
    if (!qm_cuda_flush(d, e))
        return false;
    cudaError_t r = y.panel.half ? qm_rmsnorm_panel(x.x, w.values, add, eps, y.x, &y.panel, d->stream)
                                 : qm_rmsnorm(x.x, w.values, add, eps, (uint64_t)x.rows * x.cols / run, run,
                                              y.x, y.half.half ? &y.half : NULL, d->stream);
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

static bool kl(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation r = arg(c, 0), x = arg(c, 1), y;
    if (!make_out(d, c, false, &y, e) || !qm_cuda_flush(d, e))
        return false;
    return ran(d, c, qm_divergence_rows(r.x, x.x, x.rows, x.cols, y.x, d->stream), e);
}

const qm_cuda_way qm_cuda_values[] = {
    {"activation", activate, NULL},
    {"add", add, NULL},
    {"columns", columns, NULL},
    {"gated", gated, NULL},
    {"geglu", geglu, panel_memory},
    {"kl", kl, NULL},
    {"mul", mul, panel_memory},
    {"rmsnorm", rmsnorm, panel_memory},
    {"rows", rows, NULL},
    {"scale", scale, NULL},
    {"softcap", softcap, NULL},
    {"softmax", softmax, NULL},
    {"swiglu", swiglu, panel_memory},
    {NULL, NULL, NULL},
};
