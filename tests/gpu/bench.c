/* bench.c: the speed of the GPU's kernels beside that of a plain copy, on random values.
 *
 * Every figure is the median of RUNS timings of TURNS launches each.  Launches go round over copies of the data,
 * each far larger than the GPU's second-level cache.  Bytes are those that must be read and written, and the
 * roof is the copy (cudaMemcpyAsync, the better of two sizes) counted the same way; for errors, which write
 * nothing, it is reading alone (the search for the largest magnitude). */
#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../core/codebook.h"
#include "../../core/random.h"
#include "../../cuda/internal.h"
#include "../../cuda/kernels.h"

enum { RUNS = 9, COPIES = 3, TURNS = 2 * COPIES };

typedef struct bench {
    qm_cuda *gpu;
    qm_cuda_stream *stream;
    cudaEvent_t begin, end;
    uint64_t n; /* values */
    void *values[COPIES];
    void *second[COPIES]; /* as large as values in f32 */
    uint8_t *plane[COPIES][QM_MAX_PLANES];
    float *nested[COPIES];
    uint32_t *largest;
    float *offset;
    qm_errsum *sum;
    double copy_rate, read_rate;
} bench;

static void must(bool ok, const qm_err *e)
{
    if (ok)
        return;
    fprintf(stderr, "error: %s\n", e->msg);
    exit(1);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of one call of work(b, copy, arg). */
static double seconds(bench *b, void (*work)(bench *, int, const void *), const void *arg)
{
    double each[RUNS];
    for (int run = -1; run < RUNS; run++) { /* the first warms up */
        float ms;
        cudaEventRecord(b->begin, b->stream->handle);
        for (int turn = 0; turn < TURNS; turn++)
            work(b, turn % COPIES, arg);
        cudaEventRecord(b->end, b->stream->handle);
        cudaEventSynchronize(b->end);
        cudaEventElapsedTime(&ms, b->begin, b->end);
        if (run >= 0)
            each[run] = 1e-3 * (double)ms / TURNS;
    }
    qsort(each, RUNS, sizeof *each, ascending);
    return each[RUNS / 2];
}

static void report(const bench *b, const char *what, double s, double bytes, double roof)
{
    printf("%-44s %9.1f us %8.0f GB/s %6.1f %%  %7.1f G values/s\n", what, 1e6 * s, 1e-9 * bytes / s,
           100 * bytes / s / roof, 1e-9 * (double)b->n / s);
    fflush(stdout);
}

/* ---- the roof ------------------------------------------------------------------------------------- */

static void copy(bench *b, int i, const void *arg)
{
    cudaMemcpyAsync(b->second[i], b->values[i], *(const uint64_t *)arg, cudaMemcpyDeviceToDevice,
                    b->stream->handle);
}

static void read_only(bench *b, int i, const void *arg)
{
    (void)arg;
    qm_largest(b->values[i], QM_F32, b->n, b->largest, b->stream->handle);
}

static void roof(bench *b)
{
    for (uint64_t size = 2 * b->n; size <= 4 * b->n; size *= 2) {
        double s = seconds(b, copy, &size), rate = 2 * (double)size / s;
        report(b, size == 2 * b->n ? "copy, 2 bytes a value" : "copy, 4 bytes a value", s, 2 * (double)size,
               rate);
        b->copy_rate = rate > b->copy_rate ? rate : b->copy_rate;
    }
    double s = seconds(b, read_only, NULL);
    b->read_rate = 4 * (double)b->n / s;
    report(b, "reading, 4 bytes a value", s, 4 * (double)b->n, b->read_rate);
}

/* ---- codecs --------------------------------------------------------------------------------------- */

typedef struct subject {
    const qm_format *format;
    qm_codec codec;
    qm_dtype dtype;
    bool dq;
} subject;

static qm_cuda_coded coded(const bench *b, int i, const subject *s)
{
    qm_cuda_coded c = {.format = s->format, .codec = s->codec, .double_quant = s->dq, .nested = b->nested[i]};
    memcpy(c.plane, b->plane[i], sizeof c.plane);
    c.offset = 0.04f;
    return c;
}

static void encode(bench *b, int i, const void *arg)
{
    const subject *s = arg;
    qm_cuda_coded c = coded(b, i, s);
    qm_err e = {0};
    must(s->dq ? qm_cuda_encode_double(b->stream, b->values[i], s->dtype, b->n, &c, false, b->offset, &e)
               : qm_cuda_encode(b->stream, b->values[i], s->dtype, b->n, &c, &e),
         &e);
}

static void decode(bench *b, int i, const void *arg)
{
    const subject *s = arg;
    qm_cuda_coded c = coded(b, i, s);
    qm_err e = {0};
    must(qm_cuda_decode(b->stream, &c, b->n, b->second[i], s->dtype, &e), &e);
}

static void errors(bench *b, int i, const void *arg)
{
    const subject *s = arg;
    qm_cuda_coded c = coded(b, i, s);
    qm_err e = {0};
    must(qm_cuda_errors_start(b->stream, b->values[i], s->dtype, &c, b->n, b->sum, &e), &e);
}

static double coded_bytes(const bench *b, const subject *s)
{
    uint64_t groups = (b->n + s->codec.block - 1) / s->codec.block, bytes = 0;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        bytes += s->dq && i == 1 ? groups + (groups + 255) / 256 * 4
                                 : qm_plane_size(s->format, &s->codec, i, b->n);
    return (double)bytes;
}

/* argv[2]: only what has this in its line. */
static const char *only = "";

static void one(bench *b, const char *verb, void (*work)(bench *, int, const void *), subject s)
{
    char what[96];
    double bytes = coded_bytes(b, &s) + (double)b->n * qm_dtypes[s.dtype].bits / 8;
    snprintf(what, sizeof what, "%s %s %" PRIu32 "%s, %s", verb, s.format->name, s.codec.block,
             s.dq ? " dq" : "", qm_dtypes[s.dtype].name);
    if (strstr(what, only))
        report(b, what, seconds(b, work, &s), bytes, work == errors ? b->read_rate : b->copy_rate);
}

static void all_of(bench *b, const char *name, uint32_t block, qm_dtype dtype, bool dq)
{
    subject s = {qm_format_find(name), {.block = block}, dtype, dq};
    one(b, "quantise", encode, s);
    one(b, "dequantise", decode, s);
    one(b, "errors", errors, s);
}

/* A table in no order, as a user might make one, and one like nf4's. */
static void tables(bench *b)
{
    static const float sorted[16] = {-1,    -0.8f, -0.55f, -0.42f, -0.3f, -0.21f, -0.12f, -0.04f,
                                     0.03f, 0.11f, 0.19f,  0.28f,  0.37f, 0.5f,   0.7f,   1};
    static const float loose[16] = {0.7f,  -0.35f, 0.11f, 1,     -0.9f,  -0.02f, 0.24f,  -0.18f,
                                    0.05f, 0.47f,  -0.6f, 0.16f, -0.11f, 0.33f,  -0.24f, -0.48f};
    static const float tight[16] = {-1,     -0.5f, -0.25f, -0.125f, -0.06f, -0.03f, -0.015f, 0,
                                    0.015f, 0.03f, 0.06f,  0.125f,  0.25f,  0.5f,   0.75f,   1};
    static const struct {
        const char *name;
        const float *level;
    } made[] = {{"table", sorted}, {"unsorted-table", loose}, {"close-table", tight}};
    for (int i = 0; i < 3; i++) {
        qm_err e = {0};
        const qm_format *f = qm_codebook_new(made[i].name, made[i].level, 16, 64, &e);
        must(f != NULL, &e);
        for (int dq = 0; dq < 2; dq++) {
            subject s = {f, {.block = 64, .table = f->table}, QM_BF16, dq};
            one(b, "quantise", encode, s);
            one(b, "dequantise", decode, s);
            one(b, "errors", errors, s);
        }
        qm_format_unref(f);
    }
}

static void take_memory(bench *b)
{
    qm_err e = {0};
    for (int i = 0; i < COPIES; i++) {
        must((b->values[i] = qm_cuda_alloc(b->gpu, 4 * b->n, &e)) != NULL, &e);
        must((b->second[i] = qm_cuda_alloc(b->gpu, 4 * b->n, &e)) != NULL, &e);
        must((b->plane[i][0] = qm_cuda_alloc(b->gpu, 4 * b->n + 4096, &e)) != NULL, &e);
        must((b->plane[i][2] = qm_cuda_alloc(b->gpu, b->n / 32 + 4096, &e)) != NULL, &e);
        must((b->plane[i][1] = qm_cuda_alloc(b->gpu, b->n / 4 + 4096, &e)) != NULL, &e);
        must((b->nested[i] = qm_cuda_alloc(b->gpu, b->n / 32 + 4096, &e)) != NULL, &e);
    }
    must((b->largest = qm_cuda_alloc(b->gpu, sizeof *b->largest, &e)) != NULL, &e);
    must((b->sum = qm_cuda_alloc(b->gpu, sizeof *b->sum, &e)) != NULL, &e);
    must((b->offset = qm_cuda_alloc(b->gpu, sizeof *b->offset, &e)) != NULL, &e);
}

/* Random values as elements of this type; every copy has its own. */
static void set_type(bench *b, qm_dtype t)
{
    enum { PIECE = 1 << 22 };
    float *x = malloc(sizeof *x * PIECE);
    qm_err e = {0};
    size_t size = (size_t)PIECE * qm_dtypes[t].bits / 8;
    uint16_t *h = malloc(sizeof *h * PIECE);
    for (int i = 0; i < COPIES; i++) {
        qm_random_fill_normal(x, PIECE, 5 + (uint64_t)i, 0, 0, 0.02);
        for (int j = 0; j < PIECE; j++)
            h[j] = t == QM_F16 ? qm_f32_to_f16(x[j]) : qm_f32_to_bf16(x[j]);
        for (uint64_t at = 0; at < b->n; at += PIECE)
            must(qm_cuda_upload(b->gpu, (char *)b->values[i] + at * qm_dtypes[t].bits / 8,
                                t == QM_F32 ? (void *)x : (void *)h, size, &e),
                 &e);
    }
    free(h);
    free(x);
}

/* Between this machine's memory and the GPU: pinned, and through the staging buffers. */
static void host(bench *b)
{
    qm_err e = {0};
    uint64_t size = 1ull << 30;
    void *pinned = qm_cuda_pinned_alloc(b->gpu, size, &e), *ordinary = malloc(size);
    must(pinned && ordinary, &e);
    memset(pinned, 1, size), memset(ordinary, 1, size);
    for (int way = 0; way < 4; way++) {
        static const char *const what[] = {"pinned to GPU", "GPU to pinned", "memory to GPU, staged",
                                           "GPU to memory, staged"};
        struct timespec t, u;
        clock_gettime(CLOCK_MONOTONIC, &t);
        must(way == 0   ? qm_cuda_copy(b->stream, b->values[0], pinned, size, &e)
             : way == 1 ? qm_cuda_copy(b->stream, pinned, b->values[0], size, &e)
             : way == 2 ? qm_cuda_upload(b->gpu, b->values[0], ordinary, size, &e)
                        : qm_cuda_download(b->gpu, ordinary, b->values[0], size, &e),
             &e);
        must(qm_cuda_wait(b->stream, &e), &e);
        clock_gettime(CLOCK_MONOTONIC, &u);
        double s = (double)(u.tv_sec - t.tv_sec) + 1e-9 * (double)(u.tv_nsec - t.tv_nsec);
        printf("%-44s %9.1f us %8.1f GB/s\n", what[way], 1e6 * s, 1e-9 * (double)size / s);
    }
    qm_cuda_pinned_free(b->gpu, pinned);
    free(ordinary);
}

/* A model of 15.2 GB of bf16, from pinned memory to nf4 with double quantisation in pinned memory: 112 matrices of
 * 18944 x 3584.  One stream brings them, one encodes, one takes them back, so that the copies to the GPU, which are what
 * it takes, follow one another without a pause.  The roof is that copy alone. */
enum { MATRICES = 112, SLOTS = 4 };

typedef struct slot {
    void *x; /* a matrix */
    qm_cuda_coded coded;
    uint8_t *out; /* pinned */
    float *offset;
    cudaEvent_t here, encoded, gone;
} slot;

typedef struct model_run {
    uint64_t n, groups, nested, size; /* values of a matrix; bytes of what comes of it */
    uint8_t *in;                      /* pinned, two matrices */
    slot slot[SLOTS];
    qm_cuda_stream *bring, *take;
} model_run;

static void open_model(bench *b, model_run *m)
{
    qm_err e = {0};
    m->n = 18944ull * 3584, m->groups = m->n / 64, m->nested = (m->groups + 255) / 256 * sizeof(float);
    m->size = m->n / 2 + m->groups + m->nested + sizeof(float);
    must((m->bring = qm_cuda_stream_new(b->gpu, &e)) && (m->take = qm_cuda_stream_new(b->gpu, &e)), &e);
    must((m->in = qm_cuda_pinned_alloc(b->gpu, 4 * m->n, &e)) != NULL, &e);
    must(qm_cuda_copy(b->stream, m->in, b->values[0], 4 * m->n, &e) && qm_cuda_wait(b->stream, &e), &e);
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &m->slot[i];
        qm_cuda_coded *c = &s->coded;
        *c = (qm_cuda_coded){.format = qm_format_find("nf4"), .codec = {.block = 64}, .double_quant = true};
        must((s->x = qm_cuda_alloc(b->gpu, 2 * m->n, &e))
                 && (c->plane[0] = qm_cuda_alloc(b->gpu, m->size, &e))
                 && (s->out = qm_cuda_pinned_alloc(b->gpu, m->size, &e)),
             &e);
        c->plane[1] = c->plane[0] + m->n / 2; /* all that comes back in one piece */
        c->nested = (float *)(void *)(c->plane[1] + m->groups);
        s->offset = c->nested + m->nested / sizeof(float);
        cudaEvent_t *const events[] = {&s->here, &s->encoded, &s->gone};
        for (int k = 0; k < 3; k++) {
            cudaEventCreateWithFlags(events[k], cudaEventDisableTiming);
            cudaEventRecord(*events[k], b->stream->handle);
        }
    }
}

