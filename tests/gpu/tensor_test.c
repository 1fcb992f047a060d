/* tensor_test.c: tensors on the GPU through core/tensor.h: copies, double quantisation, errors, codebooks, running
 * out of memory. */
#include <math.h>

#include "../../core/codebook.h"
#include "../../core/double_quant.h"
#include "../../core/random.h"
#include "../../core/tensor.h"
#include "gpu.h"

static qm_tensor *randoms(int64_t rows, int64_t cols)
{
    qm_err e = {0};
    float *v;
    qm_tensor *t = qm_tensor_f32(&(qm_shape){2, {rows, cols}}, &v, &e);
    CHECKF(t, "%s", e.msg);
    qm_random_fill_normal(v, (size_t)(rows * cols), 7, 0, 0, 0.02);
    return t;
}

static qm_tensor *there(const qm_tensor *t)
{
    qm_err e = {0};
    qm_tensor *r = qm_tensor_to(t, qm_cuda_device(gpu()), &e);
    CHECKF(r, "%s", e.msg);
    return r;
}

static qm_tensor *quantized(const qm_tensor *t, const char *format, const qm_quantize_options *o)
{
    qm_err e = {0};
    qm_tensor *r = qm_tensor_quantize(t, qm_format_find(format), o, &e);
    CHECKF(r, "%s", e.msg);
    return r;
}

/* All planes, and what else there is to a tensor. */
static bool same_tensors(const qm_tensor *here, const qm_tensor *far)
{
    qm_err e = {0};
    qm_tensor *back = qm_tensor_to(far, NULL, &e);
    bool same = back && back->format == here->format && back->double_quant == here->double_quant
                && back->codec.block == here->codec.block
                && memcmp(&back->offset, &here->offset, sizeof(float)) == 0;
    for (int i = 0; same && i <= QM_MAX_PLANES; i++)
        same = back->plane[i].size == here->plane[i].size
               && (!here->plane[i].size
                   || !memcmp(back->plane[i].data, here->plane[i].data, here->plane[i].size));
    qm_tensor_free(back);
    return same;
}

TEST(gpu_copies_of_every_size_come_back)
{
    const size_t stage = 8 << 20,
                 sizes[] = {0, 1, 3, 4096, stage - 1, stage, stage + 1, 2 * stage, 5 * stage + 17};
    qm_err e = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *data = malloc(sizes[i] + 1), *back = malloc(sizes[i] + 1);
        for (size_t j = 0; j < sizes[i]; j++)
            data[j] = (uint8_t)(j * 2654435761u >> 13);
        void *p = gpu_copy_of(data, sizes[i]);
        gpu_fetch(back, p, sizes[i]);
        CHECKF(!memcmp(data, back, sizes[i]), "%zu bytes", sizes[i]);
        qm_cuda_free(gpu(), p);
        free(data);
        free(back);
    }
    void *pinned = qm_cuda_pinned_alloc(gpu(), 1 << 20, &e),
         *far = pinned ? qm_cuda_alloc(gpu(), 1 << 20, &e) : NULL;
    CHECKF(far, "%s", e.msg);
    if (!far)
        return;
    memset(pinned, 42, 1 << 20);
    CHECK(qm_cuda_copy(gpu_stream(), far, pinned, 1 << 20, &e) && qm_cuda_wait(gpu_stream(), &e));
    memset(pinned, 0, 1 << 20);
    CHECK(qm_cuda_copy(gpu_stream(), pinned, far, 1 << 20, &e) && qm_cuda_wait(gpu_stream(), &e));
    CHECK(((uint8_t *)pinned)[0] == 42 && ((uint8_t *)pinned)[(1 << 20) - 1] == 42);
    qm_cuda_free(gpu(), far);
    qm_cuda_pinned_free(gpu(), pinned);
}

/* As many scales as make one, two and three levels of sums. */
TEST(gpu_double_quantises_as_the_cpu)
{
    static const struct {
        const char *format;
        int64_t count;
        uint32_t block;
    } cases[] = {{"nf4", 1, 64},          {"nf4", 64 * 255, 64},
                 {"nf4", 64 * 256, 64},   {"nf4", 64 * 257 + 3, 64},
                 {"fp4", 100001, 32},     {"nf4", 32 * 65536, 32},
                 {"nf4", 32 * 65537, 32}, {"int4", 300000, 64},
                 {"int3", 64 * 1000, 64}, {"nf4", 4096 * 300, 4096},
                 {"fp4", 32 * 300000, 32}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (gpu_test_small() && cases[i].count > 400000)
            continue;
        qm_quantize_options o = {.block = cases[i].block, .double_quant = true};
        qm_tensor *t = randoms(1, cases[i].count), *far = there(t);
        for (int given = 0; given < 2; given++) {
            o.offset_given = given;
            o.offset = 0.04f;
            qm_tensor *q = quantized(t, cases[i].format, &o), *p = quantized(far, cases[i].format, &o);
            CHECKF(same_tensors(q, p), "%s %lld, offset %g and %g", cases[i].format,
                   (long long)cases[i].count, (double)q->offset, (double)p->offset);
            qm_err e = {0};
            qm_tensor *a = qm_tensor_dequantize(q, &e), *b = qm_tensor_dequantize(p, &e);
            CHECKF(a && b && same_tensors(a, b), "%s %lld decoded", cases[i].format,
                   (long long)cases[i].count);
            qm_tensor_free(a), qm_tensor_free(b), qm_tensor_free(q), qm_tensor_free(p);
        }
        qm_tensor_free(t), qm_tensor_free(far);
    }
}

