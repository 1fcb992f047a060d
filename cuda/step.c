/* step.c: the step from one token to the next, captured once in a graph and replayed.
 *
 * While it is recorded, every op launches as always, but into the graph; ids and positions are those on the
 * GPU (qm_cuda_ops), which the step itself moves on, so that a replay needs nothing from here. */
#include <stdlib.h>
#include <string.h>

#include "run.h"

struct qm_cuda_step {
    qm_cuda *gpu; /* one reference */
    qm_kv *kv;    /* the caller keeps it */
    cudaGraphExec_t graph;
    int programs;
    int begun; /* tokens in the cache when it was captured: where its positions count from */
};

/* ---- memory ---------------------------------------------------------------------------------------- */

/* What is given back while a graph is captured would become a part of it; it is kept until after. */
void qm_cuda_give_later(qm_cuda *d, void *p)
{
    qm_cuda_ops *o = d->ops;
    if (o->late_count == o->late_room) {
        int room = o->late_room ? 2 * o->late_room : 64;
        void **more = realloc(o->late, (size_t)room * sizeof *more);
        if (!more)
            return; /* lost until the GPU is closed, which frees its pool */
        o->late = more;
        o->late_room = room;
    }
    o->late[o->late_count++] = p;
}

static void give_late(qm_cuda *d)
{
    qm_cuda_ops *o = d->ops;
    while (o->late_count)
        qm_cuda_unscratch(o->late[--o->late_count], d->stream);
}

static bool ready(qm_cuda *d, qm_err *e)
{
    if (!d->ops && !qm_cuda_ops_open(d, e))
        return false;
    qm_cuda_ops *o = d->ops;
    if (o->arena)
        return true;
    o->arena = qm_cuda_alloc(d, QM_STEP_ARENA, e);
    o->ids = o->arena ? qm_cuda_alloc(d, QM_STEP_WORDS * sizeof *o->ids, e) : NULL;
    if (!o->ids) {
        qm_cuda_free(d, o->arena);
        o->arena = NULL;
        return false;
    }
    o->passed = o->ids + 1;
    o->history = o->ids + 2;
    return true;
}

/* ---- capturing ------------------------------------------------------------------------------------- */

static bool capture(qm_cuda_step *s, bool program, bool (*record)(void *, qm_err *), void *arg, qm_err *e)
{
    qm_cuda *d = s->gpu;
    qm_cuda_ops *o = d->ops;
    cudaGraph_t graph = NULL;
    if (!qm_cuda_flush(d, e)
        || !qm_cuda_check(d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal),
                          "capturing a step", e))
        return false;
    o->capturing = true;
    o->program = program;
    bool ok = record(arg, e) && qm_cuda_flush(d, e)
              && qm_cuda_check(d, qm_step_done(o->ids, o->history, o->passed, d->stream), "capturing a step",
                               e);
    o->capturing = o->program = false;
    memset(&o->waiting, 0, sizeof o->waiting);
    s->programs = qm_cuda_notes_programs(d);
    cudaError_t r = cudaStreamEndCapture(d->stream, &graph);
    ok = qm_cuda_notes_done(d, ok && r == cudaSuccess, e) && ok;
    ok = ok && qm_cuda_check(d, r, "capturing a step", e)
         && qm_cuda_check(d, cudaGraphInstantiate(&s->graph, graph, 0), "making a graph of a step", e);
    cudaGetLastError();
    if (graph)
        cudaGraphDestroy(graph);
    give_late(d);
    return ok;
}

/* The cache as it was: a capture appends nothing. */
static bool capture_and_undo(qm_cuda_step *s, bool program, bool (*record)(void *, qm_err *), void *arg,
                             qm_err *e)
{
    qm_kv *kv = s->kv;
    size_t size = (size_t)kv->layers * sizeof *kv->count;
    int *count = malloc(size + 1);
    if (!count)
        return qm_fail(e, QM_ENOFIT, "out of memory for a step of %d layers", kv->layers);
    memcpy(count, kv->count, size);
    bool ok = capture(s, program, record, arg, e);
    memcpy(kv->count, count, size);
    free(count);
    return ok;
}

qm_cuda_step *qm_cuda_step_new(qm_cuda *d, qm_kv *kv, bool program, bool (*record)(void *arg, qm_err *e),
                               void *arg, qm_err *e)
{
    qm_cuda_enter(d);
    if (kv->device != &d->device) {
        qm_fail(e, QM_EUSAGE, "a step on %s needs a cache there; give kv_cache its device", d->device.name);
        return NULL;
    }
    qm_cuda_step *s = ready(d, e) ? calloc(1, sizeof *s) : NULL;
    if (!s)
        return NULL;
    if (d->ops->steps == 0)
        d->ops->arena_used = 0; /* nobody's graph uses it */
    s->gpu = d;
    s->kv = kv;
    s->begun = qm_kv_length(kv);
    qm_device_ref(&d->device);
    d->ops->steps++;
    if (capture_and_undo(s, program, record, arg, e))
        return s;
    qm_cuda_step_free(s);
    return NULL;
}

void qm_cuda_step_free(qm_cuda_step *s)
{
    if (!s)
        return;
    qm_cuda_enter(s->gpu);
    cudaStreamSynchronize(s->gpu->stream);
    if (s->graph)
        cudaGraphExecDestroy(s->graph);
    s->gpu->ops->steps--;
    qm_device_unref(&s->gpu->device);
    free(s);
}

int qm_cuda_step_programs(const qm_cuda_step *s) { return s->programs; }

/* ---- running --------------------------------------------------------------------------------------- */

bool qm_cuda_step_run(qm_cuda_step *s, int32_t id, int n, int32_t *ids, qm_err *e)
{
    qm_cuda *d = s->gpu;
    qm_cuda_ops *o = d->ops;
    int length = qm_kv_length(s->kv), passed = length - s->begun;
    qm_cuda_enter(d);
    if (n > s->kv->context - length)
        return qm_fail(
            e, QM_EUSAGE,
            "%d tokens more than the %d there are do not fit a cache of %d; give it a larger context", n,
            length, s->kv->context);
    if (passed < 0 || passed + n > QM_STEP_HISTORY)
        return qm_fail(e, QM_EUSAGE,
                       "the cache holds %d tokens, and held %d when the step was captured; capture it again",
                       length, s->begun);
    const int32_t start[2] = {id, passed};
    if (!qm_cuda_flush(d, e) || !qm_cuda_upload(d, o->ids, start, sizeof start, e))
        return false;
    cudaError_t r = cudaSuccess;
    for (int i = 0; i < n && !r; i++)
        r = cudaGraphLaunch(s->graph, d->stream);
    if (!qm_cuda_check(d, r, "running a step", e)
        || !qm_cuda_download(d, ids, o->history + passed, (uint64_t)n * sizeof *ids, e))
        return false;
    for (int i = 0; i < n; i++)
        if (ids[i] < 0)
            return qm_fail(e, QM_EFAIL,
                           "the logits after token %d hold a NaN or an infinity: nothing can be chosen",
                           length + i);
    for (int layer = 0; layer < s->kv->layers; layer++)
        s->kv->count[layer] += n;
    return true;
}
