/* linear.c: see linear.h.
 *
 * The plain way decodes weights a few rows at a time, exactly as qm_decode has them, and takes every sum in
 * the order of lanes.h.  Weights that were laid out for speed go through packed.h, a panel of sixteen rows at
 * a time. Either way a result does not depend on who computes it.
 */
#include "linear.h"

#include <stdatomic.h>

#include "lanes.h"
#include "packed.h"

enum { MOST_STREAMS = 64, MOST_PRODUCTS = 8 };

/* Panels that lie one behind the other, taken from the front: a large piece first, then small ones. */
typedef struct stream {
    _Alignas(64) atomic_llong taken; /* pieces */
    int64_t from, small, end;        /* small: where small pieces begin */
} stream;

/* A product by a weight that is laid out for speed. */
typedef struct product {
    const qm_product *of;
    qm_ints ints; /* its own, or another's; then that has them */
    bool own;
    qm_packed_job job;
    qm_panel_fn *panel;
    int64_t from, to; /* its panels among those of all */
} product;

typedef struct job {
    const float *x;
    int64_t tokens;
    int64_t step; /* rows, or panels, of one piece of work */
    const qm_product *plain;
    const qm_packed *with;
    product *product;
    int products;
    stream *stream;
    int streams;
} job;

/* ---- plain ----------------------------------------------------------------------------------------- */

static bool some_rows(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    const qm_product *p = j->plain;
    const int64_t cols = p->w.cols, all = p->w.rows, from = index * j->step;
    const int64_t n = all - from < j->step ? all - from : j->step;
    const qm_lanes *lanes = qm_lanes_get();
    qm_scratch s = {0};
    const float *rows = qm_weight_rows(&p->w, from, n, &s, e);
    for (int64_t t = 0; rows && t < j->tokens; t++)
        for (int64_t i = 0; i < n; i++)
            p->y[t * all + from + i] = lanes->dot(j->x + t * cols, rows + i * cols, (size_t)cols)
                                       + (p->bias ? p->bias[from + i] : 0);
    qm_scratch_free(&s);
    return rows != NULL;
}

static bool plain(qm_pool *pool, const float *x, int64_t tokens, const qm_product *p, qm_err *e)
{
    job j = {.x = x, .tokens = tokens, .plain = p};
    j.step = p->w.cols < 16384 ? 16384 / (p->w.cols ? p->w.cols : 1) : 1; /* some 64 KB of f32 */
    return qm_pool_run(pool, (p->w.rows + j.step - 1) / j.step, some_rows, NULL, &j, e);
}

/* ---- packed ---------------------------------------------------------------------------------------- */

static bool some_tokens(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread, (void)e;
    job *j = arg;
    int64_t end = 8 * index + 8 < j->tokens ? 8 * index + 8 : j->tokens;
    for (int i = 0; i < j->products; i++) {
        product *p = &j->product[i];
        for (int64_t t = 8 * index; p->own && t < end; t++)
            j->with->set(&p->ints, p->job.pack, t, j->x + t * p->job.pack->cols);
    }
    return true;
}

/* Some panels of a product times some tokens, as much of both as a core's own cache holds at once; then the
 * next tokens. */
static void some_panels(const job *j, const product *p, int64_t from, int64_t to)
{
    const qm_weight *w = &p->of->w;
    const int64_t tile = w->cols <= 4096 ? 48 : 32;
    qm_packed_job piece = p->job;
    for (piece.from = 0; piece.from < j->tokens; piece.from = piece.to) {
        piece.to = piece.from + tile < j->tokens ? piece.from + tile : j->tokens;
        for (int64_t i = from; i < to; i++) {
            int64_t row = i * QM_PACK_ROWS, left = w->rows - row;
            const uint8_t *panel = qm_pack_panel(piece.pack, w->first / QM_PACK_ROWS + i);
            p->panel(&piece, panel, left < QM_PACK_ROWS ? (int)left : QM_PACK_ROWS,
                     p->of->bias ? p->of->bias + row : NULL, p->of->y + row);
        }
    }
}

/* Panels from … to - 1 of all products. */
static void some_of_all(const job *j, int64_t from, int64_t to)
{
    for (int i = 0; i < j->products; i++) {
        const product *p = &j->product[i];
        int64_t first = from > p->from ? from : p->from, end = to < p->to ? to : p->to;
        if (first < end)
            some_panels(j, p, first - p->from, end - p->from);
    }
}

/* Memory is read fastest front to back without a gap, so every thread has a stream of its own, and takes from
 * the others' only when that has run dry. */
