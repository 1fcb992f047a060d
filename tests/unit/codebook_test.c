/* codebook_test.c: formats made at run time, and levels fitted to values. */
#include "../../core/codebook.h"

#include <math.h>
#include <stdlib.h>

#include "../../core/cpu.h"
#include "../../core/fit.h"
#include "../../core/formats/nf4.h"
#include "../../core/formats/table.h"
#include "../../core/random.h"
#include "../../core/tensor.h"
#include "golden.h"
#include "test.h"

static const qm_format *made(const float *level, int count)
{
    qm_err e = {0};
    const qm_format *f = qm_codebook_new("mine", level, count, 64, &e);
    CHECKF(f, "%s", e.msg);
    return f;
}

/* ---- NF4 as data ---------------------------------------------------------------------------------- */

static void check_like_nf4(const qm_format *mine, const float *x, uint32_t block, const char *what)
{
    enum { CODES = EVEN / 2, SCALES = EVEN / 32 };
    const qm_format *nf4 = qm_format_find("nf4");
    qm_codec c = {.block = block, .exact_zero = true, .table = mine->table};
    uint8_t *a = malloc(CODES), *b = malloc(CODES);
    float *s = malloc(SCALES * sizeof *s), *t = malloc(SCALES * sizeof *t);
    float *y = malloc(EVEN * sizeof *y), *z = malloc(EVEN * sizeof *z);
    qm_encode(nf4, x, EVEN, &c, (uint8_t *[]){a, (uint8_t *)s});
    qm_encode(mine, x, EVEN, &c, (uint8_t *[]){b, (uint8_t *)t});
    CHECKF(!memcmp(a, b, CODES), "codes of %s, blocks of %u", what, block);
    CHECKF(!memcmp(s, t, EVEN / block * sizeof *s), "scales of %s, blocks of %u", what, block);
    qm_decode(nf4, (const uint8_t *[]){a, (uint8_t *)s}, EVEN, &c, y);
    qm_decode(mine, (const uint8_t *[]){b, (uint8_t *)t}, EVEN, &c, z);
    CHECKF(!memcmp(y, z, EVEN * sizeof *y), "values of %s, blocks of %u", what, block);
    free(a), free(b), free(s), free(t), free(y), free(z);
}

/* bitsandbytes' thresholds and reciprocal differ in last bits, which 16-bit weights cannot tell. */
TEST(codebook_of_nf4_levels_writes_nf4)
{
    const qm_format *mine = made(qm_nf4_value, 16);
    float *x = malloc(COUNT * sizeof *x), *h = malloc(COUNT * sizeof *h);
    golden_values(x);
    for (qm_simd level = QM_SCALAR; level <= QM_AVX2; level++) {
        qm_cpu_limit(level);
        for (uint32_t block = 32; block <= 4096; block *= 2) {
            for (int i = 0; i < EVEN; i++)
                h[i] = qm_f16_to_f32(qm_f32_to_f16(x[i]));
            check_like_nf4(mine, h, block, "f16");
            for (int i = 0; i < EVEN; i++)
                h[i] = qm_bf16_to_f32(qm_f32_to_bf16(x[i]));
            check_like_nf4(mine, h, block, "bf16");
        }
    }
    qm_cpu_limit(QM_AVX512);
    qm_format_unref(mine);
    free(x), free(h);
}

/* ---- the nearest level ---------------------------------------------------------------------------- */

/* By looking at all of them: the nearest, and of two as near the lower, of two alike the first. */
static int nearest(const float *level, int count, float v)
{
    int best = 0;
    for (int i = 1; i < count; i++) {
        long double a = fabsl((long double)level[i] - (long double)v),
                    b = fabsl((long double)level[best] - (long double)v);
        if (a < b || (a == b && level[i] < level[best]))
            best = i;
    }
    return best;
}

