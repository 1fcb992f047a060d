/* safetensors.c: reads and checks the header (see safetensors.h).
 *
 *   {"__metadata__": {"format": "pt"},
 *    "x.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}     data_offsets: from the
 * end of the header Stricter than the reference reader where it keeps one of two equal names, and where the
 * format text asks for
 * '{' as first byte.  As there: values are not looked at (NaN is fine), data may be unaligned, a shape [] is
 * one value, a dimension of 0 is no bytes, unknown fields of an entry are ignored.
 */
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "../json.h"

/* Names come from the file and may be megabytes long; a message shows this much. */
#define NAME "%.160s"

static bool text_is(const cJSON *v) { return v && cJSON_IsString(v); }
static bool list_is(const cJSON *v) { return v && cJSON_IsArray(v); }

int qm_st_dtype(const char *name)
{
    for (int i = 0; i < QM_DTYPE_COUNT; i++)
        if (strcmp(name, qm_dtypes[i].safetensors) == 0)
            return i;
    return -1;
}

static bool bad_entry(const qm_infile *f, const qm_st_tensor *t, const char *why, qm_err *e)
{
    return qm_fail(e, QM_ECORRUPT, "%s: tensor '" NAME "': %s", f->path, t->name, why);
}

/* The parser has seen to it that every number is a whole one of 0 … 2^53. */
static bool read_shape(qm_st_tensor *t, const cJSON *list, const qm_infile *f, qm_err *e)
{
    if (!list_is(list))
        return bad_entry(f, t, "has no list 'shape'", e);
    const cJSON *v;
    cJSON_ArrayForEach(v, list)
    {
        if (!cJSON_IsNumber(v))
            return bad_entry(f, t, "'shape' holds something that is no number", e);
        if (t->shape.ndim == QM_MAX_DIMS)
            return qm_fail(e, QM_EUNSUPPORTED, "%s: tensor '" NAME "' has more than %d dimensions", f->path,
                           t->name, QM_MAX_DIMS);
        t->shape.dim[t->shape.ndim++] = (int64_t)v->valuedouble;
    }
    return true;
}

static bool read_dtype(qm_st_tensor *t, const cJSON *v, const qm_infile *f, qm_err *e)
{
    if (!text_is(v))
        return bad_entry(f, t, "has no text 'dtype'", e);
    int dtype = qm_st_dtype(v->valuestring);
    if (dtype < 0)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "%s: tensor '" NAME "': dtype '%.40s' is none that this version knows", f->path,
                       t->name, v->valuestring);
    t->dtype = (qm_dtype)dtype;
    return true;
}

/* Sets at (from the end of the header, for now) and size, which must be what dtype and shape say. */
static bool read_extent(qm_st_tensor *t, const cJSON *list, const qm_infile *f, qm_err *e)
{
    const cJSON *from = list_is(list) ? list->child : NULL, *to = from ? from->next : NULL;
    if (!to || to->next || !cJSON_IsNumber(from) || !cJSON_IsNumber(to))
        return bad_entry(f, t, "has no 'data_offsets' of two numbers", e);
    if (to->valuedouble < from->valuedouble)
        return bad_entry(f, t, "'data_offsets' ends before it begins", e);
    t->at = (uint64_t)from->valuedouble;
    t->size = (uint64_t)to->valuedouble - t->at;

    int64_t bits = qm_shape_count(&t->shape);
    if (bits < 0 || __builtin_mul_overflow(bits, (int64_t)qm_dtypes[t->dtype].bits, &bits))
        return bad_entry(f, t, "'shape' is larger than any file", e);
    char shape[128];
    qm_shape_text(&t->shape, shape, sizeof shape);
    if (bits % 8 != 0)
        return qm_fail(e, QM_ECORRUPT, "%s: tensor '" NAME "' %s %s: ends in the middle of a byte", f->path,
                       t->name, shape, qm_dtypes[t->dtype].name);
    if (t->size != (uint64_t)bits / 8)
        return qm_fail(e, QM_ECORRUPT,
                       "%s: tensor '" NAME "' %s %s: takes %" PRId64
                       " bytes, but 'data_offsets' spans %" PRIu64,
                       f->path, t->name, shape, qm_dtypes[t->dtype].name, bits / 8, t->size);
    return true;
}

static bool read_tensor(qm_st_tensor *t, const cJSON *entry, const qm_infile *f, qm_err *e)
{
    t->name = strdup(entry->string);
    if (!t->name)
        return qm_fail(e, QM_EFAIL, "%s: out of memory", f->path);
    if (!cJSON_IsObject(entry))
        return bad_entry(f, t, "its entry in the header is not an object", e);
    return read_dtype(t, cJSON_GetObjectItemCaseSensitive(entry, "dtype"), f, e)
           && read_shape(t, cJSON_GetObjectItemCaseSensitive(entry, "shape"), f, e)
           && read_extent(t, cJSON_GetObjectItemCaseSensitive(entry, "data_offsets"), f, e);
}

static bool read_meta(qm_st_header *h, const cJSON *meta, const qm_infile *f, qm_err *e)
{
    if (!cJSON_IsObject(meta))
        return qm_fail(e, QM_ECORRUPT, "%s: '__metadata__' is not an object", f->path);
    h->meta = calloc((size_t)cJSON_GetArraySize(meta) * 2 + 1, sizeof *h->meta);
    if (!h->meta)
        return qm_fail(e, QM_EFAIL, "%s: out of memory", f->path);
    const cJSON *v;
    cJSON_ArrayForEach(v, meta)
    {
        if (!cJSON_IsString(v))
            return qm_fail(e, QM_ECORRUPT, "%s: '__metadata__': '" NAME "' is not a text", f->path,
                           v->string);
        char **pair = &h->meta[2 * h->nmeta++];
        pair[0] = strdup(v->string);
        pair[1] = strdup(v->valuestring);
        if (!pair[0] || !pair[1])
            return qm_fail(e, QM_EFAIL, "%s: out of memory", f->path);
    }
    return true;
}