static bool drain(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread, (void)e;
    job *j = arg;
    for (int i = 0; i < j->streams; i++) {
        stream *s = &j->stream[(index + i) % j->streams];
        for (int64_t from = 0, to = 0; to < s->end; some_of_all(j, from, to)) {
            int64_t piece = atomic_fetch_add_explicit(&s->taken, 1, memory_order_relaxed);
            from = piece ? s->small + (piece - 1) * j->step : s->from;
            to = piece ? from + j->step : s->small;
            to = to < s->end ? to : s->end;
        }
    }
    return true;
}

/* Whether activations are the same integers for both packs. */
static bool same_ints(const qm_pack *a, const qm_pack *b)
{
    return a->scales != QM_SCALES_NONE && b->scales != QM_SCALES_NONE && a->cols == b->cols
           && a->steps * a->span == b->steps * b->span && (a->group == 16) == (b->group == 16)
           && (a->codes == QM_CODES_LEVEL16) == (b->codes == QM_CODES_LEVEL16) && a->zero == b->zero
           && a->unit == b->unit;
}

/* A product's place among all, and its activations; false: out of memory. */
static bool join(job *j, const qm_product *of, qm_err *e)
{
    product *p = &j->product[j->products];
    const qm_pack *pack = of->w.tensor->pack;
    *p = (product){.of = of, .own = pack->scales != QM_SCALES_NONE, .panel = j->with->find(pack)};
    p->from = j->products ? p[-1].to : 0;
    p->to = p->from + (of->w.rows + QM_PACK_ROWS - 1) / QM_PACK_ROWS;
    const qm_ints *q = &p->ints;
    for (int i = 0; p->own && i < j->products; i++)
        if (j->product[i].own && same_ints(j->product[i].job.pack, pack)) {
            p->own = false;
            q = &j->product[i].ints;
        }
    p->job = (qm_packed_job){pack, q, j->x, 0, 0, of->w.rows};
    if (p->own && !qm_ints_new(&p->ints, j->with, pack, j->tokens, e))
        return false;
    j->products++;
    return true;
}

static bool run_packed(qm_pool *pool, job *j, qm_err *e)
{
    const int threads = qm_pool_threads(pool);
    const int64_t panels = j->product[j->products - 1].to;
    size_t largest = 1;
    bool ints = false;
    for (int i = 0; i < j->products; i++) {
        const product *p = &j->product[i];
        largest = p->job.pack->panel > largest ? p->job.pack->panel : largest;
        ints = ints || p->own;
    }
    j->step = 1 + (int64_t)(((size_t)1 << (j->tokens <= 8 ? 15 : 17)) / largest);
    j->streams = threads < MOST_STREAMS ? threads : MOST_STREAMS;
    for (int i = 0; i < j->streams; i++) {
        stream *s = &j->stream[i];
        atomic_init(&s->taken, 0);
        s->from = panels * i / j->streams;
        s->end = panels * (i + 1) / j->streams;
        s->small = s->from + (j->tokens <= 8 ? (s->end - s->from) / 2 : 0);
    }
    bool ok = true;
    if (ints && j->tokens <= 8)
        ok = some_tokens(j, 0, 0, e);
    else if (ints)
        ok = qm_pool_run(pool, (j->tokens + 7) / 8, some_tokens, NULL, j, e);
    return ok && qm_pool_run(pool, j->streams, drain, NULL, j, e);
}

static bool packed(qm_pool *pool, const float *x, int64_t tokens, const qm_product *const *of, int n,
                   qm_err *e)
{
    product products[MOST_PRODUCTS];
    stream streams[MOST_STREAMS];
    job j = {.x = x, .tokens = tokens, .with = qm_packed_get(), .product = products, .stream = streams};
    bool ok = true;
    for (int i = 0; ok && i < n; i++)
        ok = join(&j, of[i], e);
    ok = ok && run_packed(pool, &j, e);
    for (int i = 0; i < j.products; i++)
        if (products[i].own)
            qm_ints_free(&products[i].ints);
    return ok;
}

bool qm_linear(qm_pool *pool, const float *x, int64_t tokens, const qm_product *p, int n, qm_err *e)
{
    const qm_product *laid_out[MOST_PRODUCTS];
    const bool fast = qm_packed_get() != NULL;
    bool ok = true;
    int found = 0;
    for (int i = 0; ok && tokens && i < n; i++) {
        if (fast && p[i].w.tensor->pack && p[i].w.first % QM_PACK_ROWS == 0)
            laid_out[found++] = &p[i];
        else
            ok = plain(pool, x, tokens, &p[i], e);
        if (ok && found && (found == MOST_PRODUCTS || i + 1 == n)) {
            ok = packed(pool, x, tokens, laid_out, found, e);
            found = 0;
        }
    }
    return ok;
}
