/* softcap: cap * tanh(x / cap), which bends values towards a limit (Gemma 2's logits). */
#include "each.h"

static bool run(qm_call *c, qm_err *e)
{
    return qm_each_run(c,
                       (qm_each){.x = qm_arg_values(c, 0),
                                 .number = (float)c->arg[1].number,
                                 .with = qm_lanes_get()->softcap},
                       e);
}

const qm_op qm_op_softcap = {
    .name = "softcap",
    .doc = "cap * tanh(x / cap)",
    .param = {{"x", QM_ARG_TENSOR, "any values", .shape = "..."},
              {"cap", QM_ARG_FLOAT, "the limit", .least = 1e-6, .most = 1e9}},
    .shape = "=x",
    .tolerance = 1e-6,
    .run = run,
};