TEST(codebook_takes_the_nearest_level)
{
    for (int count = 2; count <= 256; count += count < 34 ? 1 : 37) {
        float level[256];
        for (int i = 0; i < count; i++)
            level[i] = (float)(2 * qm_random_uniform(5, (uint64_t)(1000 * count + i)) - 1);
        level[count / 2] = 0;
        level[count - 1] = count % 3 ? 1 : level[0]; /* sometimes twice the same */
        const qm_format *f = made(level, count);
        for (int i = 0; i < count; i++) {
            float next = level[nearest(level, count, level[i] + 0.01f)], middle = (level[i] + next) / 2;
            const float at[] = {level[i], middle, nextafterf(middle, 2), nextafterf(middle, -2),
                                (float)i / 300};
            for (size_t k = 0; k < sizeof at / sizeof *at; k++)
                CHECKF((int)qm_table_code(f->table, at[k]) == nearest(level, count, at[k]),
                       "%.9g among %d levels", (double)at[k], count);
        }
        CHECK((int)qm_table_code(f->table, 3) == nearest(level, count, 3));
        CHECK((int)qm_table_code(f->table, -3) == nearest(level, count, -3));
        qm_format_unref(f);
    }
}

/* f32 cannot hold the middle of -1 and 2^-60; whatever lies just below it is nearer to -1. */
TEST(codebook_thresholds_are_exact)
{
    const float level[] = {-1, 0x1p-60f};
    const qm_format *f = made(level, 2);
    CHECK(qm_table_code(f->table, -0.5f) == 0 && qm_table_code(f->table, nextafterf(-0.5f, 0)) == 1);
    qm_format_unref(f);
    const float other[] = {-1, -0x1p-60f};
    f = made(other, 2); /* here the middle lies below -0.5 */
    CHECK(qm_table_code(f->table, -0.5f) == 1 && qm_table_code(f->table, nextafterf(-0.5f, -1)) == 0);
    qm_format_unref(f);
}

