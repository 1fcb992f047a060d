/* vec.c: see vec.h.  Plain loops that the compiler vectorises; the Makefile compiles this file once
 * for any machine and once each with QM_LEVEL=avx2 and QM_LEVEL=avx512. */
#include <string.h>

#include "cpu.h"
#include "half.h"
#include "vec.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

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

/* F16C agrees with half.h on everything but the bits of a NaN; eight values with one among them
 * take the long way. */
#ifdef __F16C__
static bool any_nan(__m256 x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0; }

static void f16_to_f32(const void *src, float *dst, size_t n)
{
    const uint8_t *s = src;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 2 * i)));
        if (any_nan(x))
            f16_to_f32_each(s + 2 * i, dst + i, 8);
        else
            _mm256_storeu_ps(dst + i, x);
    }
    f16_to_f32_each(s + 2 * i, dst + i, n - i);
}

static void f32_to_f16(const float *src, void *dst, size_t n)
{
    uint8_t *d = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 x = _mm256_loadu_ps(src + i);
        if (any_nan(x))
            f32_to_f16_each(src + i, d + 2 * i, 8);
        else
            _mm_storeu_si128((__m128i *)(d + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
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

/* A tile of TILE columns, ROWS rows at a time: the sums stay in registers while k runs, and each
 * load of `right` serves all rows. */
#define TILE 16
#define ROWS 4

static inline void tile(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                        float *delta, size_t rows, size_t cols, size_t width)
{
    float sum[ROWS][TILE] = {0};
    for (size_t k = 0; k < rank; k++)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < width; j++)
                sum[i][j] += left[i * left_stride + k] * right[k * cols + j];
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < width; j++)
            delta[i * cols + j] = scale * sum[i][j];
}

static void low_rank(const float *left, size_t left_stride, const float *right, size_t rank, float scale,
                     float *delta, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += ROWS) {
        size_t nrow = rows - i < ROWS ? rows - i : ROWS;
        const float *l = left + i * left_stride;
        for (size_t j = 0; j < cols; j += TILE) {
            float *d = delta + i * cols + j;
            size_t width = cols - j < TILE ? cols - j : TILE;
            if (nrow == ROWS && width == TILE)
                tile(l, left_stride, right + j, rank, scale, d, ROWS, cols, TILE);
            else
                tile(l, left_stride, right + j, rank, scale, d, nrow, cols, width);
        }
    }
}

/* ---- errors ------------------------------------------------------------------------------------- */

/* Value i goes into partial sum i % LANES. */
#define LANES 8

typedef struct partial {
    double xx[LANES], yy[LANES], xy[LANES], dd[LANES], d[LANES], max_d[LANES], max_x[LANES];
} partial;

static inline void accumulate(partial *p, const float *x, const float *y, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        double a = x[j], b = y[j], d = b - a;
        double far = d < 0 ? -d : d, big = a < 0 ? -a : a;
        p->xx[j] += a * a;
        p->yy[j] += b * b;
        p->xy[j] += a * b;
        p->dd[j] += d * d;
        p->d[j] += d;
        p->max_d[j] = far > p->max_d[j] ? far : p->max_d[j];
        p->max_x[j] = big > p->max_x[j] ? big : p->max_x[j];
    }
}

static double fold(const double s[LANES])
{
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static double largest(const double s[LANES])
{
    double m = 0;
    for (size_t j = 0; j < LANES; j++)
        m = s[j] > m ? s[j] : m;
    return m;
}

static void errors(const float *x, const float *y, size_t n, qm_errsum *sum)
{
    partial p = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        accumulate(&p, x + i, y + i, LANES);
    accumulate(&p, x + i, y + i, n - i);
    qm_errsum run = {.sum_xx = fold(p.xx),
                     .sum_yy = fold(p.yy),
                     .sum_xy = fold(p.xy),
                     .sum_dd = fold(p.dd),
                     .sum_d = fold(p.d),
                     .max_d = largest(p.max_d),
                     .max_x = largest(p.max_x),
                     .n = n};
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
