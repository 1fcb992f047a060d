/* codec_bench.c: how fast each format encodes and decodes on one thread, at each SIMD level.
 *
 *     make build/codec_bench && build/codec_bench [--ggml libggml-base.so] [format ...]
 *
 * Figures are GB/s of the same weights in bf16 (2 bytes each), the size of a checkpoint as people
 * download it, and millions of weights a second; the latter with an importance matrix, too, and of
 * ggml's own kernels on the same weights where its library is given.  The run of weights stays in the
 * second-level cache, as chunks of a stream do. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../../core/codebook.h"
#include "../../core/cpu.h"
#include "../../core/format.h"

enum { COUNT = 1 << 16, ROW = 4096 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* not the neighbours' */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* About normal: the sum of four uniform numbers, as exact f16 values, like trained weights. */
static void fill(float *x, size_t n)
{
    uint32_t s = 12345;
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) {
            s = s * 1664525u + 1013904223u;
            sum += (float)(s >> 8) * 0x1p-24f - 0.5f;
        }
        x[i] = qm_f16_to_f32(qm_f32_to_f16(0.03f * sum));
    }
}

typedef struct run {
    const qm_format *format;
    qm_codec codec;
    float *x;
    uint8_t *plane[QM_MAX_PLANES];
} run;

static void encode_once(const run *r) { qm_encode(r->format, r->x, COUNT, &r->codec, r->plane); }

/* As llama-quantize calls it. */
typedef size_t ggml_quantize_chunk(int type, const float *x, void *out, int64_t start, int64_t rows,
                                   int64_t cols, const float *importance);
static ggml_quantize_chunk *ggml;

static void ggml_once(const run *r)
{
    ggml(r->format->gguf_type, r->x, r->plane[0], 0, COUNT / ROW, ROW, r->codec.importance);
}

static void decode_once(const run *r)
{
    qm_decode(r->format, (const uint8_t *const *)r->plane, COUNT, &r->codec, r->x);
}

/* Best of ten turns of at least 10 ms each. */
static double gigabytes(const run *r, void (*once)(const run *))
{
    double best = 0;
    for (int turn = 0; turn < 10; turn++) {
        double start = now(), took = 0;
        size_t calls = 0;
        for (; took < 0.01; took = now() - start, calls++)
            once(r);
        double rate = 2e-9 * COUNT * (double)calls / took;
        best = rate > best ? rate : best;
    }
    return best;
}

static double millions(const run *r, void (*once)(const run *)) { return 500 * gigabytes(r, once); }

/* ggml's kernels, and how many times as fast ours are at the CPU's highest level. */
static void bench_ggml(run *r, double encode, double important)
{
    const float *importance = r->codec.importance;
    r->codec.importance = NULL;
    double plain = millions(r, ggml_once);
    printf("%-11s ggml                      %9.1f", r->format->name, plain);
    if (r->format->encode_important) {
        r->codec.importance = importance;
        double weighted = millions(r, ggml_once);
        printf(" %9.1f   %5.1f %5.1f times\n", weighted, encode / plain, important / weighted);
    } else {
        printf("             %5.1f times\n", encode / plain);
    }
}

static bool chosen(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(name, argv[i]) == 0)
            return true;
    return argc < 2;
}

static bool bench(const qm_format *f, const float *values)
{
    qm_err e = {0};
    run r = {.format = f, .x = malloc(sizeof(float) * COUNT)};
    if (!r.x || !qm_codec_init(&r.codec, f, ROW, 0, "bench", &e))
        return false;
    for (int i = 0; i < qm_format_planes(f); i++)
        if (!(r.plane[i] = malloc(qm_plane_size(f, &r.codec, i, COUNT))))
            return false;
    float importance[ROW];
    for (int i = 0; i < ROW; i++)
        importance[i] = 1 + (float)(i % 7);
    qm_simd highest = qm_cpu_simd();
    double encode = 0, important = 0;
    for (qm_simd level = QM_SCALAR; level <= highest; level++) {
        qm_cpu_limit(level);
        memcpy(r.x, values, sizeof(float) * COUNT);
        r.codec.importance = NULL;
        encode = millions(&r, encode_once);
        if (f->encode_important) {
            r.codec.importance = importance;
            r.codec.cols = ROW;
            important = millions(&r, encode_once);
        }
        double decode = gigabytes(&r, decode_once);
        printf("%-11s %-7s %8.2f %8.2f %9.1f", f->name, qm_simd_names[level], encode / 500, decode, encode);
        if (f->encode_important)
            printf(" %9.1f", important);
        printf("\n");
    }
    memcpy(r.x, values, sizeof(float) * COUNT);
    if (ggml && f->gguf_type > 1 && f->gguf_type != 30)
        bench_ggml(&r, encode, important);
    qm_cpu_limit(QM_AVX512);
    for (int i = 0; i < QM_MAX_PLANES; i++)
        free(r.plane[i]);
    free(r.x);
    return true;
}

/* A codebook of evenly spaced levels, as qm.codebook makes it. */
static bool bench_codebook(int count, const float *values, int argc, char **argv)
{
    char name[32];
    float level[256];
    qm_err e = {0};
    snprintf(name, sizeof name, "codebook%d", count);
    for (int i = 0; i < count; i++)
        level[i] = 2 * (float)i / (float)(count - 1) - 1;
    const qm_format *f = qm_codebook_new(name, level, count, 64, &e);
    bool ok = f && (!chosen(name, argc, argv) || bench(f, values));
    qm_format_unref(f);
    return ok;
}

int main(int argc, char **argv)
{
    float *values = malloc(sizeof(float) * COUNT);
    if (!values)
        return 1;
    if (argc > 2 && strcmp(argv[1], "--ggml") == 0) {
        void *library = dlopen(argv[2], RTLD_NOW);
        void *symbol = library ? dlsym(library, "ggml_quantize_chunk") : NULL;
        if (!symbol) {
            fprintf(stderr, "codec_bench: %s: no ggml in it\n", argv[2]);
            return 1;
        }
        memcpy(&ggml, &symbol, sizeof ggml);
        argc -= 2;
        argv += 2;
    }
    fill(values, COUNT);
    printf("                     GB/s of bf16        M weights/s\n"
           "format      level     encode   decode    encode importance   one thread\n");
    for (const qm_format *const *f = qm_formats; *f; f++)
        if (chosen((*f)->name, argc, argv) && !bench(*f, values))
            return 1;
    for (int count = 2; count <= 256; count *= 2)
        if (!bench_codebook(count, values, argc, argv))
            return 1;
    free(values);
    return 0;
}
