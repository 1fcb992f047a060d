/* lanes.c: see lanes.h.  Plain loops that the compiler vectorises; the Makefile compiles this file once for
 * any machine and once each with QM_LEVEL=avx2 and QM_LEVEL=avx512. */
#include "lanes.h"

#include <math.h>

#include "cpu.h"
#include "half.h"

#ifndef QM_LEVEL
#define QM_LEVEL scalar
#define QM_LEVEL_IS_SCALAR
#endif
#define PASTE(a, b)  a##b
#define NAMED(level) PASTE(qm_lanes_, level)

enum { LANES = 16 };

static float fold(float *lane)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static float dot(const float *x, const float *y, size_t n)
{
    float lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += x[i + (size_t)j] * y[i + (size_t)j];
    for (int j = 0; i < n; i++, j++)
        lane[j] += x[i] * y[i];
    return fold(lane);
}

static void axpy(float *restrict y, float a, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* Sixteen values, which the compiler cuts into what registers hold. */
typedef float sixteen __attribute__((vector_size(64), aligned(4), may_alias));

static void against(const float *q, const float *columns, size_t dim, float scale, float *y)
{
    sixteen a = {0}, b = {0}, c = {0}, d = {0}, *to = (sixteen *)(void *)y;
    for (size_t i = 0; i < dim; i++) {
        const sixteen *x = (const sixteen *)(const void *)(columns + i * QM_LANES_RUN);
        a += q[i] * x[0];
        b += q[i] * x[1];
        c += q[i] * x[2];
        d += q[i] * x[3];
    }
    to[0] = a * scale;
    to[1] = b * scale;
    to[2] = c * scale;
    to[3] = d * scale;
}

static void mix(float *y, const float *weight, const float *rows, size_t n, size_t dim)
{
    size_t i = 0;
    for (; i + 64 <= dim; i += 64) {
        sixteen *to = (sixteen *)(void *)(y + i);
        sixteen a = to[0], b = to[1], c = to[2], d = to[3];
        for (size_t p = 0; p < n; p++) {
            const sixteen *x = (const sixteen *)(const void *)(rows + p * dim + i);
            a += weight[p] * x[0];
            b += weight[p] * x[1];
            c += weight[p] * x[2];
            d += weight[p] * x[3];
        }
        to[0] = a;
        to[1] = b;
        to[2] = c;
        to[3] = d;
    }
    for (size_t p = 0; p < n && i < dim; p++)
        for (size_t k = i; k < dim; k++)
            y[k] += weight[p] * rows[p * dim + k];
}

static float largest(const float *x, size_t n)
{
    float most = -INFINITY;
    for (size_t i = 0; i < n; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* e^x to 2 units in the last place: e^x = 2^k e^r with |r| <= ln 2 / 2, and Taylor's polynomial for e^r.
 * Adding 1.5 * 2^23 rounds to a whole number, which then stands in the low bits. */
static inline float exp_of(float x)
{
    float in = x > 89.0f ? 89.0f : x;
    in = in < -104.0f ? -104.0f : in;
    float magic = 0x1.8p23f, shifted = in * 0x1.715476p0f + magic, k = shifted - magic;
    float r = (in - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    float p = 0x1.6c16c2p-10f;
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    /* 2^k in two factors: k reaches from -150 to 128, beyond what one f32 holds */
    int32_t whole = (int32_t)(qm_f32_bits(shifted) - 0x4b400000u), half = whole >> 1;
    return p * qm_bits_f32((uint32_t)(half + 127) << 23) * qm_bits_f32((uint32_t)(whole - half + 127) << 23);
}

static inline float tanh_of(float x) { return 1 - 2 / (exp_of(2 * x) + 1); }
static inline float silu_of(float x) { return x / (1 + exp_of(-x)); }

/* Hendrycks and Gimpel, the approximation: sqrt(2 / pi) and its cubic term. */
static inline float gelu_tanh_of(float x)
{
    return 0.5f * x * (1 + tanh_of(0x1.988454p-1f * (x + 0.044715f * x * x * x)));
}

static double exp_sum(const float *x, float most, float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n;) {
        float lane[LANES] = {0};
        size_t end = n - i > 4096 ? i + 4096 : n;
        for (; i + LANES <= end; i += LANES)
            for (int j = 0; j < LANES; j++) {
                float v = exp_of(x[i + (size_t)j] - most);
                y[i + (size_t)j] = v;
                lane[j] += v;
            }
        for (int j = 0; i < end; i++, j++)
            lane[j] += y[i] = exp_of(x[i] - most);
        sum += (double)fold(lane);
    }
    return sum;
}

static void rmsnorm(const float *x, const float *w, float add, float eps, float *y, size_t n)
{
    float r = 1 / sqrtf(dot(x, x, n) / (float)n + eps);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * r * (w[i] + add);
}

static void add(const float *x, const float *y, float *z, size_t n)
{
    for (size_t i = 0; i < n; i++)
        z[i] = x[i] + y[i];
}

static void mul(const float *x, const float *y, float *z, size_t n)
{
    for (size_t i = 0; i < n; i++)
        z[i] = x[i] * y[i];
}

static void scale(const float *x, float s, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * s;
}

static void softcap(const float *x, float c, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = c * tanh_of(x[i] / c);
}

static void silu(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = silu_of(x[i]);
}

static void gelu_tanh(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = gelu_tanh_of(x[i]);
}

static void silu_mul(const float *x, const float *u, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = silu_of(x[i]) * u[i];
}

static void gelu_tanh_mul(const float *x, const float *u, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = gelu_tanh_of(x[i]) * u[i];
}

extern const qm_lanes NAMED(QM_LEVEL);
const qm_lanes NAMED(QM_LEVEL) = {
    .dot = dot,
    .axpy = axpy,
    .against = against,
    .mix = mix,
    .largest = largest,
    .exp_sum = exp_sum,
    .rmsnorm = rmsnorm,
    .add = add,
    .mul = mul,
    .scale = scale,
    .softcap = softcap,
    .silu = silu,
    .gelu_tanh = gelu_tanh,
    .silu_mul = silu_mul,
    .gelu_tanh_mul = gelu_tanh_mul,
};

#ifdef QM_LEVEL_IS_SCALAR
const qm_lanes *qm_lanes_get(void)
{
    static const qm_lanes *const level[QM_SIMD_COUNT] = {&qm_lanes_scalar, &qm_lanes_avx2, &qm_lanes_avx512};
    return level[qm_cpu_simd()];
}
#endif
