/* regex.c: see regex.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

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
    if (got < 0 && got != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(got, why, sizeof why);
        return qm_fail(e, QM_EFAIL, "pattern '%.160s' on '%.*s': %s", r->pattern,
                       length < 80 ? (int)length : 80, subject, (char *)why);
    }
    *matches = got >= 0;
    return true;
}
