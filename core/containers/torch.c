/* torch.c: see torch.h.  First the storages are found, then the graph is walked for tensors. */
#include "torch.h"

#include <stdio.h>
#include <stdlib.h>

#include "../utf8.h"
#include "pickle.h"
#include "zip.h"

#define NAME "%.160s"

enum {
    DEPTH = 32,              /* of nested dictionaries and lists */
    NAME_MAX_BYTES = 1024,   /* all parts together */
    WRAPPED = 4,             /* parameters in parameters */
    STEPS = 4 * 1024 * 1024, /* of the walk: a small graph may spell out a huge tree */
    PICKLE_MAX = 1 << 30,
};

/* ---- names that may be called or mentioned -------------------------------------------------- */

/* Element types, as storages and as themselves. */
#define TYPES(X)                               \
    X("torch DoubleStorage", QM_F64)           \
    X("torch FloatStorage", QM_F32)            \
    X("torch HalfStorage", QM_F16)             \
    X("torch BFloat16Storage", QM_BF16)        \
    X("torch LongStorage", QM_I64)             \
    X("torch IntStorage", QM_I32)              \
    X("torch ShortStorage", QM_I16)            \
    X("torch CharStorage", QM_I8)              \
    X("torch ByteStorage", QM_U8)              \
    X("torch BoolStorage", QM_BOOL)            \
    X("torch ComplexFloatStorage", QM_C64)     \
    X("torch float64", QM_F64)                 \
    X("torch float32", QM_F32)                 \
    X("torch float16", QM_F16)                 \
    X("torch bfloat16", QM_BF16)               \
    X("torch int64", QM_I64)                   \
    X("torch int32", QM_I32)                   \
    X("torch int16", QM_I16)                   \
    X("torch int8", QM_I8)                     \
    X("torch uint8", QM_U8)                    \
    X("torch bool", QM_BOOL)                   \
    X("torch complex64", QM_C64)               \
    X("torch uint16", QM_U16)                  \
    X("torch uint32", QM_U32)                  \
    X("torch uint64", QM_U64)                  \
    X("torch float8_e4m3fn", QM_F8_E4M3)       \
    X("torch float8_e5m2", QM_F8_E5M2)         \
    X("torch float8_e4m3fnuz", QM_F8_E4M3FNUZ) \
    X("torch float8_e5m2fnuz", QM_F8_E5M2FNUZ) \
    X("torch float8_e8m0fnu", QM_F8_E8M0)
#define TYPE_NAME(name, dtype)   name,
#define TYPE_ITSELF(name, dtype) dtype,

enum { TENSOR_V1, TENSOR_V2, TENSOR_V3, PARAMETER, PARAMETER_STATE, UNTYPED, TYPED, SIZE, DTYPES };

static const char *const known[] = {
    [TENSOR_V1] = "torch._utils _rebuild_tensor",
    [TENSOR_V2] = "torch._utils _rebuild_tensor_v2",
    [TENSOR_V3] = "torch._utils _rebuild_tensor_v3",
    [PARAMETER] = "torch._utils _rebuild_parameter",
    [PARAMETER_STATE] = "torch._utils _rebuild_parameter_with_state",
    [UNTYPED] = "torch.storage UntypedStorage",
    [TYPED] = "torch.storage TypedStorage",
    [SIZE] = "torch Size",
    [DTYPES] = TYPES(TYPE_NAME) NULL,
};

static const qm_dtype dtype_of[] = {TYPES(TYPE_ITSELF)}; /* of known[DTYPES + i] */

/* ---- the reader ----------------------------------------------------------------------------- */

typedef struct storage {
    const char *key; /* in the file's map */
    uint64_t length;
    qm_dtype dtype; /* u8 for an untyped one */
    uint64_t count; /* elements */
    uint64_t at;    /* 0: not found yet */
} storage;

typedef struct reader {
    const qm_infile *f;
    qm_err *e;
    qm_pickle p;
    storage *storage; /* one per PERSISTENT node, whose integer is its index */
    size_t nstorage;
    qm_torch_header made;
    size_t room;
} reader;

typedef qm_pickle_node node;

static const node *child(const reader *r, const node *n, uint32_t i) { return qm_pickle_child(&r->p, n, i); }

static bool corrupt(const reader *r, const char *why)
{
    return qm_fail(r->e, QM_ECORRUPT, "%s: damaged: %s; fetch the file again", r->f->path, why);
}

