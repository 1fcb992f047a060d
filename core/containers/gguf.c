/* gguf.c: reads and checks the header (see gguf.h).
 *
 *   pair    | u64 n | n bytes of key | u32 kind | value |
 *   array   | u32 kind of elements | u64 count | elements |        no arrays of arrays
 *   string  | u64 n | n bytes |                                     bool: one byte, 0 or 1
 *   info    | string name | u32 ndim | u64 x ndim | u32 type | u64 offset |
 *
 * Offsets count from the data, which begins at the next multiple of the alignment, and so does every tensor.
 * A count is believed only as far as the bytes that are left could hold so many things: no small file can
 * make us reserve much memory.
 */
#include "gguf.h"

#include <stdlib.h>
#include <string.h>

#include "../cursor.h"
#include "../utf8.h"

#define PAIR_MIN  13u /* bytes: empty key, kind, one byte of value */
#define INFO_MIN  24u /* bytes: empty name, no dimensions */
#define GGML_NAME 64u /* ggml's names are char[64], NUL included */
#define DIMS_MAX  4u

/* By type id; holes are ids that were withdrawn.  Source: ggml-org/llama.cpp, ggml-common.h, whose
 * static_asserts hold the sizes (gguf-py gives Q8_1 as 40 bytes, a layout long gone). */
static const struct type {
    const char *name;
    unsigned block, bytes;
} types[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},    [40] = {"NVFP4", 64, 36},
    [41] = {"Q1_0", 128, 18},    [42] = {"Q2_0", 64, 18},
};

bool qm_gguf_type_info(int type, const char **name, unsigned *block, unsigned *bytes)
{
    if (type < 0 || (size_t)type >= sizeof types / sizeof *types || !types[type].name)
        return false;
    *name = types[type].name;
    *block = types[type].block;
    *bytes = types[type].bytes;
    return true;
}

/* Bytes of one element; 0: each has its own length. */
static const uint8_t kind_size[QM_GGUF_KIND_COUNT] = {
    [QM_GGUF_U8] = 1,  [QM_GGUF_I8] = 1,  [QM_GGUF_U16] = 2, [QM_GGUF_I16] = 2,
    [QM_GGUF_U32] = 4, [QM_GGUF_I32] = 4, [QM_GGUF_F32] = 4, [QM_GGUF_BOOL] = 1,
    [QM_GGUF_U64] = 8, [QM_GGUF_I64] = 8, [QM_GGUF_F64] = 8,
};

/* A name lying in the file: bytes without a NUL behind them. */
typedef struct name {
    const char *text;
    uint64_t length;
} name;

static int shown(name n) { return n.length < 120 ? (int)n.length : 120; }

static bool read_name(qm_cursor *c, name *n, const char *whose)
{
    n->length = qm_cursor_u64(c);
    n->text = (const char *)qm_cursor_take(c, n->length);
    if (!n->text)
        return false;
    return qm_utf8_name((const uint8_t *)n->text, n->length)
           || qm_fail(c->e, QM_ECORRUPT,
                      "%s: the name of a %s that ends at byte %" PRIu64 " is not UTF-8 without NUL", c->what,
                      whose, c->pos);
}

static int by_name(const void *pa, const void *pb)
{
    const name *a = pa, *b = pb;
    int order = memcmp(a->text, b->text, a->length < b->length ? a->length : b->length);
    return order ? order : a->length < b->length ? -1 : a->length > b->length;
}

/* Sorts n. */
static bool check_unique(name *n, size_t count, const char *whose, qm_cursor *c)
{
    qsort(n, count, sizeof *n, by_name);
    for (size_t i = 1; i < count; i++)
        if (by_name(&n[i - 1], &n[i]) == 0)
            return qm_fail(c->e, QM_ECORRUPT, "%s: two %ss are called '%.*s'", c->what, whose, shown(n[i]),
                           n[i].text);
    return true;
}

/* ---- pairs ---- */

