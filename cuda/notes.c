/* notes.c: the ops of a captured step, noted down and made into a program (program.h).
 *
 * While a step is captured, ops on one token that a program knows are not launched but noted.  Before
 * anything else is launched, what was noted becomes phases: products of one x are one, with an addition or a
 * gate behind them; a norm goes into the phases beside it, a turn into attention.  What does not fit is
 * launched as it would have been. */
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "program.h"

/* What a program is uploaded from, after the capture. */
typedef struct upload {
    void *to, *from;
    uint64_t size;
} upload;

struct qm_notes {
    uint32_t blocks; /* that walk together */
    qm_note *note;
    int notes, room, uploads, programs;
    upload *upload;
};

bool qm_cuda_notes(const qm_cuda *d) { return d->ops->program && d->ops->notes && d->ops->notes->blocks; }

bool qm_cuda_notes_open(qm_cuda *d, qm_err *e)
{
    qm_notes *p = d->ops->notes = calloc(1, sizeof *p);
    if (!p)
        return qm_fail(e, QM_ENOFIT, "out of memory for the notes of a step");
    p->blocks = qm_program_blocks();
    return true;
}

static void forget_uploads(qm_notes *p)
{
    while (p->uploads)
        free(p->upload[--p->uploads].from);
}

void qm_cuda_notes_close(qm_cuda *d)
{
    qm_notes *p = d->ops->notes;
    if (!p)
        return;
    forget_uploads(p);
    free(p->upload);
    free(p->note);
    free(p);
    d->ops->notes = NULL;
}

bool qm_cuda_note(qm_cuda *d, const qm_note *n, qm_err *e)
{
    qm_notes *p = d->ops->notes;
    if (p->notes == p->room) {
        int room = p->room ? 2 * p->room : 256;
        qm_note *more = realloc(p->note, (size_t)room * sizeof *more);
        if (!more)
            return qm_fail(e, QM_ENOFIT, "out of memory for the notes of a step");
        p->note = more;
        p->room = room;
    }
    p->note[p->notes++] = *n;
    return true;
}

/* ---- one by one ---------------------------------------------------------------------------------- */

/* Products of one x that follow each other. */
static bool launch_products(qm_cuda *d, const qm_note *n, int count, int *taken, qm_err *e)
{
    qm_matrix w[QM_TOGETHER];
    qm_product p[QM_TOGETHER];
    const uint32_t cols = n->product.w.cols;
    int k = 0;
    void *made = qm_cuda_take(d, qm_half_bytes(1, cols), e);
    if (!made)
        return false;
    qm_half x = qm_half_at(made, 1, cols);
    if (!qm_cuda_check(d, qm_to_half(n->product.x, 1, cols, &x, d->stream), "converting", e))
        return false;
    while (k < count && k < QM_TOGETHER && n[k].kind == QM_NOTE_PRODUCT && n[k].product.x == n->product.x
           && qm_cuda_same_kind(&n->product.w, &n[k].product.w)) {
        w[k] = n[k].product.w;
        p[k] = n[k].product.p;
        k++;
    }
    *taken = k;
    return qm_cuda_check(d, qm_matrix_decode(w, p, k, &x, d->stream), "multiplying", e);
}

static bool launch_note(qm_cuda *d, const qm_note *n, int count, int *taken, qm_err *e)
{
    cudaError_t r = cudaSuccess;
    *taken = 1;
    switch (n->kind) {
    case QM_NOTE_PRODUCT:
        return launch_products(d, n, count, taken, e);
    case QM_NOTE_ADD:
    case QM_NOTE_GATE:
        r = qm_each_value(n->values.f, n->values.x, n->values.y, 0, 1, n->values.n, n->values.out, NULL,
                          d->stream);
        break;
    case QM_NOTE_NORM:
        r = qm_rmsnorm(n->norm.x, n->norm.w, n->norm.add, n->norm.eps, 1, n->norm.d, n->norm.y, NULL,
                       d->stream);
        break;
    case QM_NOTE_ROPE:
        r = qm_rope(&n->rope.r, 1, 1, n->rope.head_dim, n->rope.rotary_dim, n->rope.neox, n->rope.inverse,
                    n->rope.scale, n->rope.at, d->stream);
        break;
    case QM_NOTE_ATTEND: {
        qm_attention a = n->attend;
        return qm_cuda_attend(d, &a, e);
    }
    }
    return qm_cuda_check(d, r, "a captured step", e);
}