static void close_model(bench *b, model_run *m)
{
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &m->slot[i];
        qm_cuda_free(b->gpu, s->x), qm_cuda_free(b->gpu, s->coded.plane[0]);
        qm_cuda_pinned_free(b->gpu, s->out);
        cudaEventDestroy(s->here), cudaEventDestroy(s->encoded), cudaEventDestroy(s->gone);
    }
    qm_cuda_stream_free(m->bring), qm_cuda_stream_free(m->take);
    qm_cuda_pinned_free(b->gpu, m->in);
}

/* Matrix k on its way; `whole` or only the copy to the GPU. */
static void one_matrix(bench *b, model_run *m, int k, bool whole)
{
    slot *s = &m->slot[k % SLOTS];
    cudaStream_t bring = m->bring->handle, work = b->stream->handle, take = m->take->handle;
    qm_err e = {0};
    cudaStreamWaitEvent(bring, s->encoded, 0);
    must(qm_cuda_copy(m->bring, s->x, m->in + 2 * m->n * (uint64_t)(k % 2), 2 * m->n, &e), &e);
    if (!whole)
        return;
    cudaEventRecord(s->here, bring);
    cudaStreamWaitEvent(work, s->here, 0);
    cudaStreamWaitEvent(work, s->gone, 0);
    must(qm_cuda_encode_double(b->stream, s->x, QM_BF16, m->n, &s->coded, false, s->offset, &e), &e);
    cudaEventRecord(s->encoded, work);
    cudaStreamWaitEvent(take, s->encoded, 0);
    must(qm_cuda_copy(m->take, s->out, s->coded.plane[0], m->size, &e), &e);
    cudaEventRecord(s->gone, take);
}

