/* product.h: ops that multiply activations by weights: their arguments as linear.h takes them. */
#ifndef QM_OPS_PRODUCT_H
#define QM_OPS_PRODUCT_H

#include "../linear.h"
#include "../op.h"

/* By argument `weight`, with argument `bias`, which may not be given, into y; s keeps the bias. */
static inline bool qm_call_product(qm_call *c, int weight, int bias, float *y, qm_product *p, qm_scratch *s,
                                   qm_err *e)
{
    *p = (qm_product){.w = qm_weight_of(c->arg[weight].tensor), .y = y};
    qm_weight b = {c->arg[bias].tensor, 0, 1, p->w.rows};
    return !c->arg[bias].given || (p->bias = qm_weight_rows(&b, 0, 1, s, e));
}

/* Rows of an argument: the product of all dimensions but the last. */
static inline int64_t qm_call_tokens(const qm_call *c, int x)
{
    const qm_shape *s = &c->arg[x].tensor->shape;
    int64_t tokens = 1;
    for (int i = 0; i + 1 < s->ndim; i++)
        tokens *= s->dim[i];
    return tokens;
}

#endif
