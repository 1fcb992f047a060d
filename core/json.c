/* json.c: one walk over the text that checks everything, then cJSON builds the tree (see json.h).
 *
 * Source of the grammar: RFC 8259.  Each function begins at its first byte and ends behind its last one.
 */
#include "json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

#define TWO_53     9007199254740992.0
#define TWO_64     18446744073709551616.0
#define NUMBER_MAX 63 /* cJSON's own buffer for one number */

/* A key of an object that was met: where its text begins (behind the quote; 0: the slot is free). */
typedef struct key {
    uint32_t hash, object, at;
} key;

/* All keys of the text in one open-addressed table, told apart by the number of their object. */
typedef struct key_set {
    key *slot;
    uint32_t size, used; /* size is a power of two, at least twice `used` */
    uint64_t seed;       /* an address: a file cannot aim at collisions; results never depend on it */
} key_set;

typedef struct reader {
    const uint8_t *text, *end, *p;
    const char *what;
    bool sizes_only;
    uint32_t values, objects;
    key_set keys;
    qm_err *e;
} reader;

static bool bad(const reader *r, const uint8_t *at, const char *why)
{
    if (at == r->end)
        why = "the text ends in the middle; it is cut short";
    return qm_fail(r->e, QM_ECORRUPT, "%s: invalid JSON at byte %zu: %s", r->what, (size_t)(at - r->text),
                   why);
}

static void skip_blanks(reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t'))
        r->p++;
}

static bool next_is(const reader *r, uint8_t c) { return r->p < r->end && *r->p == c; }

/* ---- strings ---- */

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32; /* lower case */
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int32_t hex4(const uint8_t *p, const uint8_t *end)
{
    int32_t v = 0;
    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0)
            return -1;
        v = v << 4 | digit;
    }
    return v;
}

/* The character an escape stands for, or -1.  p is at the backslash; *used gets the length of the escape:
 *
 *   \n    2          \u00e9    6          \ud83d\ude00    12, U+1F600
 */
static int32_t escape(const uint8_t *p, const uint8_t *end, size_t *used)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (end - p < 2)
        return -1;
    const char *simple = p[1] ? strchr(from, p[1]) : NULL;
    *used = 2;
    if (simple)
        return to[simple - from];
    if (p[1] != 'u')
        return -1;
    int32_t c = hex4(p + 2, end);
    *used = 6;
    if (c < 0xd800 || c > 0xdfff)
        return c;
    if (c > 0xdbff || end - p < 12 || p[6] != '\\' || p[7] != 'u')
        return -1;
    int32_t low = hex4(p + 8, end);
    *used = 12;
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
}

static bool check_escape(reader *r)
{
    size_t used = 0;
    int32_t c = escape(r->p, r->end, &used);
    if (c < 0)
        return bad(r, r->p, "not an escape, or half of a surrogate pair");
    if (c == 0)
        return bad(r, r->p, "\\u0000 in a string");
    r->p += used;
    return true;
}

static bool check_string(reader *r)
{
    for (r->p++; r->p < r->end && *r->p != '"';) {
        if (*r->p == '\\') {
            if (!check_escape(r))
                return false;
        } else if (*r->p < 0x20) {
            return bad(r, r->p, "control character in a string");
        } else if (*r->p < 0x80) {
            r->p++;
        } else {
            size_t step = qm_utf8_step(r->p, (size_t)(r->end - r->p));
            if (!step)
                return bad(r, r->p, "not UTF-8");
            r->p += step;
        }
    }
    if (r->p == r->end)
        return bad(r, r->p, "");
    r->p++;
    return true;
}

/* ---- keys: "a" and "\u0061" are the same one ---- */

/* The bytes of a checked string, escapes undone, one at a time. */
typedef struct spelling {
    const uint8_t *p, *end;
    uint8_t rest[3]; /* of the UTF-8 of an escape, last byte first */
    int nrest;
} spelling;