/* ---- storages ------------------------------------------------------------------------------- */

static uint64_t bytes_of(const storage *s) { return s->count * (qm_dtypes[s->dtype].bits / 8); }

/* ("storage", type, key, location, count [, view of another storage]) */
static bool read_storage(reader *r, node *n)
{
    const node *id = child(r, n, 0);
    if (id->kind != QM_PICKLE_TUPLE || id->count < 5 || id->count > 6)
        return corrupt(r, "a reference to something that is no storage");
    const node *what = child(r, id, 0), *type = child(r, id, 1), *key = child(r, id, 2),
               *count = child(r, id, 4);
    if (what->kind != QM_PICKLE_TEXT || what->length != 7 || memcmp(what->text, "storage", 7) != 0
        || key->kind != QM_PICKLE_TEXT || count->kind != QM_PICKLE_INT || type->kind != QM_PICKLE_GLOBAL)
        return corrupt(r, "a reference to something that is no storage");
    if (id->count == 6 && child(r, id, 5)->kind != QM_PICKLE_NONE)
        return qm_fail(r->e, QM_EUNSUPPORTED,
                       "%s: has storages that are parts of others, as torch 0.3 wrote; load and save it with "
                       "a newer torch",
                       r->f->path);
    bool untyped = type->integer == UNTYPED;
    if (!untyped && type->integer < DTYPES)
        return corrupt(r, "a storage of no known type");
    storage *s = &r->storage[r->nstorage];
    *s = (storage){key->text, key->length, untyped ? QM_U8 : dtype_of[type->integer - DTYPES],
                   (uint64_t)count->integer, 0};
    if (count->integer < 0 || s->count > (UINT64_C(1) << 53) / 8)
        return corrupt(r, "a storage of impossible size");
    n->integer = (int64_t)r->nstorage++;
    return true;
}

static bool read_storages(reader *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->p.count; i++)
        n += r->p.node[i].kind == QM_PICKLE_PERSISTENT;
    r->nstorage = 0;
    r->storage = calloc(n + 1, sizeof *r->storage);
    if (!r->storage)
        return qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->f->path);
    for (size_t i = 0; i < r->p.count; i++)
        if (r->p.node[i].kind == QM_PICKLE_PERSISTENT && !read_storage(r, &r->p.node[i]))
            return false;
    return true;
}

/* ---- tensors -------------------------------------------------------------------------------- */

static bool bad_tensor(const reader *r, const char *name, const char *why)
{
    return qm_fail(r->e, QM_ECORRUPT, "%s: tensor '" NAME "': %s", r->f->path, name, why);
}

static bool read_sizes(const reader *r, const node *list, int64_t *to, int *n)
{
    if (list->kind == QM_PICKLE_CALL && child(r, list, 0)->integer == SIZE) /* torch.Size((2, 3)) */
        list = child(r, list, 1)->count == 1 ? child(r, child(r, list, 1), 0) : list;
    if ((list->kind != QM_PICKLE_TUPLE && list->kind != QM_PICKLE_LIST) || list->count > QM_MAX_DIMS)
        return false;
    for (uint32_t i = 0; i < list->count; i++) {
        const node *v = child(r, list, i);
        if (v->kind != QM_PICKLE_INT || v->integer < 0)
            return false;
        to[i] = v->integer;
    }
    *n = (int)list->count;
    return true;
}

/* Places the view in its storage; nothing of it may lie outside. */
static bool place(const reader *r, qm_torch_tensor *t, const storage *s, int64_t offset)
{
    qm_strided *v = &t->strided;
    unsigned item = qm_dtypes[t->dtype].bits / 8;
    int64_t span = qm_strided_span(v), count = qm_shape_count(&v->shape), bytes;
    if (span < 0 || count < 0 || __builtin_mul_overflow(count, (int64_t)item, &bytes)
        || bytes > INT64_C(1) << 53)
        return bad_tensor(r, t->name, "is larger than any file");
    uint64_t room = bytes_of(s) / item;
    if (offset < 0 || (uint64_t)offset > room || (uint64_t)span > room - (uint64_t)offset)
        return bad_tensor(r, t->name, "reaches beyond the end of its storage");
    t->shape = v->shape;
    t->at = s->at + (uint64_t)offset * item;
    t->size = (uint64_t)bytes;
    if (qm_strided_is_contiguous(v))
        *v = (qm_strided){0};
    return true;
}