static bool launch_notes(qm_cuda *d, const qm_note *n, int count, qm_err *e)
{
    for (int i = 0, taken; i < count; i += taken)
        if (!launch_note(d, n + i, count - i, &taken, e))
            return false;
    return true;
}

/* ---- phases -------------------------------------------------------------------------------------- */

/* An f32 vector that is there as f16 too. */
typedef struct known {
    const float *x;
    qm_sixteens half;
} known;

typedef struct builder {
    qm_cuda *d;
    uint32_t blocks;
    qm_phase *phase;
    const float **x; /* of a phase: what it multiplies */
    int phases;
    known *known;
    int knowns;
    const qm_matrix *kind; /* of all matrices */
    uint32_t sums, head_dim;
    float *partial; /* of every attention: done with when it ends */

    const qm_note *norm; /* the last one, and whether its half is being made */
    qm_norm half_norm;
    bool norm_made;
    const qm_note *rope[2];      /* turns that no attention has taken yet */
    const qm_attend_phase *last; /* attention */
    int ropes;
} builder;

static bool take_sixteens(builder *b, uint32_t n, qm_sixteens *h, qm_err *e)
{
    uint32_t bytes = (n * 2 + 255) / 256 * 256;
    h->half = qm_cuda_take(b->d, bytes + (n + 15) / 16 * sizeof *h->scale, e);
    h->scale = (float *)(void *)((char *)h->half + bytes);
    return h->half != NULL;
}

static void learn(builder *b, const float *x, qm_sixteens half) { b->known[b->knowns++] = (known){x, half}; }

static const qm_sixteens *half_of(const builder *b, const float *x)
{
    for (int i = b->knowns - 1; i >= 0; i--)
        if (b->known[i].x == x)
            return &b->known[i].half;
    return NULL;
}

static qm_product_phase *last_product(builder *b)
{
    return b->phases && b->phase[b->phases - 1].kind == QM_PHASE_PRODUCT ? &b->phase[b->phases - 1].product
                                                                         : NULL;
}

static int parts_of(const qm_product_phase *f) { return f->part[2].items ? 3 : f->part[1].items ? 2 : 1; }

/* The kernel looks no further than two phases ahead for the next product. */
static bool room_for_other(const builder *b)
{
    int n = b->phases;
    return n < 2 || b->phase[n - 1].kind == QM_PHASE_PRODUCT || b->phase[n - 2].kind == QM_PHASE_PRODUCT;
}

static qm_phase *new_phase(builder *b, qm_phase_kind kind, const float *x)
{
    qm_phase *f = &b->phase[b->phases];
    b->x[b->phases++] = x;
    memset(f, 0, sizeof *f);
    f->kind = kind;
    return f;
}

/* Where a norm's x is made, when that is the last result of a product here. */
static qm_product_phase *maker_of(builder *b, const float *x, uint32_t cols)
{
    for (int i = b->phases - 1; i >= 0; i--) {
        qm_product_phase *f = &b->phase[i].product;
        if (b->phase[i].kind != QM_PHASE_PRODUCT)
            continue;
        const qm_phase_part *p = &f->part[parts_of(f) - 1];
        if ((p->p.add ? p->p.sum : p->p.y) == x)
            return f->gate || f->after.weight || parts_of(f) > 1 || p->rows != cols ? NULL : f;
    }
    return NULL;
}

typedef enum verdict { TAKEN, REFUSED, FAILED } verdict;

/* x, when it is what the phase before attends to: the product puts its parts together. */
static bool take_open(builder *b, const float *x, qm_open *open)
{
    qm_phase *f = b->phases ? &b->phase[b->phases - 1] : NULL;
    if (!f || f->kind != QM_PHASE_ATTEND || f->attend.a.y != x)
        return false;
    const qm_attention *a = &f->attend.a;
    f->attend.open = true;
    *open = (qm_open){f->attend.half, f->attend.stats, a->y, a->heads, a->head_dim == 64 ? 6 : 7};
    return true;
}

