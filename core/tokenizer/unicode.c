/* unicode.c: see unicode.h. */
#include "unicode.h"

#include <utf8proc.h>

#include "../utf8.h"

/* ---- characters ---------------------------------------------------------------------------- */

uint32_t qm_unicode_read(const char *p, size_t n, size_t *step)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t got = utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)n, &c);
    *step = got > 0 ? (size_t)got : 1;
    return got > 0 ? (uint32_t)c : 0xfffd;
}

uint32_t qm_unicode_read_back(const char *start, const char *end)
{
    const char *p = end - 1;
    while (p > start && ((uint8_t)*p & 0xc0) == 0x80)
        p--;
    size_t step;
    return qm_unicode_read(p, (size_t)(end - p), &step);
}

void qm_unicode_write(qm_bytes *to, uint32_t c)
{
    utf8proc_uint8_t bytes[4] = {0};
    qm_bytes_add(to, bytes, (size_t)utf8proc_encode_char((utf8proc_int32_t)c, bytes));
}

bool qm_unicode_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680
           || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f
           || c == 0x3000;
}

static bool is_mark(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC
           || category == UTF8PROC_CATEGORY_ME;
}

bool qm_unicode_is_word(uint32_t c)
{
    /* letters in circles and squares are Alphabetic, though symbols by category */
    if ((c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169)
        || (c >= 0x1f170 && c <= 0x1f189) || c == 0x200c || c == 0x200d)
        return true;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return is_mark(c);
    }
}

/* ---- what is not UTF-8 ------------------------------------------------------------------------ */

void qm_unicode_repair(const char *text, size_t n, qm_bytes *to)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t from = 0;
    for (size_t at = 0; at < n;) {
        size_t step = qm_utf8_step(p + at, n - at);
        if (step) {
            at += step;
            continue;
        }
        qm_bytes_add(to, text + from, at - from);
        qm_bytes_add(to, "\xef\xbf\xbd", 3);
        at += qm_utf8_broken(p + at, n - at);
        from = at;
    }
    qm_bytes_add(to, text + from, n - from);
}

/* ---- normal forms ------------------------------------------------------------------------------ */

static const utf8proc_option_t options[] = {
    [QM_NFC] = UTF8PROC_COMPOSE,
    [QM_NFD] = UTF8PROC_DECOMPOSE,
    [QM_NFKC] = UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
    [QM_NFKD] = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
};

/* Bytes at the start of which every character is its own normal form and combines with nothing behind it but
 * marks: characters below U+0080, or U+0300 for NFC (there, all are composed already). */
static size_t plain(qm_unicode_form form, const char *text, size_t n)
{
    uint8_t limit = form == QM_NFC ? 0xcc : 0x80;
    size_t i = 0;
    while (i < n && (uint8_t)text[i] < limit)
        i++;
    return i;
}

typedef struct characters {
    utf8proc_int32_t *at;
    size_t n, room;
} characters;

static bool decompose(characters *c, uint32_t character, utf8proc_option_t option)
{
    enum { LONGEST = 32 }; /* U+FDFA becomes 18 */
    int last = 0;
    void *grown = qm_grown(c->at, &c->room, c->n, LONGEST, sizeof *c->at);
    if (!grown)
        return false;
    c->at = grown;
    utf8proc_ssize_t got = utf8proc_decompose_char((utf8proc_int32_t)character, c->at + c->n, LONGEST, option,
                                                   &last);
    if (got > 0 && got <= LONGEST)
        c->n += (size_t)got;
    return true;
}

static int class_of(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

/* Puts marks in the order of their classes, those of one class as they were: counted, as runs may be long. */
static bool order_run(utf8proc_int32_t *run, size_t n)
{
    size_t place[257] = {0};
    bool ordered = true;
    for (size_t i = 0; i < n; i++) {
        place[class_of(run[i]) + 1]++;
        ordered = ordered && (i == 0 || class_of(run[i - 1]) <= class_of(run[i]));
    }
    if (ordered)
        return true;
    utf8proc_int32_t *copy = malloc(n * sizeof *copy);
    if (!copy)
        return false;
    memcpy(copy, run, n * sizeof *copy);
    for (int c = 1; c < 257; c++)
        place[c] += place[c - 1];
    for (size_t i = 0; i < n; i++)
        run[place[class_of(copy[i])]++] = copy[i];
    free(copy);
    return true;
}

static bool order(characters *c)
{
    for (size_t i = 0; i < c->n; i++) {
        size_t from = i;
        while (i < c->n && class_of(c->at[i]) != 0)
            i++;
        if (i - from > 1 && !order_run(c->at + from, i - from))
            return false;
    }
    return true;
}

static bool normal(qm_unicode_form form, const char *text, size_t n, qm_bytes *to)
{
    characters c = {0};
    bool fine = true;
    for (size_t at = 0, step; fine && at < n; at += step)
        fine = decompose(&c, qm_unicode_read(text + at, n - at, &step), options[form]);
    fine = fine && order(&c);
    if (fine && c.n > 0 && (options[form] & UTF8PROC_COMPOSE))
        c.n = (size_t)utf8proc_normalize_utf32(c.at, (utf8proc_ssize_t)c.n,
                                               UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (size_t i = 0; fine && i < c.n; i++)
        qm_unicode_write(to, (uint32_t)c.at[i]);
    free(c.at);
    return fine;
}

static void map(qm_unicode_form form, const char *text, size_t n, qm_bytes *to)
{
    for (size_t at = 0, step; at < n; at += step) {
        uint32_t c = qm_unicode_read(text + at, n - at, &step);
        if (form == QM_WITHOUT_MARKS) {
            if (!is_mark(c))
                qm_bytes_add(to, text + at, step);
        } else if (c == 0x130) { /* the one that becomes two: i and a dot above it */
            qm_bytes_add(to, "i\xcc\x87", 3);
        } else {
            qm_unicode_write(to, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
}

bool qm_unicode_form_of(qm_unicode_form form, const char *text, size_t n, qm_bytes *to, qm_err *e)
{
    bool fine = true;
    if (form == QM_LOWERCASE || form == QM_WITHOUT_MARKS) {
        map(form, text, n, to);
    } else {
        size_t same = plain(form, text, n);
        if (same < n) /* what comes next may combine with the last of them */
            while (same > 0 && ((uint8_t)text[--same] & 0xc0) == 0x80)
                ;
        qm_bytes_add(to, text, same);
        fine = normal(form, text + same, n - same, to);
    }
    return (fine && !to->failed) || qm_fail(e, QM_EFAIL, "a text of %zu bytes: out of memory", n);
}
