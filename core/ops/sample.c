/* sample: one token drawn from the last row of logits.
 *
 * In this order: logits / temperature; the top_k largest; of those the fewest whose probabilities reach top_p
 * (the one that passes it included); one of what is left, by its probability.  temperature 0 takes the
 * largest.  Of equal logits the lower id comes first.  The draw is a function of seed and step alone; its
 * arithmetic is that of draw.h, and a GPU draws the same token.
 */
#include "../draw.h"
#include "../op.h"

#include <math.h>
#include <stdlib.h>

enum { LOGITS, TEMPERATURE, TOP_K, TOP_P, SEED, STEP };

typedef struct candidate {
    uint64_t weight;
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

/* Those that can be drawn at all. */
static int64_t weigh(const float *x, int64_t n, float top, double temperature, candidate *list)
{
    int64_t left = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t weight = qm_draw_weight(x[i], top, temperature);
        if (weight)
            list[left++] = (candidate){weight, x[i], (int32_t)i};
    }
    return left;
}

static uint64_t sum_of(const candidate *list, int64_t n)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += list[i].weight;
    return sum;
}

/* The candidate at a place among all weights; there is one.  *sum: of the weights up to and with its own. */
static const candidate *at_place(const candidate *list, uint64_t place, uint64_t *sum)
{
    for (*sum = list->weight; *sum <= place; *sum += list->weight)
        list++;
    return list;
}

static int32_t draw(const qm_call *c, candidate *list, int64_t n)
{
    int64_t k = qm_arg_int(c, TOP_K);
    double top_p = c->arg[TOP_P].number;
    qsort(list, (size_t)n, sizeof *list, order);
    uint64_t all = sum_of(list, k > 0 && k < n ? k : n);
    if (top_p < 1)
        at_place(list, qm_draw_share(top_p, all) - 1, &all);
    uint64_t bits = qm_random_bits((uint64_t)c->arg[SEED].number, (uint64_t)c->arg[STEP].number), sum;
    return at_place(list, qm_draw_place(bits, all), &sum)->id;
}

static bool run(qm_call *c, qm_err *e)
{
    const qm_tensor *t = c->arg[LOGITS].tensor;
    int64_t n = qm_tensor_cols(t), best = 0;
    double temperature = c->arg[TEMPERATURE].number;
    if (qm_tensor_count(t) == 0)
        return qm_call_fail(c, e, "there are no logits to draw from");
    const float *x = qm_arg_values(c, LOGITS) + qm_tensor_count(t) - n;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] != x[i] || x[i] == INFINITY)
            return qm_call_fail(c, e, "the logits hold a NaN or an infinity");
        best = x[i] > x[best] ? i : best;
    }
    if (x[best] == -INFINITY)
        return qm_call_fail(c, e, "the logits hold no number at all");
    qm_call_ids(c)[0] = (int32_t)best;
    if (temperature == 0)
        return true;
    candidate *list = malloc((size_t)n * sizeof *list);
    if (!list)
        return qm_call_fail(c, e, "out of memory for %lld candidates", (long long)n);
    qm_call_ids(c)[0] = draw(c, list, weigh(x, n, x[best], temperature, list));
    free(list);
    return true;
}

/* Here and on a GPU. */
static bool check(qm_call *c, qm_err *e)
{
    int64_t n = qm_tensor_cols(c->arg[LOGITS].tensor);
    return n <= QM_DRAW_MOST
           || qm_call_fail(c, e, "rows of %lld logits are more than %d", (long long)n, QM_DRAW_MOST);
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
    .check = check,
    .run = run,
};
