/* torch_test.c: files of torch.save are read as torch reads them; whatever else is in them is refused, and
 * damage of any kind is an error, not a crash. */
#include <stdlib.h>

#include "../../core/containers/pickle.h"
#include "../../core/containers/torch.h"
#include "test.h"

/* ---- helpers -------------------------------------------------------------------------------- */

static qm_torch_header read_fixture(const char *name, qm_infile **file)
{
    char path[256];
    qm_err e = {0};
    qm_torch_header h = {0};
    snprintf(path, sizeof path, "%s/torch/%s", qm_test_dir, name);
    *file = qm_infile_open(path, &e);
    CHECKF(*file && qm_torch_read(&h, *file, &e), "%s", e.msg);
    return h;
}

static const qm_torch_tensor *tensor_of(const qm_torch_header *h, const char *name)
{
    for (size_t i = 0; i < h->count; i++)
        if (strcmp(h->tensor[i].name, name) == 0)
            return &h->tensor[i];
    CHECKF(false, "no tensor %s", name);
    return &h->tensor[0];
}

static void refuses_file(const char *name, qm_code code, const char *why)
{
    char path[256];
    qm_err e = {0};
    qm_torch_header h = {.count = 77};
    snprintf(path, sizeof path, "%s/torch/%s", qm_test_dir, name);
    qm_infile *f = qm_infile_open(path, &e);
    CHECKF(f && !qm_torch_read(&h, f, &e) && e.code == code && strstr(e.msg, why), "%s: %s", name, e.msg);
    CHECK(h.count == 77); /* untouched */
    qm_infile_unref(f);
}

/* A whole file in memory. */
typedef struct bytes {
    uint8_t *data;
    size_t size;
} bytes;

static bytes load(const char *name)
{
    char path[256];
    qm_err e = {0};
    snprintf(path, sizeof path, "%s/torch/%s", qm_test_dir, name);
    qm_infile *f = qm_infile_open(path, &e);
    bytes b = {malloc(f->size), f->size};
    CHECK(qm_infile_read(f, 0, b.data, b.size, &e));
    qm_infile_unref(f);
    return b;
}

/* Reads these bytes as a file; true when they are taken, after a look at every element. */
static bool takes(bytes b, qm_err *e)
{
    qm_torch_header h = {0};
    *e = (qm_err){0};
    qm_infile *f = qm_infile_open(qm_test_write("t.pt", b.data, b.size), e);
    bool ok = f && qm_torch_read(&h, f, e);
    for (size_t i = 0; i < h.count; i++) {
        const qm_torch_tensor *t = &h.tensor[i];
        uint64_t span = t->size;
        if (t->strided.shape.ndim)
            span = (uint64_t)qm_strided_span(&t->strided) * (qm_dtypes[t->dtype].bits / 8);
        CHECK(t->at <= f->size && span <= f->size - t->at);
    }
    qm_torch_free(&h);
    qm_infile_unref(f);
    return ok;
}

/* ---- real files ----------------------------------------------------------------------------- */

TEST(torch_zip_and_legacy_hold_the_same)
{
    static const char *const pair[][2] = {{"rnn.pth", "rnn-legacy.pth"}, {"vit.bin", "vit-legacy.bin"}};
    for (int k = 0; k < 2; k++) {
        qm_infile *fa, *fb;
        qm_torch_header a = read_fixture(pair[k][0], &fa), b = read_fixture(pair[k][1], &fb);
        CHECK(a.count > 0 && a.count == b.count);
        for (size_t i = 0; i < a.count && i < b.count; i++) {
            const qm_torch_tensor *x = &a.tensor[i], *y = &b.tensor[i];
            CHECK(strcmp(x->name, y->name) == 0 && x->dtype == y->dtype && x->size == y->size);
            CHECK(memcmp(&x->shape, &y->shape, sizeof x->shape) == 0);
            CHECK(memcmp(&x->strided, &y->strided, sizeof x->strided) == 0);
        }
        qm_torch_free(&a);
        qm_torch_free(&b);
        qm_infile_unref(fa);
        qm_infile_unref(fb);
    }
}

