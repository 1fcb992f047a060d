/* safetensors_test.c: real files are read, and each rule of the format is broken once. */
#include <stdlib.h>

#include "../../core/containers/safetensors.h"
#include "test.h"

/* A file of this header, after which come `data` zero bytes. */
static qm_infile *file_n(const char *header, size_t n, size_t data)
{
    uint64_t length = n;
    char *bytes = calloc(8 + n + data, 1);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, n);
    qm_err e = {0};
    qm_infile *f = qm_infile_open(qm_test_write("t.safetensors", bytes, 8 + n + data), &e);
    CHECKF(f, "%s", e.msg);
    free(bytes);
    return f;
}

static void refuses_file(qm_infile *f, qm_code code, const char *why, const char *what)
{
    qm_st_header h = {.count = 77};
    qm_err e = {0};
    CHECKF(!qm_st_read(&h, f, &e) && e.code == code, "taken: %s", what);
    CHECKF(strstr(e.msg, why) && strstr(e.msg, "t.safetensors: "), "%s: '%s', not '%s'", what, e.msg, why);
    CHECK(h.count == 77); /* untouched */
    qm_infile_unref(f);
}

static void refuses(const char *header, size_t data, const char *why)
{
    refuses_file(file_n(header, strlen(header), data), QM_ECORRUPT, why, header);
}

static void unsupported(const char *header, size_t data, const char *why)
{
    refuses_file(file_n(header, strlen(header), data), QM_EUNSUPPORTED, why, header);
}

static qm_st_header takes(const char *header, size_t data)
{
    qm_st_header h = {0};
    qm_err e = {0};
    qm_infile *f = file_n(header, strlen(header), data);
    CHECKF(qm_st_read(&h, f, &e), "%s", e.msg);
    qm_infile_unref(f);
    return h;
}

static void takes_it(const char *header, size_t data)
{
    qm_st_header h = takes(header, data);
    qm_st_free(&h);
    CHECK(!h.tensor && !h.count && !h.meta);
}

/* Written by the reference library (safetensors for Python). */
TEST(safetensors_real_files)
{
    static const struct {
        const char *file;
        size_t count;
        uint64_t data, size;
        const char *first;
        qm_dtype dtype;
        int64_t rows, cols;
    } real[] = {
        {"tiny-qwen2/model.safetensors", 50, 8 + 5320, 5781200, "model.embed_tokens.weight", QM_BF16, 2048,
         256},
        {"tiny-adapter/adapter_model.safetensors", 56, 8 + 7096, 531392,
         "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", QM_F32, 8, 512},
    };
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", qm_test_dir, real[i].file);
        qm_err e = {0};
        qm_infile *f = qm_infile_open(path, &e);
        qm_st_header h = {0};
        CHECKF(f && qm_st_read(&h, f, &e), "%s", e.msg);
        if (e.code)
            continue;
        const qm_st_tensor *t = h.tensor, *last = h.tensor + h.count - 1;
        CHECK(h.count == real[i].count && f->size == real[i].size && last->at + last->size == f->size);
        CHECK(strcmp(t->name, real[i].first) == 0 && t->dtype == real[i].dtype && t->at == real[i].data);
        CHECK(t->shape.ndim == 2 && t->shape.dim[0] == real[i].rows && t->shape.dim[1] == real[i].cols);
        CHECK(h.nmeta == 1 && strcmp(h.meta[0], "format") == 0 && strcmp(h.meta[1], "pt") == 0);
        qm_st_free(&h);
        qm_infile_unref(f);
    }
}

