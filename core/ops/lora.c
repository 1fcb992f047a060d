/* lora: what an adapter adds to a linear's output, without merging: y + scale * (x Aᵀ) Bᵀ. */
#include "../lanes.h"
#include "../linear.h"
#include "../op.h"

#include <stdlib.h>

enum { Y, X, A, B, SCALE };

static bool run(qm_call *c, qm_err *e)
{
    qm_weight a = qm_weight_of(c->arg[A].tensor), b = qm_weight_of(c->arg[B].tensor);
    size_t count = (size_t)qm_tensor_count(c->arg[Y].tensor);
    int64_t tokens = b.rows ? (int64_t)count / b.rows : 0;
    float *inner = malloc(((size_t)tokens * (size_t)a.rows + count) * sizeof *inner + 1);
    if (!inner)
        return qm_call_fail(c, e, "out of memory for %zu values", count);
    float *delta = inner + tokens * a.rows, *out = qm_call_out(c);
    const qm_product down = {a, NULL, inner}, up = {b, NULL, delta};
    bool ok = qm_linear(c->pool, qm_arg_values(c, X), tokens, &down, 1, e)
              && qm_linear(c->pool, inner, tokens, &up, 1, e);
    if (ok) {
        qm_lanes_get()->scale(delta, (float)c->arg[SCALE].number, delta, count);
        qm_lanes_get()->add(qm_arg_values(c, Y), delta, out, count);
    }
    free(inner);
    return ok;
}

const qm_op qm_op_lora = {
    .name = "lora",
    .doc = "a low-rank update added to a linear's output: y + scale (x Aᵀ) Bᵀ",
    .param = {{"y", QM_ARG_TENSOR, "the linear's output", .shape = "... N"},
              {"x", QM_ARG_TENSOR, "the linear's input", .shape = "... K"},
              {"a", QM_ARG_WEIGHT, "rank x in", .shape = "R K"},
              {"b", QM_ARG_WEIGHT, "out x rank", .shape = "N R"},
              {"scale", QM_ARG_FLOAT, "alpha / rank, or alpha / sqrt(rank)"}},
    .shape = "=y",
    .tolerance = 1e-5,
    .run = run,
};