TEST(torch_views_of_storages)
{
    qm_infile *f;
    qm_torch_header h = read_fixture("vit.bin", &f);
    const qm_torch_tensor *q = tensor_of(&h, "blocks.0.attn.q"), *k = tensor_of(&h, "blocks.0.attn.k");
    const qm_torch_tensor *v = tensor_of(&h, "blocks.0.attn.v"), *row = tensor_of(&h, "blocks.0.row");
    CHECK(q->dtype == QM_BF16 && k->at == q->at + 16 * 16 * 2 && k->strided.shape.ndim == 0);
    CHECK(v->at == k->at + 16 * 16 * 2 && v->strided.stride[0] == 1 && v->strided.stride[1] == 16);
    CHECK(row->strided.stride[0] == 0 && row->size == 3 * 16 * 4);
    CHECK(tensor_of(&h, "head.weight")->at == tensor_of(&h, "embed.weight")->at);
    CHECK(tensor_of(&h, "empty")->size == 0);
    CHECK(tensor_of(&h, "cls_token")->shape.ndim == 3); /* inside a Parameter */

    float transposed[16 * 16], first[16];
    uint16_t raw[16 * 16];
    qm_err e = {0};
    CHECK(qm_strided_read(&v->strided, f, v->at, 2, 0, 256, raw, &e));
    for (int i = 0; i < 256; i++) {
        uint16_t want;
        memcpy(&want, f->map + v->at + 2 * (i % 16 * 16 + i / 16), 2);
        CHECK(raw[i] == want);
    }
    CHECK(qm_strided_read(&row->strided, f, row->at, 4, 5, 37, transposed,
                          &e)); /* from the middle of a row on */
    memcpy(first, f->map + row->at, sizeof first);
    for (int i = 0; i < 37; i++)
        CHECK(transposed[i] == first[(i + 5) % 16]);
    qm_torch_free(&h);
    qm_infile_unref(f);
}

TEST(torch_names_of_nested_things)
{
    qm_infile *f;
    qm_torch_header h = read_fixture("big-keys.pt", &f);
    CHECK(h.count == 2 && tensor_of(&h, "blocks.0.w") == &h.tensor[0]
          && tensor_of(&h, "blocks.1.3") == &h.tensor[1]);
    CHECK(h.tensor[0].group == strlen("blocks"));
    qm_torch_free(&h);
    qm_infile_unref(f);
    h = read_fixture("lone.pt", &f);
    CHECK(h.count == 1 && strcmp(h.tensor[0].name, "tensor") == 0 && h.tensor[0].group == 0);
    qm_torch_free(&h);
    qm_infile_unref(f);
}

TEST(torch_refuses_what_is_no_state_dict)
{
    refuses_file("module.pt", QM_EUNSUPPORTED, "torch.nn.modules.container.Sequential");
    refuses_file("script.pt", QM_EUNSUPPORTED, "TorchScript");
    refuses_file("protocol4.pt", QM_EUNSUPPORTED, "opcode 0x95");
    refuses_file("expected.json", QM_ECORRUPT, "not written by torch.save");
    refuses_file("model-safetensors/model.safetensors", QM_ECORRUPT, "not written by torch.save");
}

/* ---- pickles made by hand ------------------------------------------------------------------- */

static const char *const known[] = {"torch._utils _rebuild_tensor_v2", "torch FloatStorage", NULL};

static bool unpickles(const char *text, size_t n, qm_err *e)
{
    qm_pickle p = {0};
    *e = (qm_err){0};
    qm_cursor c = {.base = (const uint8_t *)text, .size = n, .what = "t.pt", .e = e};
    bool ok = qm_pickle_read(&p, &c, known, e);
    qm_pickle_free(&p);
    return ok;
}
#define UNPICKLES(text)    unpickles(text, sizeof text - 1, &e)
#define REFUSES(text, why) CHECKF(!UNPICKLES(text) && strstr(e.msg, why), "%s", e.msg)

TEST(pickle_takes_plain_data)
{
    qm_err e;
    CHECK(UNPICKLES("\x80\x02}."));
    CHECK(UNPICKLES("\x80\x02]q\0(K\1K\2e."));
    CHECK(UNPICKLES("(\x88\x89G12345678t."));
    CHECK(UNPICKLES("}(U\1aK\1U\1bNu."));
    CHECK(UNPICKLES("ccollections\nOrderedDict\n)R}b.")); /* attributes of a dictionary are dropped */
    CHECK(UNPICKLES("ccollections\nOrderedDict\n](]U\1aaK\1a]U\1baK\2ae\x85R."));
    CHECK(UNPICKLES("]q\0h\0a.")); /* a list that holds itself: whoever walks it has a limit */
    CHECK(UNPICKLES("\x8a\0."));
    CHECK(UNPICKLES("\x8a\1\xff."));
}