/* The norm in front of a product, or x as it is. */
static verdict take_x(builder *b, const float *x, uint32_t cols, qm_norm *before, qm_sixteens *half,
                      qm_err *e)
{
    if (b->norm && b->norm->norm.y == x) {
        if (!b->norm_made) {
            const qm_note *n = b->norm;
            qm_product_phase *maker = maker_of(b, n->norm.x, cols);
            qm_norm m = {
                .x = n->norm.x, .weight = n->norm.w, .y = n->norm.y, .add = n->norm.add, .eps = n->norm.eps};
            if (!maker && !room_for_other(b))
                return REFUSED;
            if (!take_sixteens(b, cols, &m.half, e)
                || !(m.squares = qm_cuda_take(b->d, cols / 16 * sizeof *m.squares, e)))
                return FAILED;
            if (maker) {
                maker->after = m;
            } else {
                qm_half_phase *f = &new_phase(b, QM_PHASE_HALF, NULL)->half;
                f->x = m.x, f->cols = cols, f->after = m;
            }
            b->half_norm = m;
            b->norm_made = true;
        }
        *before = b->half_norm;
        return TAKEN;
    }
    const qm_sixteens *there = half_of(b, x);
    if (!there) {
        qm_sixteens made;
        if (!room_for_other(b))
            return REFUSED;
        if (!take_sixteens(b, cols, &made, e))
            return FAILED;
        qm_half_phase *f = &new_phase(b, QM_PHASE_HALF, NULL)->half;
        f->x = x, f->cols = cols, f->half = made;
        learn(b, x, made);
        there = half_of(b, x);
    }
    *half = *there;
    return TAKEN;
}

static verdict take_product(builder *b, const qm_note *n, qm_err *e)
{
    const qm_matrix *w = &n->product.w;
    qm_product_phase *f = last_product(b);
    if (b->kind && !qm_cuda_same_codes(b->kind, w))
        return REFUSED;
    int k = f ? parts_of(f) : 0;
    if (f
        && (b->x[b->phases - 1] != n->product.x || f->gate || f->part[k - 1].p.add || f->after.weight
            || f->cols != w->cols || k == QM_TOGETHER)) {
        f = NULL;
        k = 0;
    }
    if (!f) {
        qm_norm before = {0};
        qm_sixteens half = {0};
        qm_open open = {0};
        verdict v = take_open(b, n->product.x, &open) ? TAKEN
                                                      : take_x(b, n->product.x, w->cols, &before, &half, e);
        if (v != TAKEN)
            return v;
        f = &new_phase(b, QM_PHASE_PRODUCT, n->product.x)->product;
        f->cols = w->cols, f->slices = qm_matrix_slices(w->cols);
        f->x = half, f->open = open, f->before = before;
        for (int i = 0; i < QM_TOGETHER; i++)
            f->part[i].first_tile = UINT32_MAX;
    }
    f->part[k] = (qm_phase_part){w->items, w->nested, w->offset, w->factor, w->rows, f->tiles, n->product.p};
    f->tiles += qm_matrix_tiles(w->rows);
    b->kind = w;
    return TAKEN;
}

static verdict take_add(builder *b, const qm_note *n)
{
    qm_product_phase *f = last_product(b);
    if (!f || f->gate || f->after.weight)
        return REFUSED;
    qm_phase_part *p = &f->part[parts_of(f) - 1];
    const float *x = n->values.x, *y = n->values.y, *other = x == p->p.y ? y : x;
    bool here = !p->p.add && other != f->open.y && (x == p->p.y) != (y == p->p.y) && p->rows == n->values.n;
    for (int i = 0; i < parts_of(f); i++)
        here = here && other != f->part[i].p.y;
    if (!here)
        return REFUSED;
    p->p.add = other;
    p->p.sum = n->values.out;
    return TAKEN;
}

static verdict take_gate(builder *b, const qm_note *n, qm_err *e)
{
    qm_product_phase *f = last_product(b);
    if (!f || parts_of(f) != 2 || f->gate || f->after.weight || f->part[1].p.add
        || f->part[0].p.y != n->values.x || f->part[1].p.y != n->values.y
        || f->part[0].rows != f->part[1].rows)
        return REFUSED;
    if (!take_sixteens(b, n->values.n, &f->gated_half, e))
        return FAILED;
    f->gate = n->values.f == QM_EACH_SWIGLU ? QM_GATE_SILU : QM_GATE_GELU_TANH;
    f->gated = n->values.out;
    learn(b, f->gated, f->gated_half);
    return TAKEN;
}

