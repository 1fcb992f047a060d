/* gguf_test.c: a file by the reference writer is read, and each rule of the format is broken once.
 *
 * fixtures/kinds.gguf was written by gguf-py 0.19: one key of every kind, alignment 64, and tensors f32 [2 x
 * 3], f16 [5], q4_0 [3 x 64], q8_0 [2 x 1 x 32] (torch order).
 */
#include <stdlib.h>

#include "../../core/containers/gguf.h"
#include "test.h"

/* ---- a file in the making ---- */

static uint8_t image[1 << 16];
static size_t length;

static void put(const void *p, size_t n)
{
    memcpy(image + length, p, n);
    length += n;
}
static void u8(uint8_t v) { put(&v, sizeof v); }
static void u32(uint32_t v) { put(&v, sizeof v); }
static void u64(uint64_t v) { put(&v, sizeof v); }
static void text(const char *s)
{
    u64(strlen(s));
    put(s, strlen(s));
}

static void start(uint64_t tensors, uint64_t pairs)
{
    length = 0;
    put("GGUF", 4);
    u32(3);
    u64(tensors);
    u64(pairs);
}

static void key(const char *name, uint32_t kind)
{
    text(name);
    u32(kind);
}

static void info(const char *name, uint32_t ndim, const uint64_t *ne, uint32_t type, uint64_t offset)
{
    text(name);
    u32(ndim);
    for (uint32_t i = 0; i < ndim; i++)
        u64(ne[i]);
    u32(type);
    u64(offset);
}

static void pad(size_t alignment)
{
    while (length % alignment)
        u8(0);
}

static void zeros(size_t n)
{
    memset(image + length, 0, n);
    length += n;
}

static qm_infile *finished(void)
{
    qm_err e = {0};
    qm_infile *f = qm_infile_open(qm_test_write("t.gguf", image, length), &e);
    CHECKF(f, "%s", e.msg);
    return f;
}

static void fails(int line, qm_code code, const char *why)
{
    qm_infile *f = finished();
    qm_gguf_header h = {.count = 77};
    qm_err e = {0};
    CHECKF(!qm_gguf_read(&h, f, &e) && e.code == code, "line %d: code %d", line, e.code);
    CHECKF(strstr(e.msg, why) && strstr(e.msg, "t.gguf: "), "line %d: '%s', not '%s'", line, e.msg, why);
    CHECK(h.count == 77); /* untouched */
    qm_infile_unref(f);
}
#define refuses(why)     fails(__LINE__, QM_ECORRUPT, why)
#define unsupported(why) fails(__LINE__, QM_EUNSUPPORTED, why)

static qm_gguf_header reads(int line)
{
    qm_infile *f = finished();
    qm_gguf_header h = {0};
    qm_err e = {0};
    CHECKF(qm_gguf_read(&h, f, &e), "line %d: %s", line, e.msg);
    qm_infile_unref(f); /* values point into the map; only tensors are looked at */
    return h;
}

static void takes_at(int line)
{
    qm_gguf_header h = reads(line);
    qm_gguf_free(&h);
    CHECK(!h.tensor && !h.pair && !h.count);
}
#define takes() takes_at(__LINE__)

/* ---- what the reference writes ---- */

static const qm_gguf_pair *find(const qm_gguf_header *h, const char *name)
{
    for (size_t i = 0; i < h->npair; i++)
        if (h->pair[i].key_length == strlen(name) && memcmp(h->pair[i].key, name, strlen(name)) == 0)
            return &h->pair[i];
    return NULL;
}

static void has(const qm_gguf_header *h, const char *name, qm_gguf_kind kind, const void *bytes, size_t n)
{
    const qm_gguf_pair *p = find(h, name);
    CHECKF(p && p->value.kind == kind && !p->value.array && p->value.count == 1, "%s", name);
    CHECKF(p && p->value.size == n && memcmp(p->value.at, bytes, n) == 0, "%s", name);
}

static void has_array(const qm_gguf_header *h, const char *name, qm_gguf_kind kind, uint64_t count,
                      const void *bytes, size_t n)
{
    const qm_gguf_pair *p = find(h, name);
    CHECKF(p && p->value.kind == kind && p->value.array && p->value.count == count, "%s", name);
    CHECKF(p && p->value.size == n && memcmp(p->value.at, bytes, n) == 0, "%s", name);
}

