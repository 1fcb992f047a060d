/* regex.h: patterns over UTF-8 text (PCRE2), meaning what Python's `re` means by them where adapters and
 * tokenizers use them: \w, \d, \s and \b go by Unicode, (?P<name>…) is known. */
#ifndef QM_REGEX_H
#define QM_REGEX_H

#include "qm.h"

typedef struct qm_regex qm_regex;

typedef enum {
    QM_REGEX_MATCH,  /* at the start of the subject: re.match */
    QM_REGEX_FULL,   /* the whole subject: re.fullmatch */
    QM_REGEX_SEARCH, /* anywhere: re.search */
} qm_regex_mode;

/* NULL on failure; the message has the offset at which the pattern goes wrong. */
qm_regex *qm_regex_new(const char *pattern, size_t length, qm_err *e);
void qm_regex_free(qm_regex *r); /* NULL is fine */

/* Fails on a subject that is not UTF-8, and on a pattern that tries too many ways on this subject.  Any
 * thread may use the same r. */
bool qm_regex_test(const qm_regex *r, qm_regex_mode mode, const char *subject, size_t length, bool *matches,
                   qm_err *e);

/* For patterns that are tried very often: compiles them to machine code, where PCRE2 can.  Not while another
 * thread uses r. */
void qm_regex_hasten(qm_regex *r);

/* One match of r after the other: what re.finditer gives, an empty match where the one before it ended left
 * out.  One thread; r stays.
 *
 *     qm_regex_start(s, text, n);
 *     while (qm_regex_next(s, &found, &from, &to, e) && found) ...
 *
 * The text must be UTF-8: that is not looked at again. */
typedef struct qm_regex_scan qm_regex_scan;
qm_regex_scan *qm_regex_scan_new(const qm_regex *r, qm_err *e);
void qm_regex_scan_free(qm_regex_scan *s); /* NULL is fine */
void qm_regex_start(qm_regex_scan *s, const char *subject, size_t length);
bool qm_regex_next(qm_regex_scan *s, bool *found, size_t *from, size_t *to, qm_err *e);

#endif
