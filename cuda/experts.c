/* experts.c: a mixture of experts on a GPU.
 *
 * The GPU chooses, and what it chose stays there: slots of up to eight tokens of one expert (qm_slots), each
 * of which reads its expert's matrices once, so that a captured step is like any other.  Where experts have
 * many tokens, or matrices of different kinds, the slots are read here and every expert is multiplied by
 * alone. */
#include <stdlib.h>
#include <string.h>

#include "call.h"

enum { X, ROUTER, COUNT, NORMALISE, GATE, UP, DOWN, ROLES = 3 };
enum { TOGETHER = 512 }; /* tokens that are sorted at once */
enum { MANY = 40 }; /* tokens an expert has on average, from where on a matrix product of its own is faster */

/* ---- weights ------------------------------------------------------------------------------------------- */

/* All experts' matrices of one part: of one kind, laid out or plain, or not. */
typedef struct role {
    const qm_arg *arg;
    uint32_t rows, cols, experts;
    bool alike, laid_out, wide; /* wide: plain ones begin on 16 bytes */
    qm_matrix kind;
    qm_dtype dtype;
    const qm_tensor *first;
    const qm_expert *there;
} role;

/* What a matrix's description follows from. */
static bool described_alike(const qm_tensor *a, const qm_tensor *b)
{
    return a->laid_out == b->laid_out && a->format == b->format && a->codec.block == b->codec.block
           && a->codec.table == b->codec.table && a->double_quant == b->double_quant;
}

/* Expert i's matrix: the list's, or a part of the stack, for which *view is filled in. */
static const qm_tensor *matrix_of(const qm_call *c, const role *r, uint32_t i, qm_tensor *view, qm_err *e)
{
    if (r->arg->list)
        return r->arg->list[i];
    const qm_tensor *t = r->arg->tensor;
    uint64_t n = (uint64_t)r->rows * r->cols, block = t->format->block == 1 ? 1 : t->codec.block;
    if (i && (t->double_quant || n % block)) {
        qm_call_fail(c, e,
                     "experts in a stack whose groups run on from one to the next run on the CPU only; give "
                     "a list of them");
        return NULL;
    }
    *view = *t;
    view->shape = (qm_shape){2, {r->rows, r->cols}};
    for (int k = 0; k < qm_format_planes(t->format) && i; k++)
        view->plane[k].data += qm_plane_size(t->format, &t->codec, k, n * i);
    return view;
}

/* What the kernels need of one expert; false when it is not like the first. */
static bool read_expert(const qm_cuda *d, role *r, uint32_t i, const qm_tensor *t, qm_expert *x)
{
    qm_matrix m;
    if (i && r->laid_out && described_alike(r->first, t)) {
        *x = (qm_expert){t->plane[0].data, (const float *)(const void *)t->plane[2].data, t->offset};
        return true;
    }
    if (qm_cuda_matrix_of(d, t, &m)) {
        *x = (qm_expert){m.items, m.nested, m.offset};
        if (i == 0)
            r->kind = m, r->laid_out = true, r->first = t;
        return r->laid_out && qm_cuda_same_kind(&r->kind, &m);
    }
    qm_dtype dtype = t->laid_out ? QM_DTYPE_COUNT : qm_cuda_plain_type(t->format);
    *x = (qm_expert){t->plane[0].data, NULL, 0};
    if (i == 0)
        r->dtype = dtype, r->wide = true;
    r->wide = r->wide && (uintptr_t)t->plane[0].data % 16 == 0;
    return !r->laid_out && dtype != QM_DTYPE_COUNT && dtype == r->dtype;
}

