/* linear: y = x Wᵀ + bias, for a weight of any format. */
#include "../linear.h"
#include "../op.h"

enum { X, WEIGHT, BIAS };

static bool run(qm_call *c, qm_err *e)
{
    qm_weight w = qm_weight_of(c->arg[WEIGHT].tensor);
    qm_scratch s = {0};
    const float *bias = NULL;
    if (c->arg[BIAS].given) {
        qm_weight b = {c->arg[BIAS].tensor, 0, 1, w.rows};
        if (!(bias = qm_weight_rows(&b, 0, 1, &s, e)))
            return false;
    }
    int64_t tokens = w.rows ? qm_shape_count(&c->shape) / w.rows : 0;
    bool ok = qm_linear(c->pool, qm_arg_values(c, X), tokens, &w, bias, qm_call_out(c), e);
    qm_scratch_free(&s);
    return ok;
}

const qm_op qm_op_linear = {
    .name = "linear",
    .doc = "activations times the transposed weight: y = x Wᵀ + bias",
    .param = {{"x", QM_ARG_TENSOR, "activations", .shape = "... K"},
              {"weight", QM_ARG_WEIGHT, "weight, out x in", .shape = "N K"},
              {"bias", QM_ARG_WEIGHT, "added to every row", .shape = "N", .optional = true}},
    .shape = "... N",
    .tolerance = 5e-4, /* of a weight laid out for speed: activations have 15 bits then (packed.h), on a GPU
                          they and levels have the 11 of an f16 */
    .run = run,
};
