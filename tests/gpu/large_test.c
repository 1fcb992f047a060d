/* large_test.c: more than 2^31 values in one tensor: nowhere does an index wrap. */
#include "../../core/random.h"
#include "gpu.h"

enum { PIECE = 1 << 23 }; /* values; the tensor is this piece again and again */

static const uint64_t count = (1ull << 31) + 3 * (uint64_t)PIECE;

/* A bf16 tensor of count values. */
static uint8_t *tile(const uint8_t *piece)
{
    qm_err e = {0};
    uint8_t *x = qm_cuda_alloc(gpu(), 2 * count, &e);
    CHECKF(x, "%s", e.msg);
    for (uint64_t at = 0; x && at < count; at += PIECE)
        CHECKF(qm_cuda_upload(gpu(), x + 2 * at, piece, 2 * (size_t)PIECE, &e), "%s", e.msg);
    return x;
}

/* Bytes of plane i are `piece`'s, again and again. */
static bool repeats(const uint8_t *there, const uint8_t *piece, size_t size, uint64_t times)
{
    uint8_t *back = malloc(size);
    bool same = true;
    for (uint64_t k = 0; k < times && same;
         k += k < times - 8 && k > 4 ? 7 : 1) { /* both ends, and some between */
        gpu_fetch(back, there + k * size, size);
        same = !memcmp(back, piece, size);
    }
    free(back);
    return same;
}

static void check(const uint8_t *x, const float *values, const char *format, uint32_t block)
{
    const qm_format *f = qm_format_find(format);
    qm_codec c = {.block = block};
    qm_cuda_coded coded = {.format = f, .codec = c};
    uint8_t *piece[QM_MAX_PLANES] = {0};
    qm_err e = {0};
    for (int i = 0; i < qm_format_planes(f); i++) {
        piece[i] = malloc(qm_plane_size(f, &c, i, PIECE));
        coded.plane[i] = qm_cuda_alloc(gpu(), qm_plane_size(f, &c, i, count), &e);
        CHECKF(coded.plane[i], "%s", e.msg);
    }
    qm_encode(f, values, PIECE, &c, piece);
    CHECKF(qm_cuda_encode(gpu_stream(), x, QM_BF16, count, &coded, &e) && qm_cuda_wait(gpu_stream(), &e),
           "%s: %s", format, e.msg);
    for (int i = 0; i < qm_format_planes(f); i++)
        CHECKF(repeats(coded.plane[i], piece[i], qm_plane_size(f, &c, i, PIECE), count / PIECE),
               "%s: plane %d", format, i);

    qm_errsum sum, first;
    CHECKF(qm_cuda_errors(gpu_stream(), x, QM_BF16, &coded, count, &sum, &e)
               && qm_cuda_errors(gpu_stream(), x, QM_BF16, &coded, PIECE, &first, &e),
           "%s", e.msg);
    double times = (double)(count / PIECE);
    CHECKF(sum.n == count && sum.max_d == first.max_d && sum.sum_dd > 0.999999 * times * first.sum_dd
               && sum.sum_dd < 1.000001 * times * first.sum_dd,
           "%s: %g for %g times %g", format, sum.sum_dd, times, first.sum_dd);

    uint8_t *back = qm_cuda_alloc(gpu(), 2 * count, &e), *want = NULL;
    float *decoded = malloc(sizeof *decoded * PIECE);
    qm_decode(f, (const uint8_t *const *)piece, PIECE, &c, decoded);
    want = elements_of(QM_BF16, decoded, PIECE);
    CHECKF(back && qm_cuda_decode(gpu_stream(), &coded, count, back, QM_BF16, &e)
               && qm_cuda_wait(gpu_stream(), &e),
           "%s: %s", format, e.msg);
    CHECKF(repeats(back, want, 2 * (size_t)PIECE, count / PIECE), "%s: decoding", format);
    qm_cuda_free(gpu(), back);
    free(want), free(decoded);
    for (int i = 0; i < QM_MAX_PLANES; i++) {
        free(piece[i]);
        qm_cuda_free(gpu(), coded.plane[i]);
    }
}

TEST(gpu_counts_beyond_2_to_the_31)
{
    if (gpu_test_small()) {
        printf("  skipped: more than 2^31 values, as small cases are asked for\n");
        return;
    }
    float *v = malloc(sizeof *v * PIECE);
    qm_random_fill_normal(v, PIECE, 1, 0, 0, 0.02);
    uint8_t *piece = elements_of(QM_BF16, v, PIECE), *x = tile(piece);
    values_of_elements(QM_BF16, piece, PIECE, v);
    check(x, v, "nf4", 64);
    check(x, v, "int8", 1024);
    check(x, v, "q8_0", 32);
    check(x, v, "q5_0", 32); /* by the generic kernel */
    qm_cuda_free(gpu(), x);
    free(piece);
    free(v);
}
