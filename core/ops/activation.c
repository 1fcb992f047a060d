/* activation: a feed-forward's non-linearity alone.
 *
 *     silu        x / (1 + e^-x)
 *     gelu_tanh   x / 2 * (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))
 *     gelu        x / 2 * (1 + erf(x / sqrt 2))
 *     relu        max(x, 0)
 */
#include "each.h"

#include <math.h>

enum { SILU, GELU_TANH, GELU, RELU };

static void gelu(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = 0.5f * x[i] * (1 + erff(x[i] * 0x1.6a09e6p-1f));
}

static void relu(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] < 0 ? 0 : x[i]; /* NaN stays */
}

static bool run(qm_call *c, qm_err *e)
{
    const qm_lanes *lanes = qm_lanes_get();
    void (*const how[])(const float *, float *, size_t) = {
        [SILU] = lanes->silu, [GELU_TANH] = lanes->gelu_tanh, [GELU] = gelu, [RELU] = relu};
    return qm_each_run(c, (qm_each){.x = qm_arg_values(c, 0), .one = how[c->arg[1].choice]}, e);
}

const qm_op qm_op_activation = {
    .name = "activation",
    .doc = "silu, gelu or relu of every value",
    .param = {{"x", QM_ARG_TENSOR, "any values", .shape = "..."},
              {"kind", QM_ARG_STRING, "which function", .choices = "silu gelu_tanh gelu relu"}},
    .shape = "=x",
    .tolerance = 2e-6,
    .run = run,
};