/* _rebuild_tensor*(storage, offset, size, stride [, requires_grad, hooks [, dtype (v3)] [, metadata]]) */
static bool rebuild_tensor(const reader *r, qm_torch_tensor *t, int64_t function, const node *arguments)
{
    uint32_t least = function == TENSOR_V1 ? 4 : function == TENSOR_V2 ? 6 : 7;
    if (arguments->count < least)
        return bad_tensor(r, t->name, "is rebuilt from too little");
    const node *from = child(r, arguments, 0), *offset = child(r, arguments, 1);
    int strides = 0;
    if (from->kind != QM_PICKLE_PERSISTENT || offset->kind != QM_PICKLE_INT
        || !read_sizes(r, child(r, arguments, 2), t->strided.shape.dim, &t->strided.shape.ndim)
        || !read_sizes(r, child(r, arguments, 3), t->strided.stride, &strides)
        || strides != t->strided.shape.ndim)
        return bad_tensor(
            r, t->name, "has no storage, offset, shape and strides that fit together (at most 8 dimensions)");
    const storage *s = &r->storage[from->integer];
    t->dtype = s->dtype;
    if (function == TENSOR_V3) {
        const node *dtype = child(r, arguments, 6);
        if (dtype->kind != QM_PICKLE_GLOBAL || dtype->integer < DTYPES)
            return bad_tensor(r, t->name, "is of no known element type");
        t->dtype = dtype_of[dtype->integer - DTYPES];
    }
    return place(r, t, s, offset->integer);
}

/* Whether a node makes a tensor, in the wrapping of a Parameter or not; it is then the innermost call. */
static bool makes_tensor(const reader *r, const node **n)
{
    for (int i = 0; i < WRAPPED && (*n)->kind == QM_PICKLE_CALL; i++) {
        int64_t function = child(r, *n, 0)->integer;
        const node *arguments = child(r, *n, 1);
        if (function == TENSOR_V1 || function == TENSOR_V2 || function == TENSOR_V3)
            return true;
        if ((function != PARAMETER && function != PARAMETER_STATE) || arguments->count == 0)
            return false;
        *n = child(r, arguments, 0);
    }
    return false;
}

static bool add_tensor(reader *r, const char *name, size_t group, const node *call)
{
    if (r->made.count == r->room) {
        size_t room = r->room ? 2 * r->room : 256;
        qm_torch_tensor *grown = realloc(r->made.tensor, room * sizeof *grown);
        if (!grown)
            return qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->f->path);
        r->made.tensor = grown;
        r->room = room;
    }
    qm_torch_tensor *t = &r->made.tensor[r->made.count];
    *t = (qm_torch_tensor){.name = strdup(name), .group = group};
    if (!t->name)
        return qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->f->path);
    r->made.count++;
    return rebuild_tensor(r, t, child(r, call, 0)->integer, child(r, call, 1));
}

/* ---- walking -------------------------------------------------------------------------------- */

typedef struct frame {
    const node *container;
    uint32_t cell, done; /* the next child; how many are behind */
    size_t name;         /* bytes of the container's own name */
} frame;

/* Writes the name of the frame's next child behind the container's; false for a key that is no name. */
static bool child_name(const reader *r, const frame *f, char name[NAME_MAX_BYTES])
{
    size_t at = f->name, room;
    if (at > 0)
        name[at++] = '.';
    room = NAME_MAX_BYTES - 1 - at;
    if (f->container->kind != QM_PICKLE_DICT) {
        int n = snprintf(name + at, room, "%u", f->done);
        return n > 0 && (size_t)n < room;
    }
    const node *key = &r->p.node[r->p.cell[f->cell].node];
    if (key->kind == QM_PICKLE_INT) {
        int n = snprintf(name + at, room, "%" PRId64, key->integer);
        return n > 0 && (size_t)n < room;
    }
    if (key->kind != QM_PICKLE_TEXT || key->length >= room
        || !qm_utf8_name((const uint8_t *)key->text, key->length))
        return false;
    memcpy(name + at, key->text, key->length);
    name[at + key->length] = '\0';
    return true;
}

static bool is_container(const node *n)
{
    return n->kind == QM_PICKLE_DICT || n->kind == QM_PICKLE_LIST || n->kind == QM_PICKLE_TUPLE;
}