TEST(gguf_reads_the_reference_writer)
{
    char path[256];
    snprintf(path, sizeof path, "%s/kinds.gguf", qm_test_dir);
    qm_err e = {0};
    qm_infile *f = qm_infile_open(path, &e);
    qm_gguf_header h = {0};
    CHECKF(f && qm_gguf_read(&h, f, &e), "%s", e.msg);
    if (e.code)
        return;
    CHECK(h.version == 3 && h.alignment == 64 && h.npair == 18 && h.count == 4);
    has(&h, "k.u8", QM_GGUF_U8, &(uint8_t){200}, 1);
    has(&h, "k.i8", QM_GGUF_I8, &(int8_t){-3}, 1);
    has(&h, "k.u16", QM_GGUF_U16, &(uint16_t){60000}, 2);
    has(&h, "k.i16", QM_GGUF_I16, &(int16_t){-300}, 2);
    has(&h, "k.u32", QM_GGUF_U32, &(uint32_t){4000000000u}, 4);
    has(&h, "k.i32", QM_GGUF_I32, &(int32_t){-70000}, 4);
    has(&h, "k.f32", QM_GGUF_F32, &(float){0.5f}, 4);
    has(&h, "k.u64", QM_GGUF_U64, &(uint64_t){(1ull << 63) + 1}, 8);
    has(&h, "k.i64", QM_GGUF_I64, &(int64_t){-(1ll << 40)}, 8);
    has(&h, "k.f64", QM_GGUF_F64, &(double){0.1}, 8);
    has(&h, "k.bool", QM_GGUF_BOOL, "\1", 1);
    has(&h, "k.string", QM_GGUF_STRING, "\5\0\0\0\0\0\0\0K\xc3\xb6ln", 13);
    has_array(&h, "k.ints", QM_GGUF_I32, 3, (int32_t[]){1, 2, 3}, 12);
    has_array(&h, "k.floats", QM_GGUF_F32, 2, (float[]){0.5f, 1.5f}, 8);
    has_array(&h, "k.bools", QM_GGUF_BOOL, 2, "\1\0", 2);
    has_array(&h, "k.strings", QM_GGUF_STRING, 3,
              "\1\0\0\0\0\0\0\0a\0\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\xc3\x9fs", 28);

    static const struct {
        const char *name;
        int type, ndim;
        int64_t first, last;
        uint64_t at, size;
    } want[] = {{"f32", 0, 2, 2, 3, 768, 24},
                {"f16", 1, 1, 5, 5, 832, 10},
                {"q4_0", 2, 2, 3, 64, 896, 108},
                {"q8_0", 8, 3, 2, 32, 1024, 68}};
    for (size_t i = 0; i < h.count; i++) {
        const qm_gguf_tensor *t = &h.tensor[i];
        CHECKF(strcmp(t->name, want[i].name) == 0 && t->type == want[i].type && t->shape.ndim == want[i].ndim
                   && t->shape.dim[0] == want[i].first && t->shape.dim[t->shape.ndim - 1] == want[i].last
                   && t->at == want[i].at && t->size == want[i].size,
               "%s at %d, %d bytes", t->name, (int)t->at, (int)t->size);
        CHECK(t->format == qm_format_of_gguf(t->type));
    }
    qm_gguf_free(&h);
    qm_infile_unref(f);
}

TEST(gguf_types)
{
    static const struct {
        int id;
        const char *name;
        double bits;
    } some[] = {{0, "F32", 32},       {30, "BF16", 16},    {2, "Q4_0", 4.5},    {8, "Q8_0", 8.5},
                {14, "Q6_K", 6.5625}, {10, "Q2_K", 2.625}, {39, "MXFP4", 4.25}, {40, "NVFP4", 4.5},
                {41, "Q1_0", 1.125},  {42, "Q2_0", 2.25}};
    static const int none[] = {-1, 4, 5, 31, 32, 33, 36, 37, 38, 43, 1000};
    const char *name;
    unsigned block, bytes;
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        CHECKF(qm_gguf_type_info(some[i].id, &name, &block, &bytes) && strcmp(name, some[i].name) == 0
                   && 8.0 * bytes / block == some[i].bits,
               "%s", some[i].name);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        CHECKF(!qm_gguf_type_info(none[i], &name, &block, &bytes), "%d", none[i]);
}

/* ---- rules, one by one ---- */

TEST(gguf_start)
{
    start(0, 0);
    takes();
    image[4] = 2;
    takes();
    for (size_t n = 0; n < 24; n++) {
        start(0, 0);
        length = n;
        refuses("cut short");
    }
    start(0, 0);
    image[0] = 'g';
    refuses("is it a GGUF file");
    static const uint32_t versions[] = {0, 1, 4, 0x03000000, 0x10000};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        start(0, 0);
        memcpy(image + 4, &versions[i], 4);
        unsupported(versions[i] & 0xffff ? "version" : "big-endian");
    }
}

