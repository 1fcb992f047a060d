/* errors_test.c: error sums without materialising are those of the values decoded: whole runs and parts of one, of every
 * element type, and where f32 sums would overflow or vanish. */
#include <math.h>

#include "../../core/codebook.h"
#include "gpu.h"

enum { N = 3 * 65536 + 8192 + 32 * 7, COLS = 32 * 43 /* of int8 */ };

static uint32_t state = 5;

static float uniform(void)
{
    state = state * 1664525 + 1013904223;
    return (float)(int32_t)state * 0x1p-31f;
}

/* Values that are ordinary but for some tiles of one run: very small, nothing, large, unless that is too much for an f16
 * on the way; or with a NaN. */
static void fill(float *x, const qm_format *f, qm_dtype t, bool nan)
{
    static const char *const wide[] = {"nf4", "fp4", "int4", "uint4", "bf16", "f32"};
    bool by_f32 = false;
    for (size_t i = 0; i < sizeof wide / sizeof *wide && t != QM_F16; i++)
        by_f32 = by_f32 || strcmp(f->name, wide[i]) == 0;
    const float large = by_f32 ? 1e18f : 3e4f, small = t == QM_F16 ? 1e-7f : 1e-30f;
    for (size_t i = 0; i < N; i++) {
        const size_t tile = i / 4096;
        x[i] = 0.02f * uniform()
               * (tile == 17 || tile == 30 ? small
                  : tile == 19             ? 0
                  : tile == 23             ? large
                                           : 1);
    }
    if (nan)
        x[100000] = NAN;
}

static qm_errsum sums_of(const float *x, const float *y)
{
    qm_errsum s = {.n = N};
    for (size_t i = 0; i < N; i++) {
        double a = (double)x[i], d = (double)y[i] - a;
        s.sum_xx += a * a, s.sum_yy += (double)y[i] * (double)y[i], s.sum_xy += a * (double)y[i],
            s.sum_dd += d * d, s.sum_d += d;
        s.max_d = fmax(s.max_d, (double)fabsf(y[i] - x[i]));
        s.max_x = fmax(s.max_x, (double)fabsf(x[i]));
    }
    return s;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b)) || (isnan(a) && isnan(b));
}

static void check(const qm_format *f, uint32_t block, bool dq, qm_dtype t, bool nan)
{
    qm_codec codec = {.block = block, .table = f->table};
    qm_err e = {0};
    float *x = malloc(sizeof *x * N), *y = malloc(sizeof *y * N);
    fill(x, f, t, nan);
    void *elements = elements_of(t, x, N);
    values_of_elements(t, elements, N, x);
    planes p = planes_new(f, &codec, N);
    qm_cuda_coded c = coded_there(&p, &codec);
    void *far = gpu_copy_of(elements, N * (qm_dtypes[t].bits / 8)),
         *back = qm_cuda_alloc(gpu(), sizeof *y * N, &e);
    float *more = qm_cuda_alloc(gpu(), N, &e); /* nested scales, and at the end the offset */
    qm_errsum got = {0}, again = {0};
    c.double_quant = dq, c.nested = more, c.offset = 0.01f;
    bool ok = back && more
              && (dq ? qm_cuda_encode_double(gpu_stream(), far, t, N, &c, true, more + N / 4 - 1, &e)
                     : qm_cuda_encode(gpu_stream(), far, t, N, &c, &e))
              && qm_cuda_decode(gpu_stream(), &c, N, back, QM_F32, &e)
              && qm_cuda_errors(gpu_stream(), far, t, &c, N, &got, &e)
              && qm_cuda_errors(gpu_stream(), far, t, &c, N, &again, &e);
    CHECKF(ok, "%s: %s", f->name, e.msg);
    gpu_fetch(y, back, sizeof *y * N);
    qm_errsum want = sums_of(x, y);
    const char *type = qm_dtypes[t].name;
    CHECKF(memcmp(&got, &again, sizeof got) == 0, "%s of %s: not the same twice", f->name, type);
    CHECKF(near(got.sum_xx, want.sum_xx) && near(got.sum_dd, want.sum_dd)
               && (nan
                   || (near(got.sum_yy, want.sum_yy)
                       && near(got.sum_xy, want.sum_xy))), /* which follow from sums with x */
           "%s %u%s of %s: xx %.9g %.9g dd %.9g %.9g", f->name, block, dq ? " dq" : "", type, want.sum_xx,
           got.sum_xx, want.sum_dd, got.sum_dd);
    CHECKF(nan || fabs(got.sum_d - want.sum_d) <= 1e-6 * sqrt(want.sum_dd * N), "%s of %s: d %.9g %.9g",
           f->name, type, want.sum_d, got.sum_d);
    CHECKF(nan ? isnan(got.max_d) && isnan(got.max_x) : got.max_d == want.max_d && got.max_x == want.max_x,
           "%s %u%s of %s: largest %g %g, %g %g", f->name, block, dq ? " dq" : "", type, want.max_d,
           got.max_d, want.max_x, got.max_x);
    qm_cuda_free(gpu(), far), qm_cuda_free(gpu(), back), qm_cuda_free(gpu(), more);
    planes_free(&p);
    free(elements), free(x), free(y);
}

_Static_assert(N % COLS == 0, "whole rows");

TEST(gpu_adds_up_errors_of_whole_runs)
{
    static const struct {
        const char *name;
        uint32_t block;
    } cases[] = {{"nf4", 64},   {"nf4", 32},    {"nf4", 4096}, {"fp4", 128}, {"int4", 64},
                 {"uint4", 64}, {"int8", COLS}, {"q8_0", 32},  {"q4_0", 32}, {"q4_1", 32},
                 {"bf16", 1},   {"f32", 1},     {"f16", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t t = 0; t < 3; t++) {
            const qm_format *f = qm_format_find(cases[i].name);
            check(f, cases[i].block, false, value_types[t], false);
            if (strstr("nf4 fp4 int4", f->name))
                check(f, cases[i].block, true, value_types[t], false);
        }
    check(qm_format_find("nf4"), 64, false, QM_BF16, true);
    check(qm_format_find("q8_0"), 32, false, QM_F16, true);
    check(qm_format_find("bf16"), 1, false, QM_F32, true);
}
