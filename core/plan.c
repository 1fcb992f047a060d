/* plan.c: see plan.h. */
#include "plan.h"

#include <stdlib.h>
#include <string.h>

#include "op.h"
#include "pack.h"

typedef struct plan {
    qm_device device; /* first */
    qm_device *of;    /* one reference, or NULL */
    uint64_t now, most, kept;
} plan;

/* What an address stands for: nobody looks behind it. */
typedef struct block {
    uint64_t size;
} block;

static void took(plan *p, uint64_t more)
{
    p->now += more;
    p->most = p->now > p->most ? p->now : p->most;
}

static uint8_t *alloc(qm_device *d, uint64_t size, qm_err *e)
{
    block *b = malloc(sizeof *b);
    if (!b) {
        qm_fail(e, QM_ENOFIT, "out of memory for a plan");
        return NULL;
    }
    b->size = size;
    took((plan *)d, size);
    return (uint8_t *)b;
}

static void release(qm_device *d, uint8_t *data)
{
    block *b = (block *)(void *)data;
    ((plan *)d)->now -= b->size;
    free(b);
}

static bool has_no_bytes(qm_err *e) { return qm_fail(e, QM_EUNSUPPORTED, "a plan has sizes and no values"); }

static bool write(qm_device *d, uint8_t *to, const void *from, uint64_t size, qm_err *e)
{
    (void)d, (void)to, (void)from, (void)size, (void)e;
    return true;
}

static bool read(qm_device *d, void *to, const uint8_t *from, uint64_t size, qm_err *e)
{
    (void)d, (void)to, (void)from, (void)size;
    return has_no_bytes(e);
}

static bool errors(qm_device *d, const qm_tensor *a, const qm_tensor *b, qm_errsum *sum, qm_err *e)
{
    (void)d, (void)a, (void)b, (void)sum;
    return has_no_bytes(e);
}

static qm_tensor *restore(qm_device *d, const qm_tensor *t, qm_err *e)
{
    (void)d, (void)t;
    has_no_bytes(e);
    return NULL;
}

static bool nest(qm_device *d, qm_tensor *t, const qm_quantize_options *o, qm_err *e)
{
    uint64_t n = (uint64_t)qm_tensor_count(t);
    qm_tensor single = {.plane[0] = t->plane[1]}; /* there until the second level is */
    t->plane[1] = (qm_slice){0};
    t->double_quant = true;
    t->offset = o->offset;
    bool ok = qm_tensor_plane_new(t, 1, qm_tensor_plane_size(t, 1, n), d, e)
              && qm_tensor_plane_new(t, 2, qm_tensor_plane_size(t, 2, n), d, e);
    qm_tensor_drop_plane(&single, 0);
    return ok;
}

static qm_tensor *quantize(qm_device *d, const qm_tensor *t, const qm_format *f, const qm_quantize_options *o,
                           qm_err *e)
{
    qm_tensor *out = qm_tensor_blank(t, f, o, d, e);
    if (!out || !o->double_quant || nest(d, out, o, e))
        return out;
    qm_tensor_free(out);
    return NULL;
}

/* Here the planes stay beside what is laid out for speed, unless qm_tensor_give_back comes next. */
static bool prepare(qm_device *d, const qm_tensor *t, qm_tensor **out, qm_err *e)
{
    const plan *p = (plan *)d;
    *out = NULL;
    if (p->of)
        return !p->of->prepared || p->of->prepared(p->of, d, t, out, e);
    uint64_t size = qm_pack_bytes(t);
    if (size == 0)
        return true;
    *out = qm_tensor_again(t, e);
    if (*out && !(*out)->plane[QM_MAX_PLANES].buf && qm_tensor_plane_new(*out, QM_MAX_PLANES, size, d, e))
        return true;
    qm_tensor_free(*out);
    *out = NULL;
    return false;
}

static bool wait(qm_device *d, qm_err *e)
{
    (void)d, (void)e;
    return true;
}

/* Results that are ids are for the one who asks, and zeros. */
static bool make_ids(qm_call *c, qm_err *e)
{
    uint64_t size = (uint64_t)qm_shape_count(&c->shape) * sizeof(int32_t);
    c->out->dtype = QM_I32;
    c->out->format = NULL;
    uint8_t *ids = qm_tensor_plane_new(c->out, 0, size, NULL, e);
    if (ids)
        memset(ids, 0, size);
    return ids != NULL;
}

static bool op(qm_device *d, qm_call *c, qm_err *e)
{
    plan *p = (plan *)d;
    if (!(c->out = qm_tensor_new(NULL, &c->shape, e)))
        return false;
    c->out->dtype = QM_F32;
    c->out->format = qm_format_find("f32");
    c->out->codec.block = 1;
    bool ok = c->op->result == QM_RESULT_TENSOR
                  ? qm_tensor_plane_new(c->out, 0, (uint64_t)qm_shape_count(&c->shape) * sizeof(float), d, e)
                        != NULL
                  : make_ids(c, e);
    uint64_t kept = 0, beside = 0;
    if (ok && p->of && p->of->op_memory)
        beside = p->of->op_memory(p->of, c, &kept);
    else if (ok && c->op->memory)
        beside = c->op->memory(c);
    took(p, beside);
    p->now -= beside;
    p->kept = kept > p->kept ? kept : p->kept;
    if (ok)
        return true;
    qm_tensor_free(c->out);
    c->out = NULL;
    return false;
}

static bool memory(qm_device *d, uint64_t *free, uint64_t *total, qm_err *e)
{
    const plan *p = (plan *)d;
    return p->of ? p->of->memory(p->of, free, total, e) : has_no_bytes(e);
}

static void close_plan(qm_device *d)
{
    qm_device_unref(((plan *)d)->of);
    free(d);
}

qm_device *qm_plan_new(qm_device *of, qm_err *e)
{
    plan *p = calloc(1, sizeof *p);
    if (!p) {
        qm_fail(e, QM_ENOFIT, "out of memory for a plan");
        return NULL;
    }
    p->of = qm_device_ref(of);
    p->device = (qm_device){.name = "plan",
                            .refs = 1,
                            .close = close_plan,
                            .alloc = alloc,
                            .release = release,
                            .write = write,
                            .read = read,
                            .quantize = quantize,
                            .errors = errors,
                            .prepare = prepare,
                            .prepared_beside = of == NULL,
                            .restore = restore,
                            .nest = nest,
                            .wait = wait,
                            .op = op,
                            .memory = memory};
    return &p->device;
}

bool qm_is_plan(const qm_device *d) { return d->close == close_plan; }

void qm_plan_memory(qm_device *d, uint64_t *now, uint64_t *most, uint64_t *kept)
{
    plan *p = (plan *)d;
    *kept = p->kept;
    *now = p->now;
    *most = p->most;
    p->most = p->now;
}