/* Depth first, with a stack of its own: the graph may be deep, shared or circular. */
static bool walk(reader *r)
{
    frame stack[DEPTH];
    char name[NAME_MAX_BYTES] = "";
    int depth = 0, steps = 0;
    const node *root = &r->p.node[r->p.root], *call = root;
    if (makes_tensor(r, &call))
        return add_tensor(r, "tensor", 0, call);
    if (is_container(root))
        stack[depth++] = (frame){root, root->first, 0, 0};
    while (depth > 0) {
        frame *f = &stack[depth - 1];
        if (f->done == f->container->count) {
            depth--;
            continue;
        }
        if (++steps > STEPS)
            return corrupt(r, "a few objects stand for millions");
        bool dict = f->container->kind == QM_PICKLE_DICT, named = child_name(r, f, name);
        uint32_t at = dict ? r->p.cell[f->cell].next : f->cell;
        const node *value = &r->p.node[r->p.cell[at].node];
        f->cell = r->p.cell[at].next;
        f->done += dict ? 2 : 1;
        call = value;
        bool tensor = makes_tensor(r, &call);
        if (!tensor && !is_container(value))
            continue;
        if (!named)
            return corrupt(r, "a tensor's name is longer than 1000 bytes, or no text");
        if (tensor && !add_tensor(r, name, depth > 1 ? stack[1].name : 0, call))
            return false;
        if (!tensor && depth == DEPTH)
            return corrupt(r, "objects are nested deeper than 32");
        if (!tensor)
            stack[depth++] = (frame){value, value->first, 0, strlen(name)};
    }
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const qm_torch_tensor *const *)a)->name, (*(const qm_torch_tensor *const *)b)->name);
}

static bool check_names(const reader *r)
{
    const qm_torch_tensor **sorted = calloc(r->made.count + 1, sizeof(qm_torch_tensor *));
    bool ok = sorted || qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->f->path);
    for (size_t i = 0; ok && i < r->made.count; i++)
        sorted[i] = &r->made.tensor[i];
    if (ok)
        qsort(sorted, r->made.count, sizeof(qm_torch_tensor *), by_name);
    for (size_t i = 1; ok && i < r->made.count; i++)
        if (by_name(&sorted[i], &sorted[i - 1]) == 0)
            ok = bad_tensor(r, sorted[i]->name, "is there twice");
    free(sorted);
    return ok;
}

/* From a read pickle and located storages to the finished list. */
static bool finish(reader *r, qm_torch_header *h)
{
    if (!walk(r) || !check_names(r))
        return false;
    if (r->made.count == 0)
        return qm_fail(r->e, QM_ECORRUPT, "%s: holds no tensors", r->f->path);
    *h = r->made;
    r->made = (qm_torch_header){0};
    return true;
}

static bool release(reader *r, bool ok)
{
    qm_pickle_free(&r->p);
    qm_torch_free(&r->made);
    free(r->storage);
    return ok;
}

/* ---- since torch 1.6 ------------------------------------------------------------------------ */

/* The folder that everything is in: that of data.pkl. */
static bool find_root(const qm_zip *z, size_t *length, const qm_zip_member **pickle, const qm_infile *f,
                      qm_err *e)
{
    static const char last[] = "/data.pkl";
    const size_t n = sizeof last - 1;
    *pickle = NULL;
    for (size_t i = 0; i < z->count; i++) {
        const qm_zip_member *m = &z->member[i];
        if (m->length <= n || memcmp(m->name + m->length - n, last, n) != 0
            || memchr(m->name, '/', m->length - n))
            continue;
        if (*pickle)
            return qm_fail(e, QM_ECORRUPT, "%s: has two data.pkl", f->path);
        *pickle = m;
        *length = m->length - n;
    }
    return *pickle
           || qm_fail(e, QM_EUNSUPPORTED, "%s: a zip archive, but not one of torch.save (it has no data.pkl)",
                      f->path);
}

/* The member named by the root, a folder and so much of `rest`, or NULL: also where that holds a zero byte. */
static const qm_zip_member *member(const qm_zip *z, const qm_zip_member *pickle, size_t root,
                                   const char *folder, const char *rest, size_t length)
{
    char name[512];
    if (root > sizeof name || length > sizeof name)
        return NULL;
    int n = snprintf(name, sizeof name, "%.*s%s%.*s", (int)root, pickle->name, folder, (int)length, rest);
    bool whole = n >= 0 && (size_t)n < sizeof name && (size_t)n == root + strlen(folder) + length;
    return whole ? qm_zip_find(z, name, (size_t)n) : NULL;
}