TEST(safetensors_every_dtype_and_odd_shapes)
{
    char header[4096], *p = header;
    uint64_t at = 0;
    for (int i = 0; i < QM_DTYPE_COUNT; i++) {
        uint64_t size = 4 * qm_dtypes[i].bits / 8;
        p += sprintf(p, "%c\"t%d\":{\"dtype\":\"%s\",\"shape\":[2,2],\"data_offsets\":[%d,%d]}",
                     i ? ',' : '{', i, qm_dtypes[i].safetensors, (int)at, (int)(at + size));
        at += size;
        CHECK(qm_st_dtype(qm_dtypes[i].safetensors) == i);
    }
    strcpy(p, "}");
    qm_st_header h = takes(header, at);
    CHECK(h.count == QM_DTYPE_COUNT && h.tensor[QM_U64].dtype == QM_U64 && h.tensor[QM_U64].size == 32);
    qm_st_free(&h);

    h = takes("{\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
              "\"a\":{\"dtype\":\"F32\",\"shape\":[0,9007199254740992],\"data_offsets\":[0,0]},"
              "\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}",
              4);
    CHECK(h.count == 3 && strcmp(h.tensor[0].name, "a") == 0 && h.tensor[1].shape.ndim == 0);
    qm_st_free(&h);
    takes_it("{}", 0);
    takes_it("{}      ", 0);
    takes_it("{\"__metadata__\":{}}", 0);
    takes_it("{\"a\":{\"extra\":[{\"b\":\"c\"}],\"shape\":[1],\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1);
    CHECK(qm_st_dtype("bf16") == -1 && qm_st_dtype("") == -1);
}

TEST(safetensors_length_of_the_header)
{
    static const uint64_t bad[] = {3, QM_ST_HEADER_MAX, QM_ST_HEADER_MAX + 1, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char bytes[10] = "........{}";
        memcpy(bytes, &bad[i], 8);
        qm_err e = {0};
        qm_infile *f = qm_infile_open(qm_test_write("t.safetensors", bytes, 10), &e);
        refuses_file(f, QM_ECORRUPT, bad[i] > QM_ST_HEADER_MAX ? "at most 100000000" : "cut short", "length");
    }
    qm_err e = {0};
    for (size_t n = 0; n < 8; n++)
        refuses_file(qm_infile_open(qm_test_write("t.safetensors", "\2\0\0\0\0\0\0", n), &e), QM_ECORRUPT,
                     "no safetensors file", "short");
    refuses_file(file_n("", 0, 0), QM_ECORRUPT, "begin with '{'", "empty header");
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
    refuses_file(qm_infile_open(qm_test_write("t.safetensors", pointer, sizeof pointer), &e), QM_ECORRUPT,
                 "git lfs pull", "pointer");
}

TEST(safetensors_json)
{
    refuses("[]", 0, "begin with '{'");
    refuses(" {}", 0, "begin with '{'");
    refuses("{} x", 0, "something follows");
    refuses_file(file_n("{}\0\0", 4, 0), QM_ECORRUPT, "something follows", "NUL padding");
    refuses("{\"a\":1", 0, "cut short");
    refuses("{\"\xff\":{}}", 0, "not UTF-8");
    refuses("{\"\\ud800\":{}}", 0, "surrogate");
    refuses("{\"a\":[],\"a\":[]}", 0, "key 'a' for the second time");
    refuses("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "second time");
    refuses("{\"__metadata__\":{\"a\":\"1\",\"\\u0061\":\"2\"}}", 0, "second time");
}

TEST(safetensors_metadata_is_texts)
{
    refuses("{\"__metadata__\":[]}", 0, "not an object");
    refuses("{\"__metadata__\":null}", 0, "not an object");
    refuses("{\"__metadata__\":{\"format\":1}}", 0, "'format' is not a text");
    refuses("{\"__metadata__\":{\"a\":\"b\",\"c\":{}}}", 0, "'c' is not a text");
    qm_st_header h = takes("{\"__metadata__\":{\"a\":\"b\",\"c\":\"\"}}", 0);
    CHECK(h.nmeta == 2 && h.count == 0 && strcmp(h.meta[2], "c") == 0 && strcmp(h.meta[3], "") == 0);
    qm_st_free(&h);
}

#define ENTRY(dtype, shape, offsets) \
    "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

TEST(safetensors_entry)
{
    refuses("{\"x\":5}", 0, "'x': its entry in the header is not an object");
    refuses("{\"x\":{\"shape\":[],\"data_offsets\":[0,0]}}", 0, "'x': has no text 'dtype'");
    refuses("{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, "'x': has no list 'shape'");
    refuses("{\"x\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, "'x': has no 'data_offsets'");
    refuses("{\"x\":{\"DTYPE\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "dtype");
    refuses(ENTRY("7", "[1]", "[0,1]"), 1, "dtype");
    unsupported(ENTRY("\"F99\"", "[1]", "[0,1]"), 1, "'x': dtype 'F99'");
    unsupported(ENTRY("\"u8\"", "[1]", "[0,1]"), 1, "dtype 'u8'");
    refuses(ENTRY("\"U8\"", "{\"a\":1}", "[0,1]"), 1, "shape");
    refuses(ENTRY("\"U8\"", "[\"1\"]", "[0,1]"), 1, "no number");
    refuses(ENTRY("\"U8\"", "[true]", "[0,1]"), 1, "no number");
    unsupported(ENTRY("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "more than 8 dimensions");
    refuses(ENTRY("\"U8\"", "[1]", "[0]"), 1, "two numbers");
    refuses(ENTRY("\"U8\"", "[1]", "[]"), 1, "two numbers");
    refuses(ENTRY("\"U8\"", "[1]", "[0,1,1]"), 1, "two numbers");
    refuses(ENTRY("\"U8\"", "[1]", "[0,\"1\"]"), 1, "two numbers");
    refuses(ENTRY("\"U8\"", "[1]", "\"0,1\""), 1, "two numbers");
}

TEST(safetensors_numbers)
{
    refuses(ENTRY("\"U8\"", "[-1]", "[0,1]"), 1, "whole number");
    refuses(ENTRY("\"U8\"", "[1.0]", "[0,1]"), 1, "whole number");
    refuses(ENTRY("\"U8\"", "[1e0]", "[0,1]"), 1, "whole number");
    refuses(ENTRY("\"U8\"", "[9007199254740993]", "[0,1]"), 1, "2^53");
    refuses(ENTRY("\"U8\"", "[18446744073709551617]", "[0,1]"), 1, "2^53");
    refuses(ENTRY("\"U8\"", "[1]", "[-1,0]"), 1, "whole number");
    refuses(ENTRY("\"U8\"", "[1]", "[18446744073709551615,0]"), 1, "2^53");
    refuses(ENTRY("\"U8\"", "[4294967296,4294967296]", "[0,1]"), 1, "larger than any file");
    refuses(ENTRY("\"F64\"", "[9007199254740992,1023]", "[0,1]"), 1, "larger than any file");
}

TEST(safetensors_extent)
{
    refuses(ENTRY("\"U8\"", "[1]", "[1,0]"), 1, "ends before it begins");
    refuses(ENTRY("\"F32\"", "[2,3]", "[0,23]"), 23,
            "[2 x 3] f32: takes 24 bytes, but 'data_offsets' spans 23");
    refuses(ENTRY("\"F32\"", "[]", "[0,0]"), 0, "[] f32: takes 4 bytes");
    refuses(ENTRY("\"F32\"", "[0]", "[0,4]"), 4, "takes 0 bytes");
    refuses(ENTRY("\"F4\"", "[3]", "[0,2]"), 2, "middle of a byte");
    refuses(ENTRY("\"F6_E2M3\"", "[2]", "[0,2]"), 2, "middle of a byte");
    refuses(ENTRY("\"U8\"", "[4]", "[0,4]"), 3, "cut short");
    refuses(ENTRY("\"U8\"", "[4]", "[0,4]"), 5, "1 bytes behind the last tensor");
    refuses("{}", 1, "1 bytes behind");
    refuses(ENTRY("\"U8\"", "[4]", "[1,5]"), 5, "leave a hole");
    refuses(ENTRY("\"U8\"", "[9007199254740992]", "[0,9007199254740992]"), 1, "cut short");
}

#define TWO(a, b)                                                     \
    "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" b "}," \
    "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" a "}}"

TEST(safetensors_cover)
{
    takes_it(TWO("[0,4]", "[4,8]"), 8);
    takes_it(TWO("[4,8]", "[0,4]"), 8);
    refuses(TWO("[0,4]", "[0,4]"), 4, "'b' begins at byte");
    refuses(TWO("[0,4]", "[2,6]"), 6, "overlap");
    refuses(TWO("[0,4]", "[5,9]"), 9, "leave a hole");
}

/* A name with terminal escapes or of a megabyte must not reach the terminal so. */
TEST(safetensors_hostile_name_in_message)
{
    refuses("{\"a\\u001b[31m\\n\":5}", 0, "'a?[31m?': its entry");
    enum { LONG = 1 << 20 };
    static char header[LONG + 16] = "{\"";
    memset(header + 2, 'x', LONG);
    strcpy(header + 2 + LONG, "\":5}");
    refuses(header, 0, "xxx': its entry in the header is not an object");
}

/* Whatever is changed in a valid header, the answer is a failure with a message or a header that lies in the
 * file. */
TEST(safetensors_mutations)
{
    static const char seed[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                               "\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                               "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[12,16]}}";
    static const char alphabet[] = "{}[]\",:0123456789-.eE\\uF \xff";
    uint64_t rng = 0x2545f4914f6cdd1du;
    int taken = 0;
    for (int round = 0; round < 4000; round++) {
        char header[sizeof seed];
        strcpy(header, seed);
        for (int flips = round % 4; flips > 0; flips--) {
            rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
            header[rng % (sizeof seed - 1)] = alphabet[(rng >> 32) % (sizeof alphabet - 1)];
        }
        qm_infile *f = file_n(header, sizeof seed - 1, 16);
        qm_st_header h = {0};
        qm_err e = {0};
        bool ok = qm_st_read(&h, f, &e);
        taken += ok;
        CHECK(ok == (e.code == QM_OK) && ok == (e.msg[0] == 0));
        for (size_t i = 0; i < h.count; i++)
            CHECK(h.tensor[i].at + h.tensor[i].size <= f->size);
        qm_st_free(&h);
        qm_infile_unref(f);
    }
    CHECKF(taken >= 1000 && taken < 2500, "%d", taken);
}