static void model(bench *b)
{
    model_run m = {0};
    double best[2] = {0};
    qm_err e = {0};
    open_model(b, &m);
    for (int run = 0; run < 6; run++) { /* in turn, the better of the last two each; the first warm up */
        struct timespec t, u;
        bool whole = run % 2;
        clock_gettime(CLOCK_MONOTONIC, &t);
        for (int k = 0; k < MATRICES; k++)
            one_matrix(b, &m, k, whole);
        must(qm_cuda_wait(m.bring, &e) && qm_cuda_wait(b->stream, &e) && qm_cuda_wait(m.take, &e), &e);
        clock_gettime(CLOCK_MONOTONIC, &u);
        double s = (double)(u.tv_sec - t.tv_sec) + 1e-9 * (double)(u.tv_nsec - t.tv_nsec);
        if (run >= 2 && (best[whole] == 0 || s < best[whole]))
            best[whole] = s;
    }
    double bytes = 2.0 * MATRICES * (double)m.n;
    printf("%-44s %9.1f us %8.1f GB/s\n", "15.2 GB to the GPU", 1e6 * best[0], 1e-9 * bytes / best[0]);
    printf("%-44s %9.1f us %8.1f GB/s %6.1f %% of that copy\n", "15.2 GB to nf4 dq, memory to memory",
           1e6 * best[1], 1e-9 * bytes / best[1], 100 * best[0] / best[1]);
    close_model(b, &m);
}

