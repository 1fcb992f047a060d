/* memory.c: what a job takes while it runs, and the one place that allocates it; see parts.h. */
#include <inttypes.h>
#include <stdlib.h>

#include "parts.h"

uint64_t qm_buffers_bytes(const sizes *z)
{
    return z->raw + 2 * sizeof(float) * z->values + z->plane + z->rows;
}

uint64_t qm_sums_bytes(const stream *st)
{
    uint64_t total = (uint64_t)st->parts * sizeof(chunk_sums);
    if (st->job->source.strided.shape.ndim) /* read through the map */
        total += (uint64_t)qm_strided_span(&st->job->source.strided)
                 * (st->job->source.format->plane[0].bits / 8);
    for (int k = 0; k < st->job->nsink; k++)
        total += st->sink[k].groups * (sizeof(qm_groupsum) + sizeof(float))
                 + (st->sink[k].groups ? sizeof(nested_piece) : 0) + (uint64_t)st->parts * sizeof(qm_errsum);
    return total;
}

static uint64_t memory_of(const stream *st)
{
    return (uint64_t)st->threads * qm_buffers_bytes(&st->size) + qm_sums_bytes(st);
}

uint64_t qm_stream_memory(const qm_job *job, int threads)
{
    sink_run sinks[QM_MAX_SINKS] = {0};
    stream st;
    qm_job copy = *job;
    copy.nsink = copy.nsink > QM_MAX_SINKS ? QM_MAX_SINKS : copy.nsink;
    qm_stream_measure(&st, &copy, threads, sinks, false);
    return memory_of(&st);
}

void qm_buffers_free(buffers *b, int threads)
{
    for (int t = 0; b && t < threads; t++) {
        free(b[t].raw);
        free(b[t].x);
        free(b[t].y);
        free(b[t].plane);
        free(b[t].rows);
    }
    free(b);
}

buffers *qm_buffers_new(const sizes *z, int threads)
{
    buffers *buf = calloc((size_t)threads, sizeof *buf);
    bool ok = buf != NULL;
    for (int t = 0; ok && t < threads; t++) {
        buffers *b = &buf[t];
        ok = (b->raw = malloc(z->raw + 1)) && (b->x = malloc(z->values * sizeof *b->x + 1))
             && (b->y = malloc(z->values * sizeof *b->y + 1)) && (b->plane = malloc(z->plane + 1))
             && (b->rows = malloc(z->rows + 1));
    }
    if (ok)
        return buf;
    qm_buffers_free(buf, threads);
    return NULL;
}

void qm_sums_free(stream *st)
{
    free(st->sums);
    st->sums = NULL;
    for (int k = 0; st->sink && k < st->job->nsink; k++) {
        sink_run *r = &st->sink[k];
        free(r->absmax);
        free(r->sum);
        free(r->part_error);
        *r = (sink_run){.groups = r->groups};
    }
}

bool qm_sums_new(stream *st)
{
    bool ok = (st->sums = calloc((size_t)st->parts + 1, sizeof *st->sums));
    for (int k = 0; ok && k < st->job->nsink; k++) {
        sink_run *r = &st->sink[k];
        ok = (r->part_error = calloc((size_t)st->parts + 1, sizeof *r->part_error))
             && (!r->groups
                 || ((r->absmax = malloc(r->groups * sizeof *r->absmax))
                     && (r->sum = malloc(r->groups * sizeof *r->sum))));
    }
    return ok;
}

bool qm_stream_no_memory(const stream *st, uint64_t bytes, qm_err *e)
{
    return qm_fail(e, QM_ENOFIT,
                   "%s: out of memory: %" PRIu64 " bytes to work on this tensor; try fewer --threads",
                   st->job->source.name, bytes);
}

void qm_stream_release(stream *st)
{
    qm_buffers_free(st->buf, st->threads);
    qm_sums_free(st);
}

bool qm_stream_allocate(stream *st, qm_err *e)
{
    st->buf = qm_buffers_new(&st->size, st->threads);
    if (st->buf && qm_sums_new(st))
        return true;
    qm_stream_release(st);
    return qm_stream_no_memory(st, memory_of(st), e);
}