static verdict take_attend(builder *b, const qm_note *n, qm_err *e)
{
    const qm_attention *a = &n->attend;
    const qm_note *q = NULL, *k = NULL;
    for (int i = 0; i < b->ropes; i++) {
        q = b->rope[i]->rope.r.y == a->q ? b->rope[i] : q;
        k = b->rope[i]->rope.r.y == a->k ? b->rope[i] : k;
    }
    if ((b->head_dim && b->head_dim != a->head_dim) || !room_for_other(b)
        || (b->ropes != 0) != (q && k && b->ropes == 2))
        return REFUSED;
    if (q
        && (q->rope.head_dim != a->head_dim || q->rope.rotary_dim != a->head_dim
            || q->rope.inverse != k->rope.inverse || q->rope.neox != k->rope.neox
            || q->rope.scale != k->rope.scale))
        return REFUSED;
    qm_attend_phase *f = &new_phase(b, QM_PHASE_ATTEND, NULL)->attend;
    f->a = *a;
    if (q) {
        f->a.q = q->rope.r.x, f->a.k = k->rope.r.x;
        f->q = q->rope.r.y, f->k = k->rope.r.y;
        f->inverse = q->rope.inverse, f->turn = q->rope.scale, f->neox = q->rope.neox;
    }
    b->ropes = 0;
    b->head_dim = a->head_dim;
    const qm_attend_phase *l = b->last;
    f->anew = !l || l->inverse != f->inverse || l->turn != f->turn || l->a.at.first != a->at.first
              || l->a.window != a->window || l->a.heads != a->heads || l->a.kv_heads != a->kv_heads;
    b->last = f;
    if (!b->partial)
        b->partial = qm_cuda_take(b->d, qm_program_partial(b->blocks, a->head_dim), e);
    f->a.partial = b->partial;
    f->stats = qm_cuda_take(b->d, (uint64_t)QM_OPEN_PARTS * a->heads * 2 * sizeof *f->stats, e);
    if (!f->a.partial || !f->stats || !take_sixteens(b, QM_OPEN_PARTS * a->heads * a->head_dim, &f->half, e))
        return FAILED;
    learn(b, a->y, f->half);
    return TAKEN;
}

static bool walks_attention(const qm_attention *a, uint32_t blocks)
{
    uint32_t group = a->heads / a->kv_heads;
    return a->dtype == QM_F16 && a->tokens == 1 && a->at.passed && (a->head_dim == 64 || a->head_dim == 128)
           && a->kv_heads * ((group + 7) / 8) <= blocks;
}

static verdict take(builder *b, const qm_note *n, qm_err *e)
{
    if (b->ropes && n->kind != QM_NOTE_ROPE && n->kind != QM_NOTE_ATTEND)
        return REFUSED;
    if (b->norm && !b->norm_made && n->kind != QM_NOTE_PRODUCT)
        return REFUSED;
    switch (n->kind) {
    case QM_NOTE_PRODUCT:
        return take_product(b, n, e);
    case QM_NOTE_ADD:
        return take_add(b, n);
    case QM_NOTE_GATE:
        return take_gate(b, n, e);
    case QM_NOTE_NORM:
        b->norm = n;
        b->norm_made = false;
        return TAKEN;
    case QM_NOTE_ROPE:
        if (b->ropes == 2)
            return REFUSED;
        b->rope[b->ropes++] = n;
        return TAKEN;
    case QM_NOTE_ATTEND:
        return walks_attention(&n->attend, b->blocks) ? take_attend(b, n, e) : REFUSED;
    }
    return REFUSED;
}

/* ---- programs ------------------------------------------------------------------------------------ */

/* `size` bytes of memory here that will be brought to `to`, which is on the GPU, after the capture; NULL: there are none. */
static void *keep_upload(qm_notes *p, void *to, uint64_t size, qm_err *e)
{
    upload *more = realloc(p->upload, (size_t)(p->uploads + 1) * sizeof *more);
    void *bytes = calloc(1, size);
    p->upload = more ? more : p->upload;
    if (!more || !bytes) {
        free(bytes);
        qm_fail(e, QM_ENOFIT, "out of memory for the notes of a step");
        return NULL;
    }
    p->upload[p->uploads++] = (upload){to, bytes, size};
    return bytes;
}

/* The phases, and what each block has of the products, as they will lie on the GPU. */
static bool upload_phases(const builder *b, void *phases, void *plans, qm_err *e)
{
    qm_notes *p = b->d->ops->notes;
    const size_t count = (size_t)b->phases;
    char *to = keep_upload(p, phases, count * QM_PHASE_BYTES, e);
    qm_block_plan *plan = to ? keep_upload(p, plans, count * b->blocks * sizeof *plan, e) : NULL;
    if (!plan)
        return false;
    const uint32_t bytes = qm_item_bytes(b->kind->scale, b->kind->group);
    for (size_t i = 0; i < count; i++) {
        memcpy(to + i * QM_PHASE_BYTES, &b->phase[i], sizeof b->phase[i]);
        for (uint32_t k = 0; b->phase[i].kind == QM_PHASE_PRODUCT && k < b->blocks; k++)
            qm_program_plan(&b->phase[i].product, k, bytes, plan + i * b->blocks + k);
    }
    p->programs++;
    return true;
}

