/* columns: some columns of every row: queries, keys and values out of a tensor that holds all three. */
#include "../op.h"

#include <string.h>

enum { X, FROM, COUNT };

static bool check(qm_call *c, qm_err *e)
{
    int64_t columns = c->shape.dim[1], from = qm_arg_int(c, FROM), n = qm_arg_int(c, COUNT);
    if (from > columns || n > columns - from)
        return qm_call_fail(c, e, "columns %lld to %lld of %lld", (long long)from, (long long)(from + n - 1),
                            (long long)columns);
    c->shape.dim[1] = n;
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    (void)e;
    size_t n = (size_t)c->shape.dim[1], width = (size_t)qm_tensor_cols(c->arg[X].tensor);
    const float *x = qm_arg_values(c, X) + qm_arg_int(c, FROM);
    float *y = qm_call_out(c);
    for (int64_t row = 0; row < c->shape.dim[0] && n; row++)
        memcpy(y + (size_t)row * n, x + (size_t)row * width, n * sizeof *y);
    return true;
}

const qm_op qm_op_columns = {
    .name = "columns",
    .doc = "columns from … from + count - 1 of every row of x",
    .param = {{"x", QM_ARG_TENSOR, "a matrix", .shape = "T D"},
              {"from", QM_ARG_INT, "the first column, from 0", .least = 0, .most = 0x1p53},
              {"count", QM_ARG_INT, "how many", .least = 0, .most = 0x1p53}},
    .shape = "T D",
    .tolerance = 0,
    .check = check,
    .run = run,
};