TEST(codebook_of_large_levels_is_scaled)
{
    const float level[] = {-6, -4, -3, -2, -1.5f, -1, -0.5f, 0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    const float x[4] = {12, -8, 3, 0};
    float y[4], scale;
    uint8_t codes[2];
    const qm_format *f = made(level, 15);
    qm_codec c = {.block = 4, .table = f->table};
    qm_encode(f, x, 4, &c, (uint8_t *[]){codes, (uint8_t *)&scale});
    qm_decode(f, (const uint8_t *[]){codes, (uint8_t *)&scale}, 4, &c, y);
    CHECK(scale == 12 && codes[0] == 0xe1 && codes[1] == 0xa7);
    for (int i = 0; i < 4; i++)
        CHECK(fabsf(y[i] - x[i]) < 1e-6f);
    CHECK(f->bound > 1 / 6.0 && f->bound < 1 / 5.9 && qm_codebook_level(f, 0) == -1);
    qm_format_unref(f);
}

TEST(codebook_of_subnormal_values)
{
    const qm_format *f = made(qm_nf4_value, 16);
    float x[64] = {0x1p-149f, -0x1p-149f}, y[64], scale;
    uint8_t codes[32];
    qm_codec c = {.block = 64, .table = f->table};
    qm_encode(f, x, 64, &c, (uint8_t *[]){codes, (uint8_t *)&scale});
    qm_decode(f, (const uint8_t *[]){codes, (uint8_t *)&scale}, 64, &c, y);
    CHECK(scale == 0x1p-149f && y[0] == x[0] && y[1] == x[1] && y[2] == 0 && codes[0] == 0xf0
          && codes[1] == 0x77);
    qm_format_unref(f);
}

/* ---- making and owning ---------------------------------------------------------------------------- */

static const char *refused(const char *name, const float *level, int count, uint32_t block)
{
    static qm_err e;
    e = (qm_err){0};
    return qm_codebook_new(name, level, count, block, &e) ? "" : e.msg;
}

TEST(codebook_refuses)
{
    const float level[257] = {-1, 1}, bad[] = {0, NAN, 1}, worse[] = {0, 1, -INFINITY};
    CHECK(strstr(refused("nf4", level, 2, 64), "taken by a format of the program"));
    CHECK(strstr(refused("a:b", level, 2, 64), "letters, digits"));
    CHECK(strstr(refused("", level, 2, 64), "make a name"));
    CHECK(strstr(refused("mine", level, 1, 64), "not 1"));
    CHECK(strstr(refused("mine", level, 257, 64), "2 to 256"));
    CHECK(strstr(refused("mine", bad, 3, 64), "level 2 is not a number"));
    CHECK(strstr(refused("mine", worse, 3, 64), "level 3 is infinite"));
    CHECK(strstr(refused("mine", level, 2, 0), "block"));
}

TEST(codebook_lives_as_long_as_its_tensors)
{
    qm_err e = {0};
    qm_shape shape = {2, {3, 100}};
    float *x;
    qm_tensor *t = qm_tensor_f32(&shape, &x, &e);
    for (int i = 0; i < 300; i++)
        x[i] = (float)(i % 17) - 8;
    const qm_format *f = made(qm_nf4_value, 16);
    qm_tensor *q = qm_tensor_quantize(t, f, &(qm_quantize_options){.block = 100, .double_quant = true}, &e);
    CHECKF(q, "%s", e.msg);
    qm_format_unref(f); /* the tensor has the last one */
    float y[300];
    CHECK(qm_tensor_values(q, y, &e) && fabsf(y[0] + 8) < 0.1f && strcmp(q->format->name, "mine") == 0);
    qm_tensor_free(q);
    qm_tensor_free(t);
}

TEST(codebook_opaque_formats_hold_bytes)
{
    qm_err e = {0};
    qm_shape shape = {1, {10}};
    const qm_format *f = qm_opaque_new("odd", 3, 2, 4, &e);
    uint8_t codes[2 + 2 + 1] = {1, 2, 3, 4, 5}, scales[24] = {0};
    qm_slice plane[] = {{NULL, codes, sizeof codes}, {NULL, scales, sizeof scales}};
    qm_tensor *t = qm_tensor_of_planes("w", &shape, f, 0, plane, &e);
    CHECKF(t && t->codec.block == 4 && memcmp(t->plane[0].data, codes, 5) == 0, "%s", e.msg);
    float y[10];
    CHECK(!qm_tensor_values(t, y, &e) && strstr(e.msg, "only the functions"));
    e = (qm_err){0};
    CHECK(!qm_tensor_quantize(t, f, &(qm_quantize_options){0}, &e));
    plane[1].size = 23;
    e = (qm_err){0};
    CHECK(!qm_tensor_of_planes("w", &shape, f, 0, plane, &e) && strstr(e.msg, "takes 24 bytes, not 23"));
    qm_tensor_free(t);
    qm_format_unref(f);
}

/* ---- fitting -------------------------------------------------------------------------------------- */

static qm_fit *fit_of(const float *x, size_t n, uint32_t block, const qm_fit_weights *w)
{
    qm_err e = {0};
    qm_fit *f = calloc(1, sizeof *f);
    CHECKF(qm_fit_add(f, x, n, block, w ? w : &(qm_fit_weights){0}, &e), "%s", e.msg);
    return f;
}

/* Max's tables of 1960 for the normal distribution, which ±8 deviations represent here. */
TEST(codebook_kmeans_finds_the_levels_of_max)
{
    static const double four[] = {-1.5104, -0.4528, 0.4528, 1.5104};
    static const double sixteen[] = {0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6180, 2.0690, 2.7326};
    qm_err e = {0};
    qm_fit *f = calloc(1, sizeof *f);
    for (int b = 0; b < QM_FIT_BINS; b++) {
        double v = (b + 0.5) * 2 / QM_FIT_BINS - 1, x = 8 * v;
        f->weight[b] = exp(-x * x / 2);
        f->sum[b] = f->weight[b] * v;
    }
    float level[16];
    CHECK(qm_fit_kmeans(f, 4, level, &e));
    for (int i = 0; i < 4; i++)
        CHECKF(fabs(8 * (double)level[i] - four[i]) < 5e-4, "%g for %g", 8 * (double)level[i], four[i]);
    CHECK(qm_fit_kmeans(f, 16, level, &e));
    for (int i = 0; i < 8; i++)
        CHECKF(fabs(8 * (double)level[8 + i] - sixteen[i]) < 1e-3
                   && fabs((double)(level[8 + i] + level[7 - i])) < 1e-6,
               "%g for %g", 8 * (double)level[8 + i], sixteen[i]);
    free(f);
}

/* Sum of squared errors against the nearest levels. */
static double distortion(const float *x, int n, const float *level, int count)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double d = (double)x[i] - (double)level[nearest(level, count, x[i])];
        sum += d * d;
    }
    return sum;
}

