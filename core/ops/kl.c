/* kl: how far predictions are from a reference's, row by row: the sum over all ids of p ln(p / q) in nats, p
 * being softmax(reference) and q softmax(logits).  Computed from logits, so that ids of no probability need
 * no care:
 *
 *     ln(p / q) = (r - top r - ln sum exp(r - top r)) - (x - top x - ln sum exp(x - top x))
 */
#include "../lanes.h"
#include "../op.h"

#include <math.h>
#include <stdlib.h>

enum { REFERENCE, LOGITS };

typedef struct job {
    const float *r, *x;
    float *y;
    int64_t cols;
} job;

static float divergence(const float *r, const float *x, float *space, size_t n)
{
    const qm_lanes *lanes = qm_lanes_get();
    float top_r = lanes->largest(r, n), top_x = lanes->largest(x, n);
    double sum_x = lanes->exp_sum(x, top_x, space, n), sum_r = lanes->exp_sum(r, top_r, space, n), sum = 0;
    for (size_t i = 0; i < n; i++)
        if (space[i] > 0)
            sum += (double)space[i] * ((double)(r[i] - top_r) - (double)(x[i] - top_x));
    return (float)(sum / sum_r - log(sum_r) + log(sum_x));
}

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    float *space = malloc((size_t)j->cols * sizeof *space + 1);
    if (!space)
        return qm_fail(e, QM_ENOFIT, "kl: out of memory");
    for (int64_t i = from; i < to; i++)
        j->y[i] = divergence(j->r + i * j->cols, j->x + i * j->cols, space, (size_t)j->cols);
    free(space);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    job j = {qm_arg_values(c, REFERENCE), qm_arg_values(c, LOGITS), qm_call_out(c),
             qm_tensor_cols(c->arg[LOGITS].tensor)};
    return qm_call_rows(c, c->shape.dim[0], 1, rows, &j, e);
}

const qm_op qm_op_kl = {
    .name = "kl",
    .doc = "KL divergence of every row's predictions from the reference's, in nats",
    .param = {{"reference", QM_ARG_TENSOR, "logits of the model that is taken as right", .shape = "T V"},
              {"logits", QM_ARG_TENSOR, "logits of the other", .shape = "T V"}},
    .shape = "T",
    .tolerance = 1e-5,
    .run = run,
};
