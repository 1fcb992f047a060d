/* moe: a mixture of experts.  Every token goes through the k experts its router likes best.
 *
 *     p = softmax(router_logits);  the k largest, divided by their sum if `normalise`
 *     y = sum over them of p[e] * down[e] · (silu(gate[e] · x) * (up[e] · x))
 *
 * Experts are taken in order, each for all of its tokens at once; of equal probabilities the lower expert's
 * comes first.
 */
#include "../lanes.h"
#include "../linear.h"
#include "../op.h"

#include <stdlib.h>
#include <string.h>

enum { X, ROUTER, COUNT, NORMALISE, GATE, UP, DOWN };

typedef struct plan {
    int64_t tokens, dim, hidden, experts, k;
    float *part; /* [tokens][experts]: p, or 0 where the expert was not chosen */
    float *in, *gate, *up, *out;
    int64_t *token; /* those of one expert */
} plan;

static bool check(qm_call *c, qm_err *e)
{
    int64_t experts = qm_tensor_cols(c->arg[ROUTER].tensor);
    return qm_arg_int(c, COUNT) <= experts
           || qm_call_fail(c, e, "k is %lld, and there are %lld experts", (long long)qm_arg_int(c, COUNT),
                           (long long)experts);
}

/* Keeps the k largest of a token's probabilities. */
static void choose(const plan *p, const float *logits, float *part, bool normalise, float *space)
{
    const qm_lanes *lanes = qm_lanes_get();
    size_t n = (size_t)p->experts;
    double all = lanes->exp_sum(logits, lanes->largest(logits, n), space, n), chosen = 0;
    memset(part, 0, n * sizeof *part);
    for (int64_t i = 0; i < p->k; i++) {
        int64_t best = 0;
        for (int64_t x = 1; x < p->experts; x++)
            if (!(space[best] >= space[x])) /* NaN counts as largest, and shows in the result */
                best = x;
        part[best] = space[best]; /* 0 adds nothing, chosen or not */
        chosen += (double)part[best];
        space[best] = -1;
    }
    for (int64_t x = 0; x < p->experts; x++)
        part[x] = (float)((double)part[x] / (normalise ? chosen : all));
}

static qm_weight expert_of(const qm_arg *a, int64_t i)
{
    return a->list ? qm_weight_of(a->list[i]) : qm_weight_part(a->tensor, i);
}

/* Adds one expert's share to its tokens' rows of y. */
static bool add_expert(qm_call *c, plan *p, int64_t expert, float *y, qm_err *e)
{
    const qm_lanes *lanes = qm_lanes_get();
    const float *x = qm_arg_values(c, X);
    const size_t row = (size_t)p->dim * sizeof *x;
    int64_t n = 0;
    for (int64_t t = 0; t < p->tokens; t++) {
        if (p->part[t * p->experts + expert] == 0)
            continue;
        memcpy(p->in + n * p->dim, x + t * p->dim, row);
        p->token[n++] = t;
    }
    const qm_product in[] = {{expert_of(&c->arg[GATE], expert), NULL, p->gate},
                             {expert_of(&c->arg[UP], expert), NULL, p->up}},
                     out = {expert_of(&c->arg[DOWN], expert), NULL, p->out};
    if (n == 0)
        return true;
    if (!qm_linear(c->pool, p->in, n, in, 2, e))
        return false;
    lanes->silu_mul(p->gate, p->up, p->gate, (size_t)(n * p->hidden));
    if (!qm_linear(c->pool, p->gate, n, &out, 1, e))
        return false;
    for (int64_t i = 0; i < n; i++)
        lanes->axpy(y + p->token[i] * p->dim, p->part[p->token[i] * p->experts + expert], p->out + i * p->dim,
                    (size_t)p->dim);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    plan p = {.tokens = c->arg[X].tensor->shape.dim[0], .dim = qm_tensor_cols(c->arg[X].tensor)};
    p.experts = qm_tensor_cols(c->arg[ROUTER].tensor);
    p.k = qm_arg_int(c, COUNT);
    p.hidden = expert_of(&c->arg[GATE], 0).rows;
    size_t t = (size_t)p.tokens;
    size_t floats = t * (2 * (size_t)p.experts + 2 * (size_t)p.dim + 2 * (size_t)p.hidden);
    p.part = malloc(floats * sizeof(float) + 1);
    p.token = malloc(t * sizeof *p.token + 1);
    bool ok = p.part && p.token;
    if (ok) {
        float *space = p.part + t * (size_t)p.experts;
        p.in = space + t * (size_t)p.experts;
        p.out = p.in + t * (size_t)p.dim;
        p.gate = p.out + t * (size_t)p.dim;
        p.up = p.gate + t * (size_t)p.hidden;
        for (int64_t i = 0; i < p.tokens; i++)
            choose(&p, qm_arg_values(c, ROUTER) + i * p.experts, p.part + i * p.experts,
                   c->arg[NORMALISE].number != 0, space);
        memset(qm_call_out(c), 0, t * (size_t)p.dim * sizeof(float));
    } else {
        qm_call_fail(c, e, "out of memory for %zu values", floats);
    }
    for (int64_t i = 0; ok && i < p.experts; i++)
        ok = add_expert(c, &p, i, qm_call_out(c), e);
    free(p.part);
    free(p.token);
    return ok;
}

const qm_op qm_op_moe = {
    .name = "moe",
    .doc = "a feed-forward of experts, of which every token takes the k that its router likes best",
    .param = {{"x", QM_ARG_TENSOR, "activations", .shape = "T D"},
              {"router_logits", QM_ARG_TENSOR, "the router's output", .shape = "T E"},
              {"k", QM_ARG_INT, "experts a token takes", .least = 1, .most = 65536},
              {"normalise", QM_ARG_BOOL, "the chosen probabilities are made to add up to 1", .named = true,
               .optional = true, .absent = 1},
              {"gate", QM_ARG_WEIGHTS, "gate weights of the experts", .shape = "E F D"},
              {"up", QM_ARG_WEIGHTS, "up weights", .shape = "E F D"},
              {"down", QM_ARG_WEIGHTS, "down weights", .shape = "E D F"}},
    .shape = "=x",
    .tolerance = 1.5e-3, /* as linear's, three times over */
    .check = check,
    .run = run,
};
