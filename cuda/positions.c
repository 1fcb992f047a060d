/* positions.c: ops on a GPU that depend on where a token stands: turning by position, and attention. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

/* Room for one table more. */
static bool room_for_rope(qm_cuda_ops *o, const qm_call *c, qm_err *e)
{
    if (o->ropes < o->rope_room)
        return true;
    int room = o->rope_room ? 2 * o->rope_room : 8;
    qm_rope_table *more = realloc(o->rope, (size_t)room * sizeof *more);
    if (!more)
        return qm_call_fail(c, e, "out of memory for %d tables of frequencies", room);
    o->rope = more;
    o->rope_room = room;
    return true;
}

/* Frequencies as core/ops/rope.c has them: rounded to f32. */
static bool rope_table(qm_cuda *d, const qm_call *c, double base, uint32_t dim, const qm_tensor *factors,
                       const float **inverse, qm_err *e)
{
    qm_cuda_ops *o = d->ops;
    const void *key = factors ? factors->plane[0].data : NULL;
    for (int i = 0; i < o->ropes; i++)
        if (o->rope[i].base == base && o->rope[i].dim == dim && o->rope[i].factors == key) {
            *inverse = o->rope[i].inverse;
            return true;
        }
    if (o->capturing)
        return qm_call_fail(c, e, "frequencies that no call before had; run one step before it is captured");
    if (!room_for_rope(o, c, e))
        return false;
    size_t pairs = dim / 2;
    float *f = malloc(2 * pairs * sizeof *f + 1), *made = f + pairs;
    bool ok = f && (!factors || qm_tensor_values(factors, f, e));
    for (size_t i = 0; ok && i < pairs; i++) {
        float power = (float)pow(base, (double)(2 * i) / (double)dim);
        made[i] = 1 / power / (factors ? f[i] : 1);
    }
    qm_rope_table t = {base, dim, key, NULL};
    ok = ok && (t.inverse = qm_cuda_alloc(d, pairs * sizeof *made + 1, e));
    if (ok && !qm_cuda_upload(d, t.inverse, made, pairs * sizeof *made, e)) {
        qm_cuda_free(d, t.inverse);
        ok = false;
    }
    if (ok)
        o->rope[o->ropes++] = t;
    *inverse = t.inverse;
    free(f);
    return ok;
}

void qm_cuda_forget_factors(qm_cuda *d, const void *factors)
{
    qm_cuda_ops *o = d->ops;
    for (int i = 0; o && i < o->ropes;)
        if (o->rope[i].factors == factors) {
            float *inverse = o->rope[i].inverse;
            o->rope[i] = o->rope[--o->ropes];
            qm_cuda_give(d, inverse);
        } else {
            i++;
        }
}

static qm_position position(const qm_cuda *d, int64_t first)
{
    return (qm_position){(int32_t)first, d->ops->capturing ? d->ops->passed : NULL};
}

static bool rope(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { X, FIRST, HEAD_DIM, ROTARY_DIM, BASE, KIND, FACTORS, SCALE };
    qm_waiting *k = &d->ops->waiting;
    activation x = arg(c, X), y;
    uint32_t head = (uint32_t)c->arg[HEAD_DIM].number;
    uint32_t turned = c->arg[ROTARY_DIM].given ? (uint32_t)c->arg[ROTARY_DIM].number : head;
    const float *inverse = NULL;
    if (head % 2)
        return qm_call_fail(c, e, "heads of an odd number of values run on the CPU only");
    if (!rope_table(d, c, c->arg[BASE].number, turned, c->arg[FACTORS].tensor, &inverse, e)
        || !make_out(d, c, false, &y, e))
        return false;
    if (x.rows == 1 && qm_cuda_notes(d))
        return qm_cuda_note(d,
                            &(qm_note){QM_NOTE_ROPE, .rope = {{x.x, y.x, x.cols},
                                                              head,
                                                              turned,
                                                              c->arg[KIND].choice == 0,
                                                              inverse,
                                                              (float)c->arg[SCALE].number,
                                                              position(d, qm_arg_int(c, FIRST))}},
                            e);
    qm_waiting was = *k;
    was.rope.tokens = x.rows, was.rope.head_dim = head, was.rope.rotary_dim = turned,
    was.rope.neox = c->arg[KIND].choice == 0;
    was.rope.inverse = inverse, was.rope.scale = (float)c->arg[SCALE].number,
    was.rope.at = position(d, qm_arg_int(c, FIRST));
    bool joins = k->rotations == 1 && memcmp(&k->rope, &was.rope, sizeof k->rope) == 0 && x.x != k->r[0].y;
    if (!joins && !qm_cuda_flush(d, e))
        return false;
    k->rope = was.rope;
    k->r[k->rotations++] = (qm_rotation){x.x, y.x, x.cols};
    return k->rotations < 2 || qm_cuda_flush(d, e);
}