static int next_byte(spelling *s)
{
    if (s->nrest)
        return s->rest[--s->nrest];
    if (*s->p == '"')
        return -1;
    if (*s->p != '\\')
        return *s->p++;
    size_t used = 0;
    int32_t c = escape(s->p, s->end, &used);
    s->p += used;
    if (c < 0x80)
        return c;
    static const uint8_t lead[] = {0, 0xc0, 0xe0, 0xf0};
    int n = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    for (; s->nrest < n; c >>= 6)
        s->rest[s->nrest++] = (uint8_t)(0x80 | (c & 0x3f));
    return lead[n] | c;
}

static bool same_key(const reader *r, uint32_t a, uint32_t b)
{
    spelling x = {.p = r->text + a, .end = r->end}, y = {.p = r->text + b, .end = r->end};
    int c;
    while ((c = next_byte(&x)) == next_byte(&y))
        if (c < 0)
            return true;
    return false;
}

static uint32_t hash_key(const reader *r, uint32_t object, uint32_t at)
{
    spelling s = {.p = r->text + at, .end = r->end};
    uint64_t h = (r->keys.seed + object) * 0x9e3779b97f4a7c15u;
    for (int c; (c = next_byte(&s)) >= 0;)
        h = ((h ^ (uint64_t)c) * 0x9e3779b97f4a7c15u) ^ (h >> 29);
    return (uint32_t)(h >> 32);
}

static bool grow_keys(reader *r)
{
    key_set old = r->keys;
    uint32_t size = old.size ? old.size * 2 : 64;
    key *slot = calloc(size, sizeof *slot);
    if (!slot)
        return qm_fail(r->e, QM_EFAIL, "%s: out of memory", r->what);
    for (uint32_t i = 0; i < old.size; i++) {
        uint32_t to = old.slot[i].hash;
        if (!old.slot[i].at)
            continue;
        while (slot[to & (size - 1)].at)
            to++;
        slot[to & (size - 1)] = old.slot[i];
    }
    r->keys.slot = slot;
    r->keys.size = size;
    if (!old.size)
        r->keys.seed = (uintptr_t)slot;
    free(old.slot);
    return true;
}

/* Adds the key whose checked text begins at `at`, unless its object has it already. */
static bool add_key(reader *r, uint32_t object, uint32_t at)
{
    if (r->keys.used * 2 >= r->keys.size && !grow_keys(r))
        return false;
    uint32_t hash = hash_key(r, object, at), mask = r->keys.size - 1, i = hash & mask;
    for (; r->keys.slot[i].at; i = (i + 1) & mask) {
        const key *k = &r->keys.slot[i];
        if (k->hash == hash && k->object == object && same_key(r, k->at, at))
            return qm_fail(r->e, QM_ECORRUPT,
                           "%s: invalid JSON at byte %" PRIu32 ": key '%.*s' for the second time", r->what,
                           at, (int)strcspn((const char *)r->text + at, "\""), r->text + at);
    }
    r->keys.slot[i] = (key){hash, object, at};
    r->keys.used++;
    return true;
}

/* ---- numbers ---- */

static bool skip_digits(reader *r)
{
    const uint8_t *start = r->p;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9')
        r->p++;
    return r->p > start || bad(r, r->p, "a digit is missing");
}

/* Whether a double holds it: see json.h for the integers. */
static bool check_size(reader *r, const uint8_t *start, bool whole)
{
    char spelt[NUMBER_MAX + 1], exact[400];
    size_t n = (size_t)(r->p - start);
    if (n > NUMBER_MAX)
        return bad(r, start, "number of more than 63 characters");
    memcpy(spelt, start, n);
    spelt[n] = 0;
    double v = strtod(spelt, NULL);
    if (isinf(v))
        return bad(r, start, "number too large");
    if (!whole || fabs(v) < TWO_53)
        return true;
    snprintf(exact, sizeof exact, "%.0f", v);
    bool one_number = strcmp(exact, spelt) == 0
                      && (fabs(v) == TWO_53 || (fabs(v) > TWO_64 && !r->sizes_only));
    return one_number || bad(r, start, "integer beyond 2^53");
}

