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

static void codes_to_f32(const int8_t *code, const void *scale, float *dst, size_t n)
{
    const uint8_t *s = scale;
    for (size_t i = 0; i < n; i += 32, s += 2) {
        uint16_t h;
        memcpy(&h, s, 2);
        float d = qm_f16_to_f32(h);
        for (size_t k = 0; k < 32; k++)
            dst[i + k] = (float)code[i + k] * d;
    }
}

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

/* ---- errors -------------------------------------------------------------------------------------

 * Runs of up to 256 values are summed in f32, in 16 lanes, and then added to 16 lanes of doubles: the
 relative error of a run is
 * some 1e-7, without direction.  A run whose squares might leave f32's range is summed in double throughout.
 Which way a run
 * goes, and the order of every sum, depend on the values alone, so all levels give the same bits.
 *
 * With d = y - x, what is summed is x*x, x*d, d*d and d; x*y and y*y follow. */
enum { LANES = 16, RUN = 256, REGISTERS = LANES / WIDTH, HALVES = 2 * REGISTERS };
typedef int32_t ints __attribute__((vector_size(4 * WIDTH), may_alias));
typedef float half_floats __attribute__((vector_size(2 * WIDTH)));
typedef float quad __attribute__((vector_size(16)));
typedef double doubles __attribute__((vector_size(4 * WIDTH), may_alias));

typedef struct sums {
    doubles xx[HALVES], xd[HALVES], dd[HALVES], d[HALVES];
    ints max_x[REGISTERS], max_d[REGISTERS]; /* magnitudes as integers, which orders them */
} sums;

static inline ints larger(ints a, ints b)
{
    ints above = a > b;
    return (a & above) | (b & ~above);
}

static inline void widen(doubles sum[2], floats part)
{
    half_floats half[2];
    memcpy(half, &part, sizeof half);
    sum[0] += __builtin_convertvector(half[0], doubles);
    sum[1] += __builtin_convertvector(half[1], doubles);
}

/* All ones where squares of values of this magnitude, and of smaller ones that matter beside it, may not be
 * f32s. */
static inline ints wild(ints magnitude)
{
    const int32_t low = 0x26800000, high = 0x5d800000; /* 2^-50, 2^60 */
    return (magnitude > high) | ((magnitude < low) & (magnitude != 0));
}

static bool any(const ints *flags)
{
    uint64_t word[LANES / 2], all = 0;
    memcpy(word, flags, sizeof word);
    for (int i = 0; i < LANES / 2; i++)
        all |= word[i];
    return all != 0;
}

/* n values, a multiple of LANES, RUN at most.  False, and nothing added, when they need care. */
static inline bool add_run(sums *s, const float *x, const float *y, size_t n)
{
    floats xx[REGISTERS] = {0}, xd[REGISTERS] = {0}, dd[REGISTERS] = {0}, d[REGISTERS] = {0};
    ints max_x[REGISTERS] = {0}, max_d[REGISTERS] = {0}, flags[REGISTERS];
    for (size_t i = 0; i < n; i += LANES)
        for (int v = 0; v < REGISTERS; v++) {
            floats a = *(const floats *)(x + i + v * WIDTH), b = *(const floats *)(y + i + v * WIDTH) - a;
            xx[v] += a * a;
            xd[v] += a * b;
            dd[v] += b * b;
            d[v] += b;
            max_x[v] = larger(max_x[v], (ints)a & 0x7fffffff);
            max_d[v] = larger(max_d[v], (ints)b & 0x7fffffff);
        }
    for (int v = 0; v < REGISTERS; v++)
        flags[v] = wild(max_x[v]) | wild(max_d[v]);
    if (any(flags))
        return false;
    for (int v = 0; v < REGISTERS; v++) {
        widen(s->xx + 2 * v, xx[v]);
        widen(s->xd + 2 * v, xd[v]);
        widen(s->dd + 2 * v, dd[v]);
        widen(s->d + 2 * v, d[v]);
        s->max_x[v] = larger(s->max_x[v], max_x[v]);
        s->max_d[v] = larger(s->max_d[v], max_d[v]);
    }
    return true;
}

static int32_t magnitude(float x) { return (int32_t)(qm_f32_bits(x) & 0x7fffffffu); }

static void add_carefully(sums *s, const float *x, const float *y, size_t n)
{
    double *xx = (double *)s->xx, *xd = (double *)s->xd, *dd = (double *)s->dd, *d = (double *)s->d;
    int32_t *max_x = (int32_t *)s->max_x, *max_d = (int32_t *)s->max_d;
    for (size_t i = 0; i < n; i++) {
        size_t lane = i % LANES;
        double a = (double)x[i], b = (double)y[i] - a;
        int32_t mx = magnitude(x[i]), md = magnitude(y[i] - x[i]);
        xx[lane] += a * a;
        xd[lane] += a * b;
        dd[lane] += b * b;
        d[lane] += b;
        max_x[lane] = mx > max_x[lane] ? mx : max_x[lane];
        max_d[lane] = md > max_d[lane] ? md : max_d[lane];
    }
}

