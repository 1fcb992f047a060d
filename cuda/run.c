/* run.c: the ops of core/ops on a GPU: their memory, and which runs how.
 *
 * Results are made on the GPU's own stream and not waited for; reading a tensor waits. */
#include <stdlib.h>
#include <string.h>

#include "../core/formats/dynamic8.h"
#include "call.h"

/* ---- memory -------------------------------------------------------------------------------------- */

void *qm_cuda_take(qm_cuda *d, uint64_t size, qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    if (!o->capturing)
        return qm_cuda_scratch(d, d->stream, size, e);
    if (o->arena_used + whole(size) > QM_STEP_ARENA) {
        qm_fail(e, QM_ENOFIT, "%s: a captured step needs more than %d MiB for its activations",
                d->device.name, QM_STEP_ARENA >> 20);
        return NULL;
    }
    void *p = o->arena + o->arena_used;
    o->arena_used += whole(size);
    return p;
}

static bool in_arena(const qm_cuda_ops *o, const void *p)
{
    return o->arena && (const uint8_t *)p >= o->arena && (const uint8_t *)p < o->arena + QM_STEP_ARENA;
}

void qm_cuda_give(qm_cuda *d, void *p)
{
    if (!p || (d->ops && in_arena(d->ops, p)))
        return;
    qm_cuda_forget_factors(d, p);
    if (d->ops && d->ops->capturing)
        qm_cuda_give_later(d, p);
    else
        qm_cuda_unscratch(p, d->stream);
}

/* ---- the table ----------------------------------------------------------------------------------- */

static const qm_cuda_way *const ways[] = {qm_cuda_products, qm_cuda_int8, qm_cuda_experts,
                                          qm_cuda_values,   qm_cuda_ids,  qm_cuda_positions};

static const qm_cuda_way *way_of(const char *op)
{
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        for (const qm_cuda_way *w = ways[i]; w->name; w++)
            if (strcmp(w->name, op) == 0)
                return w;
    return NULL;
}

const char *qm_cuda_op_name(int i)
{
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++)
        for (const qm_cuda_way *w = ways[k]; w->name; w++)
            if (i-- == 0)
                return w->name;
    return NULL;
}

bool qm_cuda_op(qm_device *device, qm_call *c, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_enter(d);
    if (!d->ops && !qm_cuda_ops_open(d, e))
        return false;
    const qm_cuda_way *way = way_of(c->op->name);
    if (way) {
        if (way->run(d, c, e))
            return true;
        qm_tensor_free(c->out);
        c->out = NULL;
        return false;
    }
    return qm_fail(e, QM_EUNSUPPORTED, "%s: does not run on %s yet; bring the tensors here: t:to(qm.cpu)",
                   c->op->name, device->name);
}

/* ---- plans --------------------------------------------------------------------------------------- */

uint64_t qm_cuda_op_memory(qm_device *device, const qm_call *c, uint64_t *kept)
{
    const qm_cuda_way *way = way_of(c->op->name);
    qm_cuda_enter((qm_cuda *)device);
    *kept = 0;
    return way && way->memory ? way->memory(c, kept) : 0;
}

enum { DYNAMIC = 256 * sizeof(float) };

uint64_t qm_cuda_kept_memory(qm_device *device, bool decoding)
{
    qm_cuda_enter((qm_cuda *)device);
    return DYNAMIC + QM_COUNTERS + QM_DRAW_SUMS + qm_matrix_join_bytes()
           + (decoding ? QM_STEP_ARENA + QM_STEP_WORDS * sizeof(int32_t) : 0);
}

/* ---- opening and closing ------------------------------------------------------------------------- */

static void *zeros(qm_cuda *d, uint64_t size, qm_err *e)
{
    void *p = qm_cuda_alloc(d, size, e);
    if (!p || qm_cuda_check(d, cudaMemsetAsync(p, 0, size, d->stream), "starting ops", e))
        return p;
    qm_cuda_free(d, p);
    return NULL;
}

bool qm_cuda_ops_open(qm_cuda *d, qm_err *e)
{
    const uint64_t join = qm_matrix_join_bytes();
    float dynamic[DYNAMIC / sizeof(float)];
    for (int i = 0; i < 256; i++)
        dynamic[i] = qm_dynamic8_value((uint32_t)i);
    qm_cuda_ops *o = d->ops = calloc(1, sizeof *o);
    if (!o)
        return qm_fail(e, QM_ENOFIT, "out of memory for the ops of %s", d->device.name);
    bool ok = (o->dynamic = qm_cuda_alloc(d, sizeof dynamic, e))
              && qm_cuda_upload(d, o->dynamic, dynamic, sizeof dynamic, e)
              && (o->counters = zeros(d, QM_COUNTERS, e)) && (o->draw = zeros(d, QM_DRAW_SUMS, e))
              && (join == 0 || (o->join = zeros(d, join, e))) && qm_cuda_notes_open(d, e);
    if (!ok)
        qm_cuda_ops_close(d);
    return ok;
}

void qm_cuda_ops_close(qm_cuda *d)
{
    qm_cuda_ops *o = d->ops;
    if (!o)
        return;
    qm_cuda_blas_close(d);
    qm_cuda_notes_close(d);
    for (int i = 0; i < o->ropes; i++)
        qm_cuda_free(d, o->rope[i].inverse);
    qm_cuda_forget_experts(d);
    void *const owned[] = {o->dynamic, o->counters, o->draw, o->join, o->arena, o->ids};
    d->ops = NULL;
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        qm_cuda_free(d, owned[i]);
    free(o->rope);
    free(o->late);
    free(o);
}
