/* parity_test.c: the GPU writes the CPU's bytes: every format, element type, length and kind of values, by the
 * kernel that serves all formats and by those made for some. */
#include "../../core/codebook.h"
#include "../unit/families.h"
#include "gpu.h"

enum { LONGEST = 3 * 4096 + 2048 + 77 };

static const size_t lengths[] = {1,   2,    3,    31,   32,   63,   64,   65,     127,
                                 129, 1023, 1025, 2048, 2500, 4097, 8200, LONGEST};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static size_t usable(const qm_format *f, const qm_codec *c, size_t n)
{
    return f->over_rows || f->block == 1 ? n : (n + c->block - 1) / c->block * c->block;
}

static int blocks_of(const qm_format *f, uint32_t block[16])
{
    static const uint32_t row[] = {1, 7, 8, 32, 100, 256, 4096};
    static const uint32_t any[] = {1, 7, 32, 64, 100, 256, 2048, 2049, 4096};
    int n = 0;
    if (f->any_block)
        for (; n < (int)(sizeof any / sizeof *any); n++)
            block[n] = any[n];
    else if (f->block == 0)
        for (; n < (int)(sizeof row / sizeof *row); n++)
            block[n] = row[n];
    else if (f->block_max)
        for (uint32_t b = f->block_min; b <= f->block_max; b *= 2)
            block[n++] = b;
    else
        block[n++] = f->block;
    return n;
}

/* What one comparison is about, for messages. */
typedef struct subject {
    const qm_format *format;
    qm_codec codec;
    qm_dtype type;
    size_t n;
    const char *values, *kernel;
} subject;

static void check_encode(const subject *s, const void *elements, const float *values, planes *p)
{
    qm_err e = {0};
    qm_cuda_coded to = coded_there(p, &s->codec);
    void *x = gpu_copy_of(elements, s->n * qm_dtypes[s->type].bits / 8);
    bool ok = qm_cuda_encode(gpu_stream(), x, s->type, s->n, &to, &e) && qm_cuda_wait(gpu_stream(), &e);
    CHECKF(ok, "%s: %s", s->format->name, e.msg);
    int64_t group = planes_differing(p, &s->codec, s->n, values);
    CHECKF(group < 0, "%s block %u of %s %s, %zu values, %s kernel: group %lld", s->format->name,
           s->codec.block, qm_dtypes[s->type].name, s->values, s->n, s->kernel, (long long)group);
    CHECKF(planes_guarded(p), "%s block %u of %s %s, %zu values, %s kernel: wrote beyond", s->format->name,
           s->codec.block, qm_dtypes[s->type].name, s->values, s->n, s->kernel);
    qm_cuda_free(gpu(), x);
}

/* values: what the CPU decodes p to. */
static void check_decode(const subject *s, const planes *p, const float *values)
{
    qm_err e = {0};
    size_t size = s->n * qm_dtypes[s->type].bits / 8;
    qm_cuda_coded from = coded_there(p, &s->codec);
    uint8_t *want = elements_of(s->type, values, s->n), *got = malloc(size + 64);
    memset(got, 0xa5, size + 64);
    void *y = gpu_copy_of(got, size + 64);
    bool ok = qm_cuda_decode(gpu_stream(), &from, s->n, y, s->type, &e) && qm_cuda_wait(gpu_stream(), &e);
    CHECKF(ok, "%s: %s", s->format->name, e.msg);
    gpu_fetch(got, y, size + 64);
    CHECKF(same_elements(s->type, want, got, s->n), "%s block %u to %s %s, %zu values, %s kernel: decoding",
           s->format->name, s->codec.block, qm_dtypes[s->type].name, s->values, s->n, s->kernel);
    for (size_t i = size; i < size + 64; i++)
        CHECKF(got[i] == 0xa5, "%s: decoding wrote beyond", s->format->name);
    qm_cuda_free(gpu(), y);
    free(want);
    free(got);
}

/* x holds s->n values; they are rounded to the type first. */
static void check(subject s, const float *x)
{
    void *elements = elements_of(s.type, x, s.n);
    float *values = malloc(sizeof *values * (s.n + 1));
    values_of_elements(s.type, elements, s.n, values);
    qm_codec_measure(&s.codec, s.format, values, s.n);
    planes p = planes_new(s.format, &s.codec, s.n);
    qm_encode(s.format, values, s.n, &s.codec, p.here);
    float *decoded = malloc(sizeof *decoded * (s.n + 1));
    qm_decode(s.format, (const uint8_t *const *)p.here, s.n, &s.codec, decoded);
    for (int generic = 0; generic < 2; generic++) {
        qm_cuda_generic_only(gpu(), generic);
        s.kernel = generic ? "generic" : "fast";
        check_encode(&s, elements, values, &p);
        planes_upload(&p);
        check_decode(&s, &p, decoded);
    }
    qm_cuda_generic_only(gpu(), false);
    planes_free(&p);
    free(elements);
    free(values);
    free(decoded);
}

