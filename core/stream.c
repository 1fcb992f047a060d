/* stream.c: see stream.h.  A job is cut into chunks of whole rows; each thread owns one set of
 * buffers and takes a chunk through all stages while it is in cache.  The stages are files of core/stream.
 */
#include "stream.h"

#include <stdlib.h>
#include <string.h>

#include "stream/parts.h"

/* ---- one chunk ------------------------------------------------------------------------------------------- */

static bool work_here(const stream *st, chunk *c, qm_err *e)
{
    const qm_job *job = st->job;
    if (!qm_source_load(&job->source, c, c->b->x, e))
        return false;
    if (job->nstep) {
        qm_steps_apply(st, c, job->nstep);
        if (job->want_errors)
            qm_steps_measure(st, c);
    }
    if (!qm_values_finish(st, c, e))
        return false;
    if (job->against && !qm_against_hold(st, c, e))
        return false;
    for (int i = 0; i < job->nsink; i++)
        if (!qm_sink_drain(st, c, i, e))
            return false;
    if (job->want_errors)
        qm_sinks_measure_exact(st, c);
    return true;
}

/* The same by way of a device. */
static bool work_there(const stream *st, const chunk *here, qm_courier *courier, qm_err *e)
{
    const qm_job *job = st->job;
    raw_layout r = qm_source_layout(&job->source, here->n);
    buffers there = {.raw = courier->memory(courier, r.total, e), .rows = here->b->rows};
    qm_parcel l = {.job = job, .row = here->row, .rows = here->rows, .n = here->n, .raw = r.total};
    l.each = (uint64_t)(st->part_rows * job->source.cols);
    chunk far = *here, *c = &far;
    c->b = &there;
    c->far = &l;
    if (!there.raw || !qm_source_read(&job->source, c, e))
        return false;
    memcpy(l.at, r.at, sizeof l.at);
    if (job->source.double_quant)
        l.at[1] = r.absmax;
    if (!courier->run(courier, &l, e)
        || (l.first_nonfinite < c->n && !qm_value_not_finite(st, c, l.first_nonfinite, l.nonfinite, e)))
        return false;
    int64_t parts = (c->rows + st->part_rows - 1) / st->part_rows;
    for (int64_t i = 0; l.moved && i < parts; i++) {
        st->sums[c->part + i].ww = l.moved[i].sum_xx;
        st->sums[c->part + i].dd = l.moved[i].sum_dd;
    }
    for (int i = 0; i < job->nsink; i++)
        if (!qm_sink_deliver(st, c, i, e))
            return false;
    return true;
}

static void collect(stream *st)
{
    qm_job *job = st->job;
    for (int64_t i = 0; i < st->parts; i++) {
        job->sum_ww += st->sums[i].ww;
        job->sum_dd += st->sums[i].dd;
        if (job->against) {
            qm_errsum_add(&job->against->error, &st->sums[i].against);
            job->against->beyond += st->sums[i].beyond;
            job->against->nonfinite += st->sums[i].nonfinite;
        }
        for (int k = 0; k < job->nsink; k++) {
            qm_errsum_add(&job->sink[k].error, &st->sink[k].part_error[i]);
            job->sink[k].zero_groups += st->sums[i].zero_groups[k];
        }
    }
}

/* When the last chunk is done. */
static bool finish(stream *st, qm_err *e)
{
    qm_job *job = st->job;
    bool ok = true;
    collect(st);
    for (int k = 0; ok && k < job->nsink; k++)
        if (job->sink[k].double_quant)
            ok = qm_sink_finish(&job->sink[k], &st->sink[k], (uint64_t)(job->source.rows * job->source.cols),
                                e);
    qm_sums_free(st);
    return ok;
}

/* ---- many jobs at once ----------------------------------------------------------------------------------- */

/* Many jobs, one after another in the numbers of their chunks. */
typedef struct batch {
    stream *st;
    int n;
    qm_courier *const *courier;
} batch;

