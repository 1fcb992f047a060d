/* regex.c: see regex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

struct qm_regex {
    pcre2_code *code;
    char *pattern; /* for messages */
};

static bool compile(qm_regex *r, size_t length, qm_err *e)
{
    int number;
    PCRE2_SIZE at;
    /* \C would split characters */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    r->code = pcre2_compile((PCRE2_SPTR)r->pattern, length, options, &number, &at, NULL);
    if (r->code)
        return true;
    PCRE2_UCHAR why[128];
    pcre2_get_error_message(number, why, sizeof why);
    return qm_fail(e, QM_EFAIL, "pattern '%.160s': wrong at character %zu: %s", r->pattern, at, (char *)why);
}

qm_regex *qm_regex_new(const char *pattern, size_t length, qm_err *e)
{
    qm_regex *r = calloc(1, sizeof *r);
    if (!r || !(r->pattern = malloc(length + 1))) {
        free(r);
        qm_fail(e, QM_EFAIL, "pattern of %zu bytes: out of memory", length);
        return NULL;
    }
    memcpy(r->pattern, pattern, length);
    r->pattern[length] = 0;
    if (!compile(r, length, e)) {
        qm_regex_free(r);
        return NULL;
    }
    return r;
}

void qm_regex_free(qm_regex *r)
{
    if (!r)
        return;
    pcre2_code_free(r->code);
    free(r->pattern);
    free(r);
}

static bool failed(const qm_regex *r, int number, const char *subject, size_t length, qm_err *e)
{
    PCRE2_UCHAR why[128];
    pcre2_get_error_message(number, why, sizeof why);
    return qm_fail(e, QM_EFAIL, "pattern '%.160s' on '%.*s': %s", r->pattern, length < 80 ? (int)length : 80,
                   subject, (char *)why);
}

bool qm_regex_test(const qm_regex *r, qm_regex_mode mode, const char *subject, size_t length, bool *matches,
                   qm_err *e)
{
    static const uint32_t options[] = {
        [QM_REGEX_MATCH] = PCRE2_ANCHORED,
        [QM_REGEX_FULL] = PCRE2_ANCHORED | PCRE2_ENDANCHORED,
        [QM_REGEX_SEARCH] = 0,
    };
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (!data)
        return qm_fail(e, QM_EFAIL, "pattern '%.160s': out of memory", r->pattern);
    int got = pcre2_match(r->code, (PCRE2_SPTR)subject, length, 0, options[mode], data, NULL);
    pcre2_match_data_free(data);
    if (got < 0 && got != PCRE2_ERROR_NOMATCH)
        return failed(r, got, subject, length, e);
    *matches = got >= 0;
    return true;
}

/* ---- one match after the other ------------------------------------------------------------- */

struct qm_regex_scan {
    const qm_regex *regex;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    const char *subject;
    size_t length, at;
    size_t ended; /* where the match before ended; NEVER before the first */
};

#define NEVER SIZE_MAX

/* Bytes; the machine code fails beyond, and the interpreter is asked, whose memory is the heap. */
enum { JIT_STACK_MIN = 32 << 10, JIT_STACK_MAX = 1 << 20 };

void qm_regex_hasten(qm_regex *r) { pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); }

qm_regex_scan *qm_regex_scan_new(const qm_regex *r, qm_err *e)
{
    qm_regex_scan *s = calloc(1, sizeof *s);
    if (s) {
        s->regex = r;
        s->data = pcre2_match_data_create(1, NULL);
        s->context = pcre2_match_context_create(NULL);
        s->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    }
    if (!s || !s->data || !s->context) {
        qm_regex_scan_free(s);
        qm_fail(e, QM_EFAIL, "pattern '%.160s': out of memory", r->pattern);
        return NULL;
    }
    if (s->stack)
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
    return s;
}

void qm_regex_scan_free(qm_regex_scan *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    free(s);
}

void qm_regex_start(qm_regex_scan *s, const char *subject, size_t length)
{
    s->subject = subject;
    s->length = length;
    s->at = 0;
    s->ended = NEVER;
}

static int match_from(const qm_regex_scan *s)
{
    int got = pcre2_match(s->regex->code, (PCRE2_SPTR)s->subject, s->length, s->at, PCRE2_NO_UTF_CHECK,
                          s->data, s->context);
    if (got == PCRE2_ERROR_JIT_STACKLIMIT)
        got = pcre2_match(s->regex->code, (PCRE2_SPTR)s->subject, s->length, s->at,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->data, s->context);
    return got;
}

bool qm_regex_next(qm_regex_scan *s, bool *found, size_t *from, size_t *to, qm_err *e)
{
    while (s->at <= s->length) {
        int got = match_from(s);
        if (got == PCRE2_ERROR_NOMATCH)
            break;
        if (got < 0)
            return failed(s->regex, got, s->subject, s->length, e);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->data);
        if (span[0] == span[1] && span[1] == s->ended) { /* one character on, or this would have no end */
            size_t step = s->at < s->length
                              ? qm_utf8_step((const uint8_t *)s->subject + s->at, s->length - s->at)
                              : 1;
            s->at += step ? step : 1;
            continue;
        }
        *found = true;
        *from = span[0];
        *to = s->at = s->ended = span[1];
        return true;
    }
    s->at = s->length + 1;
    *found = false;
    return true;
}
