/* random.c: see random.h. */
#include "random.h"

#include <math.h>

#include "draw.h"

double qm_random_uniform(uint64_t seed, uint64_t i)
{
    return ((double)(qm_random_bits(seed, i) >> 11) + 0.5) * (1.0 / 9007199254740992.0);
}

/* ln(x) for x > 0: x = m 2^k with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)) as a series
 * whose terms fall below 1e-18 before the tenth. */
static double natural_log(double x)
{
    int k;
    double m = frexp(x, &k); /* exact */
    if (m < 0.70710678118654752) {
        m *= 2;
        k--;
    }
    double t = (m - 1) / (m + 1), t2 = t * t, sum = 0;
    for (int j = 21; j >= 1; j -= 2)
        sum = sum * t2 + 1.0 / j;
    return 2 * t * sum + k * 0.69314718055994531;
}

static double horner(const double *c, int n, double x)
{
    double v = c[0];
    for (int i = 1; i < n; i++)
        v = v * x + c[i];
    return v;
}

/* Inverse of the normal distribution: P. J. Acklam's rational approximation (2003), relative error below
 * 1.2e-9, far under an f32's step. */
static double inverse_normal(double p)
{
    static const double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                               1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
    static const double b[] = {-5.447609879822406e+01, 1.615858368580409e+02,  -1.556989798598866e+02,
                               6.680131188771972e+01,  -1.328068155288572e+01, 1};
    static const double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                               -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
    static const double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                               3.754408661907416e+00, 1};
    const double tail = 0.02425;
    if (p < tail || p > 1 - tail) {
        double q = sqrt(-2 * natural_log(p < tail ? p : 1 - p));
        double v = horner(c, 6, q) / horner(d, 5, q);
        return p < tail ? v : -v;
    }
    double q = p - 0.5, r = q * q;
    return horner(a, 6, r) * q / horner(b, 6, r);
}

double qm_random_normal(uint64_t seed, uint64_t i) { return inverse_normal(qm_random_uniform(seed, i)); }

void qm_random_fill_normal(float *dst, size_t n, uint64_t seed, uint64_t first, double mean, double std)
{
    for (size_t k = 0; k < n; k++)
        dst[k] = (float)(mean + std * qm_random_normal(seed, first + k));
}

void qm_random_fill_uniform(float *dst, size_t n, uint64_t seed, uint64_t first, double low, double high)
{
    for (size_t k = 0; k < n; k++)
        dst[k] = (float)(low + (high - low) * qm_random_uniform(seed, first + k));
}

void qm_random_fill_student(float *dst, size_t n, uint64_t seed, uint64_t first, int freedom, double scale)
{
    for (size_t k = 0; k < n; k++) {
        uint64_t base = (first + k) * (uint64_t)(freedom + 1);
        double chi = 0;
        for (int j = 1; j <= freedom; j++) {
            double z = qm_random_normal(seed, base + (uint64_t)j);
            chi += z * z;
        }
        dst[k] = (float)(scale * qm_random_normal(seed, base) / sqrt(chi / freedom));
    }
}

void qm_random_fill_bf16(uint16_t *dst, size_t n, uint64_t seed, uint64_t first, float std)
{
    /* four uniforms on 0..65535: mean 131070, variance 4 * (65536^2 - 1) / 12 */
    float scale = std / 37837.2271f;
    for (size_t k = 0; k < n; k++) {
        uint64_t z = qm_random_bits(seed, first + k);
        int sum = (int)(z & 0xffff) + (int)((z >> 16) & 0xffff) + (int)((z >> 32) & 0xffff) + (int)(z >> 48);
        dst[k] = qm_f32_to_bf16((float)(sum - 131070) * scale);
    }
}
