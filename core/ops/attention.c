/* attention: every token looks at itself and at the tokens before it.
 *
 *     score[j] = q · k[j] * scale,  cap * tanh(score / softcap)      j = position - window + 1 … position
 *     y = sum over j of softmax(score)[j] v[j]
 *
 * heads / kv_heads queries share a head of keys and values.  Keys and values of the new tokens are appended
 * to the layer's cache first; the cache may hold them in fewer bits, and then they are read as that by
 * the new tokens too. A sink is one score more in the softmax, of no value.
 *
 * Work is cut into a head of keys and some tokens; their scores, all queries times all positions, are kept at
 * once.  How it is cut changes no sum.
 */
#include "../lanes.h"
#include "../op.h"
#include "../weight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { Q, K, V, CACHE, LAYER, HEADS, KV_HEADS, SCALE, WINDOW, SOFTCAP, SINKS };
enum {
    ROWS = 32,
    POSITIONS = QM_LANES_RUN
}; /* queries of one piece of work; positions brought to f32 at a time */

typedef struct job {
    const float *q, *sink;
    float *y;
    const qm_kv *kv;
    int layer;
    int64_t tokens, held, heads, group, dim; /* held: tokens before these; group: heads per head of keys */
    int64_t window, step;                    /* step: tokens of one piece of work */
    float scale, softcap;
} job;

static bool check(qm_call *c, qm_err *e)
{
    const qm_kv *kv = c->arg[CACHE].cache;
    int64_t heads = qm_arg_int(c, HEADS), kv_heads = qm_arg_int(c, KV_HEADS), layer = qm_arg_int(c, LAYER);
    int64_t q = qm_tensor_cols(c->arg[Q].tensor), k = qm_tensor_cols(c->arg[K].tensor);
    int64_t tokens = c->arg[Q].tensor->shape.dim[0];
    if (heads % kv_heads)
        return qm_call_fail(c, e, "%lld heads cannot share %lld heads of keys evenly", (long long)heads,
                            (long long)kv_heads);
    if (kv_heads != kv->kv_heads || k != kv_heads * kv->head_dim || q != heads * kv->head_dim)
        return qm_call_fail(
            c, e,
            "queries of %lld values in %lld heads and keys of %lld in %lld do not go with a cache of %d "
            "heads of %d",
            (long long)q, (long long)heads, (long long)k, (long long)kv_heads, kv->kv_heads, kv->head_dim);
    if (layer >= kv->layers)
        return qm_call_fail(c, e, "layer %lld: the cache has layers 0 to %d", (long long)layer,
                            kv->layers - 1);
    if (tokens > kv->context - kv->count[layer])
        return qm_call_fail(
            c, e, "%lld tokens more than the %d there are do not fit a cache of %d; give it a larger context",
            (long long)tokens, kv->count[layer], kv->context);
    if (c->arg[SINKS].given && qm_tensor_count(c->arg[SINKS].tensor) != heads)
        return qm_call_fail(c, e, "%lld sinks for %lld heads",
                            (long long)qm_tensor_count(c->arg[SINKS].tensor), (long long)heads);
    return true;
}

/* Rows of all heads to a place for each head. */
static void append(const qm_kv *kv, int layer, const float *rows, int64_t tokens, bool values)
{
    uint8_t *part = qm_kv_part(kv, layer, values);
    for (int64_t t = 0; t < tokens; t++)
        for (int h = 0; h < kv->kv_heads; h++, rows += kv->head_dim)
            qm_kv_put(kv, part, h, kv->count[layer] + t, rows);
}

/* Keys of up to POSITIONS positions, turned: number i of position p at i * POSITIONS + p, and zeros for what
 * positions are missing. */
static void turn(const float *keys, int64_t n, int64_t dim, float *columns)
{
    enum { TILE = 16 }; /* values of a row that are moved while its cache line is at hand */
    for (int64_t i = 0; i < dim; i += TILE)
        for (int64_t p = 0; p < n; p++)
            for (int64_t k = i; k < i + TILE && k < dim; k++)
                columns[k * POSITIONS + p] = keys[p * dim + k];
    for (int64_t k = 0; k < dim && n < POSITIONS; k++)
        memset(columns + k * POSITIONS + n, 0, (size_t)(POSITIONS - n) * sizeof *columns);
}

/* One query: its token's position, its place in q and y, and the positions it sees. */
typedef struct query {
    int64_t place, first, last; /* last is the token itself */
    float sink;
} query;

