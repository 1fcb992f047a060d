/* load.c: see load.h. */
#include "load.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "double_quant.h"
#include "pack.h"

/* Values of a piece: here they stay in the processor's cache; what goes to a device is long enough for a copy
 * to run at full speed, and short enough that little is under way. */
enum { HERE = 128 * 1024, THERE = 2 << 20 };

/* Pieces begin at multiples of this as well as of the formats' groups, so that every plane begins on 16
 * bytes. */
enum { STEP = 256 };

typedef struct weight {
    int64_t values, step, first, pieces; /* step: values of a piece; first: number of the first piece */
    uint64_t planes;                     /* bytes of the room that it needs until it is laid out; 0: none */
    uint64_t at;                         /* where it has them */
    atomic_llong left;
    bool begun, placed; /* under the lock */
} weight;

typedef struct memory { /* of one thread, here */
    uint8_t *raw;
    float *values;
} memory;

typedef struct load {
    qm_loading *w;
    weight *weight;
    int n;
    qm_device *device;
    qm_courier *const *courier;
    memory *memory;
    qm_tensor *room; /* of the device: one plane, in which weights lie until they are laid out */
    int *inside;     /* which are in it now, so many, in no order; room for all */
    int in_room;
    pthread_mutex_t lock;
    pthread_cond_t freed; /* a part of the room is */
    qm_err failure;       /* the first; who waits for room need not wait any longer */
    atomic_ullong done;
    void (*progress)(void *arg, uint64_t bytes);
    void *arg;
} load;

/* ---- cutting --------------------------------------------------------------------------------- */

static int64_t lcm(int64_t a, int64_t b) { return a / qm_gcd(a, b) * b; }

/* Values after which a tensor's planes begin afresh. */
static int64_t group_of(const qm_tensor *t)
{
    int64_t block = t->format ? t->codec.block : 1;
    return t->double_quant ? block * QM_DOUBLE_QUANT_BLOCK : block;
}

static int64_t step_of(const qm_loading *w, bool there)
{
    int64_t values = qm_tensor_count(w->from), step = lcm(STEP, group_of(w->from)),
            fit = there ? THERE : HERE;
    if (w->format) {
        qm_codec c;
        qm_err ignored = {0}; /* told when the tensor is made */
        if (w->format->tensor_range != 0
            || !qm_codec_init(&c, w->format, qm_tensor_cols(w->from), w->options.block, "", &ignored))
            return values;
        step = lcm(step, c.block);
    }
    return fit > step ? fit / step * step : step;
}

static int64_t piece_values(const weight *w, int64_t piece)
{
    int64_t left = w->values - piece * w->step;
    return left < w->step ? left : w->step;
}

static uint64_t aligned(uint64_t size)
{
    return (size + QM_COURIER_ALIGN - 1) / QM_COURIER_ALIGN * QM_COURIER_ALIGN;
}

/* Gives the planes of a part places in one piece of memory, one behind another; returns how much that is. */
static uint64_t place(qm_tensor *part, uint8_t *to)
{
    uint64_t at = 0;
    for (int i = 0; i <= QM_MAX_PLANES; i++) {
        part->plane[i].data = part->plane[i].size ? to + at : NULL;
        at += aligned(part->plane[i].size);
    }
    return at;
}

/* Makes the sizes large enough for a piece: its bytes, and its values as f32 where those are needed beside. */
static void sizes_of(const qm_loading *w, bool there, uint64_t *raw, uint64_t *values)
{
    int64_t n = qm_tensor_count(w->from), step = step_of(w, there);
    qm_tensor part = qm_tensor_part(w->from, 0, n < step ? n : step);
    uint64_t size = place(&part, NULL);
    bool plain = w->from->format && w->from->format->block == 1 && w->from->round == QM_ROUND_NONE;
    *raw = size > *raw ? size : *raw;
    if (!(there && plain) && (uint64_t)step > *values)
        *values = (uint64_t)step;
}

uint64_t qm_load_memory(const qm_loading *w, int n, int threads, const qm_device *d)
{
    uint64_t raw = 0, values = 0;
    for (int i = 0; i < n; i++)
        if (w[i].format)
            sizes_of(&w[i], d != NULL, &raw, &values);
    return (uint64_t)threads * (raw + values * sizeof(float));
}

/* ---- one piece ------------------------------------------------------------------------------- */