static bool read_kind(qm_cursor *c, qm_gguf_kind *kind, name key)
{
    uint32_t id = qm_cursor_u32(c);
    if (id >= QM_GGUF_KIND_COUNT)
        return qm_fail(c->e, QM_ECORRUPT, "%s: key '%.*s': %" PRIu32 " is no kind of value", c->what,
                       shown(key), key.text, id);
    *kind = (qm_gguf_kind)id;
    return !c->e->code;
}

static bool skip_strings(qm_cursor *c, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) /* ends with the file at the latest: the first miss sticks */
        if (!qm_cursor_take(c, qm_cursor_u64(c)))
            return false;
    return true;
}

static bool skip_elements(qm_cursor *c, const qm_gguf_value *v, name key)
{
    if (v->kind == QM_GGUF_STRING)
        return skip_strings(c, v->count);
    uint64_t size = 0;
    if (__builtin_mul_overflow(v->count, (uint64_t)kind_size[v->kind], &size))
        size = UINT64_MAX; /* more than any file has left */
    const uint8_t *p = qm_cursor_take(c, size);
    if (!p)
        return false;
    for (uint64_t i = 0; v->kind == QM_GGUF_BOOL && i < v->count; i++)
        if (p[i] > 1)
            return qm_fail(c->e, QM_ECORRUPT, "%s: key '%.*s': a bool of %d", c->what, shown(key), key.text,
                           p[i]);
    return true;
}

static bool read_value(qm_cursor *c, qm_gguf_value *v, name key)
{
    *v = (qm_gguf_value){.count = 1};
    if (!read_kind(c, &v->kind, key))
        return false;
    if (v->kind == QM_GGUF_ARRAY) {
        v->array = true;
        if (!read_kind(c, &v->kind, key))
            return false;
        if (v->kind == QM_GGUF_ARRAY)
            return qm_fail(c->e, QM_EUNSUPPORTED, "%s: key '%.*s': an array of arrays", c->what, shown(key),
                           key.text);
        v->count = qm_cursor_u64(c);
    }
    uint64_t start = c->pos;
    if (!skip_elements(c, v, key))
        return false;
    v->at = c->base + start;
    v->size = c->pos - start;
    return true;
}

static bool read_pairs(qm_gguf_header *h, uint64_t count, qm_cursor *c)
{
    h->pair = calloc(count + 1, sizeof *h->pair);
    name *keys = calloc(count + 1, sizeof *keys);
    bool ok = (h->pair && keys)
              || qm_fail(c->e, QM_EFAIL, "%s: out of memory for %" PRIu64 " keys", c->what, count);
    for (; ok && h->npair < count; h->npair++) {
        qm_gguf_pair *p = &h->pair[h->npair];
        name *key = &keys[h->npair];
        ok = read_name(c, key, "key")
             && (key->length > 0 || qm_fail(c->e, QM_ECORRUPT, "%s: a key without a name", c->what))
             && read_value(c, &p->value, *key);
        p->key = key->text;
        p->key_length = key->length;
    }
    ok = ok && check_unique(keys, h->npair, "key", c);
    free(keys);
    return ok;
}

static bool read_alignment(qm_gguf_header *h, qm_cursor *c)
{
    static const char key[] = "general.alignment";
    h->alignment = 32;
    for (size_t i = 0; i < h->npair; i++) {
        const qm_gguf_pair *p = &h->pair[i];
        if (p->key_length != sizeof key - 1 || memcmp(p->key, key, sizeof key - 1) != 0)
            continue;
        if (p->value.kind != QM_GGUF_U32 || p->value.array)
            return qm_fail(c->e, QM_ECORRUPT, "%s: %s is not a u32", c->what, key);
        memcpy(&h->alignment, p->value.at, sizeof h->alignment);
        if (h->alignment == 0 || (h->alignment & (h->alignment - 1)) != 0)
            return qm_fail(c->e, QM_ECORRUPT, "%s: %s of %" PRIu32 " is not a power of two", c->what, key,
                           h->alignment);
    }
    return true;
}