enum { Q, K, V, CACHE, LAYER, HEADS, KV_HEADS, SCALE, WINDOW, SOFTCAP, SINKS };

/* At the end of a cache, where it takes most. */
static uint64_t attention_memory(const qm_call *c, uint64_t *kept)
{
    const qm_kv *kv = c->arg[CACHE].cache;
    qm_attention a = {.dtype = kv->dtype,
                      .tokens = rows_of(c->arg[Q].tensor),
                      .heads = (uint32_t)c->arg[HEADS].number,
                      .kv_heads = (uint32_t)kv->kv_heads,
                      .head_dim = (uint32_t)kv->head_dim};
    a.at.first = kv->context - (int32_t)a.tokens;
    *kept = 0;
    return qm_attention_scratch(a.tokens, a.heads, a.kv_heads, a.head_dim) + qm_attention_unpacked(&a);
}

bool qm_cuda_attend(qm_cuda *d, qm_attention *a, qm_err *e)
{
    a->partial = qm_cuda_take(d, qm_attention_scratch(a->tokens, a->heads, a->kv_heads, a->head_dim), e);
    uint64_t unpacked = qm_attention_unpacked(a);
    a->unpacked = unpacked ? qm_cuda_take(d, unpacked, e) : NULL;
    bool ok = a->partial && (a->unpacked || !unpacked)
              && qm_cuda_check(d, qm_attend(a, d->stream), "attention", e);
    qm_cuda_give(d, a->partial);
    qm_cuda_give(d, a->unpacked);
    return ok;
}

static bool attention(qm_cuda *d, qm_call *c, qm_err *e)
{
    qm_kv *kv = c->arg[CACHE].cache;
    int layer = (int)c->arg[LAYER].number;
    activation q = arg(c, Q), y;
    vector sinks;
    if (kv->device != &d->device)
        return qm_call_fail(c, e, "queries are on %s and the cache is not; give kv_cache its device",
                            d->device.name);
    if (kv->head_dim % 8 || kv->head_dim > 512)
        return qm_call_fail(
            c, e, "heads of %d values run on the CPU only: here they are a multiple of 8, up to 512",
            kv->head_dim);
    if (!make_out(d, c, kv->head_dim % 64 == 0, &y, e) || !read_vector(d, &c->arg[SINKS], &sinks, e))
        return false;
    qm_attention a = {.q = q.x,
                      .k = arg(c, K).x,
                      .v = arg(c, V).x,
                      .keys = qm_kv_part(kv, layer, false),
                      .values = qm_kv_part(kv, layer, true),
                      .scales_at = qm_kv_scales_at(kv),
                      .dtype = kv->dtype,
                      .tokens = q.rows,
                      .heads = (uint32_t)c->arg[HEADS].number,
                      .kv_heads = (uint32_t)kv->kv_heads,
                      .head_dim = (uint32_t)kv->head_dim,
                      .context = (uint32_t)kv->context,
                      .at = position(d, kv->count[layer]),
                      .scale = c->arg[SCALE].given ? (float)c->arg[SCALE].number
                                                   : 1 / sqrtf((float)kv->head_dim),
                      .softcap = (float)c->arg[SOFTCAP].number,
                      .window = (uint32_t)c->arg[WINDOW].number,
                      .sinks = sinks.values,
                      .y = y.x,
                      .h = y.half.half ? &y.half : NULL};
    if ((uint64_t)a.tokens * a.kv_heads > QM_COUNTERS / 8)
        return qm_call_fail(c, e, "%u tokens at once are more than %d; give fewer", a.tokens,
                            QM_COUNTERS / 8 / kv->kv_heads);
    a.counters = (uint32_t *)(void *)(d->ops->counters + QM_COUNTERS / 2);
    bool ok;
    if (a.tokens == 1 && qm_cuda_notes(d)) {
        ok = qm_cuda_note(d, &(qm_note){QM_NOTE_ATTEND, .attend = a}, e);
    } else {
        ok = qm_cuda_flush(d, e) && qm_cuda_attend(d, &a, e);
        drop_vector(d, &sinks);
    }
    if (ok)
        kv->count[layer] += (int)a.tokens;
    return ok;
}

const qm_cuda_way qm_cuda_positions[] = {
    {"attention", attention, attention_memory},
    {"rope", rope, NULL},
    {NULL, NULL, NULL},
};