static bool read_entries(qm_st_header *h, const cJSON *root, const qm_infile *f, qm_err *e)
{
    h->tensor = calloc((size_t)cJSON_GetArraySize(root) + 1, sizeof *h->tensor);
    if (!h->tensor)
        return qm_fail(e, QM_EFAIL, "%s: out of memory", f->path);
    const cJSON *v;
    cJSON_ArrayForEach(v, root)
    {
        bool ok = strcmp(v->string, "__metadata__") == 0 ? read_meta(h, v, f, e)
                                                         : read_tensor(&h->tensor[h->count++], v, f, e);
        if (!ok)
            return false;
    }
    return true;
}

/* By offset; empty tensors before the one that begins where they do. */
static int by_offset(const void *pa, const void *pb)
{
    const qm_st_tensor *a = pa, *b = pb;
    if (a->at != b->at)
        return a->at < b->at ? -1 : 1;
    if (a->size != b->size)
        return a->size < b->size ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Every byte behind the header belongs to exactly one tensor: nothing overlaps, nothing is hidden. */
static bool check_cover(qm_st_header *h, uint64_t data, const qm_infile *f, qm_err *e)
{
    uint64_t end = data;
    qsort(h->tensor, h->count, sizeof *h->tensor, by_offset);
    for (size_t i = 0; i < h->count; i++) {
        qm_st_tensor *t = &h->tensor[i];
        t->at += data; /* no overflow: both are below 2^54, and so is size */
        if (t->at != end)
            return qm_fail(e, QM_ECORRUPT,
                           "%s: tensor '" NAME "' begins at byte %" PRIu64
                           " of the file, but the one before it ends at "
                           "%" PRIu64 ": they %s",
                           f->path, t->name, t->at, end, t->at < end ? "overlap" : "leave a hole");
        end += t->size;
        if (end > f->size)
            return qm_fail(e, QM_ECORRUPT,
                           "%s: tensor '" NAME "' ends at byte %" PRIu64 ", but the file at %" PRIu64
                           "; it is cut short, fetch it again",
                           f->path, t->name, end, f->size);
    }
    return end == f->size
           || qm_fail(e, QM_ECORRUPT, "%s: %" PRIu64 " bytes behind the last tensor belong to none", f->path,
                      f->size - end);
}

/* Sets *length; the header itself begins at byte 8. */
static bool read_length(uint64_t *length, const qm_infile *f, qm_err *e)
{
    char start[8];
    if (f->size < sizeof start)
        return qm_fail(e, QM_ECORRUPT, "%s: %" PRIu64 " bytes are no safetensors file; fetch it again",
                       f->path, f->size);
    if (!qm_infile_read(f, 0, start, sizeof start, e))
        return false;
    if (memcmp(start, "version ", sizeof start) == 0)
        return qm_fail(e, QM_ECORRUPT, "%s: is a git-lfs pointer, not the file itself; run 'git lfs pull'",
                       f->path);
    memcpy(length, start, sizeof *length);
    if (*length > QM_ST_HEADER_MAX)
        return qm_fail(e, QM_ECORRUPT,
                       "%s: a header of %" PRIu64
                       " bytes (at most %u are allowed): is it a safetensors file?",
                       f->path, *length, QM_ST_HEADER_MAX);
    if (*length > f->size - sizeof start)
        return qm_fail(e, QM_ECORRUPT,
                       "%s: the header ends at byte %" PRIu64 ", but the file at %" PRIu64
                       "; it is cut short, fetch it again",
                       f->path, *length + sizeof start, f->size);
    return true;
}

/* pread, not the map: a file cut short while it is read is then an error like any other. */
static cJSON *read_json(uint64_t length, const qm_infile *f, qm_err *e)
{
    char *text = malloc(length + 1);
    if (!text) {
        qm_fail(e, QM_EFAIL, "%s: out of memory for a header of %" PRIu64 " bytes", f->path, length);
        return NULL;
    }
    cJSON *root = NULL;
    bool got = qm_infile_read(f, 8, text, length, e);
    if (got && (length == 0 || text[0] != '{'))
        qm_fail(e, QM_ECORRUPT, "%s: the header does not begin with '{': is it a safetensors file?", f->path);
    else if (got)
        root = qm_json_parse_sizes(text, length, QM_ST_HEADER_MAX, f->path, e);
    free(text);
    return root;
}

bool qm_st_read(qm_st_header *h, const qm_infile *f, qm_err *e)
{
    uint64_t length = 0;
    if (!read_length(&length, f, e))
        return false;
    cJSON *root = read_json(length, f, e);
    if (!root)
        return false;
    qm_st_header made = {0};
    bool ok = read_entries(&made, root, f, e) && check_cover(&made, 8 + length, f, e);
    cJSON_Delete(root);
    if (ok)
        *h = made;
    else
        qm_st_free(&made);
    return ok;
}

void qm_st_free(qm_st_header *h)
{
    for (size_t i = 0; i < h->count; i++)
        free(h->tensor[i].name);
    for (size_t i = 0; i < 2 * h->nmeta; i++)
        free(h->meta[i]);
    free(h->tensor);
    free(h->meta);
    *h = (qm_st_header){0};
}
