/* research_test.c: the fixed research formats against other people's arithmetic.
 *
 * 8-bit floats: torch 2.15's casts, of values clamped to the largest one first.  Integers and scaled 8-bit
 * floats: their formulas in torch operations (round is to even), packed by numpy.packbits.  nvfp4: the
 * functions of compressed-tensors 0.20.  All by tests/peers/research_vectors.py. */
#include <math.h>
#include <stdlib.h>

#include "../../core/format.h"
#include "../../core/formats/f8.h"
#include "golden.h"
#include "sha256.h"
#include "test.h"

static bool digest_is(const void *data, size_t n, const char *first16)
{
    return strncmp(sha256(data, n), first16, 16) == 0;
}

typedef struct golden {
    const char *format, *plane[QM_MAX_PLANES], *decoded;
} golden;

/* In groups of 64; fp8 in rows of 256. */
static const golden goldens[] = {
    {"int2", {"4c4f27afff605a44", "cccf648faa130f26"}, "a13801b79573f0d7"},
    {"int3", {"2e6d022cea602eb5", "83019242c509f7e3"}, "075d85db14c0ae7f"},
    {"int4", {"ba8dab7082ea82c2", "6bd29efbdf636524"}, "16be2d20cd076a01"},
    {"int5", {"b9bee3d684d958d5", "846fc9d8aae67b2b"}, "cc300ba17fc9bfc8"},
    {"int6", {"717e514007abd614", "bb9565ce8ca057d2"}, "2a920917dec40164"},
    {"int7", {"47e7cdd7a053ac49", "4f879964aabbe13f"}, "bd2278cc7b906bcc"},
    {"int8g", {"0a7a4d500bf725dc", "68f9f8bd8b7cb299"}, "b44f3dbd34967b44"},
    {"uint2", {"15607d62b1c463ea", "0febf6f84a5f8437", "fa49eb5bac10f58b"}, "c953ecf3704c1b39"},
    {"uint3", {"7029d104ef06dbeb", "e0f41baf331e4bbe", "96b8964ecf1ddf2e"}, "0eb4e3ed765e0ea1"},
    {"uint4", {"ab15fc7f8075845b", "3ae331dbcfb1e762", "195875fb55665055"}, "b0a7a8d76721b11a"},
    {"uint5", {"441b7a757cb2decd", "2c66946c22487deb", "52a1195e1908f8c4"}, "31f34978e7df9bdd"},
    {"uint6", {"6ee647fa17f71007", "5440d74e6eb938cd", "3281bdb043ced7ce"}, "d458fece57feee6b"},
    {"uint7", {"7612955899590845", "5e206c6d63d88e04", "6a20f4112a98b86a"}, "813e46884a307272"},
    {"uint8", {"b69492a91a693587", "a80ba835a7128cc1", "a1ee12816a25cf2f"}, "55096ac68b79f42c"},
    {"fp8_e4m3", {"d417dbfaf7c5cd84", "6cc2227c29527690"}, "cb9e9926a4323536"},
    {"fp8_e5m2", {"7041b4a43d5f3223", "908007447754c18b"}, "78cd3844273f624d"},
};

static void check_golden(const golden *g, const float *x)
{
    const qm_format *f = qm_format_find(g->format);
    qm_codec c;
    qm_err e = {0};
    uint8_t *plane[QM_MAX_PLANES] = {0};
    float *y = malloc(sizeof *y * EVEN);
    CHECKF(qm_codec_init(&c, f, 256, 0, "x", &e), "%s", e.msg);
    qm_codec_measure(&c, f, x, EVEN);
    for (int i = 0; i < qm_format_planes(f); i++)
        plane[i] = malloc(qm_plane_size(f, &c, i, EVEN));
    qm_encode(f, x, EVEN, &c, plane);
    qm_decode(f, (const uint8_t *const *)plane, EVEN, &c, y);
    for (int i = 0; i < qm_format_planes(f); i++)
        CHECKF(digest_is(plane[i], qm_plane_size(f, &c, i, EVEN), g->plane[i]), "%s: %s", g->format,
               f->plane[i].name);
    for (int i = 0; i < EVEN; i++)
        y[i] += 0.0f; /* -0 and 0 are the same to integers */
    CHECKF(digest_is(y, sizeof *y * EVEN, g->decoded), "%s: decoded", g->format);
    for (int i = 0; i < QM_MAX_PLANES; i++)
        free(plane[i]);
    free(y);
}

TEST(research_goldens)
{
    float *x = malloc(sizeof *x * COUNT);
    golden_values(x);
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++)
        check_golden(&goldens[i], x);
    free(x);
}

TEST(research_nvfp4_is_that_of_compressed_tensors)
{
    static const golden g = {"nvfp4", {"8b81b3db5eb6d3af", "357def65beef8f10"}, "67afb073c9d205ac"};
    float *x = malloc(sizeof *x * COUNT);
    golden_values(x);
    for (int i = 192; i < 256; i++) /* for zeros they store a scale other than 0 */
        x[i] = 0x1p-8f;
    check_golden(&g, x);
    qm_codec c = {0};
    qm_codec_measure(&c, qm_format_find("nvfp4"), x, EVEN);
    CHECK(c.factor == 91074.78125f);
    free(x);
}

