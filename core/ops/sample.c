/* sample: one token drawn from the last row of logits.
 *
 * In this order: logits / temperature; the top_k largest; of those the fewest whose probabilities reach top_p
 * (the one that passes it included); one of what is left, by its probability.  temperature 0 takes the
 * largest. The draw is a function of seed and step alone.
 */
#include "../op.h"
#include "../random.h"

#include <math.h>
#include <stdlib.h>

enum { LOGITS, TEMPERATURE, TOP_K, TOP_P, SEED, STEP };

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

/* Largest first; of equal ones the lower id. */
static int order(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* How many of the n sorted candidates reach top_p. */
static int64_t nucleus(const candidate *list, int64_t n, double temperature, double top_p)
{
    double all = 0, sum = 0;
    for (int64_t i = 0; i < n; i++)
        all += exp((double)(list[i].logit - list[0].logit) / temperature);
    for (int64_t i = 0; i < n; i++) {
        sum += exp((double)(list[i].logit - list[0].logit) / temperature);
        if (sum >= top_p * all)
            return i + 1;
    }
    return n;
}

static int32_t draw(const candidate *list, int64_t n, double temperature, double u)
{
    double all = 0, sum = 0;
    for (int64_t i = 0; i < n; i++)
        all += exp((double)(list[i].logit - list[0].logit) / temperature);
    for (int64_t i = 0; i < n; i++) {
        sum += exp((double)(list[i].logit - list[0].logit) / temperature);
        if (sum > u * all)
            return list[i].id;
    }
    return list[0].id;
}

static bool run(qm_call *c, qm_err *e)
{
    const qm_tensor *t = c->arg[LOGITS].tensor;
    int64_t n = qm_tensor_cols(t), left = n, k = qm_arg_int(c, TOP_K);
    if (qm_tensor_count(t) == 0)
        return qm_call_fail(c, e, "there are no logits to draw from");
    const float *x = qm_arg_values(c, LOGITS) + qm_tensor_count(t) - n;
    candidate *list = malloc((size_t)n * sizeof *list);
    if (!list)
        return qm_fail(e, QM_ENOFIT, "sample: out of memory");
    bool nan = false, any = false;
    for (int64_t i = 0; i < n; i++) {
        list[i] = (candidate){x[i], (int32_t)i};
        nan = nan || x[i] != x[i] || x[i] == INFINITY;
        any = any || x[i] > -INFINITY;
    }
    double temperature = c->arg[TEMPERATURE].number;
    if (!nan && any) {
        qsort(list, (size_t)n, sizeof *list, order);
        left = k > 0 && k < n ? k : n;
        left = temperature > 0 ? nucleus(list, left, temperature, c->arg[TOP_P].number) : 1;
        double u = qm_random_uniform((uint64_t)c->arg[SEED].number, (uint64_t)c->arg[STEP].number);
        qm_call_ids(c)[0] = left == 1 ? list[0].id : draw(list, left, temperature, u);
    }
    free(list);
    return (!nan && any)
           || qm_call_fail(c, e, "the logits hold %s", nan ? "a NaN or an infinity" : "no number at all");
}

const qm_op qm_op_sample = {
    .name = "sample",
    .doc = "one token drawn from the last row of logits",
    .param = {{"logits", QM_ARG_TENSOR, "rows; the last one counts", .shape = "... V"},
              {"temperature", QM_ARG_FLOAT, "what logits are divided by; 0: the largest is taken",
               .named = true, .optional = true, .absent = 1, .least = 0, .most = 1e6},
              {"top_k", QM_ARG_INT, "only so many of the largest; 0: all", .named = true, .optional = true,
               .least = 0, .most = 0x1p31},
              {"top_p", QM_ARG_FLOAT, "only the largest that make up this much probability", .named = true,
               .optional = true, .absent = 1, .least = 0, .most = 1},
              {"seed", QM_ARG_INT, "of the draws", .named = true, .optional = true, .least = 0,
               .most = 0x1p53},
              {"step", QM_ARG_INT, "which draw of that seed", .named = true, .optional = true, .least = 0,
               .most = 0x1p53}},
    .shape = "",
    .result = QM_RESULT_ID,
    .run = run,
};
