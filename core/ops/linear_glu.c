/* linear_glu: a gated linear unit with both its products, the first half of a feed-forward:
 *
 *     y = f(x Gᵀ + g) * (x Uᵀ + u)
 *
 * the same values as linear, linear and swiglu or geglu, one after another; what they would leave is not kept. */
#include "each.h"
#include "product.h"

#include <stdlib.h>

enum { X, GATE, UP, KIND, GATE_BIAS, UP_BIAS };

static bool run(qm_call *c, qm_err *e)
{
    const qm_lanes *lanes = qm_lanes_get();
    void (*const how[])(const float *, const float *, float *, size_t) = {lanes->silu_mul,
                                                                          lanes->gelu_tanh_mul};
    const size_t n = (size_t)qm_shape_count(&c->shape);
    float *y = qm_call_out(c), *up = malloc(n * sizeof *up + 1);
    qm_product p[2];
    qm_scratch s[2] = {{0}};
    bool ok = up != NULL || qm_call_fail(c, e, "out of memory for %zu values", n);
    ok = ok && qm_call_product(c, GATE, GATE_BIAS, y, &p[0], &s[0], e)
         && qm_call_product(c, UP, UP_BIAS, up, &p[1], &s[1], e)
         && qm_linear(c->pool, qm_arg_values(c, X), qm_call_tokens(c, X), p, 2, e)
         && qm_each_run(c, (qm_each){.x = y, .y = up, .two = how[c->arg[KIND].choice]}, e);
    qm_scratch_free(&s[0]);
    qm_scratch_free(&s[1]);
    free(up);
    return ok;
}

static uint64_t memory(const qm_call *c) { return (uint64_t)qm_shape_count(&c->shape) * sizeof(float); }

const qm_op qm_op_linear_glu = {
    .name = "linear_glu",
    .doc = "a gated linear unit: f(x gateᵀ + gate_bias) * (x upᵀ + up_bias)",
    .param = {{"x", QM_ARG_TENSOR, "activations", .shape = "... K"},
              {"gate", QM_ARG_WEIGHT, "weight of what goes through f", .shape = "N K"},
              {"up", QM_ARG_WEIGHT, "weight of what that is multiplied by", .shape = "N K"},
              {"kind", QM_ARG_STRING, "f", .choices = "silu gelu_tanh"},
              {"gate_bias", QM_ARG_WEIGHT, "added to x gateᵀ", .shape = "N", .optional = true},
              {"up_bias", QM_ARG_WEIGHT, "added to x upᵀ", .shape = "N", .optional = true}},
    .shape = "... N",
    .tolerance = 1e-3, /* as linear's, twice */
    .run = run,
    .memory = memory,
};
