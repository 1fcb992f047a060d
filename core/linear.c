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

enum { MOST_STREAMS = 64 };

/* Panels that lie one behind the other, taken from the front: a large piece first, then small ones. */
typedef struct stream {
    _Alignas(64) atomic_llong taken; /* pieces */
    int64_t from, small, end;        /* small: where small pieces begin */
} stream;

typedef struct job {
    const float *x, *bias;
    float *y;
    int64_t tokens;
    const qm_weight *w;
    int64_t step; /* rows, or panels, of one piece of work */
    const qm_packed *with;
    qm_ints q;
    qm_packed_job packed;
    qm_panel_fn *panel;
    stream *stream;
    int streams;
} job;

/* ---- plain ----------------------------------------------------------------------------------------- */

static bool some_rows(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    const int64_t cols = j->w->cols, all = j->w->rows, from = index * j->step;
    const int64_t n = all - from < j->step ? all - from : j->step;
    const qm_lanes *lanes = qm_lanes_get();
    qm_scratch s = {0};
    const float *rows = qm_weight_rows(j->w, from, n, &s, e);
    for (int64_t t = 0; rows && t < j->tokens; t++)
        for (int64_t i = 0; i < n; i++)
            j->y[t * all + from + i] = lanes->dot(j->x + t * cols, rows + i * cols, (size_t)cols)
                                       + (j->bias ? j->bias[from + i] : 0);
    qm_scratch_free(&s);
    return rows != NULL;
}

/* ---- packed ---------------------------------------------------------------------------------------- */

static bool some_tokens(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread, (void)e;
    job *j = arg;
    int64_t end = 8 * index + 8 < j->tokens ? 8 * index + 8 : j->tokens;
    for (int64_t t = 8 * index; t < end; t++)
        j->with->set(&j->q, j->packed.pack, t, j->x + t * j->w->cols);
    return true;
}

/* Some panels times some tokens, as much of both as a core's own cache holds at once; then the next tokens. */
static void some_panels(const job *j, int64_t from, int64_t to)
{
    const int64_t tile = j->w->cols <= 4096 ? 48 : 32;
    qm_packed_job piece = j->packed;
    for (piece.from = 0; piece.from < j->tokens; piece.from = piece.to) {
        piece.to = piece.from + tile < j->tokens ? piece.from + tile : j->tokens;
        for (int64_t i = from; i < to; i++) {
            int64_t row = i * QM_PACK_ROWS, left = j->w->rows - row;
            const uint8_t *panel = qm_pack_panel(piece.pack, j->w->first / QM_PACK_ROWS + i);
            j->panel(&piece, panel, left < QM_PACK_ROWS ? (int)left : QM_PACK_ROWS,
                     j->bias ? j->bias + row : NULL, j->y + row);
        }
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
        for (int64_t from = 0, to = 0; to < s->end; some_panels(j, from, to)) {
            int64_t piece = atomic_fetch_add_explicit(&s->taken, 1, memory_order_relaxed);
            from = piece ? s->small + (piece - 1) * j->step : s->from;
            to = piece ? from + j->step : s->small;
            to = to < s->end ? to : s->end;
        }
    }
    return true;
}

static bool packed(qm_pool *pool, job *j, qm_err *e)
{
    const qm_pack *p = j->w->tensor->pack;
    const int64_t panels = (j->w->rows + QM_PACK_ROWS - 1) / QM_PACK_ROWS;
    const bool ints = p->scales != QM_SCALES_NONE;
    const int threads = qm_pool_threads(pool);
    stream streams[MOST_STREAMS];
    j->packed = (qm_packed_job){p, &j->q, j->x, 0, 0, j->w->rows};
    j->panel = j->with->find(p);
    j->step = 1 + (int64_t)(((size_t)1 << (j->tokens <= 8 ? 15 : 17)) / p->panel);
    j->stream = streams;
    j->streams = threads < MOST_STREAMS ? threads : MOST_STREAMS;
    for (int i = 0; i < j->streams; i++) {
        stream *s = &j->stream[i];
        atomic_init(&s->taken, 0);
        s->from = panels * i / j->streams;
        s->end = panels * (i + 1) / j->streams;
        s->small = s->from + (j->tokens <= 8 ? (s->end - s->from) / 2 : 0);
    }
    if (ints && !qm_ints_new(&j->q, j->with, p, j->tokens, e))
        return false;
    bool ok = true;
    if (ints && j->tokens <= 8)
        ok = some_tokens(j, 0, 0, e);
    else if (ints)
        ok = qm_pool_run(pool, (j->tokens + 7) / 8, some_tokens, NULL, j, e);
    ok = ok && qm_pool_run(pool, j->streams, drain, NULL, j, e);
    qm_ints_free(&j->q);
    return ok;
}

bool qm_linear(qm_pool *pool, const float *x, int64_t tokens, const qm_weight *w, const float *bias, float *y,
               qm_err *e)
{
    job j = {.x = x, .bias = bias, .y = y, .tokens = tokens, .w = w};
    if (tokens == 0)
        return true;
    if (w->tensor->pack && w->first % QM_PACK_ROWS == 0 && (j.with = qm_packed_get()))
        return packed(pool, &j, e);
    j.step = w->cols < 16384 ? 16384 / (w->cols ? w->cols : 1) : 1; /* some 64 KB of f32 */
    return qm_pool_run(pool, (w->rows + j.step - 1) / j.step, some_rows, NULL, &j, e);
}