/* A slice's bytes: through the file, so that its pages do not count as this program's. */
static bool read_slice(const qm_slice *s, uint8_t *to, qm_err *e)
{
    const qm_infile *f = s->buf->file;
    if (f)
        return qm_infile_read(f, (uint64_t)(s->data - f->map), to, s->size, e);
    memcpy(to, s->data, s->size);
    return true;
}

static bool read_part(const qm_tensor *from, qm_tensor *part, uint8_t *to, qm_err *e)
{
    qm_tensor in_file = *part;
    place(part, to);
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        if (part->plane[i].size) {
            in_file.plane[i].buf = from->plane[i].buf;
            if (!read_slice(&in_file.plane[i], (uint8_t *)(uintptr_t)part->plane[i].data, e))
                return false;
        }
    return true;
}

static bool encode_here(const memory *m, const qm_tensor *part, qm_tensor *to, int64_t first, qm_err *e)
{
    uint8_t *plane[QM_MAX_PLANES] = {0};
    size_t n = (size_t)qm_tensor_count(part);
    qm_tensor target = qm_tensor_part(to, first, (int64_t)n);
    for (int i = 0; i < qm_format_planes(to->format); i++)
        plane[i] = (uint8_t *)(uintptr_t)target.plane[i].data;
    if (!qm_tensor_values(part, m->values, e))
        return false;
    if (to->format->tensor_range != 0)
        qm_codec_measure(&to->codec, to->format, m->values, n);
    qm_encode(to->format, m->values, n, &to->codec, plane);
    return true;
}

static bool bring(const load *l, int index, int64_t piece, int thread, qm_err *e)
{
    const qm_loading *w = &l->w[index];
    int64_t first = piece * l->weight[index].step, n = piece_values(&l->weight[index], piece);
    qm_tensor part = qm_tensor_part(w->from, first, n), sized = part;
    uint64_t raw = place(&sized, NULL);
    if (!l->courier)
        return read_part(w->from, &part, l->memory[thread].raw, e)
               && encode_here(&l->memory[thread], &part, w->out, first, e);
    qm_courier *c = l->courier[thread];
    uint8_t *pinned = c->memory(c, raw, e);
    return pinned && read_part(w->from, &part, pinned, e)
           && c->bring(c, &part, raw, w->out, first, w->format != NULL, e);
}

/* ---- one weight ------------------------------------------------------------------------------ */

/* A tensor like t on the device, its planes not yet written. */
static qm_tensor *blank_like(const qm_tensor *t, qm_device *d, qm_err *e)
{
    qm_tensor *out = qm_tensor_like(t, e);
    for (int i = 0; out && i <= QM_MAX_PLANES; i++)
        if (t->plane[i].buf && !qm_tensor_plane_new(out, i, t->plane[i].size, d, e)) {
            qm_tensor_free(out);
            return NULL;
        }
    return out;
}

/* The first place in the room that is free of others; the room's size: there is none now. */
static uint64_t find_place(const load *l, uint64_t size)
{
    uint64_t at = 0, end = l->room->plane[0].size;
    for (int i = 0; i < l->in_room && at + size <= end; i++) {
        const weight *w = &l->weight[l->inside[i]];
        if (w->at < at + size && at < w->at + w->planes) {
            at = w->at + w->planes;
            i = -1; /* who came before may be in the way there */
        }
    }
    return at + size <= end ? at : end;
}

/* A tensor whose planes lie in the room. */
static qm_tensor *blank_in_room(const load *l, const qm_loading *w, uint64_t at, qm_err *e)
{
    qm_tensor *out = qm_tensor_coded(w->from, w->format, &w->options, e);
    qm_slice *room = &l->room->plane[0];
    for (int i = 0; out && i < qm_format_planes(w->format); i++) {
        uint64_t size = qm_tensor_plane_size(out, i, (uint64_t)qm_tensor_count(out));
        room->buf->refs++;
        out->plane[i] = (qm_slice){room->buf, room->data + at, size};
        at += aligned(size);
    }
    return out;
}

static qm_tensor *blank(const load *l, const qm_loading *w, const weight *place, qm_err *e)
{
    if (place->placed)
        return blank_in_room(l, w, place->at, e);
    return w->format   ? qm_tensor_blank(w->from, w->format, &w->options, l->device, e)
           : l->device ? blank_like(w->from, l->device, e)
                       : qm_tensor_again(w->from, e);
}