static bool check_order(const qm_zip_member *m, const qm_infile *f, qm_err *e)
{
    return !m || (m->size == 6 && memcmp(f->map + m->at, "little", 6) == 0)
           || qm_fail(e, QM_EUNSUPPORTED,
                      "%s: was saved on a big-endian machine; load and save it on another", f->path);
}

static bool locate_members(reader *r, const qm_zip *z, const qm_zip_member *pickle, size_t root)
{
    for (size_t i = 0; i < r->nstorage; i++) {
        storage *s = &r->storage[i];
        const qm_zip_member *m = member(z, pickle, root, "/data/", s->key, s->length);
        if (!m || m->size != bytes_of(s))
            return qm_fail(r->e, QM_ECORRUPT,
                           "%s: storage '%.*s' of %" PRIu64 " bytes %s; fetch the file again", r->f->path,
                           (int)(s->length < 40 ? s->length : 40), s->key, bytes_of(s),
                           m ? "has another size in the archive" : "is missing");
        s->at = m->at;
    }
    return true;
}

static bool all_stored(const qm_zip *z, const qm_infile *f, qm_err *e)
{
    for (size_t i = 0; i < z->count; i++)
        if (z->member[i].packed)
            return qm_fail(e, QM_EUNSUPPORTED,
                           "%s: member '%.*s' is compressed, which torch.save never does; load the file with "
                           "torch and save "
                           "it again",
                           f->path, (int)(z->member[i].length < 160 ? z->member[i].length : 160),
                           z->member[i].name);
    return true;
}

static bool read_members(reader *r, const qm_zip *z, qm_torch_header *h)
{
    size_t root = 0;
    const qm_zip_member *m;
    if (!find_root(z, &root, &m, r->f, r->e))
        return false;
    if (member(z, m, root, "/constants.pkl", "", 0))
        return qm_fail(r->e, QM_EUNSUPPORTED,
                       "%s: a TorchScript program, not a checkpoint; in Python: "
                       "torch.save(torch.jit.load(file).state_dict(), …)",
                       r->f->path);
    if (!all_stored(z, r->f, r->e) || !check_order(member(z, m, root, "/byteorder", "", 0), r->f, r->e))
        return false;
    qm_cursor c = {.base = r->f->map + m->at, .size = m->size, .what = r->f->path, .e = r->e};
    if (m->size > PICKLE_MAX || !qm_pickle_read(&r->p, &c, known, r->e))
        return corrupt(r, "its data.pkl is too large");
    return read_storages(r) && locate_members(r, z, m, root) && finish(r, h);
}

static bool read_zip(qm_torch_header *h, const qm_infile *f, qm_err *e)
{
    qm_zip z = {0};
    reader r = {.f = f, .e = e};
    bool ok = qm_zip_read(&z, f, e) && read_members(&r, &z, h);
    qm_zip_free(&z);
    return release(&r, ok);
}

/* ---- before --------------------------------------------------------------------------------- */

/* The pickles of the magic number 0x1950a86a20f9469cfc6c and of protocol version 1001. */
static const uint8_t magic[] = {0x80, 2,    0x8a, 10,  0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a,
                                0xa8, 0x50, 0x19, '.', 0x80, 2,    'M',  0xe9, 3,    '.'};

/* {"protocol_version": 1001, "little_endian": True, …} */
static bool check_system(const reader *r, const qm_pickle *p)
{
    const node *dict = &p->node[p->root];
    for (uint32_t i = 0; dict->kind == QM_PICKLE_DICT && i + 1 < dict->count && i < 16; i += 2) {
        const node *key = qm_pickle_child(p, dict, i), *value = qm_pickle_child(p, dict, i + 1);
        if (key->kind == QM_PICKLE_TEXT && key->length == 13 && memcmp(key->text, "little_endian", 13) == 0
            && value->kind == QM_PICKLE_BOOL && value->integer)
            return true;
    }
    return qm_fail(r->e, QM_EUNSUPPORTED,
                   "%s: was saved on a big-endian machine; load and save it on another", r->f->path);
}