static query query_of(const job *j, int64_t head, int64_t token, int64_t i)
{
    int64_t t = token + i / j->group, h = head * j->group + i % j->group, last = j->held + t;
    return (query){(t * j->heads + h) * j->dim, j->window && last >= j->window ? last - j->window + 1 : 0,
                   last, j->sink ? j->sink[h] : -INFINITY};
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Scores of one query become weights that add up to 1. */
static void soften(const job *j, const query *u, float *score)
{
    const qm_lanes *lanes = qm_lanes_get();
    size_t n = (size_t)(u->last - u->first + 1);
    if (j->softcap > 0)
        lanes->softcap(score, j->softcap, score, n);
    float top = lanes->largest(score, n);
    top = u->sink > top ? u->sink : top;
    double sum = lanes->exp_sum(score, top, score, n) + exp((double)u->sink - (double)top);
    lanes->scale(score, (float)(1 / sum), score, n);
}

static bool work(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    const qm_lanes *lanes = qm_lanes_get();
    const size_t dim = (size_t)j->dim;
    int64_t head = index % j->kv->kv_heads, token = index / j->kv->kv_heads * j->step;
    int64_t rows = least(j->step, j->tokens - token) * j->group;
    int64_t first = query_of(j, head, token, 0).first, past = query_of(j, head, token, rows - 1).last + 1;
    int64_t width = past - first;
    float *space = malloc((size_t)(2 * POSITIONS * j->dim + rows * width + POSITIONS) * sizeof *space);
    if (!space)
        return qm_fail(e, QM_ENOFIT, "attention: out of memory for the scores of %lld positions",
                       (long long)width);
    float *columns = space + POSITIONS * j->dim, *score = columns + POSITIONS * j->dim,
          *some = score + rows * width;
    for (int64_t at = first; at < past; at += POSITIONS) {
        int64_t end = least(at + POSITIONS, past);
        turn(qm_kv_get(j->kv, qm_kv_part(j->kv, j->layer, false), (int)head, at, end, space), end - at,
             j->dim, columns);
        for (int64_t i = 0; i < rows; i++) {
            query u = query_of(j, head, token, i);
            int64_t from = most(at, u.first), to = least(end, u.last + 1);
            if (from >= to)
                continue;
            lanes->against(j->q + u.place, columns, dim, j->scale, some);
            memcpy(score + i * width + from - u.first, some + from - at, (size_t)(to - from) * sizeof *some);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        query u = query_of(j, head, token, i);
        soften(j, &u, score + i * width);
        memset(j->y + u.place, 0, dim * sizeof *j->y);
    }
    for (int64_t at = first; at < past; at += POSITIONS) {
        int64_t end = least(at + POSITIONS, past);
        const float *v = qm_kv_get(j->kv, qm_kv_part(j->kv, j->layer, true), (int)head, at, end, space);
        for (int64_t i = 0; i < rows; i++) {
            query u = query_of(j, head, token, i);
            int64_t from = most(at, u.first), to = least(end, u.last + 1);
            if (from < to)
                lanes->mix(j->y + u.place, score + i * width + from - u.first, v + (from - at) * j->dim,
                           (size_t)(to - from), dim);
        }
    }
    free(space);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    qm_kv *kv = c->arg[CACHE].cache;
    job j = {.q = qm_arg_values(c, Q), .y = qm_call_out(c), .kv = kv, .layer = (int)c->arg[LAYER].number};
    j.tokens = c->arg[Q].tensor->shape.dim[0];
    j.held = kv->count[j.layer];
    j.heads = qm_arg_int(c, HEADS);
    j.group = j.heads / kv->kv_heads;
    j.dim = kv->head_dim;
    j.window = qm_arg_int(c, WINDOW);
    j.softcap = (float)c->arg[SOFTCAP].number;
    j.scale = c->arg[SCALE].given ? (float)c->arg[SCALE].number : 1 / sqrtf((float)j.dim);
    j.step = most(1, ROWS / j.group);
    qm_scratch s = {0};
    if (c->arg[SINKS].given) {
        qm_weight w = {c->arg[SINKS].tensor, 0, 1, j.heads};
        if (!(j.sink = qm_weight_rows(&w, 0, 1, &s, e)))
            return false;
    }
    append(kv, j.layer, qm_arg_values(c, K), j.tokens, false);
    append(kv, j.layer, qm_arg_values(c, V), j.tokens, true);
    bool ok = qm_pool_run(c->pool, kv->kv_heads * ((j.tokens + j.step - 1) / j.step), work, NULL, &j, e);
    if (ok)
        kv->count[j.layer] += (int)j.tokens;
    qm_scratch_free(&s);
    return ok;
}

const qm_op qm_op_attention = {
    .name = "attention",
    .doc = "causal attention over a cache, to which the new keys and values are appended",
    .param = {{"q", QM_ARG_TENSOR, "queries, heads of a token in every row", .shape = "T Q"},
              {"k", QM_ARG_TENSOR, "keys of the same tokens", .shape = "T K"},
              {"v", QM_ARG_TENSOR, "values of the same tokens", .shape = "T K"},
              {"cache", QM_ARG_CACHE, "what qm.kv_cache makes"},
              {"layer", QM_ARG_INT, "which layer of the cache, from 0", .least = 0, .most = 65536},
              {"heads", QM_ARG_INT, "heads of queries", .named = true, .least = 1, .most = 65536},
              {"kv_heads", QM_ARG_INT, "heads of keys and values", .named = true, .least = 1, .most = 65536},
              {"scale", QM_ARG_FLOAT, "of the scores (1 / sqrt(head_dim))", .named = true, .optional = true},
              {"window", QM_ARG_INT, "positions a token sees, itself included; 0: all", .named = true,
               .optional = true, .least = 0, .most = 0x1p31},
              {"softcap", QM_ARG_FLOAT, "bends scores towards this limit; 0: does not", .named = true,
               .optional = true, .least = 0, .most = 1e9},
              {"sinks", QM_ARG_WEIGHT, "a score more for each head", .shape = "S", .named = true,
               .optional = true}},
    .shape = "=q",
    .tolerance =
        1e-3, /* of prompts on a GPU's tensor cores, which take weights and values as f16; else 1e-5 */
    .check = check,
    .run = run,
};
