/* geglu: the gate of Gemma's feed-forward: gelu(gate) * up, gelu in its approximation by tanh. */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(
        c,
        (qm_each){.x = qm_arg_values(c, 0), .y = qm_arg_values(c, 1), .two = qm_lanes_get()->gelu_tanh_mul},
        e);
}

const qm_op qm_op_geglu = {
    .name = "geglu",
    .doc = "gelu(gate) * up, gelu by tanh",
    .param = {{"gate", QM_ARG_TENSOR, "values to go through gelu", .shape = "..."},
              {"up", QM_ARG_TENSOR, "values to multiply by", .shape = "..."}},
    .shape = "=gate",
    .tolerance = 2e-6,
    .run = run,
};