static uint64_t hash_of(const void *data, size_t size)
{
    const uint8_t *p = data;
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

void qm_cuda_forget_experts(qm_cuda *d)
{
    qm_cuda_ops *o = d->ops;
    for (int i = 0; i < o->expert_tables; i++) {
        free(o->experts[i].here);
        qm_cuda_free(d, o->experts[i].there);
    }
    free(o->experts);
    o->experts = NULL;
    o->expert_tables = o->expert_room = 0;
}

static bool room_for_table(qm_cuda *d, qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    if (o->expert_tables < o->expert_room)
        return true;
    int room = o->expert_room ? 2 * o->expert_room : 64;
    qm_expert_table *more = realloc(o->experts, (size_t)room * sizeof *more);
    if (!more)
        return qm_fail(e, QM_ENOFIT, "moe: out of memory for %d tables of experts", room);
    o->experts = more;
    o->expert_room = room;
    return true;
}

/* The table on the GPU; one that was there before when it says the same.  Takes `here`. */
static bool find_table(qm_cuda *d, const qm_call *c, qm_expert *here, uint32_t n, const qm_expert **there,
                       qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    const size_t size = n * sizeof *here;
    const uint64_t hash = hash_of(here, size);
    for (int i = 0; i < o->expert_tables; i++)
        if (o->experts[i].hash == hash && o->experts[i].n == n
            && memcmp(o->experts[i].here, here, size) == 0) {
            *there = o->experts[i].there;
            free(here);
            return true;
        }
    qm_expert *table = NULL;
    bool ok = o->capturing
                  ? qm_call_fail(c, e, "experts that no call before had; run one step before it is captured")
                  : room_for_table(d, e) && (table = qm_cuda_alloc(d, size, e))
                        && qm_cuda_upload(d, table, here, size, e);
    if (!ok) {
        qm_cuda_free(d, table);
        free(here);
        return false;
    }
    o->experts[o->expert_tables++] = (qm_expert_table){hash, n, here, table};
    *there = table;
    return true;
}

static role role_of(const qm_arg *a)
{
    const qm_shape *s = a->list ? &a->list[0]->shape : &a->tensor->shape;
    return (role){.arg = a,
                  .rows = (uint32_t)s->dim[s->ndim - 2],
                  .cols = (uint32_t)s->dim[s->ndim - 1],
                  .experts = (uint32_t)(a->list ? a->count : s->dim[0]),
                  .alike = true};
}

static bool read_role(qm_cuda *d, const qm_call *c, const qm_arg *a, role *r, qm_err *e)
{
    *r = role_of(a);
    qm_expert *here = calloc(r->experts, sizeof *here); /* padding is compared, too */
    if (!here)
        return qm_call_fail(c, e, "out of memory for %u experts", r->experts);
    for (uint32_t i = 0; i < r->experts && r->alike; i++) {
        qm_tensor view;
        const qm_tensor *t = matrix_of(c, r, i, &view, e);
        if (!t) {
            free(here);
            return false;
        }
        qm_expert x;
        r->alike = read_expert(d, r, i, t, &x);
        here[i].values = x.values, here[i].nested = x.nested, here[i].offset = x.offset;
    }
    if (r->alike)
        return find_table(d, c, here, r->experts, &r->there, e);
    free(here);
    return true;
}

/* ---- room ---------------------------------------------------------------------------------------------- */

/* One allocation, cut into parts that begin on 256 bytes. */
typedef struct room {
    char *taken;
    uint64_t used, size;
} room;

static void *part_of(room *r, uint64_t size)
{
    char *p = r->taken ? r->taken + r->used : NULL;
    r->used += whole(size);
    return p;
}

/* Everything for some tokens: called once to count, once to cut. */
typedef struct mixture {
    role role[ROLES]; /* gate, up, down */
    qm_routing route;
    qm_half x, hidden;
    float *gate, *up, *out;
    room room;
} mixture;

static void lay_out(mixture *m)
{
    qm_routing *j = &m->route;
    const uint64_t rows = (uint64_t)j->slots.most * j->slots.each, pairs = (uint64_t)j->tokens * j->k;
    const uint32_t wide = m->role[0].rows, dim = m->role[0].cols, rows8 = (uint32_t)((rows + 7) / 8 * 8);
    const uint32_t x_rows = j->tokens == 1 ? QM_HALF_TOKENS : rows8;
    room *r = &m->room;
    r->used = 0;
    j->slots.count = part_of(r, sizeof(int32_t));
    j->slots.expert = part_of(r, j->slots.most * sizeof(int32_t));
    j->slots.token = part_of(r, rows * sizeof(int32_t));
    j->choice = part_of(r, pairs * sizeof(int32_t));
    j->row = part_of(r, pairs * sizeof(int32_t));
    j->part = part_of(r, pairs * sizeof(float));
    m->gate = part_of(r, rows * wide * sizeof(float));
    m->up = part_of(r, rows * wide * sizeof(float));
    m->out = part_of(r, rows * dim * sizeof(float));
    void *x = part_of(r, qm_half_bytes(x_rows, dim)), *hidden = part_of(r, qm_half_bytes(rows8, wide));
    if (!r->taken)
        return;
    m->x = qm_half_at(x, x_rows, dim);
    m->hidden = qm_half_at(hidden, rows8, wide);
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* How many slots there may be, and what all of it takes. */
static uint64_t size_up(mixture *m)
{
    qm_routing *j = &m->route;
    const uint32_t pairs = j->tokens * j->k;
    j->slots.each = pairs <= j->experts       ? 2
                    : pairs <= 2 * j->experts ? 4
                                              : 8; /* more would mostly be empty */
    j->slots.most = least(j->experts, pairs) + (j->tokens > j->slots.each ? pairs / j->slots.each : 0);
    lay_out(m);
    return m->room.used;
}

static bool make_room(qm_cuda *d, mixture *m, qm_err *e)
{
    if (!(m->room.taken = qm_cuda_take(d, size_up(m), e)))
        return false;
    lay_out(m);
    return true;
}

/* Whether experts have so many tokens each that they are multiplied by one by one. */
static bool has_many(const qm_routing *j) { return (uint64_t)j->tokens * j->k > (uint64_t)MANY * j->experts; }

/* ---- slots that the GPU goes through --------------------------------------------------------- */

/* Products of n roles that have the same x, of the tokens or of the slots' rows. */
static cudaError_t multiply(qm_cuda *d, const mixture *m, int first, int n, float *const *y, const float *x,
                            const qm_half *half, bool of_slots)
{
    const role *r = &m->role[first];
    const qm_expert *tables[2] = {r[0].there, r[n - 1].there};
    const qm_slots *slots = &m->route.slots;
    if (n == 2 && !(r[0].laid_out && r[1].laid_out && qm_cuda_same_kind(&r[0].kind, &r[1].kind))) {
        cudaError_t bad = multiply(d, m, first, 1, y, x, half, of_slots);
        return bad ? bad : multiply(d, m, first + 1, 1, y + 1, x, half, of_slots);
    }
    if (r->laid_out)
        return qm_matrix_experts(&r->kind, tables, y, n, slots, half, !of_slots && m->route.tokens == 1,
                                 d->stream);
    return qm_plain_experts(r->there, r->dtype, r->wide, x, of_slots, r->rows, r->cols, slots, y[0],
                            d->stream);
}

static bool all_slots(qm_cuda *d, qm_call *c, mixture *m, qm_err *e)
{
    qm_routing *j = &m->route;
    const role *r = m->role;
    float *const both[2] = {m->gate, m->up};
    const bool x_half = r[0].laid_out || r[1].laid_out;
    cudaError_t bad = cudaSuccess;
    if (x_half && j->tokens > 1)
        bad = qm_gather_half(&j->slots, j->x, j->cols, &m->x, d->stream);
    if (!bad)
        bad = multiply(d, m, 0, 2, both, j->x, &m->x, false);
    if (!bad)
        bad = qm_gate_rows(&j->slots, m->gate, m->up, r[0].rows, m->gate, r[2].laid_out ? &m->hidden : NULL,
                           d->stream);
    if (!bad)
        bad = multiply(d, m, 2, 1, &m->out, m->gate, &m->hidden, true);
    return ran(d, c, bad, e);
}

/* ---- experts that are multiplied by one by one ----------------------------------------------- */

/* One expert's n rows, the first of which is `row`. */
static bool one_expert(qm_cuda *d, const qm_call *c, const mixture *m, uint32_t expert, uint32_t row,
                       uint32_t n, qm_err *e)
{
    const qm_routing *j = &m->route;
    const uint32_t wide = m->role[0].rows, dim = m->role[0].cols;
    activation x = {.x = qm_cuda_take(d, (uint64_t)n * dim * sizeof(float), e), .rows = n, .cols = dim};
    activation gate = {.x = m->gate + (uint64_t)row * wide, .rows = n, .cols = wide};
    float *up = m->up + (uint64_t)row * wide;
    qm_tensor view[ROLES];
    const qm_tensor *w[ROLES];
    for (int i = 0; i < ROLES; i++)
        if (!(w[i] = matrix_of(c, &m->role[i], expert, &view[i], e))) {
            qm_cuda_give(d, x.x);
            return false;
        }
    bool ok = x.x && ran(d, c, qm_rows_of(j->x, QM_F32, j->slots.token + row, n, dim, x.x, d->stream), e)
              && qm_cuda_product(d, w[0], &x, NULL, gate.x, e) && qm_cuda_product(d, w[1], &x, NULL, up, e)
              && qm_cuda_flush(d, e)
              && ran(d, c, qm_each_value(QM_EACH_SWIGLU, gate.x, up, 0, n, wide, gate.x, NULL, d->stream), e)
              && qm_cuda_product(d, w[2], &gate, NULL, m->out + (uint64_t)row * dim, e)
              && qm_cuda_flush(d, e);
    qm_cuda_give(d, x.x);
    return ok;
}

static bool each_expert(qm_cuda *d, const qm_call *c, const mixture *m, qm_err *e)
{
    const qm_slots *s = &m->route.slots;
    if (d->ops->capturing)
        return qm_call_fail(c, e,
                            "cannot be captured: the experts' weights are of several kinds, or not prepared");
    int32_t count = 0, *expert = malloc((1 + (size_t)s->each) * s->most * sizeof *expert),
            *token = expert + s->most;
    if (!expert)
        return qm_call_fail(c, e, "out of memory for %u slots", s->most);
    bool ok = qm_cuda_download(d, &count, s->count, sizeof count, e)
              && qm_cuda_download(d, expert, s->expert, (size_t)count * sizeof *expert, e)
              && qm_cuda_download(d, token, s->token, (size_t)count * s->each * sizeof *token, e);
    for (int32_t i = 0, end; ok && i < count; i = end) {
        for (end = i + 1; end < count && expert[end] == expert[i]; end++)
            ;
        uint32_t row = (uint32_t)i * s->each, past = (uint32_t)end * s->each;
        while (token[past - 1] < 0)
            past--;
        ok = one_expert(d, c, m, (uint32_t)expert[i], row, past - row, e);
    }
    free(expert);
    return ok;
}

/* ---- the op ---------------------------------------------------------------------------------- */

static bool some_tokens(qm_cuda *d, qm_call *c, mixture *m, float *y, qm_err *e)
{
    qm_routing *j = &m->route;
    const role *r = m->role;
    const bool alike = r[0].alike && r[1].alike && r[2].alike;
    const bool alone = !alike || (has_many(j) && !d->ops->capturing && qm_cuda_has_blas(d));
    m->room = (room){0};
    if (!make_room(d, m, e))
        return false;
    j->half = j->tokens == 1 && !alone && (r[0].laid_out || r[1].laid_out) ? m->x : (qm_half){0};
    bool ok = ran(d, c, qm_route(j, d->stream), e)
              && (alone ? each_expert(d, c, m, e) : all_slots(d, c, m, e))
              && ran(d, c, qm_add_experts(j, m->out, j->cols, y, d->stream), e);
    qm_cuda_give(d, m->room.taken);
    return ok;
}

/* The most that may be: where experts are multiplied by one by one, that one of them has all tokens. */
static uint64_t moe_memory(const qm_call *c, uint64_t *kept)
{
    mixture m = {.route = {.tokens = least(rows_of(c->arg[X].tensor), TOGETHER),
                           .experts = (uint32_t)qm_tensor_cols(c->arg[ROUTER].tensor),
                           .k = (uint32_t)c->arg[COUNT].number}};
    uint64_t product = 0;
    *kept = 0;
    for (int i = 0; i < ROLES; i++) {
        const qm_arg *a = &c->arg[GATE + i];
        m.role[i] = role_of(a);
        uint64_t keeps = 0, one = has_many(&m.route) && a->list
                                      ? qm_cuda_product_memory(a->list[0], m.route.tokens, &keeps)
                                      : 0;
        product = one > product ? one : product;
        *kept = keeps > *kept ? keeps : *kept;
    }
    return size_up(&m)
           + (has_many(&m.route) ? product + (uint64_t)m.route.tokens * m.role[0].cols * sizeof(float) : 0);
}

static bool moe(qm_cuda *d, qm_call *c, qm_err *e)
{
    activation x = arg(c, X), logits = arg(c, ROUTER), y;
    mixture m = {0};
    if (logits.cols > QM_MOST_EXPERTS)
        return qm_call_fail(c, e, "%u experts are more than the %d that there may be here; run it on the CPU",
                            logits.cols, QM_MOST_EXPERTS);
    if (!make_out(d, c, false, &y, e) || !qm_cuda_flush(d, e))
        return false;
    for (int i = 0; i < ROLES; i++)
        if (!read_role(d, c, &c->arg[GATE + i], &m.role[i], e))
            return false;
    for (uint32_t at = 0; at < x.rows; at += TOGETHER) {
        m.route = (qm_routing){.logits = logits.x + (uint64_t)at * logits.cols,
                               .tokens = least(x.rows - at, TOGETHER),
                               .experts = logits.cols,
                               .k = (uint32_t)c->arg[COUNT].number,
                               .normalise = c->arg[NORMALISE].number != 0,
                               .x = x.x + (uint64_t)at * x.cols,
                               .cols = x.cols};
        if (!some_tokens(d, c, &m, y.x + (uint64_t)at * x.cols, e))
            return false;
    }
    return true;
}

const qm_cuda_way qm_cuda_experts[] = {
    {"moe", moe, moe_memory},
    {NULL, NULL, NULL},
};
