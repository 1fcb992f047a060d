/* zip.c: see zip.h. */
#include "zip.h"

#include <stdlib.h>

#include "../cursor.h"
#include "../utf8.h"

#define NAME     "%.*s"
#define SHOWN(m) (int)((m)->length < 160 ? (m)->length : 160), (m)->name

enum {
    LOCAL = 0x04034b50,
    CENTRAL = 0x02014b50,
    END = 0x06054b50,
    END64 = 0x06064b50,
    LOCATOR = 0x07064b50,
    END_SIZE = 22,
    LOCATOR_SIZE = 20,
    CENTRAL_SIZE = 46,
    ENCRYPTED = 1 | 1 << 6 | 1 << 13,
    SIZES_FOLLOW = 1 << 3, /* the local header leaves sizes out; they come after the data, too */
    EXTRA_ZIP64 = 1,
};

#define IN_ZIP64 0xffffffffu

/* What both headers of a member say. */
typedef struct header {
    uint16_t flags, method;
    uint32_t crc;
    uint64_t packed, size, offset;
    uint16_t name, extra, comment; /* lengths */
} header;

static bool corrupt(const qm_infile *f, const char *why, qm_err *e)
{
    return qm_fail(e, QM_ECORRUPT, "%s: a damaged zip archive: %s; fetch the file again", f->path, why);
}

static bool bad_member(const qm_infile *f, const qm_zip_member *m, qm_code code, const char *why, qm_err *e)
{
    return qm_fail(e, code, "%s: member '" NAME "' %s", f->path, SHOWN(m), why);
}

static uint16_t u16(qm_cursor *c)
{
    uint16_t low = qm_cursor_u8(c);
    return (uint16_t)(low | qm_cursor_u8(c) << 8);
}

/* ---- the end -------------------------------------------------------------------------------- */

typedef struct directory {
    uint64_t at, size, count;
} directory;

/* The zip64 record, whose place the locator before the end gives; `c` is at the locator. */
static bool read_end64(qm_cursor *c, directory *d, uint64_t *end, const qm_infile *f, qm_err *e)
{
    uint64_t locator = c->pos;
    qm_cursor_u32(c);
    uint32_t disk = qm_cursor_u32(c);
    uint64_t at = qm_cursor_u64(c);
    if (disk != 0 || qm_cursor_u32(c) != 1 || at >= locator)
        return corrupt(f, "its zip64 locator points nowhere", e);
    c->pos = at;
    uint32_t signature = qm_cursor_u32(c);
    uint64_t size = qm_cursor_u64(c);
    qm_cursor_u32(c); /* versions */
    uint64_t disks = qm_cursor_u64(c);
    d->count = qm_cursor_u64(c);
    uint64_t total = qm_cursor_u64(c);
    d->size = qm_cursor_u64(c);
    d->at = qm_cursor_u64(c);
    if (e->code)
        return false;
    if (signature != END64 || disks != 0 || total != d->count || size != locator - at - 12)
        return corrupt(f, "its zip64 end record makes no sense", e);
    *end = at;
    return true;
}

/* Where the central directory is.  torch writes no comment, so the end record is the last 22 bytes. */
static bool find_directory(qm_cursor *c, directory *d, const qm_infile *f, qm_err *e)
{
    if (f->size < END_SIZE)
        return corrupt(f, "it is too short", e);
    uint64_t end = c->pos = f->size - END_SIZE;
    uint32_t signature = qm_cursor_u32(c), disks = qm_cursor_u32(c);
    uint16_t here = u16(c), count = u16(c);
    uint32_t size = qm_cursor_u32(c), at = qm_cursor_u32(c);
    if (signature != END || u16(c) != 0)
        return corrupt(f, "the end record is missing, so it was probably cut short", e);
    if (disks != 0 || here != count)
        return corrupt(f, "it is one of several disks", e);
    *d = (directory){at, size, count};
    if (end >= LOCATOR_SIZE) {
        c->pos = end - LOCATOR_SIZE;
        bool zip64 = qm_cursor_u32(c) == LOCATOR;
        c->pos = end - LOCATOR_SIZE;
        if (zip64 && !read_end64(c, d, &end, f, e))
            return false;
        bool same = (count == 0xffff || count == d->count) && (size == IN_ZIP64 || size == d->size)
                    && (at == IN_ZIP64 || at == d->at);
        if (zip64 && !same)
            return corrupt(f, "its two end records disagree", e);
    }
    return (d->at <= end && d->size == end - d->at && d->count <= d->size / CENTRAL_SIZE)
           || corrupt(f, "its directory does not end where the end record begins", e);
}

