/* scale: a tensor times a number. */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(
        c,
        (qm_each){.x = qm_arg_values(c, 0), .number = (float)c->arg[1].number, .with = qm_lanes_get()->scale},
        e);
}

const qm_op qm_op_scale = {
    .name = "scale",
    .doc = "x times a number",
    .param = {{"x", QM_ARG_TENSOR, "any values", .shape = "..."}, {"by", QM_ARG_FLOAT, "the factor"}},
    .shape = "=x",
    .tolerance = 0,
    .run = run,
};
