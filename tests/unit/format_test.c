/* format_test.c: every format against bytes that other people's code wrote.
 *
 * bitsandbytes: digests from its kernels' arithmetic run on an H200.  ggml: digests from
 * ggml_quantize_chunk and dequantize_row_* of libggml-base 0.25.3 (x86-64, llama-cpp-python 0.3.36). */
#include <math.h>
#include <stdlib.h>

#include "../../core/cpu.h"
#include "../../core/double_quant.h"
#include "../../core/format.h"
#include "../../core/formats/dynamic8.h"
#include "../../core/formats/fp4.h"
#include "../../core/formats/nf4.h"
#include "bnb_golden.h"
#include "golden.h"
#include "sha256.h"
#include "test.h"

static void round_to(qm_dtype t, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (t == QM_F16)
            x[i] = qm_f16_to_f32(qm_f32_to_f16(x[i]));
        else if (t == QM_BF16)
            x[i] = qm_bf16_to_f32(qm_f32_to_bf16(x[i]));
}

/* Sixteen at a time scaled by a power of two between 2^-40 and 2^23. */
static void make_wild(float *x, size_t n)
{
    uint32_t s = 777;
    for (size_t i = 0; i < n; i += 16) {
        s = s * 1664525u + 1013904223u;
        for (size_t j = 0; j < 16; j++)
            x[i + j] *= qm_bits_f32(((s >> 24) % 64 + 127 - 40) << 23);
    }
}

/* Encoded planes, and what they decode to. */
typedef struct coded {
    qm_codec codec;
    uint8_t *plane[QM_MAX_PLANES];
    size_t size[QM_MAX_PLANES];
    float *decoded;
} coded;

static coded code(const char *name, const float *x, size_t n, uint32_t block)
{
    const qm_format *f = qm_format_find(name);
    coded r = {.codec = {.block = block}, .decoded = malloc(sizeof(float) * n)};
    for (int i = 0; i < qm_format_planes(f); i++) {
        r.size[i] = qm_plane_size(f, &r.codec, i, n);
        r.plane[i] = malloc(r.size[i]);
    }
    qm_encode(f, x, n, &r.codec, r.plane);
    qm_decode(f, (const uint8_t *const *)r.plane, n, &r.codec, r.decoded);
    return r;
}

static void drop(coded *r)
{
    for (int i = 0; i < QM_MAX_PLANES; i++)
        free(r->plane[i]);
    free(r->decoded);
}

static bool digest_is(const void *data, size_t n, const char *first16)
{
    return strncmp(sha256(data, n), first16, 16) == 0;
}

/* Of values as a file of type t holds them. */
static bool digest_as(qm_dtype t, const float *x, size_t n, const char *first16)
{
    if (t == QM_F32)
        return digest_is(x, sizeof *x * n, first16);
    uint16_t *h = malloc(sizeof *h * n);
    for (size_t i = 0; i < n; i++)
        h[i] = t == QM_F16 ? qm_f32_to_f16(x[i]) : qm_f32_to_bf16(x[i]);
    bool same = digest_is(h, sizeof *h * n, first16);
    free(h);
    return same;
}

/* ---- bitsandbytes ------------------------------------------------------------------------------- */

/* Runs once for every level of SIMD that this machine has. */
static void each_level(void (*run)(const float *x, const char *level))
{
    float *x = malloc(sizeof *x * COUNT);
    golden_values(x);
    CHECK(digest_is(x, sizeof *x * COUNT, "bcb7a37a56226798"));
    qm_simd highest = qm_cpu_simd();
    for (qm_simd level = QM_SCALAR; level <= highest; level++) {
        qm_cpu_limit(level);
        run(x, qm_simd_names[level]);
    }
    qm_cpu_limit(QM_AVX512);
    free(x);
}

static void bnb_blocks(const float *values, const char *level)
{
    float *x = malloc(sizeof *x * COUNT);
    for (size_t i = 0; i < sizeof bnb / sizeof *bnb; i++) {
        const golden *g = &bnb[i];
        memcpy(x, values, sizeof *x * COUNT);
        round_to(g->dtype, x, COUNT);
        coded r = code(g->format, x, COUNT, g->block);
        CHECKF(digest_is(r.plane[0], r.size[0], g->codes), "%s: codes of %s %u %s", level, g->format,
               g->block, qm_dtypes[g->dtype].name);
        CHECKF(digest_is(r.plane[1], r.size[1], g->absmax), "%s: absmax of %s %u %s", level, g->format,
               g->block, qm_dtypes[g->dtype].name);
        CHECKF(digest_as(g->dtype, r.decoded, COUNT, g->decoded), "%s: decoded %s %u %s", level, g->format,
               g->block, qm_dtypes[g->dtype].name);
        drop(&r);
    }
    free(x);
}