static void start(bench *b, uint64_t n)
{
    qm_err e = {0};
    *b = (bench){.n = n};
    must((b->gpu = qm_cuda_open(0, &e)) != NULL, &e);
    must((b->stream = qm_cuda_stream_new(b->gpu, &e)) != NULL, &e);
    cudaEventCreate(&b->begin);
    cudaEventCreate(&b->end);
    take_memory(b);
    const qm_cuda_info *i = qm_cuda_get_info(b->gpu);
    printf("%s, sm_%d%d, driver %d, runtime %d, own rcp %s; %" PRIu64 " values\n", i->name, i->major,
           i->minor, i->driver, i->runtime, i->own_rcp ? "yes" : "no", n);
}

int main(int argc, char **argv)
{
    bench b;
    only = argc > 2 ? argv[2] : "";
    start(&b, argc > 1 ? strtoull(argv[1], NULL, 10) : 1ull << 28);
    if (!*only)
        host(&b);
    set_type(&b, QM_BF16);
    if (!*only)
        model(&b);
    roof(&b);
    all_of(&b, "nf4", 64, QM_BF16, false);
    all_of(&b, "nf4", 64, QM_BF16, true);
    all_of(&b, "fp4", 64, QM_BF16, false);
    all_of(&b, "fp4", 64, QM_BF16, true);
    all_of(&b, "int4", 64, QM_BF16, false);
    all_of(&b, "int4", 64, QM_BF16, true);
    all_of(&b, "uint4", 64, QM_BF16, false);
    tables(&b);
    for (uint32_t block = 32; block <= 4096; block *= 2)
        if (block != 64)
            one(&b, "quantise", encode, (subject){qm_format_find("nf4"), {.block = block}, QM_BF16, false});
    all_of(&b, "int8", 4096, QM_BF16, false);
    all_of(&b, "q8_0", 32, QM_BF16, false);
    all_of(&b, "q4_0", 32, QM_BF16, false);
    static const char *const others[] = {"int3", "q4_1", "q5_0", "mxfp4", "iq4_nl", "q2_k",
                                         "q3_k", "q4_k", "q5_k", "q6_k",  "f16"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const qm_format *f = qm_format_find(others[i]);
        one(&b, "quantise", encode, (subject){f, {.block = f->block}, QM_BF16, false});
        one(&b, "dequantise", decode, (subject){f, {.block = f->block}, QM_BF16, false});
    }
    set_type(&b, QM_F16);
    all_of(&b, "nf4", 64, QM_F16, false);
    all_of(&b, "int4", 64, QM_F16, false);
    one(&b, "quantise", encode, (subject){qm_format_find("int8"), {.block = 4096}, QM_F16, false});
    set_type(&b, QM_F32);
    all_of(&b, "nf4", 64, QM_F32, false);
    return 0;
}
