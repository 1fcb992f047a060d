/* unicode.h: what tokenizers ask of characters and texts, from utf8proc. */
#ifndef QM_TOKENIZER_UNICODE_H
#define QM_TOKENIZER_UNICODE_H

#include "buffers.h"

/* The character at p, which is UTF-8, and its bytes. */
uint32_t qm_unicode_read(const char *p, size_t n, size_t *step);
uint32_t qm_unicode_read_back(const char *start,
                              const char *end); /* the last one of a text that is not empty */
void qm_unicode_write(qm_bytes *to, uint32_t c);

bool qm_unicode_is_space(uint32_t c); /* White_Space */
bool qm_unicode_is_word(uint32_t c);  /* \w of UTS 18: letters, marks, decimal digits, connectors, joiners */

/* Text with U+FFFD in the place of what is not UTF-8, one for each longest start of a character (Unicode 15,
 * chapter 3.9): as Python's errors="replace". */
void qm_unicode_repair(const char *text, size_t n, qm_bytes *to);

typedef enum {
    QM_NFC,
    QM_NFD,
    QM_NFKC,
    QM_NFKD,
    QM_LOWERCASE,     /* every character by itself */
    QM_WITHOUT_MARKS, /* combining marks of all kinds are left out */
} qm_unicode_form;

/* Text in a normal form; it must be UTF-8.  Time grows with the length, whatever marks follow one another. */
bool qm_unicode_form_of(qm_unicode_form form, const char *text, size_t n, qm_bytes *to, qm_err *e);

#endif