/* With the lock held, which is given back while others are waited for; another thread may do it meanwhile. */
static bool wait_for_room(load *l, weight *w, qm_err *e)
{
    enum { LOOK = 50 * 1000 * 1000 }; /* ns, after which an interrupt is noticed */
    while (!w->placed) {
        uint64_t at = find_place(l, w->planes);
        if (at != l->room->plane[0].size) {
            w->at = at;
            w->placed = true;
            l->inside[l->in_room++] = (int)(w - l->weight);
            return true;
        }
        if (l->failure.code) {
            *e = l->failure;
            return false;
        }
        if (qm_interrupted())
            return qm_fail(e, QM_EINTERRUPT, "interrupted");
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&l->freed, &l->lock, &until);
    }
    return true;
}

static bool begin(load *l, int index, qm_err *e)
{
    qm_loading *w = &l->w[index];
    weight *place = &l->weight[index];
    if (place->planes && !wait_for_room(l, place, e))
        return false;
    if (place->begun)
        return true;
    w->out = blank(l, w, place, e);
    if (w->out && w->format)
        w->out->round = w->round;
    place->begun = w->out && (!l->device || l->device->wait(l->device, e));
    return place->begun;
}

static void leave_room(load *l, int index)
{
    for (int i = 0; i < l->in_room; i++)
        if (l->inside[i] == index)
            l->inside[i--] = l->inside[--l->in_room];
    l->weight[index].placed = false;
    pthread_cond_broadcast(&l->freed);
}

