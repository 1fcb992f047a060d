/* registry_test.c: what holds for every format in core/formats: fast code writes the bytes that the plain
 * code writes, nothing is written outside the planes, and errors stay within the format's own bound. */
#include <math.h>
#include <stdlib.h>

#include "../../core/codebook.h"
#include "../../core/cpu.h"
#include "../../core/format.h"
#include "families.h"
#include "test.h"

/* ---- planes between guards ---------------------------------------------------------------------- */

enum { GUARD = 64, FILLER = 0xa5 };

typedef struct planes {
    uint8_t *whole[QM_MAX_PLANES], *at[QM_MAX_PLANES];
    size_t size[QM_MAX_PLANES];
} planes;

/* One byte off, so that nothing is aligned. */
static planes planes_new(const qm_format *f, const qm_codec *c, size_t n)
{
    planes p = {0};
    for (int i = 0; i < qm_format_planes(f); i++) {
        p.size[i] = qm_plane_size(f, c, i, n);
        p.whole[i] = malloc(p.size[i] + 2 * GUARD);
        memset(p.whole[i], FILLER, p.size[i] + 2 * GUARD);
        p.at[i] = p.whole[i] + GUARD - 1;
    }
    return p;
}

static void planes_free(planes *p)
{
    for (int i = 0; i < QM_MAX_PLANES; i++)
        free(p->whole[i]);
}

static bool guards_intact(const planes *p)
{
    for (int i = 0; i < QM_MAX_PLANES && p->whole[i]; i++)
        for (size_t j = 0; j < p->size[i] + 2 * GUARD; j++)
            if ((j < GUARD - 1 || j >= GUARD - 1 + p->size[i]) && p->whole[i][j] != FILLER)
                return false;
    return true;
}

static bool planes_equal(const planes *a, const planes *b)
{
    for (int i = 0; i < QM_MAX_PLANES && a->whole[i]; i++)
        if (memcmp(a->at[i], b->at[i], a->size[i]))
            return false;
    return true;
}

/* ---- the loops ---------------------------------------------------------------------------------- */

/* A number of values that the format can take in groups of c->block. */
static size_t usable(const qm_format *f, const qm_codec *c, size_t n)
{
    return f->over_rows || f->block == 1 ? n : (n + c->block - 1) / c->block * c->block;
}

/* All group sizes worth trying: the allowed ones, or some of them, or some row lengths. */
static int blocks_of(const qm_format *f, uint32_t block[16])
{
    static const uint32_t row[] = {1, 2, 7, 8, 31, 32, 33, 64, 100, 257};
    static const uint32_t any[] = {1, 7, 32, 64, 100, 256, 2049};
    int n = 0;
    if (f->any_block)
        for (; n < (int)(sizeof any / sizeof *any); n++)
            block[n] = any[n];
    else if (f->block == 0)
        for (; n < (int)(sizeof row / sizeof *row); n++)
            block[n] = row[n];
    else if (f->block_max)
        for (uint32_t b = f->block_min; b <= f->block_max; b *= 2)
            block[n++] = b;
    else
        block[n++] = f->block;
    return n;
}

static const size_t lengths[] = {1, 2, 3, 31, 32, 63, 64, 65, 127, 129, 1023, 1025, 2500, 4097, 8200};
enum { LENGTHS = sizeof lengths / sizeof *lengths, LONGEST = 3 * 4096 };

/* Each level against the plain code: bytes of every plane, then values decoded from them. */
static void check_levels(const qm_format *f, const qm_codec *c, const float *x, size_t n, const char *what)
{
    qm_simd highest = qm_cpu_simd();
    planes want = planes_new(f, c, n);
    float *y = malloc(sizeof *y * (n + 1)), *z = malloc(sizeof *z * (n + 1));
    qm_cpu_limit(QM_SCALAR);
    qm_encode(f, x, n, c, want.at);
    qm_decode(f, (const uint8_t *const *)want.at, n, c, y);
    CHECKF(guards_intact(&want), "%s block %u, %zu values, %s", f->name, c->block, n, what);
    for (qm_simd level = QM_AVX2; level <= highest; level++) {
        qm_cpu_limit(level);
        planes got = planes_new(f, c, n);
        qm_encode(f, x, n, c, got.at);
        CHECKF(planes_equal(&got, &want), "%s %s block %u, %zu values, %s", f->name, qm_simd_names[level],
               c->block, n, what);
        CHECKF(guards_intact(&got), "%s %s block %u, %zu values, %s", f->name, qm_simd_names[level], c->block,
               n, what);
        z[n] = 12345;
        qm_decode(f, (const uint8_t *const *)want.at, n, c, z);
        CHECKF(!memcmp(y, z, sizeof *y * n) && z[n] == 12345, "%s %s decoding block %u, %zu values, %s",
               f->name, qm_simd_names[level], c->block, n, what);
        planes_free(&got);
    }
    qm_cpu_limit(highest);
    planes_free(&want);
    free(y);
    free(z);
}