TEST(format_bitsandbytes_blocks) { each_level(bnb_blocks); }

static void bnb_nested(const float *values, const char *level)
{
    enum { BLOCKS = (COUNT + 63) / 64, NESTED = (BLOCKS + 255) / 256 };
    float *x = malloc(sizeof *x * COUNT), nested[NESTED], back[BLOCKS];
    uint8_t codes[BLOCKS];
    for (size_t i = 0; i < sizeof bnb_double / sizeof *bnb_double; i++) {
        const golden *g = &bnb_double[i];
        memcpy(x, values, sizeof *x * COUNT);
        round_to(g->dtype, x, COUNT);
        coded r = code(g->format, x, COUNT, g->block);
        const float *absmax = (const float *)r.plane[1];
        qm_double_quant(absmax, BLOCKS, 0.0234375f, codes, nested);
        CHECKF(digest_is(codes, sizeof codes, g->codes), "%s: %s", level, qm_dtypes[g->dtype].name);
        CHECKF(digest_is(nested, sizeof nested, g->absmax), "%s: %s", level, qm_dtypes[g->dtype].name);
        qm_double_dequant(codes, nested, BLOCKS, 0, back);
        CHECKF(digest_is(back, sizeof back, g->decoded), "%s: %s", level, qm_dtypes[g->dtype].name);
        qm_double_dequant(codes, nested, BLOCKS, 0.0234375f, back);
        for (int b = 0; b < BLOCKS; b++)
            CHECKF(fabsf(back[b] - absmax[b]) <= 0.00704f * nested[b / 256] + 1e-9f, "block %d: %g for %g", b,
                   (double)back[b], (double)absmax[b]);
        drop(&r);
    }
    free(x);
}

TEST(format_double_quantisation) { each_level(bnb_nested); }

static void bnb_int8(const float *values, const char *level)
{
    float *x = malloc(sizeof *x * EVEN);
    memcpy(x, values, sizeof *x * EVEN); /* left for the encoder to round to f16 */
    coded r = code("int8", x, EVEN, 256);
    CHECKF(digest_is(r.plane[0], r.size[0], "3f78139ca0c5b520"), "%s", level);
    CHECKF(digest_is(r.plane[1], r.size[1], "3b21be69a421d587"), "%s", level);
    drop(&r);
    free(x);
}

TEST(format_llm_int8) { each_level(bnb_int8); }

TEST(format_double_quant_offset_is_the_mean_as_bf16)
{
    float absmax[1000];
    for (int i = 0; i < 1000; i++)
        absmax[i] = 1.0f + (float)i * 0x1p-10f;
    float offset = qm_double_quant_offset(absmax, 1000);
    CHECK(offset == qm_bf16_to_f32(qm_f32_to_bf16(1.0f + 499.5f * 0x1p-10f)));
    CHECK((qm_f32_bits(offset) & 0xffff) == 0);
    CHECK(qm_double_quant_offset(absmax, 0) == 0);
}

