/* softmax: e^x over the sum of e^x, of every row; the row's largest value is taken off first. */
#include "../lanes.h"
#include "../op.h"

typedef struct job {
    const float *x;
    float *y;
    int64_t cols;
} job;

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const job *j = arg;
    const qm_lanes *lanes = qm_lanes_get();
    size_t n = (size_t)j->cols;
    for (int64_t i = from; i < to; i++) {
        const float *x = j->x + i * j->cols;
        float *y = j->y + i * j->cols;
        double sum = lanes->exp_sum(x, lanes->largest(x, n), y, n);
        lanes->scale(y, (float)(1 / sum), y, n);
    }
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    job j = {qm_arg_values(c, 0), qm_call_out(c), qm_tensor_cols(c->arg[0].tensor)};
    int64_t n = j.cols ? qm_tensor_count(c->arg[0].tensor) / j.cols : 0;
    return n == 0 || qm_call_rows(c, n, 1 + 16384 / j.cols, rows, &j, e);
}

const qm_op qm_op_softmax = {
    .name = "softmax",
    .doc = "e^x divided by its sum, of every row",
    .param = {{"x", QM_ARG_TENSOR, "rows", .shape = "... D"}},
    .shape = "=x",
    .tolerance = 1e-6,
    .run = run,
};