/* No other three levels do better: every way to cut twelve sorted values in three is tried. */
TEST(codebook_kmeans_is_the_best_there_is)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        enum { N = 12 };
        float x[N], level[3], other[3];
        double least = 1e9;
        qm_err e = {0};
        for (int i = 0; i < N; i++) {
            x[i] = (float)(2 * qm_random_uniform(seed, (uint64_t)i) - 1);
            for (int j = i; j > 0 && x[j] < x[j - 1]; j--) {
                float swap = x[j];
                x[j] = x[j - 1];
                x[j - 1] = swap;
            }
        }
        x[0] = -1;
        qm_fit *f = fit_of(x, N, N, NULL);
        CHECK(qm_fit_kmeans(f, 3, level, &e));
        for (int a = 1; a < N - 1; a++)
            for (int b = a + 1; b < N; b++) {
                const int cut[] = {0, a, b, N};
                for (int k = 0; k < 3; k++) {
                    double sum = 0;
                    for (int i = cut[k]; i < cut[k + 1]; i++)
                        sum += (double)x[i];
                    other[k] = (float)(sum / (cut[k + 1] - cut[k]));
                }
                least = fmin(least, distortion(x, N, other, 3));
            }
        CHECKF(distortion(x, N, level, 3) <= least + 1e-6, "seed %d: %g, best %g", (int)seed,
               distortion(x, N, level, 3), least);
        free(f);
    }
}

TEST(codebook_kmeans_with_fewer_values_than_levels)
{
    const float x[] = {-1, 0, 0.5f, 1, 0, 0, 0, 0}, want[] = {-1, 0, 0.5f, 1, 1, 1};
    float level[6];
    qm_err e = {0};
    qm_fit *f = fit_of(x, 8, 4, NULL); /* the second block is all zeros and left out */
    CHECK(qm_fit_kmeans(f, 6, level, &e) && memcmp(level, want, sizeof want) == 0);
    free(f);
    f = fit_of(x + 4, 4, 4, NULL);
    CHECK(!qm_fit_kmeans(f, 6, level, &e) && strstr(e.msg, "no value other than 0"));
    free(f);
}

TEST(codebook_fits_count_weights)
{
    const float x[] = {1, 0.5f, 0.25f, -1, 0.5f, 0.25f}, w[] = {1, 3, 1}, large[] = {1, 0.5f, 2, 1.5f};
    float level[2];
    qm_err e = {0};
    qm_fit *f = fit_of(x, 6, 3, &(qm_fit_weights){.weight = w, .period = 3});
    CHECK(qm_fit_kmeans(f, 2, level, &e) && level[0] == -1);
    CHECKF(fabs((double)level[1] - (1 + 6 * 0.5 + 2 * 0.25) / 9) < 1e-7, "%g", (double)level[1]);
    free(f);
    f = fit_of(large, 4, 2,
               &(qm_fit_weights){.by_size = true}); /* 0.5 counts once, 0.75 four times, 1 five times */
    CHECK(qm_fit_kmeans(f, 2, level, &e) && fabs((double)level[0] - (0.5 + 4 * 0.75) / 5) < 1e-7
          && level[1] == 1);
    free(f);
    f = calloc(1, sizeof *f);
    const float bad[] = {1, NAN}, negative[] = {1, -1};
    CHECK(!qm_fit_add(f, bad, 2, 2, &(qm_fit_weights){0}, &e) && strstr(e.msg, "value number 2"));
    e = (qm_err){0};
    CHECK(!qm_fit_add(f, x, 2, 2, &(qm_fit_weights){.weight = negative, .period = 2}, &e)
          && strstr(e.msg, "weight number 2"));
    free(f);
}

TEST(codebook_quantiles_cut_in_equal_parts)
{
    enum { N = 1 << 16 };
    float *x = malloc(N * sizeof *x), level[16];
    int used[16] = {0};
    qm_err e = {0};
    for (int i = 0; i < N; i++)
        x[i] = (float)i * 2 / (N - 1) - 1;
    qm_fit *f = fit_of(x, N, N, NULL);
    CHECK(qm_fit_quantiles(f, 16, level, &e));
    for (int i = 0; i < N; i++)
        used[nearest(level, 16, x[i])]++;
    for (int k = 0; k < 16; k++)
        CHECKF(abs(used[k] - N / 16) < N / 1000, "level %d: %g takes %d", k, (double)level[k], used[k]);
    free(f);
    free(x);
}

TEST(codebook_normal_quantiles)
{
    static const double want[][2] = {{0.5, 0},
                                     {0.84134474606854294859, 1},
                                     {0.97724986805182079280, 2},
                                     {0.00134989803163009452665, -3},
                                     {2.8665157187919391167e-7, -5}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECKF(fabs(qm_normal_quantile(want[i][0]) - want[i][1]) < 1e-13, "%.17g",
               qm_normal_quantile(want[i][0]));
}