/* Every f16 and every bf16 value, NaN among them. */
static void check_casts(const char *name, const char *of_f16, const char *of_bf16)
{
    const qm_format *f = qm_format_find(name);
    qm_codec c = {.block = 1};
    float *x = malloc(sizeof *x << 16);
    uint8_t *codes = malloc(1 << 16);
    for (uint32_t i = 0; i < 1 << 16; i++)
        x[i] = qm_f16_to_f32((uint16_t)i);
    qm_encode(f, x, 1 << 16, &c, &codes);
    CHECKF(digest_is(codes, 1 << 16, of_f16), "%s", name);
    for (uint32_t i = 0; i < 1 << 16; i++)
        x[i] = qm_bf16_to_f32((uint16_t)i);
    qm_encode(f, x, 1 << 16, &c, &codes);
    CHECKF(digest_is(codes, 1 << 16, of_bf16), "%s", name);
    free(x);
    free(codes);
}

static void check_values(const char *name, const char *digest)
{
    float y[256];
    uint8_t codes[256];
    qm_codec c = {.block = 1};
    for (int i = 0; i < 256; i++)
        codes[i] = (uint8_t)i;
    qm_decode(qm_format_find(name), (const uint8_t *const[]){codes}, 256, &c, y);
    for (int i = 0; i < 256; i++)
        y[i] = isnan(y[i]) ? 12345 : y[i];
    CHECKF(digest_is(y, sizeof y, digest), "%s", name);
}

TEST(research_f8_is_torch_float8)
{
    check_casts("f8_e4m3", "5fca763e3fe00eb8", "556222ae80c3498b");
    check_casts("f8_e5m2", "5cbd0c95c901911d", "bd44828554535a84");
    check_values("f8_e4m3", "60efb1d40706a18a");
    check_values("f8_e5m2", "b4685286a46b1009");
}

TEST(research_f8_saturates)
{
    CHECK(qm_e4m3_to_f32(qm_f32_to_e4m3(1e9f)) == 448 && qm_e4m3_to_f32(qm_f32_to_e4m3(-INFINITY)) == -448);
    CHECK(qm_e5m2_to_f32(qm_f32_to_e5m2(1e9f)) == 57344 && qm_e5m2_to_f32(qm_f32_to_e5m2(INFINITY)) == 57344);
    CHECK(isnan(qm_e4m3_to_f32(qm_f32_to_e4m3(NAN))) && isnan(qm_e5m2_to_f32(qm_f32_to_e5m2(NAN))));
    CHECK(qm_f32_to_e4m3(448.0001f) == 0x7e && qm_f32_to_e4m3(0x1p-10f) == 0
          && qm_f32_to_e4m3(0x1.8p-10f) == 1);
    CHECK(qm_f32_to_e4m3(-0.0f) == 0x80 && qm_f32_to_e4m3(0x1p-126f) == 0);
}

/* Five bits a code, the first in the highest: -15 … 15 are 1 … 31. */
TEST(research_codes_lie_first_in_high_bits)
{
    const float x[5] = {15, -15, 0, 1, -1};
    uint8_t codes[4], scale[4];
    float one;
    qm_codec c = {.block = 5};
    qm_encode(qm_format_find("int5"), x, 5, &c, (uint8_t *[]){codes, scale});
    memcpy(&one, scale, sizeof one);
    CHECK(one == 1);
    /* 11111 00001 10000 10001 01111 and seven zeros */
    CHECK(codes[0] == 0xf8 && codes[1] == 0x61 && codes[2] == 0x17 && codes[3] == 0x80);
}

static const char *refused(const char *name, int64_t cols, uint32_t block)
{
    static qm_err e;
    qm_codec c;
    e = (qm_err){0};
    return qm_codec_init(&c, qm_format_find(name), cols, block, "w", &e) ? "" : e.msg;
}

TEST(research_blocks_are_any_number_or_a_row)
{
    qm_codec c;
    qm_err e = {0};
    CHECK(qm_codec_init(&c, qm_format_find("int4"), 100, 7, "w", &e) && c.block == 7);
    CHECK(qm_codec_init(&c, qm_format_find("int4"), 100, QM_BLOCK_ROW, "w", &e) && c.block == 100);
    CHECK(qm_codec_init(&c, qm_format_find("fp8_e4m3"), 100, 0, "w", &e) && c.block == 100);
    CHECK(qm_codec_init(&c, qm_format_find("fp8_e4m3"), 100, 128, "w", &e) && c.block == 128);
    CHECK(qm_codec_init(&c, qm_format_find("int8"), 100, QM_BLOCK_ROW, "w", &e) && c.block == 100);
    CHECK(strstr(refused("nf4", 100, QM_BLOCK_ROW), "does not take whole rows"));
    CHECK(strstr(refused("nf4", 100, 96), "powers of two"));
    CHECK(strstr(refused("int8", 100, 64), "one group a row"));
    CHECK(strstr(refused("nvfp4", 100, 0), "rows of a multiple of 16"));
    c = (qm_codec){.block = 7};
    CHECK(qm_plane_size(qm_format_find("int4"), &c, 0, 100) == 14 * 4 + 1);
    CHECK(qm_plane_size(qm_format_find("int3"), &c, 0, 100) == 14 * 3 + 1);
    CHECK(qm_plane_size(qm_format_find("uint3"), &c, 2, 100) == 15);
}