static bool has_own_kernel(const qm_format *f)
{
    static const char *const names[] = {"nf4", "fp4", "int4", "uint4", "int8", "q8_0", "q4_0"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(f->name, names[i]) == 0)
            return true;
    return false;
}

/* Lengths and types take turns; formats with kernels of their own get more of them. */
static void check_family(const qm_format *f, uint32_t block, const family *v, const float *x)
{
    static unsigned turn;
    const unsigned fewer = gpu_test_small() ? 41 : 1;
    for (int l = 0; l < LENGTHS; l++)
        for (int t = 0; t < 3; t++) {
            if (turn++ % ((has_own_kernel(f) ? 3 : 17) * fewer))
                continue;
            subject s = {.format = f,
                         .codec = {.block = block, .exact_zero = l % 2, .nearest = turn % 5 == 0},
                         .type = value_types[t],
                         .values = v->name};
            s.n = usable(f, &s.codec, lengths[l]);
            if (s.n <= LONGEST)
                check(s, x);
        }
}

TEST(gpu_encodes_and_decodes_as_the_cpu)
{
    float *x = malloc(sizeof *x * LONGEST);
    for (const qm_format *const *f = qm_formats; *f; f++) {
        uint32_t block[16];
        int blocks = blocks_of(*f, block), before = qm_test_failures;
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < FAMILIES; v++) {
                fill(&families[v], x, LONGEST);
                check_family(*f, block[b], &families[v], x);
            }
        if (qm_test_failures > before)
            printf("  %s: %d comparisons failed\n", (*f)->name, qm_test_failures - before);
    }
    free(x);
}

/* Tables of 9 to 16 levels: as the first one is, in disorder, some level twice, some very close together. */
TEST(gpu_encodes_codebooks_as_the_cpu)
{
    static const uint32_t blocks[] = {32, 64, 128, 256, 512, 1024, 2048, 4096};
    float *x = malloc(sizeof *x * LONGEST), level[16];
    qm_err e = {0};
    state = 11;
    for (int turn = 0; turn < (gpu_test_small() ? 3 : 40); turn++) {
        int count = turn % 4 == 3 ? 9 + turn % 7 : 16;
        for (int i = 0; i < count; i++)
            level[i] = turn < 4 ? (float)(2 * i - 15) / (float)(turn + 12) : uniform();
        if (turn % 5 == 2)
            level[3] = level[11 % count];
        if (turn % 7 == 3)
            level[5] = nextafterf(level[1], 2);
        const qm_format *f = qm_codebook_new("mine", level, count, 64, &e);
        CHECKF(f, "%s", e.msg);
        uint32_t seed = state;
        for (int v = turn % 2; v < FAMILIES; v += 2) {
            subject s = {.format = f,
                         .codec = {.block = blocks[(turn + v) % 8], .table = f->table},
                         .values = families[v].name,
                         .type = value_types[(turn + v) % 3],
                         .n = v % 3 ? LONGEST : 4096};
            fill(&families[v], x, LONGEST);
            check(s, x);
        }
        state = seed;
        qm_format_unref(f);
    }
    free(x);
}

/* How a table's thresholds fall into bins differs from table to table, so there are many, with values all over their range: one
 * in some two hundred has a threshold in the very last bin, and its values above that were once taken for those below. */
TEST(gpu_encodes_many_codebooks_as_the_cpu)
{
    enum { VALUES = 2048 };
    static const float last_bin[] = {1,          0.31372645f,  0.80031985f, 0.97619444f, 0.90003765f,
                                     0.9330335f, -0.50546736f, 0.60980415f, 0.97832561f, 0.71816790f,
                                     0.2480984f, -0.21033087f, 0.96896446f};
    float x[VALUES], level[16];
    qm_err e = {0};
    state = 12;
    for (int turn = 0; turn < (gpu_test_small() ? 3 : 1000); turn++) {
        int count = turn ? 9 + (int)(next() % 8) : 13;
        for (int i = 0; i < count; i++)
            level[i] = turn ? uniform() : last_bin[i];
        level[0] = turn % 2 && turn ? -1 : 1;
        const qm_format *f = qm_codebook_new("mine", level, count, 64, &e);
        CHECKF(f, "%s", e.msg);
        for (int i = 0; i < VALUES; i++)
            x[i] = i % 64 ? uniform() : 1;
        subject s = {.format = f,
                     .codec = {.block = 64, .table = f->table},
                     .values = "from -1 to 1",
                     .type = QM_F32,
                     .n = VALUES};
        check(s, x);
        qm_format_unref(f);
    }
}

