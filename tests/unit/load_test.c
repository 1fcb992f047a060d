/* load_test.c: weights brought to a device, which here is this machine's memory under another name: in
 * pieces, by several threads, through the room that they share. */
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../core/load.h"
#include "../../core/plan.h"
#include "../../core/random.h"
#include "test.h"

/* ---- the device ------------------------------------------------------------------------------ */

typedef struct pretended {
    qm_device device; /* first */
    atomic_ullong now, most;
    int prepared; /* how many weights were laid out */
    int fail_at;  /* laying out so many fails; 0: none */
} pretended;

enum { HEAD = 64 }; /* bytes before what is given, which hold its size */

static uint8_t *take(qm_device *d, uint64_t size, qm_err *e)
{
    (void)e;
    pretended *p = (pretended *)d;
    uint8_t *memory = aligned_alloc(HEAD, (HEAD + size + HEAD) / HEAD * HEAD);
    memcpy(memory, &size, sizeof size);
    uint64_t now = atomic_fetch_add(&p->now, size) + size;
    if (now > atomic_load(&p->most))
        atomic_store(&p->most, now);
    return memory + HEAD;
}

static void give(qm_device *d, uint8_t *data)
{
    uint64_t size;
    memcpy(&size, data - HEAD, sizeof size);
    atomic_fetch_sub(&((pretended *)d)->now, size);
    free(data - HEAD);
}

static bool copy_out(qm_device *d, void *to, const uint8_t *from, uint64_t size, qm_err *e)
{
    (void)d, (void)e;
    memcpy(to, from, size);
    return true;
}

/* The same planes elsewhere, of what is quantised. */
static bool lay_out(qm_device *d, const qm_tensor *t, qm_tensor **out, qm_err *e)
{
    pretended *p = (pretended *)d;
    *out = NULL;
    if (t->format->block == 1)
        return true;
    if (++p->prepared == p->fail_at)
        return qm_fail(e, QM_EFAIL, "laying out number %d", p->prepared);
    *out = qm_tensor_like(t, e);
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        if (t->plane[i].size)
            memcpy(qm_tensor_plane_new(*out, i, t->plane[i].size, d, e), t->plane[i].data, t->plane[i].size);
    return true;
}

static bool nest(qm_device *d, qm_tensor *t, const qm_quantize_options *o, qm_err *e)
{
    (void)d;
    return qm_tensor_nest(t, o, e); /* into this machine's memory, which is as good */
}

static bool done(qm_device *d, qm_err *e)
{
    (void)d, (void)e;
    return true;
}

static void closed(qm_device *d) { (void)d; }

static pretended new_device(void)
{
    return (pretended){.device = {.name = "pretended",
                                  .refs = 1,
                                  .close = closed,
                                  .alloc = take,
                                  .release = give,
                                  .read = copy_out,
                                  .prepare = lay_out,
                                  .nest = nest,
                                  .wait = done}};
}

/* ---- its couriers ---------------------------------------------------------------------------- */

typedef struct messenger {
    qm_courier courier; /* first */
    uint8_t *memory;
} messenger;

static uint8_t *room_of(qm_courier *c, uint64_t size, qm_err *e)
{
    (void)e;
    messenger *m = (messenger *)c;
    free(m->memory);
    return m->memory = malloc(size + 1);
}

static bool bring(qm_courier *c, const qm_tensor *part, uint64_t raw, qm_tensor *to, int64_t first,
                  bool encode, qm_err *e)
{
    (void)c, (void)raw;
    int64_t n = qm_tensor_count(part);
    qm_tensor target = qm_tensor_part(to, first, n);
    uint8_t *plane[QM_MAX_PLANES] = {0};
    usleep(100); /* as a copy would take, so that others go ahead */
    for (int i = 0; i <= QM_MAX_PLANES && !encode; i++)
        if (part->plane[i].size)
            memcpy((uint8_t *)(uintptr_t)target.plane[i].data, part->plane[i].data, part->plane[i].size);
    if (!encode)
        return true;
    float *values = malloc((size_t)n * sizeof *values);
    bool ok = qm_tensor_values(part, values, e);
    for (int i = 0; i < QM_MAX_PLANES; i++)
        plane[i] = (uint8_t *)(uintptr_t)target.plane[i].data;
    if (to->format->tensor_range != 0)
        qm_codec_measure(&to->codec, to->format, values, (size_t)n);
    qm_encode(to->format, values, (size_t)n, &to->codec, plane);
    free(values);
    return ok;
}

