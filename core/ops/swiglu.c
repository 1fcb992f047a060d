/* swiglu: the gate of Llama's feed-forward: silu(gate) * up with silu(x) = x / (1 + e^-x). */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(
        c, (qm_each){.x = qm_arg_values(c, 0), .y = qm_arg_values(c, 1), .two = qm_lanes_get()->silu_mul}, e);
}

const qm_op qm_op_swiglu = {
    .name = "swiglu",
    .doc = "silu(gate) * up",
    .param = {{"gate", QM_ARG_TENSOR, "values to go through silu", .shape = "..."},
              {"up", QM_ARG_TENSOR, "values to multiply by", .shape = "..."}},
    .shape = "=gate",
    .tolerance = 1e-6,
    .run = run,
};