TEST(registry_every_level_writes_the_same_bytes)
{
    float *x = malloc(sizeof *x * LONGEST);
    for (const qm_format *const *f = qm_formats; *f; f++) {
        uint32_t block[16];
        int blocks = blocks_of(*f, block);
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < FAMILIES; v++) {
                fill(&families[v], x, LONGEST);
                for (int l = 0; l < LENGTHS; l++) {
                    qm_codec c = {.block = block[b], .exact_zero = l % 2, .nearest = l % 3 == 2};
                    check_levels(*f, &c, x, usable(*f, &c, lengths[l]), families[v].name);
                }
            }
    }
    free(x);
}

/* Whole rows; some columns have no importance at all. */
static void check_importance(const qm_format *f, const float *x, uint32_t cols, size_t rows, const char *what)
{
    float *importance = malloc(sizeof *importance * cols);
    for (uint32_t i = 0; i < cols; i++)
        importance[i] = next() % 5 ? (float)(next() % 1000) * power_of_two(-20, 10) : 0.0f;
    qm_codec c = {.block = f->block, .importance = importance, .cols = cols};
    check_levels(f, &c, x, cols * rows, what);
    free(importance);
}

TEST(registry_every_level_heeds_importance_alike)
{
    static const uint32_t groups[] = {1, 2, 3, 7, 19};
    float *x = malloc(sizeof *x * LONGEST);
    for (const qm_format *const *f = qm_formats; *f; f++)
        for (int v = 0; v < FAMILIES && (*f)->encode_important; v++) {
            fill(&families[v], x, LONGEST);
            for (int g = 0; g < 5; g++)
                check_importance(*f, x, groups[g] * (*f)->block, g < 2 ? 4 : 2, families[v].name);
        }
    free(x);
}

/* Files may hold any bytes. */
TEST(registry_every_level_decodes_any_bytes)
{
    float *y = malloc(sizeof *y * LONGEST), *z = malloc(sizeof *z * LONGEST);
    qm_simd highest = qm_cpu_simd();
    for (const qm_format *const *f = qm_formats; *f; f++) {
        uint32_t block[16];
        int blocks = blocks_of(*f, block);
        for (int b = 0; b < blocks; b++) {
            qm_codec c = {.block = block[b]};
            size_t n = usable(*f, &c, 2500);
            planes p = planes_new(*f, &c, n);
            state = 7;
            for (int i = 0; i < qm_format_planes(*f); i++)
                for (size_t j = 0; j < p.size[i]; j++)
                    p.at[i][j] = (uint8_t)next();
            qm_cpu_limit(QM_SCALAR);
            qm_decode(*f, (const uint8_t *const *)p.at, n, &c, y);
            for (qm_simd level = QM_AVX2; level <= highest; level++) {
                qm_cpu_limit(level);
                qm_decode(*f, (const uint8_t *const *)p.at, n, &c, z);
                CHECKF(!memcmp(y, z, sizeof *y * n), "%s %s block %u", (*f)->name, qm_simd_names[level],
                       block[b]);
            }
            qm_cpu_limit(highest);
            planes_free(&p);
        }
    }
    free(y);
    free(z);
}

