/* vec.c: see vec.h.  Plain loops that the compiler vectorises; the Makefile compiles this file once
 * for any machine and once each with QM_LEVEL=avx2 and QM_LEVEL=avx512. */
#include <math.h>
#include <string.h>

#include "cpu.h"
#include "half.h"
#include "vec.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

/* One vector register, unaligned. */
#if defined __AVX512F__
#define WIDTH 16
#elif defined __AVX2__
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float half_floats __attribute__((vector_size(2 * WIDTH), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(4 * WIDTH)));

#define PASTE(a, b)  a##b
#define NAMED(level) PASTE(qm_vec_, level)

/* ---- 16-bit floats ------------------------------------------------------------------------------ */

static void f16_to_f32_each(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        dst[i] = qm_f16_to_f32(h);
    }
}

static void f32_to_f16_each(const float *src, uint8_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = qm_f32_to_f16(src[i]);
        memcpy(dst + 2 * i, &h, 2);
    }
}

/* F16C agrees with half.h on everything but the bits of a NaN; sixteen values with one among them
 * take the long way. */
#ifdef __F16C__
enum { RUN16 = 16 };

static bool any_nan(__m256 x, __m256 y) { return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) != 0; }

static void f16_to_f32(const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    size_t i = 0;
    for (; i + RUN16 <= n; i += RUN16) {
        __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 2 * i)));
        __m256 y = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 2 * i + 16)));
        _mm256_storeu_ps(dst + i, x);
        _mm256_storeu_ps(dst + i + 8, y);
        if (any_nan(x, y))
            f16_to_f32_each(s + 2 * i, dst + i, RUN16);
    }
    f16_to_f32_each(s + 2 * i, dst + i, n - i);
}

static void f32_to_f16(const float *src, void *dst, size_t n)
{
    uint8_t *d = dst;
    size_t i = 0;
    for (; i + RUN16 <= n; i += RUN16) {
        __m256 x = _mm256_loadu_ps(src + i), y = _mm256_loadu_ps(src + i + 8);
        _mm_storeu_si128((__m128i *)(d + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128((__m128i *)(d + 2 * i + 16), _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
        if (any_nan(x, y))
            f32_to_f16_each(src + i, d + 2 * i, RUN16);
    }
    f32_to_f16_each(src + i, d + 2 * i, n - i);
}
#else
static void f16_to_f32(const void *src, float *dst, size_t n) { f16_to_f32_each(src, dst, n); }
static void f32_to_f16(const float *src, void *dst, size_t n) { f32_to_f16_each(src, dst, n); }
#endif

static void bf16_to_f32(const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, 2);
        dst[i] = qm_bf16_to_f32(h);
    }
}

static void f32_to_bf16(const float *src, void *dst, size_t n)
{
    uint8_t *d = dst;
    for (size_t i = 0; i < n; i++) {
        uint16_t h = qm_f32_to_bf16(src[i]);
        memcpy(d + 2 * i, &h, 2);
    }
}

/* Through a small buffer, so that rounding is narrowing and widening and nothing else. */
#define ROUND_RUN 256

static void round_f16(float *x, size_t n)
{
    uint16_t h[ROUND_RUN];
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < ROUND_RUN ? n - i : ROUND_RUN;
        f32_to_f16(x + i, h, m);
        f16_to_f32(h, x + i, m);
    }
}

static void round_bf16(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = qm_bf16_to_f32(qm_f32_to_bf16(x[i]));
}

/* ---- looking, adding, multiplying --------------------------------------------------------------- */

static bool nonfinite(float x) { return (qm_f32_bits(x) & 0x7f800000u) == 0x7f800000u; }

static size_t first_nonfinite(const float *x, size_t n)
{
    enum { RUN = 64 };
    size_t i = 0;
    for (; i + RUN <= n; i += RUN) {
        uint32_t any = 0;
        for (size_t j = 0; j < RUN; j++)
            any |= nonfinite(x[i + j]);
        if (any)
            break;
    }
    while (i < n && !nonfinite(x[i]))
        i++;
    return i;
}

static void add(float *restrict x, const float *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void scale_by(float *x, float s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= s;
}

/* A tile of two registers' width, ROWS rows at a time: the sums stay in registers while k runs, and
 * each load of `right` serves all rows.  What is left over at the edges goes value by value. */
enum { ROWS = 4, VECTORS = 2, TILE = VECTORS * WIDTH };

/* a * b + c, rounded once: an instruction where there is one, and exact by fmaf where there is none. */
static inline floats multiply_add(float a, floats b, floats c)
{
#if defined __AVX512F__
    return (floats)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)c);
#elif defined __FMA__
    return (floats)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c);
#else
    for (int i = 0; i < WIDTH; i++)
        c[i] = fmaf(a, b[i], c[i]);
    return c;
#endif
}

static void tile(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                 float *delta, size_t cols)
{
    floats sum[ROWS][VECTORS] = {0};
    for (size_t k = 0; k < rank; k++)
        for (size_t i = 0; i < ROWS; i++)
            for (size_t j = 0; j < VECTORS; j++)
                sum[i][j] = multiply_add(left[i * left_stride + k],
                                         *(const floats *)(right + k * cols + j * WIDTH), sum[i][j]);
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < VECTORS; j++)
            *(floats *)(delta + i * cols + j * WIDTH) = scale * sum[i][j];
}