TEST(pickle_calls_nothing)
{
    qm_err e;
    REFUSES("cos\nsystem\nU\2ls\x85R.", "os.system");
    REFUSES("cposix\nsystem\nU\2ls\x85R.", "posix.system");
    REFUSES("c__builtin__\neval\nU\1"
            "1\x85R.",
            "__builtin__.eval");
    REFUSES("cbuiltins\nexec\n.", "builtins.exec");
    REFUSES("ctorch.hub\nload\n)R.", "torch.hub.load");
    REFUSES("cnumpy.core.multiarray\nscalar\n)R.", "numpy.core.multiarray.scalar");
    REFUSES("cos\nsys\x1b[2Jtem\n.", "not text");
    REFUSES("U\2os)R.", "cannot be called");
    REFUSES("ctorch FloatStorage\n", "needs"); /* one line only: cut short */
    REFUSES("ctorch\nFloatStorage\nK\1R.", "cannot be called");
    REFUSES("ctorch\nFloatStorage\n)R}b.",
            "no such operation");              /* state of something else than a dictionary */
    REFUSES("(ios\nsystem\n.", "opcode 0x69"); /* INST */
    REFUSES("(cos\nsystem\no.", "os.system");
    REFUSES("\x8c\2os\x8c\6system\x93.", "opcode 0x8c"); /* protocol 4 */
    REFUSES("\x82\1.", "opcode 0x82");                   /* extension registry */
    REFUSES("P0\n.", "opcode 0x50");
    REFUSES("I1\n.", "opcode 0x49");
}

TEST(pickle_refuses_nonsense)
{
    qm_err e;
    REFUSES("", "needs");
    REFUSES(".", "operand");
    REFUSES("NN.", "more than one thing");
    REFUSES("(.", "operand");
    REFUSES("t.", "mark");
    REFUSES("e.", "mark");
    REFUSES("N(NeN.", "no such operation");
    REFUSES("}Na.", "no such operation");
    REFUSES("]NNs.", "no such operation");
    REFUSES("s.", "operand");
    REFUSES("\x87.", "operand");
    REFUSES("N(\x86.", "operand");
    REFUSES("}(NNNu.", "no value");
    REFUSES("h\0.", "never made");
    REFUSES("j\xff\xff\xff\xff.", "never made");
    REFUSES("Nr\xff\xff\xff\xff.", "remembers too much");
    REFUSES("q\0.", "remember");
    REFUSES("X\xff\xff\xff\xff"
            "abc",
            "needs");
    REFUSES("\x8a\xff"
            "abc",
            "needs");
    REFUSES("\x8a\x09"
            "123456789.",
            "64 bits");
    REFUSES("Q.", "operand");
    REFUSES("ccollections\nOrderedDict\nK\1\x85R.", "no list");
    REFUSES("ccollections\nOrderedDict\n]K\1a\x85R.", "no pairs");
    REFUSES("ccollections\nOrderedDict\nNN\x86R.", "several");
}

/* ---- files made by hand
 * ------------------------------------------------------------------------------------ */

/* A legacy file: the pickle of the objects, then of a list of one key, "0", then its storage of n floats. */
static bytes legacy(const char *object, size_t length, uint64_t n)
{
    static const char head[] = "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\2M\xe9\3."
                               "}U\x0dlittle_endian\x88s.";
    static const char keys[] = "]U\1"
                               "0a.";
    size_t h = sizeof head - 1, k = sizeof keys - 1;
    bytes b = {calloc(1, h + length + k + 8 + n * 4), h + length + k + 8 + n * 4};
    memcpy(b.data, head, h);
    memcpy(b.data + h, object, length);
    memcpy(b.data + h + length, keys, k);
    memcpy(b.data + h + length + k, &n, 8);
    return b;
}

