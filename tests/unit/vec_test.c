/* vec_test.c: the loops of vec.h against half.h and plain arithmetic, at every level. */
#include <math.h>
#include <stdlib.h>

#include "../../core/cpu.h"
#include "../../core/half.h"
#include "../../core/vec.h"
#include "test.h"

static void each_level(void (*run)(const qm_vec *v, const char *level))
{
    qm_simd highest = qm_cpu_simd();
    for (qm_simd level = QM_SCALAR; level <= highest; level++) {
        qm_cpu_limit(level);
        run(qm_vec_get(), qm_simd_names[level]);
    }
    qm_cpu_limit(highest);
}

static float noise(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(*s >> 8) * 0x1p-23f - 1.0f;
}

/* ---- half.h itself ------------------------------------------------------------------------------ */

TEST(half_known_values)
{
    CHECK(qm_f32_to_f16(1.0f) == 0x3c00 && qm_f32_to_f16(-2.0f) == 0xc000
          && qm_f32_to_f16(65504.0f) == 0x7bff);
    CHECK(qm_f32_to_f16(65519.996f) == 0x7bff && qm_f32_to_f16(65520.0f) == 0x7c00);
    CHECK(qm_f32_to_f16(INFINITY) == 0x7c00 && qm_f32_to_f16(NAN) == 0x7e00 && qm_f32_to_f16(-NAN) == 0xfe00);
    CHECK(qm_f32_to_f16(0x1p-24f) == 1 && qm_f32_to_f16(0x1p-25f) == 0
          && qm_f32_to_f16(0x1.000002p-25f) == 1);
    CHECK(qm_f32_to_f16(0x1.8p-24f) == 2 && qm_f32_to_f16(-0.0f) == 0x8000);
    CHECK(qm_f32_to_f16(0x1.002p0f) == 0x3c00 && qm_f32_to_f16(0x1.006p0f) == 0x3c02); /* ties to even */
    CHECK(qm_f32_to_bf16(1.0f) == 0x3f80 && qm_f32_to_bf16(0x1.01p0f) == 0x3f80);
    CHECK(qm_f32_to_bf16(0x1.03p0f) == 0x3f82 && qm_f32_to_bf16(0x1.fffffep127f) == 0x7f80);
    CHECK(qm_f32_to_bf16(qm_bits_f32(0x7f800001)) == 0x7fc0);
}

/* ---- 16-bit floats: all of them, and f32 around every rounding edge ----------------------------- */

static void widening(const qm_vec *v, const char *level)
{
    enum { ALL = 1 << 16 };
    uint8_t *bytes = malloc(2 * ALL + 1), *src = bytes + 1; /* unaligned */
    float *y = malloc(sizeof *y * ALL);
    for (uint32_t h = 0; h < ALL; h++)
        memcpy(src + 2 * h, &(uint16_t){(uint16_t)h}, 2);
    v->f16_to_f32(src, y, ALL);
    for (uint32_t h = 0; h < ALL; h++)
        if (qm_f32_bits(y[h]) != qm_f32_bits(qm_f16_to_f32((uint16_t)h)))
            CHECKF(false, "%s: f16 %04x", level, h);
    v->bf16_to_f32(src, y, ALL);
    for (uint32_t h = 0; h < ALL; h++)
        if (qm_f32_bits(y[h]) != h << 16)
            CHECKF(false, "%s: bf16 %04x", level, h);
    free(bytes);
    free(y);
}

TEST(vec_widens_every_half) { each_level(widening); }

/* Upper halves of all kinds with lower halves on both sides of a tie, 7 values out of step. */
static size_t edge_values(float *x)
{
    static const uint32_t low[] = {0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff};
    size_t n = 0;
    for (uint32_t high = 0; high < 1 << 16; high += 5)
        for (size_t i = 0; i < sizeof low / sizeof *low; i++)
            x[n++] = qm_bits_f32(high << 16 | low[i]);
    return n;
}

