/* ids.c: ops on a GPU that take or give ids. */
#include <string.h>

#include "call.h"

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
    for (uint32_t i = 0; i < x.rows; i++)
        if (here[i] < 0)
            return qm_call_fail(c, e, "row %u has a NaN", i);
    return true;
}

/* In a step that is captured, the draw's number goes on with the steps, and what it gives is the step's id. */
static bool sample(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { LOGITS, TEMPERATURE, TOP_K, TOP_P, SEED, STEP };
    activation x = arg(c, LOGITS);
    int32_t *here;
    if (x.rows == 0 || x.cols == 0)
        return qm_call_fail(c, e, "there are no logits to draw from");
    if (!make_ids(c, &here, e) || !qm_cuda_flush(d, e))
        return false;
    uint64_t *some = qm_cuda_take(d, whole(x.cols * sizeof *some) + sizeof *here, e);
    if (!some)
        return false;
    qm_draw j = {.logits = x.x + (uint64_t)(x.rows - 1) * x.cols,
                 .n = x.cols,
                 .temperature = c->arg[TEMPERATURE].number,
                 .top_k = (uint64_t)c->arg[TOP_K].number,
                 .top_p = c->arg[TOP_P].number,
                 .seed = (uint64_t)c->arg[SEED].number,
                 .step = (uint64_t)c->arg[STEP].number,
                 .passed = d->ops->capturing ? d->ops->passed : NULL,
                 .sums = d->ops->draw,
                 .some = some,
                 .id = d->ops->capturing
                           ? d->ops->ids
                           : (int32_t *)(void *)(some + whole(x.cols * sizeof *some) / sizeof *some)};
    *here = 0;
    bool ok = ran(d, c, qm_draw_token(&j, d->stream), e)
              && (d->ops->capturing || qm_cuda_download(d, here, j.id, sizeof *here, e));
    qm_cuda_give(d, some);
    if (ok && *here < 0)
        return qm_call_fail(c, e, "the logits hold %s",
                            *here == QM_DRAW_NAN ? "a NaN or an infinity" : "no number at all");
    return ok;
}

const qm_cuda_way qm_cuda_ids[] = {
    {"argmax", argmax, NULL},     {"embedding", embedding, NULL},
    {"logprobs", logprobs, NULL}, {"sample", sample, NULL},
    {NULL, NULL, NULL},
};
