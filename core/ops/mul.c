/* mul: the product of two tensors of one shape, value by value. */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(
        c, (qm_each){.x = qm_arg_values(c, 0), .y = qm_arg_values(c, 1), .two = qm_lanes_get()->mul}, e);
}

const qm_op qm_op_mul = {
    .name = "mul",
    .doc = "x * y, value by value",
    .param = {{"x", QM_ARG_TENSOR, "any values", .shape = "..."},
              {"y", QM_ARG_TENSOR, "as many, to multiply by", .shape = "..."}},
    .shape = "=x",
    .tolerance = 0,
    .run = run,
};