static bool check_number(reader *r)
{
    const uint8_t *start = r->p;
    bool whole = true, negative = next_is(r, '-');
    if (negative)
        r->p++;
    bool zero = next_is(r, '0');
    if (!skip_digits(r))
        return false;
    if (zero && r->p - start > 1 + negative)
        return bad(r, start, "number with a leading zero");
    if (next_is(r, '.')) {
        whole = false;
        r->p++;
        if (!skip_digits(r))
            return false;
    }
    if (next_is(r, 'e') || next_is(r, 'E')) {
        whole = false;
        r->p++;
        if (next_is(r, '+') || next_is(r, '-'))
            r->p++;
        if (!skip_digits(r))
            return false;
    }
    if (r->sizes_only && (negative || !whole))
        return bad(r, start, "a size must be a whole number, 0 or more");
    if (whole && r->p - start < 16)
        return true;
    return check_size(r, start, whole);
}

/* ---- values ---- */

static bool check_value(reader *r, int depth);

static bool check_word(reader *r, const char *word)
{
    for (; *word; word++, r->p++)
        if (!next_is(r, (uint8_t)*word))
            return bad(r, r->p, "no JSON value");
    return true;
}

static bool check_member(reader *r, uint32_t object, int depth)
{
    if (!next_is(r, '"'))
        return bad(r, r->p, "a key in double quotes is missing");
    uint32_t at = (uint32_t)(r->p + 1 - r->text);
    if (!check_string(r) || !add_key(r, object, at))
        return false;
    skip_blanks(r);
    if (!next_is(r, ':'))
        return bad(r, r->p, "a colon is missing");
    r->p++;
    return check_value(r, depth);
}

/* What is between { and } or between [ and ]; r->p is at the opening one. */
static bool check_list(reader *r, uint8_t close, int depth)
{
    uint32_t object = r->objects++;
    if (depth == QM_JSON_DEPTH)
        return bad(r, r->p, "nested too deep");
    r->p++;
    skip_blanks(r);
    if (next_is(r, close)) {
        r->p++;
        return true;
    }
    for (;;) {
        skip_blanks(r);
        if (!(close == '}' ? check_member(r, object, depth + 1) : check_value(r, depth + 1)))
            return false;
        skip_blanks(r);
        if (next_is(r, close)) {
            r->p++;
            return true;
        }
        if (!next_is(r, ','))
            return bad(r, r->p, close == '}' ? "a comma or } is missing" : "a comma or ] is missing");
        r->p++;
    }
}

static bool check_value(reader *r, int depth)
{
    skip_blanks(r);
    if (r->p == r->end)
        return bad(r, r->p, "");
    if (r->values++ == QM_JSON_VALUES)
        return bad(r, r->p, "too many values");
    switch (*r->p) {
    case '{':
        return check_list(r, '}', depth);
    case '[':
        return check_list(r, ']', depth);
    case '"':
        return check_string(r);
    case 't':
        return check_word(r, "true");
    case 'f':
        return check_word(r, "false");
    case 'n':
        return check_word(r, "null");
    case '-':
    case '0' ... '9':
        return check_number(r);
    default:
        return bad(r, r->p, "no JSON value");
    }
}

static bool check_text(reader *r)
{
    if (!check_value(r, 0))
        return false;
    skip_blanks(r);
    return r->p == r->end || bad(r, r->p, "something follows the value");
}

static cJSON *parse(const char *text, size_t length, size_t limit, const char *what, bool sizes_only,
                    qm_err *e)
{
    if (length > limit || length >= UINT32_MAX) {
        qm_fail(e, QM_ECORRUPT, "%s: %zu bytes of JSON are more than the %zu that it may have", what, length,
                limit);
        return NULL;
    }
    const uint8_t *bytes = (const uint8_t *)text;
    reader r = {
        .text = bytes, .end = bytes + length, .p = bytes, .what = what, .sizes_only = sizes_only, .e = e};
    bool ok = check_text(&r);
    free(r.keys.slot);
    cJSON *tree = ok ? cJSON_ParseWithLength(text, length) : NULL;
    if (ok && !tree)
        qm_fail(e, QM_EFAIL, "%s: out of memory for %zu bytes of JSON", what, length);
    return tree;
}

cJSON *qm_json_parse(const char *text, size_t length, size_t limit, const char *what, qm_err *e)
{
    return parse(text, length, limit, what, false, e);
}

cJSON *qm_json_parse_sizes(const char *text, size_t length, size_t limit, const char *what, qm_err *e)
{
    return parse(text, length, limit, what, true, e);
}