/* No small file makes us ask for much memory. */
TEST(gguf_counts)
{
    static const uint64_t bad[] = {1, 1000, 1ull << 32, 1ull << 62, UINT64_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        start(bad[i], 0);
        refuses("no room");
        start(0, bad[i]);
        refuses("no room");
        start(bad[i], 1);
        key("k", QM_GGUF_U8);
        u8(1);
        refuses("no room");
        start(0, 1);
        key("k", QM_GGUF_STRING);
        u64(bad[i]);
        refuses("cut short");
        start(0, 1);
        text("");
        memcpy(image + length - 8, &bad[i], 8);
        zeros(8);
        refuses(bad[i] == 1 ? "is not UTF-8" : "cut short");
        for (uint32_t kind = 0; kind < QM_GGUF_KIND_COUNT; kind++) {
            start(0, 1);
            key("k", QM_GGUF_ARRAY);
            u32(kind);
            u64(bad[i]);
            kind == QM_GGUF_ARRAY ? unsupported("array of arrays") : refuses("cut short");
        }
    }
}

TEST(gguf_pairs)
{
    start(0, 2);
    key("a", QM_GGUF_BOOL);
    u8(1);
    key("b", QM_GGUF_ARRAY);
    u32(QM_GGUF_STRING);
    u64(0);
    takes();
    start(0, 1);
    key("flag", QM_GGUF_BOOL);
    u8(2);
    refuses("'flag': a bool of 2");
    start(0, 1);
    key("flags", QM_GGUF_ARRAY);
    u32(QM_GGUF_BOOL);
    u64(3);
    put("\0\1\xff", 3);
    refuses("'flags': a bool of 255");
    for (uint32_t kind = QM_GGUF_KIND_COUNT; kind; kind = kind == QM_GGUF_KIND_COUNT ? UINT32_MAX : 0) {
        start(0, 1);
        key("odd", kind);
        zeros(8);
        refuses("'odd': ");
        start(0, 1);
        key("odd", QM_GGUF_ARRAY);
        u32(kind);
        u64(0);
        refuses("is no kind of value");
    }
    start(0, 3);
    for (int i = 0; i < 3; i++) {
        key(i == 1 ? "other" : "twin", QM_GGUF_U8);
        u8(0);
    }
    refuses("two keys are called 'twin'");
    start(0, 2);
    for (int i = 0; i < 2; i++) {
        key(i ? "ab" : "a", QM_GGUF_U8); /* one begins with the other */
        u8(0);
    }
    takes();
    static const char *const names[] = {"", "\xff", "\xed\xa0\x80"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        start(0, 1);
        key(names[i], QM_GGUF_U8);
        u8(0);
        refuses(*names[i] ? "not UTF-8" : "without a name");
    }
    start(0, 1);
    u64(2);
    put("a\0", 2);
    u32(QM_GGUF_U8);
    u8(0);
    refuses("not UTF-8 without NUL");
}

static void aligned(uint32_t kind, uint64_t alignment)
{
    start(1, 1);
    key("general.alignment", kind);
    put(&alignment, kind == QM_GGUF_U64 ? 8 : 4);
    info("t", 1, (uint64_t[]){3}, 24, 0);
    pad(alignment && alignment < 4096 ? alignment : 32);
    zeros(3);
}

TEST(gguf_alignment)
{
    for (uint64_t a = 1; a < 4096; a *= 2) {
        aligned(QM_GGUF_U32, a);
        takes();
    }
    static const uint64_t bad[] = {0, 3, 33, 48, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        aligned(QM_GGUF_U32, bad[i]);
        refuses("not a power of two");
    }
    aligned(QM_GGUF_U32, 1u << 31);
    refuses("cut short");
    aligned(QM_GGUF_U64, 32);
    refuses("not a u32");
    aligned(QM_GGUF_I32, 32);
    refuses("not a u32");
    start(0, 1);
    key("general.alignment", QM_GGUF_ARRAY);
    u32(QM_GGUF_U32);
    u64(0);
    refuses("not a u32");
}

/* One tensor of these dimensions (GGUF order), with all its bytes. */
static void single(const char *name, uint32_t ndim, const uint64_t *ne, uint32_t type, size_t bytes)
{
    start(1, 0);
    info(name, ndim, ne, type, 0);
    pad(32);
    zeros(bytes);
}