static void edge(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                 float *delta, size_t cols, size_t rows, size_t width)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < width; j++) {
            float sum = 0;
            for (size_t k = 0; k < rank; k++)
                sum = fmaf(left[i * left_stride + k], right[k * cols + j], sum);
            delta[i * cols + j] = scale * sum;
        }
}

static void low_rank(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                     float *delta, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += ROWS) {
        size_t height = rows - i < ROWS ? rows - i : ROWS;
        const float *l = left + i * left_stride;
        for (size_t j = 0; j < cols; j += TILE) {
            size_t width = cols - j < TILE ? cols - j : TILE;
            float *d = delta + i * cols + j;
            if (height == ROWS && width == TILE)
                tile(l, left_stride, right + j, rank, scale, d, cols);
            else
                edge(l, left_stride, right + j, rank, scale, d, cols, height, width);
        }
    }
}

/* ---- errors ------------------------------------------------------------------------------------- */

/* Value i goes into partial sum i % LANES, which is lane i % HALF of part i / HALF % PARTS. */
enum { LANES = 8, HALF = WIDTH / 2, PARTS = LANES / HALF };

typedef struct sums {
    doubles xx[PARTS], yy[PARTS], xy[PARTS], dd[PARTS], d[PARTS];
} sums;

static inline void accumulate(sums *s, const float *x, const float *y)
{
    for (size_t p = 0; p < PARTS; p++) {
        doubles a = __builtin_convertvector(*(const half_floats *)(x + p * HALF), doubles);
        doubles b = __builtin_convertvector(*(const half_floats *)(y + p * HALF), doubles);
        doubles d = b - a;
        s->xx[p] += a * a;
        s->yy[p] += b * b;
        s->xy[p] += a * b;
        s->dd[p] += d * d;
        s->d[p] += d;
    }
}

static double fold(const doubles part[PARTS])
{
    double s[LANES];
    memcpy(s, part, sizeof s);
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* Magnitudes are compared as integers, which orders them and lets the compiler use every lane. */
static uint32_t magnitude(float x) { return qm_f32_bits(x) & 0x7fffffffu; }

static void largest(const float *x, const float *y, size_t n, qm_errsum *run)
{
    uint32_t max_x = 0, max_d = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = magnitude(x[i]), d = magnitude(y[i] - x[i]);
        max_x = a > max_x ? a : max_x;
        max_d = d > max_d ? d : max_d;
    }
    run->max_x = qm_bits_f32(max_x);
    run->max_d = qm_bits_f32(max_d);
}

static void errors(const float *x, const float *y, size_t n, qm_errsum *sum)
{
    sums s = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        accumulate(&s, x + i, y + i);
    float rest_x[LANES] = {0}, rest_y[LANES] = {0}; /* zeros add nothing */
    memcpy(rest_x, x + i, sizeof *x * (n - i));
    memcpy(rest_y, y + i, sizeof *y * (n - i));
    accumulate(&s, rest_x, rest_y);
    qm_errsum run = {.sum_xx = fold(s.xx),
                     .sum_yy = fold(s.yy),
                     .sum_xy = fold(s.xy),
                     .sum_dd = fold(s.dd),
                     .sum_d = fold(s.d),
                     .n = n};
    largest(x, y, n, &run);
    qm_errsum_add(sum, &run);
}

/* ---- the table ---------------------------------------------------------------------------------- */

#ifndef QM_LEVEL
#define QM_LEVEL scalar
#define QM_LEVEL_IS_SCALAR
#endif

const qm_vec NAMED(QM_LEVEL) = {
    .f16_to_f32 = f16_to_f32,
    .bf16_to_f32 = bf16_to_f32,
    .f32_to_f16 = f32_to_f16,
    .f32_to_bf16 = f32_to_bf16,
    .round_f16 = round_f16,
    .round_bf16 = round_bf16,
    .first_nonfinite = first_nonfinite,
    .low_rank = low_rank,
    .add = add,
    .scale = scale_by,
    .errors = errors,
};

#ifdef QM_LEVEL_IS_SCALAR
const qm_vec *qm_vec_get(void)
{
    static const qm_vec *const level[QM_SIMD_COUNT] = {&qm_vec_scalar, &qm_vec_avx2, &qm_vec_avx512};
    return level[qm_cpu_simd()];
}

void qm_round_values(qm_round how, float *x, size_t n)
{
    if (how == QM_ROUND_F16)
        qm_vec_get()->round_f16(x, n);
    else if (how == QM_ROUND_BF16)
        qm_vec_get()->round_bf16(x, n);
}

void qm_errsum_add(qm_errsum *into, const qm_errsum *from)
{
    into->sum_xx += from->sum_xx;
    into->sum_yy += from->sum_yy;
    into->sum_xy += from->sum_xy;
    into->sum_dd += from->sum_dd;
    into->sum_d += from->sum_d;
    into->max_d = from->max_d > into->max_d ? from->max_d : into->max_d;
    into->max_x = from->max_x > into->max_x ? from->max_x : into->max_x;
    into->n += from->n;
}
#endif
