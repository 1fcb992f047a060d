/* linear: y = x Wᵀ + bias, for a weight of any format. */
#include "../linear.h"
#include "../op.h"

enum { X, WEIGHT, BIAS };

/* s keeps the bias. */
static bool product_of(qm_call *c, qm_product *p, qm_scratch *s, qm_err *e)
{
    *p = (qm_product){.w = qm_weight_of(c->arg[WEIGHT].tensor), .y = qm_call_out(c)};
    qm_weight b = {c->arg[BIAS].tensor, 0, 1, p->w.rows};
    return !c->arg[BIAS].given || (p->bias = qm_weight_rows(&b, 0, 1, s, e));
}

static int64_t tokens_of(const qm_call *c)
{
    const qm_shape *x = &c->arg[X].tensor->shape;
    int64_t tokens = 1;
    for (int i = 0; i + 1 < x->ndim; i++)
        tokens *= x->dim[i];
    return tokens;
}

/* Calls one behind another of the same x are one product by several weights. */
static bool run_all(qm_call *c, int n, qm_err *e)
{
    qm_product product[QM_MAX_CALLS];
    qm_scratch s[QM_MAX_CALLS] = {{0}};
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        ok = product_of(&c[i], &product[i], &s[i], e);
    for (int i = 0, to; ok && i < n; i = to) {
        for (to = i + 1; to < n && c[to].arg[X].tensor == c[i].arg[X].tensor;)
            to++;
        ok = qm_linear(c[i].pool, qm_arg_values(&c[i], X), tokens_of(&c[i]), product + i, to - i, e);
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