TEST(gpu_requantises_and_converts_as_the_cpu)
{
    static const char *const from[] = {"f32", "bf16", "f16", "nf4", "q6_k", "int8"}, *const to[] = {
                                                                                         "f32",    "bf16",
                                                                                         "f16",    "q4_k",
                                                                                         "fp4",    "nvfp4",
                                                                                         "f8_e4m3"};
    qm_quantize_options o = {0};
    qm_tensor *t = randoms(6, 1024);
    for (size_t i = 0; i < sizeof from / sizeof *from; i++)
        for (size_t j = 0; j < sizeof to / sizeof *to; j++) {
            qm_tensor *a = quantized(t, from[i], &o), *far = there(a), *b = quantized(a, to[j], &o),
                      *c = quantized(far, to[j], &o);
            CHECKF(same_tensors(b, c), "%s to %s", from[i], to[j]);
            qm_tensor_free(a), qm_tensor_free(far), qm_tensor_free(b), qm_tensor_free(c);
        }
    qm_tensor_free(t);
}

static bool close_to(double a, double b) { return fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b)) + 1e-300; }

TEST(gpu_adds_up_errors)
{
    static const char *const formats[] = {"f32",  "bf16", "f16",  "nf4",  "fp4",   "int8",
                                          "q4_k", "int5", "q8_0", "int4", "uint4", "q4_0"};
    static const int64_t rows[] = {2, 37, 2300}; /* under one run, some runs, more than a chunk */
    qm_err e = {0};
    for (size_t r = 0; r < (gpu_test_small() ? 2 : sizeof rows / sizeof *rows); r++) {
        qm_tensor *t = randoms(rows[r], 4096);
        for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
            for (int dq = 0; dq <= (formats[i][1] == 'f' || formats[i][1] == 'p' || formats[i][1] == 'n');
                 dq++) {
                if (dq && !qm_can_double_quant(qm_format_find(formats[i])))
                    continue;
                qm_quantize_options o = {.double_quant = dq};
                qm_tensor *q = quantized(t, formats[i], &o), *far = there(t), *p = there(q);
                qm_errsum want, got, again;
                CHECK(qm_tensor_errors(t, q, &want, &e) && qm_tensor_errors(far, p, &got, &e)
                      && qm_tensor_errors(far, p, &again, &e));
                CHECKF(!memcmp(&got, &again, sizeof got), "%s: not the same twice", formats[i]);
                CHECKF(
                    got.n == want.n && close_to(got.sum_xx, want.sum_xx) && close_to(got.sum_yy, want.sum_yy)
                        && close_to(got.sum_xy, want.sum_xy) && close_to(got.sum_dd, want.sum_dd)
                        && fabs(got.sum_d - want.sum_d) <= 1e-6 * sqrt(want.sum_dd * (double)want.n) + 1e-300,
                    "%s %s: xx %.9g %.9g dd %.9g %.9g d %.9g %.9g", formats[i], dq ? "dq" : "", want.sum_xx,
                    got.sum_xx, want.sum_dd, got.sum_dd, want.sum_d, got.sum_d);
                CHECKF(got.max_d == want.max_d && got.max_x == want.max_x, "%s: max %g %g", formats[i],
                       want.max_d, got.max_d);
                qm_tensor_free(q), qm_tensor_free(far), qm_tensor_free(p);
            }
        qm_tensor_free(t);
    }
}

/* Where f32 sums would overflow or vanish, and where there is a NaN. */
TEST(gpu_adds_up_errors_of_any_size)
{
    enum { N = 1000 };
    static const float scale[] = {1e-30f, 1e-20f, 1e19f, 1e30f};
    qm_err e = {0};
    for (size_t i = 0; i < sizeof scale / sizeof *scale; i++) {
        qm_tensor *t = randoms(1, N);
        float *v = (float *)(uintptr_t)t->plane[0].data;
        for (int j = 0; j < N; j++)
            v[j] *= j % 3 ? scale[i] : 1;
        qm_tensor *q = quantized(t, "bf16", &(qm_quantize_options){0}), *far = there(t), *p = there(q);
        qm_errsum want, got;
        CHECK(qm_tensor_errors(t, q, &want, &e) && qm_tensor_errors(far, p, &got, &e));
        CHECKF(close_to(got.sum_xx, want.sum_xx) && close_to(got.sum_dd, want.sum_dd)
                   && got.max_d == want.max_d,
               "scale %g: %g %g", (double)scale[i], want.sum_dd, got.sum_dd);
        qm_tensor_free(t), qm_tensor_free(q), qm_tensor_free(far), qm_tensor_free(p);
    }
}