/* ---- members -------------------------------------------------------------------------------- */

/* Sizes too large for their 32 bits stand, in this order, in an extra field. */
static void read_extra(qm_cursor *c, uint64_t length, header *h)
{
    uint64_t *wide[] = {&h->size, &h->packed, &h->offset};
    uint64_t end = c->pos + length;
    while (!c->e->code && end - c->pos >= 4) {
        uint16_t id = u16(c), n = u16(c);
        uint64_t next = c->pos + n;
        if (next > end)
            break;
        for (int i = 0; i < 3 && id == EXTRA_ZIP64; i++)
            if (*wide[i] == IN_ZIP64 && next - c->pos >= 8)
                *wide[i] = qm_cursor_u64(c);
        c->pos = next;
    }
    c->pos = end;
}

/* The fields that both headers have, from the flags on. */
static void read_common(qm_cursor *c, header *h)
{
    h->flags = u16(c);
    h->method = u16(c);
    qm_cursor_u32(c); /* time */
    h->crc = qm_cursor_u32(c);
    h->packed = qm_cursor_u32(c);
    h->size = qm_cursor_u32(c);
    h->name = u16(c);
    h->extra = u16(c);
}

static bool plain_name(const qm_zip_member *m)
{
    if (m->length == 0 || m->name[0] == '/' || !qm_utf8_name((const uint8_t *)m->name, m->length))
        return false;
    for (size_t i = 0; i < m->length; i++)
        if (m->name[i] == '\\' || (m->name[i] == '.' && i + 1 < m->length && m->name[i + 1] == '.'))
            return false;
    return true;
}

/* The local header must say what the directory says; then its data is where it ends. */
static bool read_local(qm_cursor *c, qm_zip_member *m, const header *d, uint64_t limit, const qm_infile *f,
                       qm_err *e)
{
    header h = {0};
    if (m->header >= limit)
        return bad_member(f, m, QM_ECORRUPT, "lies outside the archive", e);
    c->pos = m->header;
    uint32_t signature = qm_cursor_u32(c);
    u16(c); /* version needed */
    read_common(c, &h);
    const uint8_t *name = qm_cursor_take(c, h.name);
    if (!qm_cursor_need(c, h.extra))
        return false;
    read_extra(c, h.extra, &h);
    if (e->code)
        return false;
    if (signature != LOCAL || h.flags != d->flags || h.method != d->method || h.name != m->length
        || memcmp(name, m->name, m->length) != 0)
        return bad_member(f, m, QM_ECORRUPT, "has two headers that disagree", e);
    bool empty = (h.flags & SIZES_FOLLOW) && h.crc == 0 && h.packed == 0 && h.size == 0;
    if (!empty && (h.crc != d->crc || h.packed != d->packed || h.size != d->size))
        return bad_member(f, m, QM_ECORRUPT, "has two headers that disagree", e);
    m->at = c->pos;
    return (m->at <= limit && m->size <= limit - m->at)
           || bad_member(f, m, QM_ECORRUPT, "ends outside the archive", e);
}

