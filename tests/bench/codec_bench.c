/* codec_bench.c: how fast each format encodes and decodes on one thread, at each SIMD level.
 *
 *     make build/codec_bench && build/codec_bench [format ...]
 *
 * Figures are GB/s of the same weights in bf16 (2 bytes each), the size of a checkpoint as people
 * download it.  The run of weights stays in the second-level cache, as chunks of a stream do. */
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
    clock_gettime(CLOCK_MONOTONIC, &t);
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
    qm_simd highest = qm_cpu_simd();
    for (qm_simd level = QM_SCALAR; level <= highest; level++) {
        qm_cpu_limit(level);
        memcpy(r.x, values, sizeof(float) * COUNT);
        double encode = gigabytes(&r, encode_once), decode = gigabytes(&r, decode_once);
        printf("%-11s %-7s %8.2f %8.2f\n", f->name, qm_simd_names[level], encode, decode);
    }
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
    fill(values, COUNT);
    printf("format      level     encode   decode   GB/s of bf16, one thread\n");
    for (const qm_format *const *f = qm_formats; *f; f++)
        if (chosen((*f)->name, argc, argv) && !bench(*f, values))
            return 1;
    for (int count = 2; count <= 256; count *= 2)
        if (!bench_codebook(count, values, argc, argv))
            return 1;
    free(values);
    return 0;
}
