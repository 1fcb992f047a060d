/* ggml_test.c: the GGUF block formats against ggml's own bytes (ggml_vectors.h), at every level of SIMD, and
 * the one place where ggml's bytes depend on the C library. */
#include <math.h>
#include <stdlib.h>

#include "../../core/cpu.h"
#include "../../core/format.h"
#include "../../core/formats/mxfp4.h"
#include "ggml_vectors.h"
#include "sha256.h"
#include "test.h"

enum { ROWS = 8, COLS = 1024, COUNT = ROWS * COLS };

/* ---- the values of tests/peers/ggml_vectors.py --------------------------------------------------- */

static uint32_t state;

static uint32_t next(void) { return state = state * 1664525u + 1013904223u; }
static uint32_t below(uint32_t n) { return (next() >> 8) % n; }

static float normal(void)
{
    int32_t sum = -(1 << 23);
    for (int i = 0; i < 4; i++)
        sum += (int32_t)(next() >> 10);
    return (float)sum * 0x1p-28f;
}

static float power_of_two(int n) { return ldexpf(1, n); }

static float heavy(void)
{
    uint32_t bits = next() >> 8 | 1u << 12; /* twelve zeros at most */
    return normal() * power_of_two(__builtin_ctz(bits));
}

static float value(const char *family, int i, float *held)
{
#define IS(name) (strcmp(family, name) == 0)
    if (IS("normal") || IS("bf16"))
        return normal();
    if (IS("heavy"))
        return heavy();
    if (IS("zeros"))
        return i % 3 ? 0.0f : -0.0f;
    if (IS("constant"))
        return *held = i % 32 ? *held : normal();
    if (IS("tiny"))
        return normal() * 0x1p-44f;
    if (IS("subnormal"))
        return normal() * 0x1p-122f;
    if (IS("huge"))
        return normal() * 0x1p40f;
    if (IS("positive"))
        return fabsf(normal());
    if (IS("negative"))
        return -fabsf(normal()) - 0x1p-4f;
    if (IS("sparse"))
        return below(20) ? 0.0f : normal();
    if (IS("integers"))
        return (float)((int)below(17) - 8);
    if (IS("ternary"))
        return (float)((int)below(3) - 1);
    *held = i % 16 ? *held : power_of_two((int)below(64) - 40); /* wild */
    return normal() * *held;
#undef IS
}

static void fill(const char *family, float *x)
{
    float held = 0;
    state = 12345;
    for (int i = 0; i < COUNT; i++)
        x[i] = value(family, i, &held);
    for (int i = 0; i < COUNT && strcmp(family, "bf16") == 0; i++)
        x[i] = qm_bf16_to_f32(qm_f32_to_bf16(x[i]));
}

static void fill_importance(float *w)
{
    state = 54321;
    for (int i = 0; i < COLS; i++) {
        float root = i % 7 ? (float)((next() >> 20) + 1) : 0;
        w[i] = root * root * 0x1p-24f;
    }
}

static bool digest_is(const void *data, size_t n, const char *first16)
{
    return strncmp(sha256(data, n), first16, 16) == 0;
}

TEST(ggml_values_are_those_the_goldens_were_made_from)
{
    float *x = malloc(sizeof *x * COUNT), importance[COLS];
    for (size_t i = 0; i < sizeof ggml_values / sizeof *ggml_values; i++) {
        fill(ggml_values[i].family, x);
        CHECKF(digest_is(x, sizeof *x * COUNT, ggml_values[i].digest), "%s", ggml_values[i].family);
    }
    fill_importance(importance);
    CHECK(digest_is(importance, sizeof importance, GGML_IMPORTANCE));
    free(x);
}

/* ---- blocks -------------------------------------------------------------------------------------- */

static void check_vector(size_t v, const float *x, const float *importance, uint8_t *blocks, float *y)
{
    const qm_format *f = qm_format_find(ggml_vectors[v].format);
    const char *level = qm_simd_names[qm_cpu_simd()], *family = ggml_vectors[v].family;
    qm_codec c = {.block = f->block};
    size_t size = qm_plane_size(f, &c, 0, COUNT);
    qm_encode(f, x, COUNT, &c, &blocks);
    CHECKF(digest_is(blocks, size, ggml_vectors[v].blocks), "%s: blocks of %s, %s", level, f->name, family);
    qm_decode(f, (const uint8_t *const *)&blocks, COUNT, &c, y);
    for (int i = 0; i < COUNT; i++)
        y[i] = isnan(y[i]) ? qm_bits_f32(0x7fc00000) : y[i];
    CHECKF(digest_is(y, sizeof *y * COUNT, ggml_vectors[v].decoded), "%s: decoded %s, %s", level, f->name,
           family);
    c.importance = importance;
    c.cols = COLS;
    qm_encode(f, x, COUNT, &c, &blocks);
    CHECKF(digest_is(blocks, size, ggml_vectors[v].important), "%s: important blocks of %s, %s", level,
           f->name, family);
}

TEST(ggml_blocks_are_ggmls)
{
    float *x = malloc(sizeof *x * COUNT), *y = malloc(sizeof *y * COUNT), importance[COLS];
    uint8_t *blocks = malloc(2 * COUNT);
    qm_simd highest = qm_cpu_simd();
    fill_importance(importance);
    for (size_t v = 0; v < sizeof ggml_vectors / sizeof *ggml_vectors; v++) {
        fill(ggml_vectors[v].family, x);
        for (qm_simd level = QM_SCALAR; level <= highest; level++) {
            qm_cpu_limit(level);
            check_vector(v, x, importance, blocks, y);
        }
        qm_cpu_limit(highest);
    }
    free(x);
    free(y);
    free(blocks);
}

/* ---- mxfp4's exponent ---------------------------------------------------------------------------- */

static void check_log2(uint32_t bits)
{
    float x = qm_bits_f32(bits);
    CHECKF(qm_mxfp4_floor_log2(x) == (int)floorf(log2f(x)), "%a", (double)x);
}

/* Every float near a power of two, where rounding decides, all of one binade, and some from everywhere.  (All
 * 2^31 were compared once, with glibc 2.36: no difference.) */
TEST(ggml_mxfp4_exponent_is_that_of_log2f)
{
    for (int exponent = 0; exponent < 255; exponent++)
        for (int step = -300; step <= 300; step++) {
            int64_t bits = ((int64_t)exponent << 23) + step;
            if (bits > 0 && bits < 0x7f800000)
                check_log2((uint32_t)bits);
        }
    for (int exponent = 1; exponent < 23; exponent++) /* powers of two among subnormals */
        for (int step = -100; step <= 100; step++)
            if ((1 << exponent) + step > 0)
                check_log2((uint32_t)((1 << exponent) + step));
    for (uint32_t mantissa = 0; mantissa < 1u << 23; mantissa += 7)
        check_log2(0x3f800000u | mantissa);
    for (uint32_t bits = 1; bits < 0x7f800000u; bits += 10007)
        check_log2(bits);
}