static double fold(const doubles *part)
{
    double lane[LANES], sum = 0;
    memcpy(lane, part, sizeof lane);
    for (int i = 0; i < LANES; i++)
        sum += lane[i];
    return sum;
}

static double largest(const ints *part)
{
    int32_t lane[LANES], most = 0;
    memcpy(lane, part, sizeof lane);
    for (int i = 0; i < LANES; i++)
        most = lane[i] > most ? lane[i] : most;
    return (double)qm_bits_f32((uint32_t)most);
}

static void errors(const float *x, const float *y, size_t n, qm_errsum *sum)
{
    sums s = {0};
    for (size_t i = 0, run; i < n; i += run) {
        run = n - i < RUN ? (n - i) / LANES * LANES : RUN;
        if (run == 0)
            run = n - i;
        else if (add_run(&s, x + i, y + i, run))
            continue;
        add_carefully(&s, x + i, y + i, run);
    }
    double xx = fold(s.xx), xd = fold(s.xd), dd = fold(s.dd);
    qm_errsum all = {.sum_xx = xx,
                     .sum_yy = xx + 2 * xd + dd,
                     .sum_xy = xx + xd,
                     .sum_dd = dd,
                     .sum_d = fold(s.d),
                     .max_x = largest(s.max_x),
                     .max_d = largest(s.max_d),
                     .n = n};
    qm_errsum_add(sum, &all);
}

/* ---- group sums ---------------------------------------------------------------------------------- */

/* Lane i and lane i + 8, then i and i + 4, i + 2, i + 1: the same tree whatever the registers hold. */
static inline float tree(const floats part[REGISTERS])
{
    quad q[LANES / 4];
    memcpy(q, part, sizeof q);
    quad sum = (q[0] + q[2]) + (q[1] + q[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

static inline qm_groupsum one_group(const float *x, const float *y, size_t n)
{
    floats a[REGISTERS] = {0}, b[REGISTERS] = {0}, c[REGISTERS] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int v = 0; v < REGISTERS; v++) {
            floats value = *(const floats *)(y + i + v * WIDTH),
                   d = value - *(const floats *)(x + i + v * WIDTH);
            a[v] += value * d;
            b[v] += value * value;
            c[v] += value;
        }
    for (; i < n; i++) { /* the short last group */
        size_t lane = i % LANES;
        a[lane / WIDTH][lane % WIDTH] += y[i] * (y[i] - x[i]);
        b[lane / WIDTH][lane % WIDTH] += y[i] * y[i];
        c[lane / WIDTH][lane % WIDTH] += y[i];
    }
    return (qm_groupsum){.yd = tree(a), .yy = tree(b), .y = tree(c)};
}

static void group_sums(const float *x, const float *y, size_t n, size_t block, qm_groupsum *group)
{
    for (size_t i = 0; i < n; i += block, group++)
        *group = one_group(x + i, y + i, n - i < block ? n - i : block);
}

/* ---- the table ---------------------------------------------------------------------------------- */

#ifndef QM_LEVEL
#define QM_LEVEL scalar
#define QM_LEVEL_IS_SCALAR
#endif

const qm_vec NAMED(QM_LEVEL) = {
    .f16_to_f32 = f16_to_f32,
    .bf16_to_f32 = bf16_to_f32,
    .codes_to_f32 = codes_to_f32,
    .f32_to_f16 = f32_to_f16,
    .f32_to_bf16 = f32_to_bf16,
    .round_f16 = round_f16,
    .round_bf16 = round_bf16,
    .first_nonfinite = first_nonfinite,
    .low_rank = low_rank,
    .add = add,
    .scale = scale_by,
    .errors = errors,
    .group_sums = group_sums,
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

static double larger_or_nan(double a, double b) { return a != a || a > b ? a : b; }

void qm_errsum_add(qm_errsum *into, const qm_errsum *from)
{
    into->sum_xx += from->sum_xx;
    into->sum_yy += from->sum_yy;
    into->sum_xy += from->sum_xy;
    into->sum_dd += from->sum_dd;
    into->sum_d += from->sum_d;
    into->max_d = larger_or_nan(into->max_d, from->max_d);
    into->max_x = larger_or_nan(into->max_x, from->max_x);
    into->n += from->n;
}
#endif