/* ---- tensors ---- */

/* GGUF has the row length first, torch has it last. */
static bool read_shape(qm_cursor *c, qm_gguf_tensor *t)
{
    uint32_t ndim = qm_cursor_u32(c);
    if (ndim > DIMS_MAX)
        return qm_fail(c->e, QM_ECORRUPT, "%s: tensor '%s': %" PRIu32 " dimensions; GGUF has at most %u",
                       c->what, t->name, ndim, DIMS_MAX);
    t->shape.ndim = (int)ndim;
    for (int i = (int)ndim; i-- > 0;) {
        uint64_t n = qm_cursor_u64(c);
        if (n > INT64_MAX)
            return qm_fail(c->e, QM_ECORRUPT, "%s: tensor '%s': a dimension of %" PRIu64, c->what, t->name,
                           n);
        t->shape.dim[i] = (int64_t)n;
    }
    return !c->e->code;
}

/* Sets type, format and size. */
static bool read_type(qm_cursor *c, qm_gguf_tensor *t)
{
    const char *type;
    unsigned block, bytes;
    uint32_t id = qm_cursor_u32(c);
    if (c->e->code)
        return false;
    t->type = id > INT32_MAX ? -1 : (int)id;
    if (!qm_gguf_type_info(t->type, &type, &block, &bytes))
        return qm_fail(c->e, QM_EUNSUPPORTED,
                       "%s: tensor '%s': ggml type %" PRIu32 " is none that this version knows", c->what,
                       t->name, id);
    t->format = qm_format_of_gguf(t->type);

    char shape[128];
    qm_shape_text(&t->shape, shape, sizeof shape);
    int64_t row = t->shape.ndim ? t->shape.dim[t->shape.ndim - 1] : 1, count = qm_shape_count(&t->shape);
    if (count < 0 || __builtin_mul_overflow((uint64_t)count / block, (uint64_t)bytes, &t->size))
        return qm_fail(c->e, QM_ECORRUPT, "%s: tensor '%s' %s is larger than any file", c->what, t->name,
                       shape);
    if (row % block != 0)
        return qm_fail(c->e, QM_ECORRUPT, "%s: tensor '%s' %s %s: rows must be a multiple of %u values",
                       c->what, t->name, shape, type, block);
    return true;
}

/* t->at is left counting from the data. */
static bool read_info(qm_cursor *c, qm_gguf_tensor *t)
{
    name n;
    if (!read_name(c, &n, "tensor"))
        return false;
    if (n.length >= GGML_NAME)
        return qm_fail(c->e, QM_ECORRUPT,
                       "%s: tensor '%.*s…': a name of %" PRIu64 " bytes; GGUF has at most %u", c->what,
                       shown(n), n.text, n.length, GGML_NAME - 1);
    t->name = strndup(n.text, n.length);
    if (!t->name)
        return qm_fail(c->e, QM_EFAIL, "%s: out of memory", c->what);
    if (!read_shape(c, t) || !read_type(c, t))
        return false;
    t->at = qm_cursor_u64(c);
    return !c->e->code;
}

static bool check_names(const qm_gguf_header *h, qm_cursor *c)
{
    name *names = calloc(h->count + 1, sizeof *names);
    if (!names)
        return qm_fail(c->e, QM_EFAIL, "%s: out of memory", c->what);
    for (size_t i = 0; i < h->count; i++)
        names[i] = (name){h->tensor[i].name, strlen(h->tensor[i].name)};
    bool ok = check_unique(names, h->count, "tensor", c);
    free(names);
    return ok;
}

static bool read_infos(qm_gguf_header *h, uint64_t count, qm_cursor *c)
{
    h->tensor = calloc(count + 1, sizeof *h->tensor);
    if (!h->tensor)
        return qm_fail(c->e, QM_EFAIL, "%s: out of memory for %" PRIu64 " tensors", c->what, count);
    while (h->count < count)
        if (!read_info(c, &h->tensor[h->count++]))
            return false;
    return check_names(h, c);
}

