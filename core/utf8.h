/* utf8.h: one step through text that claims to be UTF-8. */
#ifndef QM_UTF8_H
#define QM_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The table below, second column: not all bytes may come behind every first one. */
static inline bool qm_utf8_second(uint8_t first, uint8_t second)
{
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return second >= low && second <= high;
}

/* Bytes of the character at p, of which n are readable, or 0 when it is none.
 *
 *   00..7f                          U+0000   … U+007F
 *   c2..df 80..bf                   U+0080   … U+07FF
 *   e0..ef 80..bf 80..bf            U+0800   … U+FFFF     less the surrogates U+D800 … U+DFFF
 *   f0..f4 80..bf 80..bf 80..bf     U+10000  … U+10FFFF
 *
 * Longer spellings of a short one are none (Unicode 15, table 3-7). */
static inline size_t qm_utf8_step(const uint8_t *p, size_t n)
{
    if (n == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    if (n < 2 || p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    if (!qm_utf8_second(p[0], p[1]))
        return 0;
    size_t length = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (n < length)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

/* Bytes of the longest start of a character at p, where there is no whole one and n > 0; at least 1.  Each is
 * one U+FFFD by Unicode's advice (Unicode 15, chapter 3.9), and in Python and Rust. */
static inline size_t qm_utf8_broken(const uint8_t *p, size_t n)
{
    size_t whole = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4, length = 1;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < 2 || !qm_utf8_second(p[0], p[1]))
        return 1;
    while (length < whole && length < n && (p[length] & 0xc0) == 0x80)
        length++;
    return length;
}

static inline bool qm_utf8_text(const char *text, size_t n)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t step; n > 0; p += step, n -= step)
        if (!(step = qm_utf8_step(p, n)))
            return false;
    return true;
}

/* A name as files may hold it: UTF-8 without NUL, so that it can be a C string. */
static inline bool qm_utf8_name(const uint8_t *p, size_t n)
{
    while (n > 0) {
        size_t step = *p ? qm_utf8_step(p, n) : 0;
        if (!step)
            return false;
        p += step;
        n -= step;
    }
    return true;
}

#endif
