/* rmsnorm: every run of D values is divided by its root mean square and multiplied by a weight.
 *
 *     y = x / sqrt(mean(x²) + eps) * (w + add)
 *
 * The weight's D may be a part of x's row: a head of it, as Qwen3 normalises queries and keys.  Gemma keeps
 * w - 1 and has add = 1.
 */
#include "../lanes.h"
#include "../op.h"
#include "../weight.h"

enum { X, WEIGHT, EPS, ADD };

static bool check(qm_call *c, qm_err *e)
{
    int64_t row = qm_tensor_cols(c->arg[X].tensor), d = qm_tensor_cols(c->arg[WEIGHT].tensor);
    return (d > 0 && row % d == 0)
           || qm_call_fail(c, e, "rows of %lld values are no multiple of the weight's %lld", (long long)row,
                           (long long)d);
}

typedef struct job {
    const float *x, *w;
    float *y, add, eps;
    int64_t d;
} job;

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const job *j = arg;
    for (int64_t i = from; i < to; i++)
        qm_lanes_get()->rmsnorm(j->x + i * j->d, j->w, j->add, j->eps, j->y + i * j->d, (size_t)j->d);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    qm_weight w = {c->arg[WEIGHT].tensor, 0, 1, qm_tensor_cols(c->arg[WEIGHT].tensor)};
    qm_scratch s = {0};
    job j = {.x = qm_arg_values(c, X), .y = qm_call_out(c), .d = w.cols};
    j.add = (float)c->arg[ADD].number;
    j.eps = (float)c->arg[EPS].number;
    j.w = qm_weight_rows(&w, 0, 1, &s, e);
    int64_t n = qm_tensor_count(c->arg[X].tensor) / w.cols;
    bool ok = j.w && qm_call_rows(c, n, 1 + 65536 / w.cols, rows, &j, e);
    qm_scratch_free(&s);
    return ok;
}

const qm_op qm_op_rmsnorm = {
    .name = "rmsnorm",
    .doc = "root mean square normalisation",
    .param = {{"x", QM_ARG_TENSOR, "rows, of D values or a multiple", .shape = "*"},
              {"weight", QM_ARG_WEIGHT, "a factor for each of D values", .shape = "D"},
              {"eps", QM_ARG_FLOAT, "added to the mean square", .least = 0, .most = 1},
              {"add", QM_ARG_FLOAT, "added to the weight (Gemma: 1)", .optional = true}},
    .shape = "=x",
    .tolerance = 1e-6,
    .check = check,
    .run = run,
};
