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

#endif