#define STORAGE(n)                         \
    "(U\7storagectorch\nFloatStorage\nU\1" \
    "0U\3cpuK" n "tQ"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n("
#define REST \
    "\x89"   \
    "ccollections\nOrderedDict\n)RtR"
#define FINE                              TENSOR("\6", "K\0", "K\1", "K\1")
#define TENSOR(n, offset, sizes, strides) REBUILD STORAGE(n) offset "(" sizes "t(" strides "t" REST

static void takes_object(const char *object, size_t length, uint64_t n)
{
    qm_err e;
    bytes b = legacy(object, length, n);
    CHECKF(takes(b, &e), "%s", e.msg);
    free(b.data);
}

static void refuses_object(const char *object, size_t length, uint64_t n, const char *why)
{
    qm_err e;
    bytes b = legacy(object, length, n);
    CHECKF(!takes(b, &e) && strstr(e.msg, why), "'%s', not '%s'", e.msg, why);
    free(b.data);
}
#define TAKES_OBJECT(text)        takes_object(text, sizeof text - 1, 6)
#define REFUSES_OBJECT(text, why) refuses_object(text, sizeof text - 1, 6, why)

TEST(torch_views_must_lie_in_their_storage)
{
    TAKES_OBJECT("}U\1a" TENSOR("\6", "K\0", "K\2K\3", "K\3K\1") "s.");
    TAKES_OBJECT("}U\1a" TENSOR("\6", "K\1", "K\5", "K\1") "s.");
    TAKES_OBJECT("}U\1a" TENSOR("\6", "K\6", "K\0", "K\1") "s.");   /* nothing, at the end */
    TAKES_OBJECT("}U\1a" TENSOR("\6", "K\5", "K\xff", "K\0") "s."); /* one value, 255 times */
    TAKES_OBJECT(
        "}U\1a" TENSOR("\6", "K\5", "K\1K\1", "J\xff\xff\xff\x7fK\1") "s."); /* strides of 1 do not count */
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\1", "K\6", "K\1") "s.", "beyond the end");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\0", "K\2K\3", "K\4K\1") "s.", "beyond the end");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\7", "K\0", "K\1") "s.", "beyond the end");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "J\xff\xff\xff\xff", "K\1", "K\1") "s.", "beyond the end");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\0", "J\xff\xff\xff\xff", "K\1") "s.", "shape and strides");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\5", "K\2", "J\xff\xff\xff\xff") "s.", "shape and strides");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\0", "K\2K\3", "K\1") "s.", "shape and strides");
    REFUSES_OBJECT(
        "}U\1a" TENSOR("\6", "K\0", "K\1K\1K\1K\1K\1K\1K\1K\1K\1", "K\1K\1K\1K\1K\1K\1K\1K\1K\1") "s.",
        "8 dimensions");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\0", "J\0\0\0\x40J\0\0\0\x40J\0\0\0\x40", "K\0K\0K\0") "s.",
                   "larger than any");
    REFUSES_OBJECT("}U\1a" TENSOR("\6", "K\0", "J\0\0\0\x40J\0\0\0\x40", "K\0K\0") "s.", "larger than any");
    REFUSES_OBJECT("}U\1a" TENSOR("\7", "K\0", "K\1", "K\1") "s.", "two sizes");
    REFUSES_OBJECT("}(U\1a" REBUILD "K\0K\0))" REST "U\1b" STORAGE("\6") "u.", "no storage");
    REFUSES_OBJECT("}U\1a" REBUILD STORAGE("\6") "K\0)tRs.", "too little");
    REFUSES_OBJECT("}U\1aU\1bQs.", "no storage");
    REFUSES_OBJECT("}U\1aK\1s.", "no tensor uses"); /* the storage is for nobody */
    REFUSES_OBJECT("}(U\1a" FINE "U\1a" FINE "u.", "there twice");
    REFUSES_OBJECT("}U\2a\0" FINE "s.", "no text");
    REFUSES_OBJECT("}U\1\xff" FINE "s.", "no text");
    REFUSES_OBJECT("}N" FINE "s.", "no text");
}

/* Pairs of pairs of pairs …, 30 deep: a thousand million names for one tensor, in 300 bytes. */
TEST(torch_small_graphs_that_spell_huge_trees)
{
    static const char first[] = "(}U\1a" FINE "sq\0", last[] = "t.";
    char text[1024];
    size_t n = sizeof first - 1;
    memcpy(text, first, n);
    for (char i = 0; i < 30; i++) {
        const char pair[] = {'h', i, 'h', i, '\x86', 'q', (char)(i + 1)};
        memcpy(text + n, pair, sizeof pair);
        n += sizeof pair;
    }
    memcpy(text + n, last, sizeof last - 1);
    refuses_object(text, n + sizeof last - 1, 6, "stand for millions");
    REFUSES_OBJECT("]q\0h\0a}U\1a" FINE "sa.", "nested deeper"); /* a list in itself */
}