static bool work(void *arg, int64_t index, int thread, qm_err *e)
{
    const batch *b = arg;
    stream *st = b->st;
    for (; index >= st->chunks; st++)
        index -= st->chunks;
    chunk c = qm_stream_chunk(st, index, thread);
    if (!(st->by_courier ? work_there(st, &c, b->courier[thread], e) : work_here(st, &c, e)))
        return false;
    atomic_fetch_add(&st->done, c.n);
    return atomic_fetch_sub(&st->left, 1) > 1 || finish(st, e);
}

static void tick(void *arg)
{
    const batch *b = arg;
    qm_job *first = b->st->job;
    uint64_t bytes = 0;
    if (!first->progress)
        return;
    for (int i = 0; i < b->n; i++) {
        const qm_source *s = &b->st[i].job->source;
        uint64_t total = (uint64_t)(s->rows * s->cols);
        if (total)
            bytes += (uint64_t)((double)qm_source_bytes(s)
                                * ((double)atomic_load(&b->st[i].done) / (double)total));
    }
    first->progress(first->progress_arg, bytes);
}

static void larger_sizes(sizes *z, const sizes *than)
{
    z->raw = than->raw > z->raw ? than->raw : z->raw;
    z->values = than->values > z->values ? than->values : z->values;
    z->plane = than->plane > z->plane ? than->plane : z->plane;
    z->rows = than->rows > z->rows ? than->rows : z->rows;
}

static bool can_begin(const qm_job *job, qm_err *e)
{
    if (job->nsink > QM_MAX_SINKS)
        return qm_fail(e, QM_EFAIL, "%s: %d outputs in one pass; %d at most", job->source.name, job->nsink,
                       QM_MAX_SINKS);
    return qm_source_check(&job->source, e) && (!job->against || qm_source_check(&job->against->source, e));
}

static bool run_batch(qm_pool *pool, batch *b, qm_err *e)
{
    int threads = qm_pool_threads(pool);
    int64_t chunks = 0;
    uint64_t memory = 0;
    sizes most = {0};
    bool ok = true;
    for (int i = 0; i < b->n; i++) {
        chunks += b->st[i].chunks;
        memory += qm_sums_bytes(&b->st[i]);
        larger_sizes(&most, &b->st[i].size);
    }
    buffers *buf = qm_buffers_new(&most, threads);
    for (int i = 0; buf && ok && i < b->n; i++) {
        b->st[i].buf = buf;
        ok = qm_sums_new(&b->st[i]);
    }
    if (!buf || !ok)
        ok = qm_stream_no_memory(&b->st[0], memory + (uint64_t)threads * qm_buffers_bytes(&most), e);
    for (int i = 0; ok && i < b->n; i++)
        if (b->st[i].chunks == 0)
            ok = finish(&b->st[i], e);
    ok = ok && qm_pool_run(pool, chunks, work, tick, b, e);
    for (int i = 0; i < b->n; i++) {
        qm_sums_free(&b->st[i]);
        const qm_job *job = b->st[i].job;
        if (job->source.strided.shape.ndim)
            qm_infile_release(job->source.file);
        if (job->against && job->against->source.strided.shape.ndim)
            qm_infile_release(job->against->source.file);
    }
    qm_buffers_free(buf, threads);
    return ok;
}

bool qm_streams(qm_pool *pool, qm_courier *const *courier, qm_job *const *job, int n, qm_err *e)
{
    typedef sink_run sinks[QM_MAX_SINKS];
    for (int i = 0; i < n; i++)
        if (!can_begin(job[i], e))
            return false;
    batch b = {.st = calloc((size_t)n + 1, sizeof *b.st), .n = n, .courier = courier};
    sinks *sink = calloc((size_t)n + 1, sizeof *sink);
    bool ok = b.st && sink;
    if (!ok)
        qm_fail(e, QM_ENOFIT, "out of memory for %d tensors at once", n);
    for (int i = 0; ok && i < n; i++)
        qm_stream_measure(&b.st[i], job[i], qm_pool_threads(pool), sink[i],
                          courier && qm_stream_goes_by_courier(job[i], courier[0]->device));
    ok = ok && (n == 0 || run_batch(pool, &b, e));
    free(b.st);
    free(sink);
    return ok;
}

bool qm_stream(qm_pool *pool, qm_job *job, qm_err *e) { return qm_streams(pool, NULL, &job, 1, e); }
