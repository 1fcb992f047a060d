/* families.h: values that break things: what tests of number formats run through, the same every time. */
#ifndef QM_FAMILIES_H
#define QM_FAMILIES_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "../../core/half.h"

static uint32_t state;

static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float uniform(void) { return (float)next() * 0x1p-23f - 1.0f; }
static float normal(void) { return uniform() + uniform() + uniform() + uniform(); }
static float power_of_two(int low, int high)
{
    return ldexpf(1, low + (int)(next() % (uint32_t)(high - low)));
}

static float plain(void) { return 0.02f * normal(); }
static float half(void) { return qm_f16_to_f32(qm_f32_to_f16(plain())); }
static float zero(void) { return 0.0f; }
static float minus_zero(void) { return next() % 2 ? -0.0f : 0.0f; }
static float constant(void) { return -0.75f; }
static float positive(void) { return fabsf(normal()); }
static float ties(void) { return (float)((int)(next() % 511) - 255) / 254.0f * 0.5f; }
static float integers(void) { return (float)((int)(next() % 17) - 8); }
static float ternary(void) { return (float)((int)(next() % 3) - 1); }
static float sparse(void) { return next() % 50 ? 0.0f : normal(); }
static float outlier(void) { return next() % 200 ? plain() : 1000.0f * plain(); }
static float subnormal(void) { return ldexpf(normal(), -135); }
static float half_subnormal(void) { return ldexpf(normal(), -127); }
static float tiny(void) { return ldexpf(normal(), -48); }
static float huge(void) { return ldexpf(normal(), 125); }
static float beyond_half(void) { return 70000.0f * normal(); }
static float any_size(void) { return normal() * power_of_two(-140, 120); }
static float moderate(void) { return normal() * power_of_two(-30, 10); }
static float dust(void) { return next() % 3 ? normal() * power_of_two(-150, -60) : normal(); }
static float light_dust(void) { return ldexpf(normal(), next() % 3 ? -128 : -50); }
static float heavy_dust(void)
{
    return next() % 3 ? normal() * power_of_two(-150, -60) : ldexpf(normal(), 50);
}
static float some_inf(void) { return next() % 100 ? normal() : next() % 2 ? INFINITY : -INFINITY; }
static float some_nan(void) { return next() % 100 ? normal() : NAN; }
static float nans(void) { return NAN; }
static float any_bits(void) { return qm_bits_f32(next() << 8 ^ next()); }

typedef struct family {
    const char *name;
    float (*value)(void);
    bool ordinary; /* the format's bound is promised */
} family;

static const family families[] = {
    {"plain", plain, true},
    {"half", half, true},
    {"zero", zero, true},
    {"minus_zero", minus_zero, true},
    {"constant", constant, true},
    {"positive", positive, true},
    {"ties", ties, true},
    {"integers", integers, true},
    {"ternary", ternary, true},
    {"sparse", sparse, true},
    {"outlier", outlier, true},
    {"subnormal", subnormal, false},
    {"half_subnormal", half_subnormal, false},
    {"tiny", tiny, false},
    {"huge", huge, false},
    {"beyond_half", beyond_half, false},
    {"any_size", any_size, false},
    {"moderate", moderate, false},
    {"dust", dust, true},
    {"light_dust", light_dust, false},
    {"heavy_dust", heavy_dust, false},
    {"some_inf", some_inf, false},
    {"some_nan", some_nan, false},
    {"nans", nans, false},
    {"any_bits", any_bits, false},
};
enum { FAMILIES = sizeof families / sizeof *families };

static void fill(const family *v, float *x, size_t n)
{
    state = 2024;
    for (size_t i = 0; i < n; i++)
        x[i] = v->value();
}

#endif