/* Several threads at once, but for what counts references. */
static bool lay_out_here(load *l, qm_loading *w, qm_err *e)
{
    if (!qm_tensor_lay_out(w->out, NULL, e))
        return false;
    pthread_mutex_lock(&l->lock);
    bool ok = qm_tensor_give_back(w->out, w->from, e);
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static bool finish(load *l, int index, qm_err *e)
{
    qm_loading *w = &l->w[index];
    qm_device *d = l->device;
    qm_tensor *laid_out = NULL;
    if (w->format && w->options.double_quant
        && !(d ? d->nest(d, w->out, &w->options, e) : qm_tensor_nest(w->out, &w->options, e)))
        return false;
    if (!w->lay_out || (d && !d->prepare))
        return true;
    if (!d)
        return !w->format || lay_out_here(l, w, e);
    bool ok = d->prepare(d, w->out, &laid_out, e);
    if (laid_out) {
        if (w->format && d->prepared_beside)
            ok = qm_tensor_give_back(laid_out, w->from, e);
        qm_tensor_free(w->out);
        w->out = laid_out;
    }
    leave_room(l, index);
    return ok;
}

/* What is done to a device is one thread's at a time. */
static bool begin_once(load *l, int index, qm_err *e)
{
    pthread_mutex_lock(&l->lock);
    bool ok = l->weight[index].begun || begin(l, index, e);
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static bool finish_last(load *l, int index, qm_err *e)
{
    if (!l->device)
        return finish(l, index, e);
    pthread_mutex_lock(&l->lock);
    bool ok = finish(l, index, e);
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static bool failed(load *l, const qm_err *e)
{
    pthread_mutex_lock(&l->lock);
    if (!l->failure.code)
        l->failure = *e;
    pthread_cond_broadcast(&l->freed);
    pthread_mutex_unlock(&l->lock);
    return false;
}

static int weight_of(const load *l, int64_t piece)
{
    int low = 0, high = l->n - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (l->weight[middle].first <= piece)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static bool work(void *arg, int64_t piece, int thread, qm_err *e)
{
    load *l = arg;
    int index = weight_of(l, piece);
    weight *w = &l->weight[index];
    const qm_tensor *from = l->w[index].from;
    piece -= w->first;
    if (!begin_once(l, index, e) || !bring(l, index, piece, thread, e))
        return failed(l, e);
    qm_tensor part = qm_tensor_part(from, 0, piece_values(w, piece));
    atomic_fetch_add(&l->done, qm_tensor_bytes(&part));
    return atomic_fetch_sub(&w->left, 1) > 1 || finish_last(l, index, e) || failed(l, e);
}

static void tick(void *arg)
{
    const load *l = arg;
    if (l->progress)
        l->progress(l->arg, atomic_load(&l->done));
}

/* ---- all of them ----------------------------------------------------------------------------- */

static void memory_free(memory *m, int threads)
{
    for (int i = 0; m && i < threads; i++) {
        free(m[i].raw);
        free(m[i].values);
    }
    free(m);
}

static memory *memory_new(const qm_loading *w, int n, int threads, qm_err *e)
{
    uint64_t raw = 0, values = 0;
    for (int i = 0; i < n; i++)
        if (w[i].format)
            sizes_of(&w[i], false, &raw, &values);
    memory *m = calloc((size_t)threads, sizeof *m);
    bool ok = m != NULL;
    for (int i = 0; ok && i < threads; i++)
        ok = (m[i].raw = malloc(raw + 1)) && (m[i].values = malloc(values * sizeof(float) + 1));
    if (ok)
        return m;
    memory_free(m, threads);
    qm_fail(e, QM_ENOFIT, "out of memory for %d threads to load weights with; try fewer", threads);
    return NULL;
}

/* Weights without pieces: of no values, or, where nothing is encoded or brought, all of them. */
static bool at_once(load *l, qm_err *e)
{
    bool ok = true;
    for (int i = 0; ok && i < l->n; i++)
        if (l->weight[i].pieces == 0)
            ok = begin(l, i, e) && finish(l, i, e);
    return ok;
}

/* Bytes of planes that are given back when the weight is laid out. */
static bool planes_of(const load *l, const qm_loading *w, uint64_t *planes, qm_err *e)
{
    *planes = 0;
    if (!l->device || l->device->prepared_beside || !w->format || !w->lay_out || w->format->block == 1)
        return true;
    qm_tensor *t = qm_tensor_coded(w->from, w->format, &w->options, e);
    for (int i = 0; t && i < qm_format_planes(w->format); i++)
        *planes += aligned(qm_tensor_plane_size(t, i, (uint64_t)qm_tensor_count(t)));
    qm_tensor_free(t);
    return t != NULL;
}

/* Twice the most that one needs: the next weight begins while the last pieces of one are brought. */
static bool make_room(load *l, qm_err *e)
{
    uint64_t most = 0;
    for (int i = 0; i < l->n; i++) {
        weight *w = &l->weight[i];
        if (!planes_of(l, &l->w[i], &w->planes, e))
            return false;
        most = w->planes > most ? w->planes : most;
    }
    if (most == 0)
        return true;
    if (!(l->inside = calloc((size_t)l->n, sizeof *l->inside)))
        return qm_fail(e, QM_ENOFIT, "out of memory for a list of %d weights", l->n);
    const qm_shape none = {0};
    l->room = qm_tensor_new("room", &none, e);
    return l->room && qm_tensor_plane_new(l->room, 0, 2 * most, l->device, e) != NULL;
}

static int64_t cut(load *l)
{
    int64_t pieces = 0;
    for (int i = 0; i < l->n; i++) {
        weight *w = &l->weight[i];
        w->values = qm_tensor_count(l->w[i].from);
        w->step = step_of(&l->w[i], l->courier != NULL);
        w->first = pieces;
        if (l->courier || (!l->device && l->w[i].format))
            w->pieces = w->values ? (w->values + w->step - 1) / w->step : 0;
        atomic_store(&w->left, w->pieces);
        pieces += w->pieces;
    }
    return pieces;
}

/* Planes that were given back lie between packs that stay: their pages are the system's again. */
static void trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

bool qm_load(qm_pool *pool, qm_device *d, qm_courier *const *courier, qm_loading *w, int n,
             void (*progress)(void *arg, uint64_t bytes), void *arg, qm_err *e)
{
    load l = {.w = w, .n = n, .device = d, .courier = courier, .progress = progress, .arg = arg};
    int threads = qm_pool_threads(pool);
    l.weight = calloc((size_t)n + 1, sizeof *l.weight);
    bool ok = l.weight || qm_fail(e, QM_ENOFIT, "out of memory for a list of %d weights", n);
    pthread_mutex_init(&l.lock, NULL);
    pthread_cond_init(&l.freed, NULL);
    int64_t pieces = ok ? cut(&l) : 0;
    ok = ok && make_room(&l, e) && (d || (l.memory = memory_new(w, n, threads, e)));
    ok = ok && at_once(&l, e) && qm_pool_run(pool, pieces, work, tick, &l, e);
    for (int i = 0; i < n && !ok; i++) {
        qm_tensor_free(w[i].out);
        w[i].out = NULL;
    }
    qm_tensor_free(l.room);
    free(l.inside);
    memory_free(l.memory, threads);
    if (!d)
        trim();
    pthread_cond_destroy(&l.freed);
    pthread_mutex_destroy(&l.lock);
    free(l.weight);
    return ok;
}