/* Storages follow each other in the order of the list of keys; several references may name one. */
static int by_key(const void *pa, const void *pb)
{
    const storage *a = *(const storage *const *)pa, *b = *(const storage *const *)pb;
    int order = memcmp(a->key, b->key, a->length < b->length ? a->length : b->length);
    return order ? order : a->length < b->length ? -1 : a->length > b->length;
}

static bool locate_one(reader *r, qm_cursor *c, const node *key, storage **sorted)
{
    storage wanted = {.key = key->text, .length = key->length}, *w = &wanted;
    storage **found = key->kind == QM_PICKLE_TEXT
                          ? bsearch(&w, sorted, r->nstorage, sizeof(storage *), by_key)
                          : NULL;
    uint64_t count = qm_cursor_u64(c);
    if (r->e->code)
        return false;
    if (!found)
        return corrupt(r, "it holds a storage that no tensor uses");
    while (found > sorted && by_key(found - 1, &w) == 0)
        found--;
    uint64_t size = bytes_of(*found);
    for (; found < sorted + r->nstorage && by_key(found, &w) == 0; found++) {
        storage *s = *found;
        if (s->at || s->count != count || bytes_of(s) != size)
            return corrupt(r, "a storage has two sizes");
        s->at = c->pos;
    }
    return qm_cursor_take(c, size) != NULL;
}

static bool locate_in_order(reader *r, qm_cursor *c, const qm_pickle *keys)
{
    const node *list = &keys->node[keys->root];
    storage **sorted = calloc(r->nstorage + 1, sizeof(storage *));
    if (!sorted)
        return qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->f->path);
    for (size_t i = 0; i < r->nstorage; i++)
        sorted[i] = &r->storage[i];
    qsort(sorted, r->nstorage, sizeof(storage *), by_key);
    bool ok = list->kind == QM_PICKLE_LIST || corrupt(r, "its list of storages is missing");
    uint32_t cell = list->first;
    for (uint32_t i = 0; ok && i < list->count; i++, cell = keys->cell[cell].next)
        ok = locate_one(r, c, &keys->node[keys->cell[cell].node], sorted);
    for (size_t i = 0; ok && i < r->nstorage; i++)
        ok = r->storage[i].at != 0 || corrupt(r, "a storage is missing");
    free(sorted);
    return ok && (c->pos == c->size || corrupt(r, "bytes behind the last storage belong to none"));
}

static bool read_legacy(qm_torch_header *h, const qm_infile *f, qm_err *e)
{
    reader r = {.f = f, .e = e};
    qm_cursor c = {.base = f->map, .size = f->size, .pos = sizeof magic, .what = f->path, .e = e};
    qm_pickle system = {0}, keys = {0};
    bool ok = qm_pickle_read(&system, &c, known, e) && check_system(&r, &system)
              && qm_pickle_read(&r.p, &c, known, e) && read_storages(&r)
              && qm_pickle_read(&keys, &c, known, e) && locate_in_order(&r, &c, &keys) && finish(&r, h);
    qm_pickle_free(&system);
    qm_pickle_free(&keys);
    return release(&r, ok);
}

/* ---- which of them -------------------------------------------------------------------------- */

static bool begins(const qm_infile *f, const void *bytes, size_t n)
{
    return f->size >= n && memcmp(f->map, bytes, n) == 0;
}

bool qm_torch_read(qm_torch_header *h, const qm_infile *f, qm_err *e)
{
    if (begins(f, "PK\3\4", 4))
        return read_zip(h, f, e);
    if (begins(f, magic, sizeof magic))
        return read_legacy(h, f, e);
    if (begins(f, "version https://git-lfs", 23))
        return qm_fail(e, QM_ECORRUPT, "%s: is a git-lfs pointer, not the file itself; run 'git lfs pull'",
                       f->path);
    if (f->size > 262 && memcmp(f->map + 257, "ustar", 5) == 0)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "%s: a tar archive, as torch wrote before 0.1.10; load and save it with a newer torch",
                       f->path);
    return qm_fail(e, QM_ECORRUPT, "%s: was not written by torch.save", f->path);
}

void qm_torch_free(qm_torch_header *h)
{
    for (size_t i = 0; i < h->count; i++)
        free(h->tensor[i].name);
    free(h->tensor);
    *h = (qm_torch_header){0};
}
