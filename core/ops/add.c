/* add: the sum of two tensors of one shape, value by value. */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(
        c, (qm_each){.x = qm_arg_values(c, 0), .y = qm_arg_values(c, 1), .two = qm_lanes_get()->add}, e);
}

const qm_op qm_op_add = {
    .name = "add",
    .doc = "x + y",
    .param = {{"x", QM_ARG_TENSOR, "any values", .shape = "..."},
              {"y", QM_ARG_TENSOR, "as many, to be added", .shape = "..."}},
    .shape = "=x",
    .tolerance = 0,
    .run = run,
};