/* Largest error of each group of ordinary values, against what the descriptor promises. */
static void check_bound(const qm_format *f, const qm_codec *c, const float *x, size_t n, const char *what)
{
    planes p = planes_new(f, c, n);
    float *y = malloc(sizeof *y * n);
    qm_encode(f, x, n, c, p.at);
    qm_decode(f, (const uint8_t *const *)p.at, n, c, y);
    double tensor = 0;
    for (size_t i = 0; i < n; i++)
        tensor = fmax(tensor, fabs((double)x[i]));
    double least = f->bound_abs * (f->tensor_range != 0 ? tensor : 1);
    for (size_t at = 0; at < n; at += c->block) {
        double absmax = 0;
        for (size_t i = at; i < n && i < at + c->block; i++)
            absmax = fmax(absmax, fabs((double)x[i]));
        for (size_t i = at; i < n && i < at + c->block; i++) {
            double far = fabs((double)y[i] - (double)x[i]);
            double most = f->bound * absmax + f->bound_rel * fabs((double)x[i]) + least
                          + 0x1p-25; /* f16's last bit */
            CHECKF(far <= most, "%s block %u of %s, value %zu: %g became %g", f->name, c->block, what, i,
                   (double)x[i], (double)y[i]);
        }
    }
    planes_free(&p);
    free(y);
}

TEST(registry_errors_stay_within_the_bound)
{
    float *x = malloc(sizeof *x * LONGEST);
    for (const qm_format *const *f = qm_formats; *f; f++) {
        uint32_t block[16];
        int blocks = blocks_of(*f, block);
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < FAMILIES; v++) {
                if (!families[v].ordinary)
                    continue;
                qm_codec c = {.block = block[b]};
                size_t count = usable(*f, &c, 5000);
                fill(&families[v], x, LONGEST);
                qm_codec_measure(&c, *f, x, count);
                check_bound(*f, &c, x, count, families[v].name);
            }
    }
    free(x);
}

/* Codebooks are formats, too: every number of bits, full and not, in and out of order. */
static const qm_format *codebook(int count, bool in_order)
{
    qm_err e = {0};
    float level[256];
    state = (uint32_t)count;
    for (int i = 0; i < count; i++)
        level[i] = in_order ? -1.0f + 2.0f * ((float)i + 0.4f * uniform()) / (float)count : uniform();
    const qm_format *f = qm_codebook_new("made", level, count, 64, &e);
    CHECKF(f, "%s", e.msg);
    return f;
}

static void check_codebook(const qm_format *f, const float *x, const char *what)
{
    static const uint32_t block[] = {1, 8, 31, 32, 64, 96, 100, 2048};
    for (size_t b = 0; b < sizeof block / sizeof *block; b++) {
        qm_codec c = {.block = block[b], .table = f->table};
        for (int l = 0; l < LENGTHS; l++)
            check_levels(f, &c, x, lengths[l], what);
    }
}

TEST(registry_every_level_writes_the_same_codebooks)
{
    static const int counts[] = {2, 3, 4, 7, 8, 13, 16, 21, 32, 64, 100, 129, 256};
    float *x = malloc(sizeof *x * LONGEST);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int in_order = 0; in_order < 2; in_order++) {
            const qm_format *f = codebook(counts[i], in_order);
            for (int v = 0; v < FAMILIES; v += 2 + (int)i % 3) {
                fill(&families[v], x, LONGEST);
                check_codebook(f, x, families[v].name);
            }
            qm_codec c = {.block = 64, .table = f->table};
            fill(&families[0], x, LONGEST);
            check_bound(f, &c, x, 5000, families[0].name);
            qm_format_unref(f);
        }
    free(x);
}

TEST(registry_descriptors_are_complete)
{
    for (const qm_format *const *at = qm_formats; *at; at++) {
        const qm_format *f = *at;
        CHECK(f->name && f->doc && f->source && f->encode && f->decode);
        CHECKF(qm_format_find(f->name) == f, "%s", f->name);
        CHECKF((f->gguf_type >= 0) == (f->gguf_name != NULL), "%s", f->name);
        CHECKF(f->gguf_type < 0 || qm_format_of_gguf(f->gguf_type) == f, "%s", f->name);
        CHECKF((f->block_min == 0) == (f->block_max == 0) && f->block_min <= f->block_max, "%s", f->name);
        CHECKF(!f->block_max || (f->block >= f->block_min && f->block <= f->block_max)
                   || (f->block == 0 && f->any_block),
               "%s", f->name);
        CHECKF(!f->made && !f->table && !f->fast, "%s", f->name);
        CHECKF(qm_format_planes(f) >= 1, "%s", f->name);
        CHECKF(at == qm_formats || strcmp(at[-1]->name, f->name) < 0, "%s", f->name);
    }
}