TEST(format_tables_are_those_of_bitsandbytes)
{
    static const uint32_t nf4[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f,
                                     0xbdba7871, 0x00000000, 0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                     0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
    static const uint32_t nf4_parts[15] = {0xbf591cd9, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec,
                                           0xbe0d38bc, 0xbd3a7871, 0x3d22faff, 0x3df64863, 0x3e5067e0,
                                           0x3e9582d4, 0x3ec753f9, 0x3f006d03, 0x3f248daf, 0x3f5c89d9};
    static const uint32_t fp4[8] = {0x00000000, 0x3baaaaab, 0x3f2aaaab, 0x3f800000,
                                    0x3eaaaaab, 0x3f000000, 0x3e2aaaab, 0x3e800000};
    static const uint32_t fp4_parts[7] = {0x3b2aaab9, 0x3db00000, 0x3e555555, 0x3e955555,
                                          0x3ed55556, 0x3f155550, 0x3f555555};
    for (int i = 0; i < 16; i++)
        CHECKF(qm_f32_bits(qm_nf4_value[i]) == nf4[i], "code %d", i);
    for (int i = 0; i < 15; i++)
        CHECKF(qm_f32_bits(qm_nf4_threshold[i]) == nf4_parts[i], "threshold %d", i);
    for (int i = 0; i < 16; i++)
        CHECKF(qm_f32_bits(qm_fp4_value[i]) == (fp4[i % 8] | (i < 8 ? 0 : 0x80000000u)), "code %d", i);
    for (int i = 0; i < 7; i++)
        CHECKF(qm_f32_bits(qm_fp4_threshold[i]) == fp4_parts[i], "threshold %d", i);
    for (int i = 1; i < 8; i++)
        CHECK(qm_fp4_value[qm_fp4_code[i]] > qm_fp4_value[qm_fp4_code[i - 1]]);
}

/* The map again, by the recipe its authors use: torch's linspace, midpoints, powers of ten. */
TEST(format_dynamic_map_follows_its_recipe)
{
    float map[256], next = 0;
    for (int i = 0; i < 256; i++)
        map[i] = qm_dynamic8_value((uint32_t)i);
    CHECK(
        !strcmp(sha256(map, sizeof map), "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"));
    int k = 1;
    for (int decade = 0; decade < 7; decade++) {
        int parts = 1 << decade;
        float step = (1.0f - 0.1f) / (float)parts, scale = (float)pow(10, decade - 6), edge = 0.1f;
        for (int j = 1; j <= parts; j++, k++, edge = next) {
            next = j < (parts + 1) / 2 ? fmaf(step, (float)j, 0.1f) : fmaf(-step, (float)(parts - j), 1.0f);
            float value = scale * ((edge + next) / 2);
            CHECKF(map[127 + k] == value && map[127 - k] == -value, "entry %d", k);
        }
    }
    CHECK(k == 128 && map[127] == 0 && map[255] == 1);
}

/* One value in a block that also holds 1, whose reciprocal is exactly 1. */
static unsigned code_in_block(const char *name, float v)
{
    float x[64] = {1, v};
    uint8_t codes[64], absmax[4];
    qm_codec c = {.block = 64};
    qm_encode(qm_format_find(name), x, 64, &c, (uint8_t *[]){codes, absmax});
    return strcmp(name, "dynamic8") ? codes[0] & 15u : codes[1];
}

static float ulps(float x, int n) { return qm_bits_f32(qm_f32_bits(x) + (uint32_t)n); }

/* Code of v by counting, and the number of steps that v is off threshold t. */
static void check_near(const char *name, float t, unsigned (*expect)(float v))
{
    for (int d = -3; d <= 3; d++)
        for (int sign = 0; sign < 2; sign++) {
            float v = sign ? -ulps(t, d) : ulps(t, d);
            CHECKF(code_in_block(name, v) == expect(v), "%s of %.9g", name, (double)v);
        }
}

static unsigned nf4_by_counting(float v)
{
    unsigned n = 0;
    for (int i = 0; i < 15; i++)
        n += v > qm_nf4_threshold[i];
    return n;
}

static unsigned fp4_by_counting(float v)
{
    unsigned n = 0;
    for (int i = 0; i < 7; i++)
        n += fabsf(v) > qm_fp4_threshold[i];
    return qm_fp4_code[n] | (v < 0 ? 8u : 0);
}

/* Nearest entry; a tie goes to the even one. */
static unsigned dynamic_by_counting(float v)
{
    unsigned n = 0;
    for (unsigned i = 0; i < 255; i++) {
        float middle = (qm_dynamic8_value(i) + qm_dynamic8_value(i + 1)) * 0.5f;
        n += i % 2 ? v >= middle : v > middle;
    }
    return n;
}

static void near_thresholds(const float *x, const char *level)
{
    (void)x, (void)level;
    for (int i = 0; i < 15; i++)
        check_near("nf4", fabsf(qm_nf4_threshold[i]), nf4_by_counting);
    for (int i = 0; i < 7; i++)
        check_near("fp4", qm_fp4_threshold[i], fp4_by_counting);
    for (unsigned i = 127; i < 255; i++) {
        float middle = (qm_dynamic8_value(i) + qm_dynamic8_value(i + 1)) * 0.5f;
        check_near("dynamic8", middle, dynamic_by_counting);
        if (i > 127)
            check_near("dynamic8", qm_dynamic8_value(i), dynamic_by_counting);
    }
}

TEST(format_codes_next_to_every_threshold) { each_level(near_thresholds); }

/* ---- the rare blocks of bitsandbytes ------------------------------------------------------------ */

static float absmax_of(const coded *r)
{
    float a;
    memcpy(&a, r->plane[1], sizeof a);
    return a;
}

static bool all_bytes(const coded *r, uint8_t byte)
{
    for (size_t i = 0; i < r->size[0]; i++)
        if (r->plane[0][i] != byte)
            return false;
    return true;
}

static void rare_blocks(const float *unused, const char *level)
{
    (void)unused, (void)level;
    float x[64] = {0};
    coded r = code("nf4", x, 64, 64);
    CHECK(absmax_of(&r) == 0 && all_bytes(&r, 0x00) && r.decoded[0] == 0 && signbit(r.decoded[0]));
    drop(&r);
    r = code("fp4", x, 64, 64);
    CHECK(absmax_of(&r) == 0 && all_bytes(&r, 0x00) && r.decoded[0] == 0 && !signbit(r.decoded[0]));
    drop(&r);
    r = code("dynamic8", x, 64, 64);
    CHECK(absmax_of(&r) == 0 && all_bytes(&r, 0x00));
    drop(&r);
    r = code("int8", x, 64, 64);
    CHECK(absmax_of(&r) == 0 && all_bytes(&r, 0x00) && r.decoded[0] == 0);
    drop(&r);
    for (int i = 0; i < 64; i++)
        x[i] = 0x1p-127f; /* subnormal, so a zero */
    r = code("nf4", x, 64, 64);
    CHECK(absmax_of(&r) == 0 && all_bytes(&r, 0x00));
    drop(&r);
    for (int i = 0; i < 64; i++)
        x[i] = NAN;
    r = code("nf4", x, 64, 64);
    CHECK(absmax_of(&r) == -0x1.fffffep127f && all_bytes(&r, 0x00) && r.decoded[0] == 0x1.fffffep127f);
    drop(&r);
    for (int i = 0; i < 64; i++)
        x[i] = i == 5 ? NAN : i == 6 ? -3.0f : 0.0f;
    r = code("nf4", x, 64, 64);
    CHECK(absmax_of(&r) == 3 && r.plane[0][2] == 0x70 && r.plane[0][3] == 0x07 && r.decoded[5] == -3);
    drop(&r);
    for (int i = 0; i < 64; i++)
        x[i] = i == 5 ? INFINITY : 1.0f;
    r = code("nf4", x, 64, 64);
    CHECK(absmax_of(&r) == INFINITY && r.plane[0][2] == 0x70 && r.plane[0][3] == 0x77);
    CHECK(isnan(r.decoded[0]) && r.decoded[5] == -INFINITY);
    drop(&r);
    r = code("fp4", x, 64, 64);
    CHECK(absmax_of(&r) == INFINITY && all_bytes(&r, 0x00));
    drop(&r);
}

TEST(format_rare_blocks) { each_level(rare_blocks); }

TEST(format_exact_zero_keeps_zero_blocks_zero)
{
    float x[80] = {0}, y[80];
    uint8_t codes[40], absmax[8];
    qm_codec c = {.block = 64, .exact_zero = true};
    uint8_t *plane[] = {codes, absmax};
    const qm_format *f = qm_format_find("nf4");
    qm_encode(f, x, 79, &c, plane);
    for (int i = 0; i < 40; i++)
        CHECK(codes[i] == 0x77);
    float nudged = 1e-3f; /* as double quantisation might return it */
    memcpy(absmax, &nudged, 4);
    qm_decode(f, (const uint8_t *const *)plane, 79, &c, y);
    CHECK(y[0] == 0 && y[63] == 0);
}

/* ---- codes of the nearest level (qm_codec.nearest) ---------------------------------------------- */

/* No other code decodes to something nearer to x. */
static void check_nearest(const char *name, const float *x, size_t n, uint32_t block)
{
    const qm_format *f = qm_format_find(name);
    const int codes = f->plane[0].bits == 4 ? 16 : 256;
    uint8_t *plane[] = {malloc(n), malloc(4 * (n / block + 1))};
    float *y = malloc(sizeof *y * n);
    qm_codec c = {.block = block, .nearest = true};
    qm_encode(f, x, n, &c, plane);
    qm_decode(f, (const uint8_t *const *)plane, n, &c, y);
    for (size_t i = 0; i < n; i++) {
        float absmax, level;
        memcpy(&absmax, plane[1] + 4 * (i / block), sizeof absmax);
        double least = INFINITY;
        for (int code = 0; code < codes; code++) {
            uint8_t byte = (uint8_t)(codes == 16 ? code << 4 : code);
            f->decode((const uint8_t *[]){&byte, (const uint8_t *)&absmax}, 1, &c, &level);
            least = fmin(least, fabs((double)level - (double)x[i]));
        }
        double off = fabs((double)y[i] - (double)x[i]);
        CHECKF(off <= least + 2e-7 * (double)absmax, "%s block %u: %a of %a is off by %g, not %g", name,
               block, (double)x[i], (double)absmax, off, least);
    }
    free(plane[0]);
    free(plane[1]);
    free(y);
}

static void nearest_codes(const float *values, const char *level)
{
    (void)level;
    enum { SOME = 4096 };
    float x[SOME];
    for (int i = 0; i < SOME; i++) /* a block of zeros, one of a constant, one of tiny numbers */
        x[i] = i / 64 == 3 ? 0.0f : i / 64 == 5 ? -0.25f : i / 64 == 7 ? values[i] * 0x1p-100f : values[i];
    for (uint32_t block = 64; block <= 1024; block *= 4) {
        check_nearest("nf4", x, SOME, block);
        check_nearest("fp4", x, SOME, block);
        check_nearest("dynamic8", x, SOME, block);
    }
}

TEST(format_nearest_codes_are_the_nearest) { each_level(nearest_codes); }

TEST(format_nearest_codes_of_zeros_are_zeros)
{
    static const char *const name[] = {"nf4", "fp4", "dynamic8", "int8"};
    float x[64] = {0}, y[64];
    for (int i = 0; i < 4; i++) {
        uint8_t codes[64], absmax[4];
        float nudged = 1e-3f; /* as double quantisation might return it */
        qm_codec c = {.block = 64, .nearest = true};
        const qm_format *f = qm_format_find(name[i]);
        qm_encode(f, x, 64, &c, (uint8_t *[]){codes, absmax});
        memcpy(absmax, &nudged, sizeof nudged);
        qm_decode(f, (const uint8_t *[]){codes, absmax}, 64, &c, y);
        for (int j = 0; j < 64; j++)
            CHECKF(y[j] == 0, "%s: %g", name[i], (double)y[j]);
    }
}

/* One of CUDA's thresholds is 14 units above the middle of its neighbours. */
TEST(format_nearest_codes_differ_from_cudas)
{
    float x[64] = {1, 0.0026041685f};
    for (int nearest = 0; nearest < 2; nearest++) {
        uint8_t codes[32], absmax[4];
        qm_codec c = {.block = 64, .nearest = nearest};
        qm_encode(qm_format_find("fp4"), x, 64, &c, (uint8_t *[]){codes, absmax});
        CHECKF((codes[0] & 15) == nearest, "%d: code %d", nearest, codes[0] & 15);
    }
}

TEST(format_odd_tail_is_padded_with_the_code_of_zero)
{
    float x[3] = {1, -1, 1};
    coded r = code("nf4", x, 3, 64);
    CHECK(r.size[0] == 2 && r.plane[0][0] == 0xf0 && r.plane[0][1] == 0xf7);
    drop(&r);
    r = code("fp4", x, 3, 64);
    CHECK(r.size[0] == 2 && r.plane[0][0] == 0x3b && r.plane[0][1] == 0x30);
    drop(&r);
}

/* ---- ggml --------------------------------------------------------------------------------------- */

typedef struct ggml_golden {
    const char *format, *values;
    qm_dtype dtype;
    const char *blocks, *decoded;
} ggml_golden;

static const ggml_golden ggml[] = {
    {"q8_0", "plain", QM_F32, "a04e73ee80024c96", "1a21c501fb1fba58"},
    {"q4_0", "plain", QM_F32, "f5bbaa594ac7faf7", "55582e93b1a1c9e9"},
    {"q6_k", "plain", QM_F32, "94f03408d791c2cf", "d0ffce6d095a50a9"},
    {"q8_0", "plain", QM_BF16, "76357195225df463", "837d660f4aa6fae4"},
    {"q4_0", "plain", QM_BF16, "7a4c0c4f1395384c", "8febb014603391d0"},
    {"q6_k", "plain", QM_BF16, "ac3319d77374e87d", "f89b0a3601a087c9"},
    {"q8_0", "plain", QM_F16, "79c943353d343cf6", "6d548a24145197e3"},
    {"q4_0", "plain", QM_F16, "5fd7d639d49dacaf", "a57c6abf55c9c2f0"},
    {"q6_k", "plain", QM_F16, "730a4422fd4ece53", "e84660cf2516ea54"},
    {"q8_0", "wild", QM_F32, "27f013b473114d82", "013b9f063e81c41d"},
    {"q4_0", "wild", QM_F32, "0afe73198cceda69", "ffdab73b1e0d15b7"},
    {"q6_k", "wild", QM_F32, "4b8efae6bf17c19f", "54c9d2b62d875d87"},
};

static void ggml_blocks(const float *values, const char *level)
{
    float *x = malloc(sizeof *x * EVEN);
    for (size_t i = 0; i < sizeof ggml / sizeof *ggml; i++) {
        const ggml_golden *g = &ggml[i];
        memcpy(x, values, sizeof *x * EVEN);
        round_to(g->dtype, x, EVEN);
        if (strcmp(g->values, "wild") == 0)
            make_wild(x, EVEN);
        coded r = code(g->format, x, EVEN, qm_format_find(g->format)->block);
        CHECKF(digest_is(r.plane[0], r.size[0], g->blocks), "%s: blocks of %s, %s %s", level, g->format,
               g->values, qm_dtypes[g->dtype].name);
        CHECKF(digest_as(QM_F32, r.decoded, EVEN, g->decoded), "%s: decoded %s, %s %s", level, g->format,
               g->values, qm_dtypes[g->dtype].name);
        drop(&r);
    }
    free(x);
}

TEST(format_ggml_blocks) { each_level(ggml_blocks); }

static void q8_0_rounding(const float *unused, const char *level)
{
    (void)unused;
    static const float in[] = {127, 0.49999997f, 0.5f, -0.5f, 1.4999999f, 2.5f, -2.5f, 126.49999f};
    static const int8_t out[] = {127, 0, 1, -1, 1, 3, -3, 126};
    float x[32] = {0};
    memcpy(x, in, sizeof in);
    coded r = code("q8_0", x, 32, 32);
    CHECKF(memcmp(r.plane[0] + 2, out, sizeof out) == 0, "%s", level);
    drop(&r);
}

TEST(format_q8_0_rounds_halves_away_from_zero) { each_level(q8_0_rounding); }

/* ggml's maximum forgets everything before a NaN, and its codes wrap. */
static void q8_0_nan(const float *unused, const char *level)
{
    (void)unused;
    float x[32] = {5, NAN, 1};
    coded r = code("q8_0", x, 32, 32);
    static const uint8_t want[] = {0x08, 0x20, 123, 0, 127, 0}; /* d = 1/127; 635 wraps to 123 */
    CHECKF(memcmp(r.plane[0], want, sizeof want) == 0, "%s: %02x %02x %d", level, r.plane[0][0],
           r.plane[0][1], r.plane[0][2]);
    drop(&r);
}

TEST(format_q8_0_of_nan_as_ggml) { each_level(q8_0_nan); }

/* The first weight of the largest magnitude decides the sign of d. */
static void q4_0_sign(const float *unused, const char *level)
{
    (void)unused;
    float x[32] = {0};
    x[3] = 8, x[20] = -8;
    coded r = code("q4_0", x, 32, 32);
    CHECKF(r.decoded[3] == 8 && r.decoded[20] == -7 && r.plane[0][1] == 0xbc, "%s", level);
    drop(&r);
    x[3] = -8, x[20] = 8;
    r = code("q4_0", x, 32, 32);
    CHECKF(r.decoded[3] == -8 && r.decoded[20] == 7 && r.plane[0][1] == 0x3c, "%s", level);
    drop(&r);
}

TEST(format_q4_0_takes_the_sign_of_the_first_largest) { each_level(q4_0_sign); }

/* ---- the registry's arithmetic ------------------------------------------------------------------ */

TEST(format_is_found_by_name_and_gguf_type)
{
    CHECK(qm_format_find("nf4") && !strcmp(qm_format_find("nf4")->name, "nf4"));
    CHECK(!qm_format_find("nf") && !qm_format_find("") && !qm_format_find("NF4"));
    CHECK(qm_format_of_gguf(14) == qm_format_find("q6_k") && qm_format_of_gguf(30) == qm_format_find("bf16"));
    CHECK(!qm_format_of_gguf(-1) && !qm_format_of_gguf(4));
}

TEST(format_sizes)
{
    qm_codec c = {.block = 64};
    const qm_format *nf4 = qm_format_find("nf4");
    CHECK(qm_format_planes(nf4) == 2 && qm_format_bits(nf4, &c) == 4.5);
    CHECK(qm_plane_size(nf4, &c, 0, 65573) == 32787 && qm_plane_size(nf4, &c, 1, 65573) == 4 * 1025);
    CHECK(qm_plane_size(nf4, &c, 0, 0) == 0 && qm_plane_size(nf4, &c, 1, 0) == 0);
    c.block = 4096;
    CHECK(qm_format_bits(qm_format_find("dynamic8"), &c) == 8.0078125);
    CHECK(qm_format_bits(qm_format_find("int8"), &c) == 8.0078125);
    c.block = 256;
    const qm_format *q6_k = qm_format_find("q6_k");
    CHECK(qm_format_bits(q6_k, &c) == 6.5625 && qm_plane_size(q6_k, &c, 0, 1 << 20) == (1 << 20) / 256 * 210);
    c.block = 32;
    CHECK(qm_format_bits(qm_format_find("q4_0"), &c) == 4.5
          && qm_format_bits(qm_format_find("q8_0"), &c) == 8.5);
    c.block = 1;
    CHECK(qm_plane_size(qm_format_find("f16"), &c, 0, 3) == 6
          && qm_format_bits(qm_format_find("f32"), &c) == 32);
}

static qm_err init(const char *name, int64_t cols, uint32_t block, qm_codec *c)
{
    qm_err e = {0};
    qm_codec_init(c, qm_format_find(name), cols, block, "tensor 'w' [2 x 100 f16]", &e);
    return e;
}

TEST(format_codec_defaults_and_refusals)
{
    qm_codec c = {0};
    CHECK(init("nf4", 100, 0, &c).code == QM_OK && c.block == 64 && !c.exact_zero);
    CHECK(init("nf4", 100, 4096, &c).code == QM_OK && c.block == 4096);
    CHECK(init("int8", 100, 0, &c).code == QM_OK && c.block == 100);
    CHECK(init("f16", 7, 0, &c).code == QM_OK && c.block == 1);
    CHECK(init("q6_k", 512, 256, &c).code == QM_OK && c.block == 256);
    CHECK(init("nf4", 100, 16, &c).code == QM_EUSAGE && init("nf4", 100, 96, &c).code == QM_EUSAGE);
    CHECK(init("nf4", 100, 8192, &c).code == QM_EUSAGE && init("dynamic8", 100, 32, &c).code == QM_EUSAGE);
    CHECK(init("int8", 100, 100, &c).code == QM_EUSAGE && init("q4_0", 64, 64, &c).code == QM_EUSAGE);
    CHECK(init("int8", 0, 0, &c).code == QM_EUNSUPPORTED);
    CHECK(c.block == 256); /* untouched by failures */
    qm_err e = init("q6_k", 4128, 0, &c);
    CHECKF(e.code == QM_EUNSUPPORTED
               && !strcmp(e.msg,
                          "tensor 'w' [2 x 100 f16]: q6_k needs rows of a multiple of 256 values, not 4128; "
                          "choose q8_0"),
           "%s", e.msg);
    e = init("q6_k", 4100, 0, &c);
    CHECKF(e.code == QM_EUNSUPPORTED && strstr(e.msg, "choose f16"), "%s", e.msg);
}