static bool read_member(qm_cursor *c, qm_zip_member *m, uint64_t limit, const qm_infile *f, qm_err *e)
{
    header h = {0};
    uint32_t signature = qm_cursor_u32(c);
    qm_cursor_u32(c); /* versions */
    read_common(c, &h);
    h.comment = u16(c);
    uint16_t disk = u16(c);
    u16(c); /* attributes */
    qm_cursor_u32(c);
    h.offset = qm_cursor_u32(c);
    m->name = (const char *)qm_cursor_take(c, h.name);
    m->length = h.name;
    if (!qm_cursor_need(c, (uint64_t)h.extra + h.comment))
        return false;
    read_extra(c, h.extra, &h);
    c->pos += h.comment;
    if (e->code)
        return false;
    if (signature != CENTRAL || disk != 0)
        return corrupt(f, "its directory is garbled", e);
    if (!plain_name(m))
        return corrupt(f, "a member's name is no plain relative path", e);
    if (h.flags & ENCRYPTED)
        return bad_member(f, m, QM_EUNSUPPORTED, "is encrypted", e);
    if (h.method == 0 && h.packed != h.size)
        return bad_member(f, m, QM_ECORRUPT, "is stored, yet in another size than its own", e);
    m->packed = h.method != 0;
    m->size = h.packed;
    m->header = h.offset;
    qm_cursor local = *c;
    return read_local(&local, m, &h, limit, f, e);
}

/* ---- all of them ---------------------------------------------------------------------------- */

static int by_place(const void *pa, const void *pb)
{
    const qm_zip_member *a = pa, *b = pb;
    return a->header < b->header ? -1 : a->header > b->header;
}

static int compare_names(const char *a, size_t na, const char *b, size_t nb)
{
    int order = memcmp(a, b, na < nb ? na : nb);
    return order ? order : na < nb ? -1 : na > nb;
}

static int by_name(const void *pa, const void *pb)
{
    const qm_zip_member *a = pa, *b = pb;
    return compare_names(a->name, a->length, b->name, b->length);
}

static bool check_all(qm_zip *z, const qm_infile *f, qm_err *e)
{
    qsort(z->member, z->count, sizeof *z->member, by_place);
    for (size_t i = 1; i < z->count; i++)
        if (z->member[i].header < z->member[i - 1].at + z->member[i - 1].size)
            return bad_member(f, &z->member[i], QM_ECORRUPT, "overlaps another", e);
    qsort(z->member, z->count, sizeof *z->member, by_name);
    for (size_t i = 1; i < z->count; i++)
        if (by_name(&z->member[i], &z->member[i - 1]) == 0)
            return bad_member(f, &z->member[i], QM_ECORRUPT, "is there twice", e);
    return true;
}

bool qm_zip_read(qm_zip *z, const qm_infile *f, qm_err *e)
{
    qm_cursor c = {.base = f->map, .size = f->size, .what = f->path, .e = e};
    directory d = {0};
    qm_zip made = {0};
    if (!find_directory(&c, &d, f, e))
        return false;
    made.member = calloc(d.count + 1, sizeof *made.member);
    if (!made.member)
        return qm_fail(e, QM_EFAIL, "%s: out of memory", f->path);
    c.pos = d.at;
    bool ok = true;
    for (; ok && made.count < d.count; made.count++)
        ok = read_member(&c, &made.member[made.count], d.at, f, e);
    ok = ok && (c.pos == d.at + d.size || corrupt(f, "its directory holds more than it counts", e))
         && check_all(&made, f, e);
    if (ok)
        *z = made;
    else
        qm_zip_free(&made);
    return ok;
}

void qm_zip_free(qm_zip *z)
{
    free(z->member);
    *z = (qm_zip){0};
}

const qm_zip_member *qm_zip_find(const qm_zip *z, const char *name, size_t length)
{
    size_t low = 0, high = z->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const qm_zip_member *m = &z->member[middle];
        int order = compare_names(m->name, m->length, name, length);
        if (order == 0)
            return m;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
