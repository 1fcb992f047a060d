/* gated: every row times the sigmoid of its own gate, as the expert that all tokens share (Qwen2-MoE). */
#include "../op.h"

#include <math.h>

enum { X, GATE };

typedef struct job {
    const float *x, *gate;
    float *y;
    int64_t cols;
} job;

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const job *j = arg;
    for (int64_t i = from; i < to; i++) {
        float open = (float)(1 / (1 + exp(-(double)j->gate[i])));
        for (int64_t k = i * j->cols; k < (i + 1) * j->cols; k++)
            j->y[k] = open * j->x[k];
    }
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    job j = {qm_arg_values(c, X), qm_arg_values(c, GATE), qm_call_out(c), c->shape.dim[1]};
    return qm_call_rows(c, c->shape.dim[0], 1 + 16384 / (j.cols + 1), rows, &j, e);
}

static bool check(qm_call *c, qm_err *e)
{
    int64_t width = qm_tensor_cols(c->arg[GATE].tensor);
    return width == 1 || qm_call_fail(c, e, "a row has one gate, not %lld", (long long)width);
}

const qm_op qm_op_gated = {
    .name = "gated",
    .doc = "every row of x times sigmoid(its gate)",
    .param = {{"x", QM_ARG_TENSOR, "rows", .shape = "T D"},
              {"gate", QM_ARG_TENSOR, "one value for each row", .shape = "T G"}},
    .shape = "=x",
    .tolerance = 1e-6,
    .check = check,
    .run = run,
};