/* ---- damage
 * ------------------------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252u;

static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* Bytes changed at random, a few at a time; runs of one file with pieces copied over each other; cut short. */
static void mutate(const char *name, int rounds)
{
    bytes original = load(name), b = {malloc(original.size), original.size};
    int taken = 0;
    qm_err e;
    for (int i = 0; i < rounds; i++) {
        memcpy(b.data, original.data, original.size);
        b.size = original.size;
        int changes = 1 + (int)(next_random() % 4);
        for (int k = 0; k < changes; k++) {
            size_t at = next_random() % b.size;
            switch (next_random() % 4) {
            case 0:
                b.data[at] ^= (uint8_t)(1u << next_random() % 8);
                break;
            case 1:
                b.data[at] = (uint8_t)next_random();
                break;
            case 2:
                b.data[at] = next_random() % 2 ? 0xff : 0;
                break;
            default: {
                size_t n = 1 + next_random() % 16, from = next_random() % b.size;
                n = n > b.size - at ? b.size - at : n;
                n = n > b.size - from ? b.size - from : n;
                memmove(b.data + at, b.data + from, n);
            }
            }
        }
        if (next_random() % 8 == 0)
            b.size = next_random() % (b.size + 1);
        taken += b.size && takes(b, &e);
    }
    CHECKF(taken < rounds, "%s: no damage was noticed", name);
    free(b.data);
    free(original.data);
}

TEST(torch_damaged_files)
{
    mutate("vit.bin", 3000);
    mutate("vit-legacy.bin", 3000);
    mutate("cnn.pt", 1000);
    mutate("big-keys.pt", 4000);
    mutate("types.pt", 1000);
}

TEST(torch_files_cut_short)
{
    qm_err e;
    for (int legacy_form = 0; legacy_form < 2; legacy_form++) {
        bytes b = load(legacy_form ? "rnn-legacy.pth" : "lone.pt");
        size_t size = b.size;
        for (b.size = 1; b.size < size; b.size += 1 + b.size / 64)
            CHECK(!takes(b, &e));
        free(b.data);
    }
}

/* Each rule of zip, broken once in a file that is fine otherwise. */
static void breaks_zip(size_t at_from_end, int at, uint8_t value, const char *why)
{
    qm_err e;
    bytes b = load("lone.pt");
    size_t where = at_from_end ? b.size - at_from_end : (size_t)at;
    b.data[where] = value;
    CHECKF(!takes(b, &e) && strstr(e.msg, why), "byte %zu: '%s', not '%s'", where, e.msg, why);
    free(b.data);
}

TEST(torch_zip_rules)
{
    breaks_zip(22, 0, 'Q', "end record is missing");
    breaks_zip(2, 0, 1, "end record is missing"); /* a comment */
    breaks_zip(18, 0, 1, "several disks");
    breaks_zip(10, 0, 1, "disagree"); /* size of the directory, against zip64's */
    breaks_zip(0, 6, 9, "disagree");  /* flags of the first local header: encrypted */
    breaks_zip(0, 8, 8, "disagree");  /* its method: deflated */
    breaks_zip(0, 30, 'x', "disagree");
}

/* The directory's entry of a member, changed in both headers, so that they agree. */
TEST(torch_zip_members)
{
    qm_err e;
    bytes b = load("lone.pt");
    size_t central = 0;
    while (memcmp(b.data + central, "PK\1\2", 4) != 0)
        central++;
    b.data[6] |= 1;
    b.data[central + 8] |= 1;
    CHECK(!takes(b, &e) && strstr(e.msg, "encrypted"));
    b.data[6] &= 0xfe;
    b.data[central + 8] &= 0xfe;
    b.data[8] = b.data[central + 10] = 8;
    CHECK(!takes(b, &e) && strstr(e.msg, "compressed"));
    b.data[8] = b.data[central + 10] = 0;
    CHECKF(takes(b, &e), "%s", e.msg);
    b.data[central + 42] += 1; /* where its local header is */
    CHECK(!takes(b, &e));
    b.data[central + 42] -= 1;
    memcpy(b.data + 30, "../", 3);
    memcpy(b.data + central + 46, "../", 3);
    CHECK(!takes(b, &e) && strstr(e.msg, "plain relative path"));
    free(b.data);
}