TEST(gguf_tensor)
{
    char name[70];
    memset(name, 'n', sizeof name);
    name[63] = 0;
    single(name, 1, (uint64_t[]){2}, 0, 8);
    takes();
    name[63] = 'n';
    name[64] = 0;
    single(name, 1, (uint64_t[]){2}, 0, 8);
    refuses("a name of 64 bytes; GGUF has at most 63");
    single("\xc0\x80", 1, (uint64_t[]){2}, 0, 8);
    refuses("the name of a tensor");
    single("s", 0, NULL, 0, 4);
    takes();
    single("e", 2, (uint64_t[]){4, 0}, 0, 0);
    takes();
    single("s", 0, NULL, 8, 34);
    refuses("'s' [] Q8_0: rows must be a multiple of 32");
    single("five", 5, (uint64_t[]){1, 1, 1, 1, 1}, 0, 4);
    refuses("'five': 5 dimensions");
    single("many", 0, NULL, 0, 4);
    memcpy(image + 24 + 8 + 4, &(uint32_t){UINT32_MAX}, 4);
    refuses("'many': 4294967295 dimensions");
    single("t", 2, (uint64_t[]){33, 2}, 2, 100);
    refuses("'t' [2 x 33] Q4_0: rows must be a multiple of 32");
    single("t", 2, (uint64_t[]){16, 2}, 2, 18); /* 32 values, but no row holds a block */
    refuses("rows must be a multiple");
    single("t", 1, (uint64_t[]){UINT64_MAX}, 0, 4);
    refuses("a dimension of 18446744073709551615");
    single("t", 2, (uint64_t[]){1ull << 32, 1ull << 32}, 0, 4);
    refuses("larger than any file");
    single("t", 1, (uint64_t[]){INT64_MAX}, 27, 4);
    refuses("larger than any file");
    single("t", 1, (uint64_t[]){1ull << 53}, 27, 4);
    refuses("cut short");
    static const uint32_t types[] = {4, 5, 31, 38, 43, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char why[80];
        single("odd", 1, (uint64_t[]){256}, types[i], 4);
        snprintf(why, sizeof why, "'odd': ggml type %u is none", types[i]);
        unsupported(why);
    }
}

static void pair_at(uint64_t first, uint64_t second, size_t bytes)
{
    start(2, 0);
    info("a", 1, (uint64_t[]){5}, 0, first);
    info("b", 1, (uint64_t[]){2}, 0, second);
    pad(32);
    zeros(bytes);
}

TEST(gguf_places)
{
    pair_at(0, 32, 64);
    takes();
    pair_at(0, 32, 40); /* padding behind the last one is missing */
    qm_gguf_header h = reads(__LINE__);
    CHECK(h.count == 2 && h.tensor[0].at == 96 && h.tensor[1].at == 128 && h.tensor[1].size == 8);
    qm_gguf_free(&h);
    pair_at(0, 32, 39);
    refuses("'b': takes 8 bytes at byte 128, but the file ends at 135");
    pair_at(0, 32, 19);
    refuses("'a': takes 20 bytes");
    pair_at(0, 20, 64);
    refuses("'b': is said to be at byte 20 of the data, but the one before it ends at 32");
    pair_at(0, 64, 96);
    refuses("'b'");
    pair_at(0, 0, 64);
    refuses("'b'");
    pair_at(32, 0, 64);
    refuses("'a'");
    pair_at(UINT64_MAX - 31, 0, 64);
    refuses("'a'");
    start(3, 0);
    info("twin", 1, (uint64_t[]){8}, 0, 0);
    info("other", 1, (uint64_t[]){8}, 0, 32);
    info("twin", 1, (uint64_t[]){8}, 0, 64);
    pad(32);
    zeros(96);
    refuses("two tensors are called 'twin'");
}

/* Whatever is changed, cut off or lengthened in the reference's file, the answer is a failure with a message
 * or a header that lies in the file. */
TEST(gguf_mutations)
{
    char path[256];
    snprintf(path, sizeof path, "%s/kinds.gguf", qm_test_dir);
    qm_err e = {0};
    qm_infile *seed = qm_infile_open(path, &e);
    CHECKF(seed, "%s", e.msg);
    if (!seed)
        return;
    static const uint8_t values[] = {0, 1, 2, 3, 4, 8, 9, 10, 12, 13, 31, 32, 33, 63, 64, 127, 128, 254, 255};
    uint64_t rng = 0x853c49e6748fea9bu;
    int taken = 0;
    for (int round = 0; round < 6000; round++) {
        length = 0;
        put(seed->map, seed->size);
        for (int flips = round % 4; flips > 0; flips--) {
            rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
            image[rng % 768] = values[(rng >> 32) % sizeof values];
        }
        if (round % 16 == 15)
            length = (rng >> 20) % length;
        qm_infile *f = finished();
        qm_gguf_header h = {0};
        e = (qm_err){0};
        bool ok = qm_gguf_read(&h, f, &e);
        taken += ok;
        CHECK(ok == (e.code == QM_OK) && ok == (e.msg[0] == 0));
        for (size_t i = 0; i < h.count; i++)
            CHECK(h.tensor[i].size <= f->size && h.tensor[i].at <= f->size - h.tensor[i].size);
        for (size_t i = 0; i < h.npair; i++) {
            const qm_gguf_value *v = &h.pair[i].value;
            CHECK(v->at >= f->map && v->at + v->size <= f->map + f->size);
        }
        qm_gguf_free(&h);
        qm_infile_unref(f);
    }
    CHECKF(taken >= 1500 && taken < 4500, "%d", taken);
    qm_infile_unref(seed);
}