static bool run_program(builder *b, qm_err *e)
{
    qm_cuda *d = b->d;
    const uint32_t count = (uint32_t)b->phases;
    qm_program p = {.count = count,
                    .head_dim = b->head_dim,
                    .group = b->kind->group,
                    .scale = b->kind->scale,
                    .dynamic = d->ops->dynamic,
                    .passed = d->ops->passed,
                    .sums = b->sums};
    memcpy(p.level, b->kind->level, sizeof p.level);
    void *phases = qm_cuda_take(d, (uint64_t)count * QM_PHASE_BYTES, e);
    void *plans = phases ? qm_cuda_take(d, (uint64_t)count * b->blocks * sizeof *p.plans, e) : NULL;
    p.phases = phases;
    p.plans = plans;
    p.arrived = plans ? qm_cuda_take(d, count * sizeof *p.arrived, e) : NULL;
    while (b->phase[p.first].kind != QM_PHASE_PRODUCT)
        p.first++;
    return p.arrived && upload_phases(b, phases, plans, e)
           && qm_cuda_check(d, cudaMemsetAsync(p.arrived, 0, count * sizeof *p.arrived, d->stream),
                            "a captured step", e)
           && qm_cuda_check(d, qm_program_run(&p, d->stream), "a captured step", e);
}

static void divide(builder *b)
{
    uint32_t next = (uint32_t)QM_NO_PHASE;
    for (int i = b->phases - 1; i >= 0; i--) {
        if (b->phase[i].kind == QM_PHASE_ATTEND)
            qm_program_share(&b->phase[i].attend, b->blocks);
        if (b->phase[i].kind != QM_PHASE_PRODUCT)
            continue;
        qm_product_phase *f = &b->phase[i].product;
        qm_program_divide(f, b->blocks);
        f->next = next;
        next = (uint32_t)i;
        uint32_t sums = qm_program_sums(f);
        b->sums = sums > b->sums ? sums : b->sums;
    }
}

/* As many notes as one program takes, and then those that it left: *taken of them. */
static bool play_some(builder *b, const qm_note *n, int count, int *taken, qm_err *e)
{
    int i = 0;
    verdict v = TAKEN;
    while (i < count && (v = take(b, n + i, e)) == TAKEN)
        i++;
    if (v == FAILED)
        return false;
    divide(b);
    bool whole = b->kind && qm_program_takes(b->sums, b->head_dim);
    *taken = i ? i : 1;
    if (!whole)
        return launch_notes(b->d, n, *taken, e);
    if (!run_program(b, e))
        return false;
    int left = i; /* a norm and turns at the end, which nothing here has used */
    if (b->norm && !b->norm_made)
        left = (int)(b->norm - n) < left ? (int)(b->norm - n) : left;
    for (int k = 0; k < b->ropes; k++)
        left = (int)(b->rope[k] - n) < left ? (int)(b->rope[k] - n) : left;
    return launch_notes(b->d, n + left, i - left, e);
}

bool qm_cuda_play(qm_cuda *d, qm_err *e)
{
    qm_notes *p = d->ops->notes;
    const int count = p->notes;
    if (!count)
        return true;
    p->notes = 0;
    builder b = {.d = d, .blocks = p->blocks};
    b.phase = malloc(2 * (size_t)count * sizeof *b.phase);
    b.x = malloc(2 * (size_t)count * sizeof *b.x);
    b.known = malloc(2 * (size_t)count * sizeof *b.known);
    bool ok = b.phase && b.x && b.known;
    if (!ok)
        qm_fail(e, QM_ENOFIT, "out of memory for the notes of a step");
    for (int at = 0, taken; ok && at < count; at += taken) {
        b = (builder){.d = d, .blocks = p->blocks, .phase = b.phase, .x = b.x, .known = b.known};
        ok = play_some(&b, p->note + at, count - at, &taken, e);
    }
    free(b.phase), free(b.x), free(b.known);
    return ok;
}

int qm_cuda_notes_programs(const qm_cuda *d) { return d->ops->notes->programs; }

bool qm_cuda_notes_done(qm_cuda *d, bool captured, qm_err *e)
{
    qm_notes *p = d->ops->notes;
    bool ok = true;
    for (int i = 0; captured && ok && i < p->uploads; i++)
        ok = qm_cuda_upload(d, p->upload[i].to, p->upload[i].from, p->upload[i].size, e);
    forget_uploads(p);
    p->notes = p->programs = 0;
    return ok;
}