enum { THREADS = 6 };

typedef struct crew {
    messenger messenger[THREADS];
    qm_courier *courier[THREADS];
} crew;

static void hire(crew *c, qm_device *d)
{
    for (int i = 0; i < THREADS; i++) {
        c->messenger[i] = (messenger){.courier = {.device = d, .memory = room_of, .bring = bring}};
        c->courier[i] = &c->messenger[i].courier;
    }
}

static void dismiss(crew *c)
{
    for (int i = 0; i < THREADS; i++)
        free(c->messenger[i].memory);
}

/* ---- weights --------------------------------------------------------------------------------- */

enum { WEIGHTS = 40 };

/* Some that are many pieces, and many that are less than one; every third as it is. */
static void make_weights(qm_loading *w)
{
    static const char *const formats[] = {"nf4", "int8", "q4_0", "nvfp4"};
    qm_err e = {0};
    for (int i = 0; i < WEIGHTS; i++) {
        qm_shape shape = {2, {i % 7 == 0 ? 3000 : 3 + i, i % 5 == 0 ? 2048 : 256}};
        float *values;
        qm_tensor *t = qm_tensor_f32(&shape, &values, &e);
        qm_random_fill_normal(values, (size_t)qm_tensor_count(t), (uint64_t)i, 0, 0, 0.02);
        w[i] = (qm_loading){.from = t, .lay_out = i % 2 == 0};
        if (i % 3) {
            w[i].format = qm_format_find(formats[i % 4]);
            w[i].options.double_quant = i % 8 == 4;
        }
    }
}

static void free_weights(qm_loading *w)
{
    for (int i = 0; i < WEIGHTS; i++) {
        qm_tensor_free((qm_tensor *)(uintptr_t)w[i].from);
        qm_tensor_free(w[i].out);
    }
}

static bool same_bytes(const qm_tensor *a, const qm_tensor *b)
{
    bool same = a->double_quant == b->double_quant;
    for (int i = 0; i <= QM_MAX_PLANES; i++)
        same = same && a->plane[i].size == b->plane[i].size
               && (a->plane[i].size == 0
                   || memcmp(a->plane[i].data, b->plane[i].data, a->plane[i].size) == 0);
    return same;
}

TEST(load_brings_what_quantize_makes)
{
    qm_loading w[WEIGHTS];
    qm_err e = {0};
    pretended d = new_device();
    crew c;
    qm_pool *pool = qm_pool_new(THREADS, &e);
    make_weights(w);
    hire(&c, &d.device);
    CHECKF(qm_load(pool, &d.device, c.courier, w, WEIGHTS, NULL, NULL, &e), "%s", e.msg);
    uint64_t all = 0, largest = 0;
    for (int i = 0; i < WEIGHTS && !e.code; i++) {
        qm_tensor *want = w[i].format ? qm_tensor_quantize(w[i].from, w[i].format, &w[i].options, &e)
                                      : qm_tensor_again(w[i].from, &e);
        CHECKF(same_bytes(w[i].out, want), "weight %d", i);
        all += qm_tensor_bytes(want);
        largest = w[i].format && w[i].lay_out && qm_tensor_bytes(want) > largest ? qm_tensor_bytes(want)
                                                                                 : largest;
        qm_tensor_free(want);
    }
    /* scales before their second level, and what 40 weights round up to */
    CHECKF(d.most <= all + 2 * largest + largest / 4 + 65536, "%llu bytes at most, and %llu in the end",
           (unsigned long long)d.most, (unsigned long long)all);
    free_weights(w);
    CHECK(d.now == 0);
    dismiss(&c);
    qm_pool_free(pool);
}

TEST(load_gives_everything_back_when_it_fails)
{
    for (int fail_at = 1; fail_at <= 13; fail_at += 3) {
        qm_loading w[WEIGHTS];
        qm_err e = {0};
        pretended d = new_device();
        crew c;
        qm_pool *pool = qm_pool_new(THREADS, &e);
        d.fail_at = fail_at;
        make_weights(w);
        hire(&c, &d.device);
        CHECK(!qm_load(pool, &d.device, c.courier, w, WEIGHTS, NULL, NULL, &e));
        CHECKF(strncmp(e.msg, "laying out number ", 18) == 0, "%s", e.msg);
        CHECKF(d.now == 0, "%llu bytes are left", (unsigned long long)d.now);
        free_weights(w);
        dismiss(&c);
        qm_pool_free(pool);
    }
}