static void narrowing(const qm_vec *v, const char *level)
{
    enum { MOST = 9 * (1 << 16) / 5 + 9 };
    float *x = malloc(sizeof *x * MOST), *y = malloc(sizeof *y * MOST);
    uint16_t *h = malloc(sizeof *h * MOST);
    size_t n = edge_values(x);
    v->f32_to_f16(x, h, n);
    memcpy(y, x, sizeof *x * n);
    v->round_f16(y, n);
    for (size_t i = 0; i < n; i++)
        if (h[i] != qm_f32_to_f16(x[i]) || qm_f32_bits(y[i]) != qm_f32_bits(qm_f16_to_f32(h[i])))
            CHECKF(false, "%s: f16 of %08x", level, qm_f32_bits(x[i]));
    v->f32_to_bf16(x, h, n);
    memcpy(y, x, sizeof *x * n);
    v->round_bf16(y, n);
    for (size_t i = 0; i < n; i++)
        if (h[i] != qm_f32_to_bf16(x[i]) || qm_f32_bits(y[i]) != (uint32_t)h[i] << 16)
            CHECKF(false, "%s: bf16 of %08x", level, qm_f32_bits(x[i]));
    free(x);
    free(y);
    free(h);
}

TEST(vec_narrows_as_half_does) { each_level(narrowing); }

/* ---- the rest ----------------------------------------------------------------------------------- */

static void finding(const qm_vec *v, const char *level)
{
    float x[200] = {0};
    CHECK(v->first_nonfinite(x, 0) == 0 && v->first_nonfinite(x, 200) == 200);
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    for (size_t i = 0; i < 200; i++) {
        x[i] = bad[i % 4];
        x[199] = i < 199 ? NAN : x[199];
        CHECKF(v->first_nonfinite(x, 200) == i && v->first_nonfinite(x, i) == i, "%s: at %zu", level, i);
        x[i] = 0x1.fffffep127f;
    }
}

TEST(vec_finds_the_first_nonfinite) { each_level(finding); }

/* Sizes on both sides of every tile; left_stride wider than rank. */
static void low_rank(const qm_vec *v, const char *level)
{
    enum { ROWS = 9, COLS = 70, RANK = 19, STRIDE = 23 };
    float left[ROWS * STRIDE], right[RANK * COLS], delta[ROWS * COLS + 1];
    uint32_t s = 3;
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        left[i] = noise(&s);
    for (size_t i = 0; i < sizeof right / sizeof *right; i++)
        right[i] = noise(&s);
    for (size_t rows = 0; rows <= ROWS; rows++)
        for (size_t cols = 1; cols <= COLS; cols += 3) {
            delta[rows * cols] = 99;
            v->low_rank(left, STRIDE, right, RANK, 0.3f, delta, rows, cols);
            CHECK(delta[rows * cols] == 99);
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < cols; j++) {
                    float sum = 0;
                    for (size_t k = 0; k < RANK; k++)
                        sum = fmaf(left[i * STRIDE + k], right[k * cols + j], sum);
                    CHECKF(delta[i * cols + j] == 0.3f * sum, "%s: %zu x %zu at %zu,%zu", level, rows, cols,
                           i, j);
                }
        }
}

TEST(vec_low_rank_sums_in_order) { each_level(low_rank); }

static void elementwise(const qm_vec *v, const char *level)
{
    float x[67], y[67], z[67];
    uint32_t s = 5;
    for (size_t n = 0; n <= 67; n++) {
        for (size_t i = 0; i < 67; i++)
            x[i] = z[i] = noise(&s), y[i] = noise(&s);
        v->add(z, y, n);
        for (size_t i = 0; i < 67; i++)
            CHECKF(z[i] == (i < n ? x[i] + y[i] : x[i]), "%s: add, %zu of %zu", level, i, n);
        memcpy(z, x, sizeof z);
        v->scale(z, 0.7f, n);
        for (size_t i = 0; i < 67; i++)
            CHECKF(z[i] == (i < n ? 0.7f * x[i] : x[i]), "%s: scale, %zu of %zu", level, i, n);
    }
}