TEST(gpu_encodes_codebooks)
{
    static const float level[] = {-1, -0.4f, 0.3f, 0, 0.1f, 0.9f, 0.1f, 1};
    qm_err e = {0};
    qm_tensor *t = randoms(3, 1000);
    for (int count = 2; count <= 8; count += 3) {
        const qm_format *f = qm_codebook_new("mine", level, count, 50, &e);
        qm_tensor *far = there(t), *q = qm_tensor_quantize(t, f, &(qm_quantize_options){0}, &e);
        qm_tensor *p = qm_tensor_quantize(far, f, &(qm_quantize_options){0}, &e);
        CHECKF(q && p && same_tensors(q, p), "%d levels %s", count, e.msg);
        qm_tensor *a = qm_tensor_dequantize(q, &e), *b = qm_tensor_dequantize(p, &e);
        CHECKF(a && b && same_tensors(a, b), "%d levels %s", count, e.msg);
        qm_tensor_free(a), qm_tensor_free(b), qm_tensor_free(q), qm_tensor_free(p), qm_tensor_free(far);
        qm_format_unref(f);
    }
    qm_tensor_free(t);
}

/* ---- what goes wrong ----------------------------------------------------------------------------- */

TEST(gpu_out_of_memory_leaves_everything_usable)
{
    if (gpu_test_small()) {
        printf("  skipped: all of the GPU's memory, as small cases are asked for\n");
        return;
    }
    qm_err e = {0};
    uint64_t before, after, total;
    CHECK(qm_cuda_memory(gpu(), &before, &total, &e));
    CHECK(!qm_cuda_alloc(gpu(), 4 * total, &e) && e.code == QM_ENOFIT);
    CHECKF(strstr(e.msg, "cuda:0") && strstr(e.msg, "out of memory"), "%s", e.msg);

    /* Nearly all is taken: a tensor still fits, its codes do not. */
    qm_tensor *t = randoms(64, 16384), *far = there(t);
    void *most[64];
    int taken = 0;
    for (uint64_t size = total; size >= 1 << 20; size /= 2)
        for (qm_err full = {0}; taken < 64 && (most[taken] = qm_cuda_alloc(gpu(), size, &full)); taken++)
            ;
    memset(&e, 0, sizeof e);
    qm_quantize_options o = {0};
    qm_tensor *q = qm_tensor_quantize(far, qm_format_find("f32"), &o, &e);
    CHECKF(!q && e.code == QM_ENOFIT, "%s", e.msg);
    qm_tensor_free(q);
    while (taken)
        qm_cuda_free(gpu(), most[--taken]);

    qm_tensor *here = quantized(t, "nf4", &o), *p = quantized(far, "nf4", &o);
    CHECK(same_tensors(here, p));
    qm_tensor_free(here), qm_tensor_free(p), qm_tensor_free(far), qm_tensor_free(t);
    CHECK(qm_cuda_memory(gpu(), &after, &total, &e));
    CHECKF(after + (64 << 20) > before, "%llu of %llu MiB came back", (unsigned long long)after >> 20,
           (unsigned long long)before >> 20);
}

TEST(gpu_refuses_what_it_cannot_do)
{
    qm_err e = {0};
    CHECK(!qm_cuda_open(99, &e) && strstr(e.msg, "cuda:99"));
    qm_tensor *t = randoms(4, 64), *far = there(t), *nothing = NULL;
    qm_errsum sum;
    memset(&e, 0, sizeof e);
    CHECKF(!qm_tensor_errors(t, far, &sum, &e) && strstr(e.msg, "the CPU") && strstr(e.msg, "cuda:0"), "%s",
           e.msg);
    memset(&e, 0, sizeof e);
    CHECKF(!(nothing = qm_tensor_to(far, qm_cuda_device(gpu()), &e)), "%s", e.msg);
    memset(&e, 0, sizeof e);
    CHECKF(!qm_tensor_quantize(far, qm_format_find("q4_k"), &(qm_quantize_options){0}, &e)
               && strstr(e.msg, "256"),
           "%s", e.msg);
    memset(&e, 0, sizeof e);
    CHECKF(!qm_tensor_quantize(far, qm_format_find("q8_0"), &(qm_quantize_options){.double_quant = true}, &e),
           "%s", e.msg);
    qm_tensor_free(nothing), qm_tensor_free(far), qm_tensor_free(t);
}
