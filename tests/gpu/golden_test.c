/* golden_test.c: bytes that bitsandbytes' CUDA kernels wrote, from ours. */
#include "../../core/half.h"
#include "../unit/bnb_golden.h"
#include "../unit/golden.h"
#include "../unit/sha256.h"
#include "gpu.h"

static bool digest_is(const void *there, size_t n, const char *first16)
{
    void *here = malloc(n);
    gpu_fetch(here, there, n);
    bool same = strncmp(sha256(here, n), first16, 16) == 0;
    free(here);
    return same;
}

/* What bitsandbytes decodes to is of the type it encoded. */
static void check_golden(const golden *g, const char *kernel)
{
    float x[COUNT];
    qm_err e = {0};
    golden_values(x);
    void *elements = elements_of(g->dtype, x, COUNT), *there = gpu_copy_of(elements, sizeof x);
    qm_codec c = {.block = g->block};
    planes p = planes_new(qm_format_find(g->format), &c, COUNT);
    qm_cuda_coded coded = coded_there(&p, &c);
    CHECKF(qm_cuda_encode(gpu_stream(), there, g->dtype, COUNT, &coded, &e) && qm_cuda_wait(gpu_stream(), &e),
           "%s", e.msg);
    CHECKF(digest_is(p.there[0], p.size[0], g->codes), "codes of %s %u %s, %s", g->format, g->block,
           qm_dtypes[g->dtype].name, kernel);
    CHECKF(digest_is(p.there[1], p.size[1], g->absmax), "absmax of %s %u %s, %s", g->format, g->block,
           qm_dtypes[g->dtype].name, kernel);
    CHECKF(qm_cuda_decode(gpu_stream(), &coded, COUNT, there, g->dtype, &e) && qm_cuda_wait(gpu_stream(), &e),
           "%s", e.msg);
    CHECKF(digest_is(there, (size_t)COUNT * qm_dtypes[g->dtype].bits / 8, g->decoded), "decoded %s %u %s, %s",
           g->format, g->block, qm_dtypes[g->dtype].name, kernel);
    qm_cuda_free(gpu(), there);
    planes_free(&p);
    free(elements);
}

TEST(gpu_writes_what_bitsandbytes_writes)
{
    for (int generic = 0; generic < 2; generic++) {
        qm_cuda_generic_only(gpu(), generic);
        for (size_t i = 0; i < sizeof bnb / sizeof *bnb; i++)
            check_golden(&bnb[i], generic ? "generic" : "fast");
    }
    qm_cuda_generic_only(gpu(), false);
}

TEST(gpu_double_quantises_as_bitsandbytes)
{
    enum { BLOCKS = (COUNT + 63) / 64, NESTED = (BLOCKS + 255) / 256 };
    float x[COUNT];
    qm_err e = {0};
    golden_values(x);
    for (size_t i = 0; i < sizeof bnb_double / sizeof *bnb_double; i++) {
        const golden *g = &bnb_double[i];
        void *elements = elements_of(g->dtype, x, COUNT), *there = gpu_copy_of(elements, sizeof x);
        qm_codec c = {.block = g->block};
        planes p = planes_new(qm_format_find(g->format), &c, COUNT);
        qm_cuda_coded coded = coded_there(&p, &c);
        coded.double_quant = true;
        coded.offset = 0.0234375f;
        coded.nested = (float *)(void *)(p.there[1] + (BLOCKS + 3) / 4 * 4);
        float *offset = coded.nested + NESTED;
        CHECKF(qm_cuda_encode_double(gpu_stream(), there, g->dtype, COUNT, &coded, true, offset, &e)
                   && qm_cuda_wait(gpu_stream(), &e),
               "%s", e.msg);
        CHECKF(digest_is(coded.plane[1], BLOCKS, g->codes), "%s", qm_dtypes[g->dtype].name);
        CHECKF(digest_is(coded.nested, NESTED * sizeof(float), g->absmax), "%s", qm_dtypes[g->dtype].name);
        qm_cuda_free(gpu(), there);
        planes_free(&p);
        free(elements);
    }
}

TEST(gpu_quantises_rows_as_llm_int8)
{
    float x[COUNT];
    qm_err e = {0};
    golden_values(x);
    for (int generic = 0; generic < 2; generic++) {
        qm_codec c = {.block = 256};
        planes p = planes_new(qm_format_find("int8"), &c, EVEN);
        qm_cuda_coded coded = coded_there(&p, &c);
        float *there = gpu_copy_of(x, sizeof x); /* left for the encoder to round to f16 */
        qm_cuda_generic_only(gpu(), generic);
        CHECKF(qm_cuda_encode(gpu_stream(), there, QM_F32, EVEN, &coded, &e)
                   && qm_cuda_wait(gpu_stream(), &e),
               "%s", e.msg);
        CHECK(digest_is(p.there[0], p.size[0], "3f78139ca0c5b520"));
        CHECK(digest_is(p.there[1], p.size[1], "3b21be69a421d587"));
        qm_cuda_free(gpu(), there);
        planes_free(&p);
    }
    qm_cuda_generic_only(gpu(), false);
}