TEST(vec_adds_and_scales) { each_level(elementwise); }

static double total(const float *x, const float *y, size_t n, double (*term)(double, double))
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += term(x[i], y[i]);
    return s;
}

static double term_xx(double x, double y) { return (void)y, x * x; }
static double term_yy(double x, double y) { return (void)x, y * y; }
static double term_xy(double x, double y) { return x * y; }
static double term_dd(double x, double y) { return (y - x) * (y - x); }
static double term_d(double x, double y) { return y - x; }
static double term_y(double x, double y) { return (void)x, y; }
static double term_abs_d(double x, double y) { return fabs(y - x); }

static bool about(double a, double b, double scale) { return fabs(a - b) <= 1e-6 * fabs(scale); }

/* Against plain sums in double, and against the scalar level bit for bit; scale takes the values to where
 * their squares leave f32's range. */
static void sums_scaled(const qm_vec *v, const char *level, float scale)
{
    float x[333], y[333];
    uint32_t s = 11;
    for (size_t i = 0; i < 333; i++)
        x[i] = scale * noise(&s), y[i] = x[i] + scale * 0.01f * noise(&s);
    for (size_t n = 0; n <= 333; n += n < 70 ? 1 : 37) {
        qm_errsum e = {0}, plain = {0};
        float max_x = 0, max_d = 0;
        for (size_t i = 0; i < n; i++) {
            max_x = fmaxf(max_x, fabsf(x[i]));
            max_d = fmaxf(max_d, fabsf(y[i] - x[i]));
        }
        v->errors(x, y, n, &e);
        qm_vec_scalar.errors(x, y, n, &plain);
        CHECKF(memcmp(&e, &plain, sizeof e) == 0, "%s: %zu values of about %g", level, n, (double)scale);
        CHECKF(e.n == n && e.max_x == (double)max_x && e.max_d == (double)max_d, "%s: %zu", level, n);
        double xx = total(x, y, n, term_xx), dd = total(x, y, n, term_dd);
        CHECKF(about(e.sum_xx, xx, xx) && about(e.sum_dd, dd, dd)
                   && about(e.sum_yy, total(x, y, n, term_yy), xx)
                   && about(e.sum_xy, total(x, y, n, term_xy), xx)
                   && about(e.sum_d, total(x, y, n, term_d), total(x, y, n, term_abs_d)),
               "%s: %zu values of about %g", level, n, (double)scale);
        qm_errsum twice = e;
        v->errors(x, y, n, &twice);
        CHECK(twice.n == 2 * n && twice.sum_dd == 2 * e.sum_dd && twice.max_d == e.max_d);
    }
}

static void sums(const qm_vec *v, const char *level)
{
    const float scales[] = {1, 0.02f, 1e-14f, 1e-25f, 1e-38f, 1e20f, 1e38f};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        sums_scaled(v, level, scales[i]);
}

TEST(vec_errors_are_summed_in_a_fixed_order) { each_level(sums); }

static void groups(const qm_vec *v, const char *level)
{
    float x[300], y[300];
    uint32_t s = 5;
    for (size_t i = 0; i < 300; i++)
        x[i] = noise(&s), y[i] = x[i] + 0.1f * noise(&s);
    qm_groupsum got[5], plain[5];
    v->group_sums(x, y, 300, 64, got);
    qm_vec_scalar.group_sums(x, y, 300, 64, plain);
    CHECKF(memcmp(got, plain, sizeof got) == 0, "%s", level);
    for (size_t g = 0; g < 5; g++) {
        size_t n = g < 4 ? 64 : 300 - 4 * 64;
        const float *a = x + 64 * g, *b = y + 64 * g;
        double yy = total(a, b, n, term_yy);
        CHECKF(about(got[g].yy, yy, yy) && about(got[g].yd, yy - total(a, b, n, term_xy), yy)
                   && about(got[g].y, total(a, b, n, term_y), sqrt(yy * (double)n)),
               "%s: group %zu", level, g);
    }
}

TEST(vec_sums_groups) { each_level(groups); }
