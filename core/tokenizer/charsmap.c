/* charsmap.c: see charsmap.h. */
#include "charsmap.h"

#include <utf8proc.h>

#include "../utf8.h"
#include "unicode.h"

struct qm_charsmap {
    uint32_t *unit; /* the double array */
    size_t n_units;
    char *strings; /* a zero byte ends them, too */
    size_t n_strings;
};

qm_charsmap *qm_charsmap_new(const void *bytes, size_t n, qm_err *e)
{
    uint32_t size = 0;
    qm_charsmap *m = calloc(1, sizeof *m);
    if (n >= 4)
        memcpy(&size, bytes, 4);
    if (m && n > 0 && (n < 4 || size > n - 4 || size % 4 != 0 || size == 0)) {
        qm_fail(e, QM_ECORRUPT, "a table of characters of %zu bytes says it has a trie of %u", n, size);
        free(m);
        return NULL;
    }
    if (!m || (n > 0 && (!(m->unit = malloc(size)) || !(m->strings = calloc(n - 4 - size + 1, 1))))) {
        qm_charsmap_free(m);
        qm_fail(e, QM_EFAIL, "a table of characters of %zu bytes: out of memory", n);
        return NULL;
    }
    if (n > 0) {
        m->n_units = size / 4;
        m->n_strings = n - 4 - size;
        memcpy(m->unit, (const char *)bytes + 4, size);
        memcpy(m->strings, (const char *)bytes + 4 + size, m->n_strings);
    }
    return m;
}

void qm_charsmap_free(qm_charsmap *m)
{
    if (!m)
        return;
    free(m->unit);
    free(m->strings);
    free(m);
}

/* ---- the double array ---------------------------------------------------------------------- */

/* A unit:  31 leaf | 30-10 offset | 9 offset is in units of 256 | 8 has a leaf | 7-0 label */
static size_t offset_of(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 0x200) >> 6); }

/* What the shortest or the longest key that the text starts with becomes, or NULL; *length: that of the key. */
static const char *look_up(const qm_charsmap *m, const char *text, size_t n, bool longest, size_t *length)
{
    const char *found = NULL;
    if (m->n_units == 0)
        return NULL;
    size_t at = offset_of(m->unit[0]);
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)text[i];
        at ^= byte;
        if (byte == 0 || at >= m->n_units || (m->unit[at] & 0x800000ff) != byte)
            break;
        uint32_t unit = m->unit[at];
        at ^= offset_of(unit);
        if (!(unit & 0x100))
            continue;
        if (at >= m->n_units || (m->unit[at] & 0x7fffffff) >= m->n_strings)
            break;
        found = m->strings + (m->unit[at] & 0x7fffffff);
        *length = i + 1;
        if (!longest)
            break;
    }
    return found;
}

/* ---- by grapheme ------------------------------------------------------------------------------ */

static size_t grapheme(const char *text, size_t n)
{
    utf8proc_int32_t state = 0;
    size_t step, at = 0;
    uint32_t c = qm_unicode_read(text, n, &step);
    for (at = step; at < n; at += step) {
        uint32_t next = qm_unicode_read(text + at, n - at, &step);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)c, (utf8proc_int32_t)next, &state))
            break;
        c = next;
    }
    return at;
}

static bool replaced(const qm_charsmap *m, const char *text, size_t n, qm_bytes *to)
{
    size_t length;
    const char *by = look_up(m, text, n, false, &length);
    if (by)
        qm_bytes_add(to, by, strlen(by));
    return by != NULL;
}

void qm_charsmap_graphemes(const qm_charsmap *m, const char *text, size_t n, qm_bytes *to)
{
    enum { SHORT = 6 };
    for (size_t at = 0, size; at < n; at += size) {
        size = grapheme(text + at, n - at);
        if (size < SHORT && replaced(m, text + at, size, to))
            continue;
        for (size_t i = at, step; i < at + size; i += step) {
            qm_unicode_read(text + i, at + size - i, &step);
            if (!replaced(m, text + i, step, to))
                qm_bytes_add(to, text + i, step);
        }
    }
}

/* ---- sentences ---------------------------------------------------------------------------------- */

#define BLANK "\xe2\x96\x81" /* U+2581 */

typedef struct sentence {
    const qm_charsmap *map;
    const qm_sentence_rules *rules;
    const qm_matcher *kept;
    const char *text;
    size_t n;
} sentence;

/* What the text at `at` becomes: *length bytes at the pointer returned; *step of them are used up. */
static const char *next(const sentence *s, size_t at, size_t *length, size_t *step)
{
    const char *p = s->text + at, *by;
    size_t n = s->n - at;
    if (s->kept && (*length = *step = qm_matcher_here(s->kept, p, n)) > 0)
        return p;
    if ((by = look_up(s->map, p, n, true, step))) {
        *length = strlen(by);
        return by;
    }
    *length = *step = qm_utf8_step((const uint8_t *)p, n);
    if (*step > 0)
        return p;
    *step = 1;
    *length = 3;
    return "\xef\xbf\xbd";
}

static void put_blank(const sentence *s, qm_bytes *to)
{
    qm_bytes_add(to, s->rules->escape ? BLANK : " ", s->rules->escape ? 3 : 1);
}

static void put(const sentence *s, const char *p, size_t n, qm_bytes *to)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] == ' ')
            put_blank(s, to);
        else
            qm_bytes_add(to, p + i, 1);
    }
}

static void drop_blanks_behind(const sentence *s, size_t floor, qm_bytes *to)
{
    size_t size = s->rules->escape ? 3 : 1;
    while (!to->failed && to->n >= floor + size
           && memcmp(to->at + to->n - size, s->rules->escape ? BLANK : " ", size) == 0)
        to->n -= size;
}

void qm_charsmap_sentence(const qm_charsmap *m, const qm_sentence_rules *rules, const qm_matcher *kept,
                          const char *text, size_t n, qm_bytes *to)
{
    sentence s = {m, rules, kept, text, n};
    size_t at = 0, length, step, floor = to->n;
    while (rules->squeeze && at < n) {
        const char *p = next(&s, at, &length, &step);
        if (length != 1 || *p != ' ')
            break;
        at += step;
    }
    if (at >= n)
        return;
    if (rules->prefix && !rules->suffix)
        put_blank(&s, to);
    for (bool after_blank = rules->squeeze; at < n; at += step) {
        const char *p = next(&s, at, &length, &step);
        for (; after_blank && length > 0 && *p == ' '; length--)
            p++;
        if (length > 0) {
            put(&s, p, length, to);
            after_blank = rules->squeeze && p[length - 1] == ' ';
        }
    }
    if (rules->squeeze)
        drop_blanks_behind(&s, floor, to);
    if (rules->prefix && rules->suffix)
        put_blank(&s, to);
}
