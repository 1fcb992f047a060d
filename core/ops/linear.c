/* linear: y = x Wᵀ + bias, for a weight of any format. */
#include "product.h"

enum { X, WEIGHT, BIAS };

/* Calls one behind another of the same x are one product by several weights. */
static bool run_all(qm_call *c, int n, qm_err *e)
{
    qm_product product[QM_MAX_CALLS];
    qm_scratch s[QM_MAX_CALLS] = {{0}};
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        ok = qm_call_product(&c[i], WEIGHT, BIAS, qm_call_out(&c[i]), &product[i], &s[i], e);
    for (int i = 0, to; ok && i < n; i = to) {
        for (to = i + 1; to < n && c[to].arg[X].tensor == c[i].arg[X].tensor;)
            to++;
        ok = qm_linear(c[i].pool, qm_arg_values(&c[i], X), qm_call_tokens(&c[i], X), product + i, to - i, e);
    }
    for (int i = 0; i < n; i++)
        qm_scratch_free(&s[i]);
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
    .run_all = run_all,
};
