/* feed_forward: the second half of a decoder's layer, down(f(gate x) * up x), which linear, linear, swiglu or geglu, and linear
 * give with the same bits one after another.  What lies between is nobody's, and takes no tensors. */
#include "each.h"
#include "product.h"

#include <stdlib.h>

enum { X, GATE, UP, DOWN, KIND, GATE_BIAS, UP_BIAS, DOWN_BIAS };

static uint64_t between(const qm_call *c)
{
    return (uint64_t)qm_call_tokens(c, X) * (uint64_t)c->arg[GATE].tensor->shape.dim[0];
}

static uint64_t memory(const qm_call *c) { return 2 * between(c) * sizeof(float); }

static bool run(qm_call *c, qm_err *e)
{
    const qm_lanes *lanes = qm_lanes_get();
    void (*const how[])(const float *, const float *, float *, size_t) = {lanes->silu_mul,
                                                                          lanes->gelu_tanh_mul};
    const int64_t n = (int64_t)between(c), tokens = qm_call_tokens(c, X);
    float *gate = malloc((size_t)memory(c) + 1), *up = gate ? gate + n : NULL;
    qm_product p[3];
    qm_scratch s[3] = {{0}};
    bool ok = gate || qm_call_fail(c, e, "out of memory for %lld values", 2 * (long long)n);
    qm_each gated = {.x = gate, .y = up, .z = gate, .two = how[c->arg[KIND].choice]};
    ok = ok && qm_call_product(c, GATE, GATE_BIAS, gate, &p[0], &s[0], e)
         && qm_call_product(c, UP, UP_BIAS, up, &p[1], &s[1], e)
         && qm_call_product(c, DOWN, DOWN_BIAS, qm_call_out(c), &p[2], &s[2], e)
         && qm_linear(c->pool, qm_arg_values(c, X), tokens, p, 2, e)
         && qm_call_rows(c, n, QM_EACH_STEP, qm_each_slice, &gated, e)
         && qm_linear(c->pool, gate, tokens, &p[2], 1, e);
    for (int i = 0; i < 3; i++)
        qm_scratch_free(&s[i]);
    free(gate);
    return ok;
}

const qm_op qm_op_feed_forward = {
    .name = "feed_forward",
    .doc = "a feed-forward behind a gate: y = (f(x gateᵀ) * (x upᵀ)) downᵀ, and biases",
    .param = {{"x", QM_ARG_TENSOR, "activations", .shape = "... K"},
              {"gate", QM_ARG_WEIGHT, "weight of what goes through f", .shape = "F K"},
              {"up", QM_ARG_WEIGHT, "weight of what that is multiplied by", .shape = "F K"},
              {"down", QM_ARG_WEIGHT, "weight of the result", .shape = "N F"},
              {"kind", QM_ARG_STRING, "f", .choices = "silu gelu_tanh"},
              {"gate_bias", QM_ARG_WEIGHT, "added to x gateᵀ", .shape = "F", .optional = true},
              {"up_bias", QM_ARG_WEIGHT, "added to x upᵀ", .shape = "F", .optional = true},
              {"down_bias", QM_ARG_WEIGHT, "added to the result", .shape = "N", .optional = true}},
    .shape = "... N",
    .tolerance = 1.5e-3, /* as linear's, three times over */
    .run = run,
    .memory = memory,
};
