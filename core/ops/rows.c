/* rows: some rows of a matrix, as a tensor of their own. */
#include "../op.h"

#include <string.h>

enum { X, FROM, COUNT };

static bool check(qm_call *c, qm_err *e)
{
    int64_t rows = c->shape.dim[0], from = qm_arg_int(c, FROM), n = qm_arg_int(c, COUNT);
    if (from > rows || n > rows - from)
        return qm_call_fail(c, e, "rows %lld to %lld of %lld", (long long)from, (long long)(from + n - 1),
                            (long long)rows);
    c->shape.dim[0] = n;
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    (void)e;
    size_t width = (size_t)c->shape.dim[1] * sizeof(float);
    const uint8_t *x = c->arg[X].tensor->plane[0].data;
    memcpy(qm_call_out(c), x + (size_t)qm_arg_int(c, FROM) * width, (size_t)c->shape.dim[0] * width);
    return true;
}

const qm_op qm_op_rows = {
    .name = "rows",
    .doc = "rows from … from + count - 1 of x",
    .param = {{"x", QM_ARG_TENSOR, "a matrix", .shape = "T D"},
              {"from", QM_ARG_INT, "the first row, from 0", .least = 0, .most = 0x1p53},
              {"count", QM_ARG_INT, "how many", .least = 0, .most = 0x1p53}},
    .shape = "T D",
    .tolerance = 0,
    .check = check,
    .run = run,
};
