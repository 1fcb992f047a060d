/* logprobs: the logarithm of the probability that each row of logits gives to one id; sums in double. */
#include "../lanes.h"
#include "../op.h"

#include <math.h>
#include <stdlib.h>

enum { LOGITS, IDS };

typedef struct job {
    const float *x;
    const int32_t *ids;
    float *y;
    int64_t cols;
} job;

static bool check(qm_call *c, qm_err *e)
{
    int64_t cols = qm_tensor_cols(c->arg[LOGITS].tensor);
    for (int64_t i = 0; i < c->arg[IDS].count; i++)
        if (c->arg[IDS].ids[i] >= cols)
            return qm_call_fail(c, e, "id %d (number %lld of ids) is beyond the %lld columns of the logits",
                                c->arg[IDS].ids[i], (long long)i + 1, (long long)cols);
    return true;
}

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    const qm_lanes *lanes = qm_lanes_get();
    size_t n = (size_t)j->cols;
    float *space = malloc(n * sizeof *space);
    if (!space)
        return qm_fail(e, QM_ENOFIT, "logprobs: out of memory");
    for (int64_t i = from; i < to; i++) {
        const float *x = j->x + i * j->cols;
        float top = lanes->largest(x, n);
        double sum = lanes->exp_sum(x, top, space, n);
        j->y[i] = (float)((double)x[j->ids[i]] - (double)top - log(sum));
    }
    free(space);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    job j = {qm_arg_values(c, LOGITS), c->arg[IDS].ids, qm_call_out(c),
             qm_tensor_cols(c->arg[LOGITS].tensor)};
    return qm_call_rows(c, c->arg[IDS].count, 1, rows, &j, e);
}

const qm_op qm_op_logprobs = {
    .name = "logprobs",
    .doc = "log of the probability that each row gives to an id",
    .param = {{"logits", QM_ARG_TENSOR, "a row for every id", .shape = "T V"},
              {"ids", QM_ARG_IDS, "columns, from 0", .shape = "T"}},
    .shape = "T",
    .tolerance = 1e-6,
    .check = check,
    .run = run,
};