/* Files may hold any bytes. */
TEST(gpu_decodes_any_bytes)
{
    for (const qm_format *const *f = qm_formats; *f; f++) {
        uint32_t block[16];
        int blocks = blocks_of(*f, block);
        for (int b = 0; b < (gpu_test_small() && blocks ? 1 : blocks); b++) {
            subject s = {.format = *f, .codec = {.block = block[b]}, .values = "bytes"};
            s.n = usable(*f, &s.codec, 2500);
            planes p = planes_new(*f, &s.codec, s.n);
            float *decoded = malloc(sizeof *decoded * s.n);
            state = 7;
            for (int i = 0; i < qm_format_planes(*f); i++)
                for (size_t j = 0; j < p.size[i]; j++)
                    p.here[i][j] = (uint8_t)next();
            qm_decode(*f, (const uint8_t *const *)p.here, s.n, &s.codec, decoded);
            planes_upload(&p);
            for (int generic = 0; generic < 2; generic++) {
                qm_cuda_generic_only(gpu(), generic);
                s.kernel = generic ? "generic" : "fast";
                for (int t = 0; t < 3; t++) {
                    s.type = value_types[t];
                    check_decode(&s, &p, decoded);
                }
            }
            qm_cuda_generic_only(gpu(), false);
            planes_free(&p);
            free(decoded);
        }
    }
}

/* Groups that fit no shared memory, and rows that are no multiple of a vector. */
TEST(gpu_takes_long_and_odd_rows)
{
    static const uint32_t cols[] = {1, 9, 1000, 11008, 18944, 18945, 50000, 151936};
    size_t most = 3 * (size_t)151936;
    float *x = malloc(sizeof *x * most);
    for (size_t i = 0; i < most; i++)
        x[i] = 0.02f * normal();
    for (size_t i = 0; i < sizeof cols / sizeof *cols; i += gpu_test_small() ? 3 : 1)
        for (int t = 0; t < (gpu_test_small() ? 1 : 3); t++) {
            subject s = {.format = qm_format_find("int8"),
                         .codec = {.block = cols[i]},
                         .type = value_types[t],
                         .n = 3 * (size_t)cols[i],
                         .values = "long rows"};
            check(s, x);
            s.format = qm_format_find("int5");
            check(s, x);
        }
    free(x);
}

/* Nothing is aligned: whatever a kernel needs, another one serves. */
TEST(gpu_takes_values_from_any_address)
{
    static const char *const names[] = {"nf4", "fp4", "q8_0", "q4_0", "int8", "q5_k"};
    enum { N = 8192 };
    float x[N], moved[N + 1];
    qm_err e = {0};
    for (int i = 0; i < N; i++)
        moved[i + 1] = x[i] = 0.02f * normal();
    moved[0] = 1000;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const qm_format *f = qm_format_find(names[i]);
        qm_codec c = {.block = f->block ? f->block : 1024};
        planes p = planes_new(f, &c, N);
        qm_cuda_coded to = coded_there(&p, &c);
        float *there = gpu_copy_of(moved, sizeof moved), back[N], want[N];
        qm_encode(f, x, N, &c, p.here);
        qm_decode(f, (const uint8_t *const *)p.here, N, &c, want);
        CHECKF(qm_cuda_encode(gpu_stream(), there + 1, QM_F32, N, &to, &e) && qm_cuda_wait(gpu_stream(), &e),
               "%s", e.msg);
        CHECKF(planes_differing(&p, &c, N, x) < 0 && planes_guarded(&p), "%s", names[i]);
        CHECKF(qm_cuda_decode(gpu_stream(), &to, N, there + 1, QM_F32, &e) && qm_cuda_wait(gpu_stream(), &e),
               "%s", e.msg);
        gpu_fetch(back, there + 1, sizeof back);
        CHECKF(!memcmp(back, want, sizeof want), "%s", names[i]);
        qm_cuda_free(gpu(), there);
        planes_free(&p);
    }
}