static uint64_t round_up(uint64_t n, uint32_t alignment)
{
    return (n + alignment - 1) & ~(uint64_t)(alignment - 1);
}

/* Tensors lie in the order of their infos, each at the next aligned place, all inside the file; padding
 * behind the last one may be missing.  Turns t->at into a place in the file. */
static bool place_tensors(qm_gguf_header *h, qm_cursor *c)
{
    uint64_t next = round_up(c->pos, h->alignment);
    for (size_t i = 0; i < h->count; i++) {
        qm_gguf_tensor *t = &h->tensor[i];
        uint64_t data = round_up(c->pos, h->alignment);
        if (t->at != next - data)
            return qm_fail(c->e, QM_ECORRUPT,
                           "%s: tensor '%s': is said to be at byte %" PRIu64
                           " of the data, but the one before it ends at "
                           "%" PRIu64,
                           c->what, t->name, t->at, next - data);
        t->at = next;
        if (t->at > c->size || t->size > c->size - t->at)
            return qm_fail(c->e, QM_ECORRUPT,
                           "%s: tensor '%s': takes %" PRIu64 " bytes at byte %" PRIu64
                           ", but the file ends at %" PRIu64 "; it is cut short, fetch it again",
                           c->what, t->name, t->size, t->at, c->size);
        next = round_up(t->at + t->size,
                        h->alignment); /* no overflow: both are at most a file's size, < 2^63 */
    }
    return true;
}

/* ---- the header ---- */

static bool read_start(qm_cursor *c, uint32_t *version)
{
    const uint8_t *magic = qm_cursor_take(c, 4);
    if (!magic)
        return false;
    if (memcmp(magic, "GGUF", 4) != 0)
        return qm_fail(c->e, QM_ECORRUPT, "%s: does not begin with 'GGUF': is it a GGUF file?", c->what);
    *version = qm_cursor_u32(c);
    if (c->e->code)
        return false;
    if ((*version & 0xffff) == 0)
        return qm_fail(c->e, QM_EUNSUPPORTED, "%s: a big-endian GGUF file", c->what);
    return *version == 2 || *version == 3
           || qm_fail(c->e, QM_EUNSUPPORTED, "%s: GGUF version %" PRIu32 "; this program reads 2 and 3",
                      c->what, *version);
}

static bool check_count(qm_cursor *c, uint64_t count, uint64_t each, const char *what)
{
    return count <= (c->size - c->pos) / each
           || qm_fail(c->e, QM_ECORRUPT,
                      "%s: says it has %" PRIu64 " %s; there is no room for them in %" PRIu64 " bytes",
                      c->what, count, what, c->size);
}

static bool read_header(qm_gguf_header *h, qm_cursor *c)
{
    if (!read_start(c, &h->version))
        return false;
    uint64_t count = qm_cursor_u64(c), npair = qm_cursor_u64(c);
    return !c->e->code && check_count(c, npair, PAIR_MIN, "keys")
           && check_count(c, count, INFO_MIN, "tensors") && read_pairs(h, npair, c) && read_alignment(h, c)
           && check_count(c, count, INFO_MIN, "tensors") && read_infos(h, count, c) && place_tensors(h, c);
}

bool qm_gguf_read(qm_gguf_header *h, const qm_infile *f, qm_err *e)
{
    qm_cursor c = {.base = f->map, .size = f->size, .what = f->path, .e = e};
    qm_gguf_header made = {0};
    bool ok = read_header(&made, &c);
    if (ok)
        *h = made;
    else
        qm_gguf_free(&made);
    return ok;
}

void qm_gguf_free(qm_gguf_header *h)
{
    for (size_t i = 0; i < h->count; i++)
        free(h->tensor[i].name);
    free(h->tensor);
    free(h->pair);
    *h = (qm_gguf_header){0};
}
