/* cursor.h: reading a byte array that may be hostile.  No other pointer arithmetic over file
 * bytes.  The first failure sticks, with its offset; after it every read gives zero. */
#ifndef QM_CURSOR_H
#define QM_CURSOR_H

#include <inttypes.h>
#include <string.h>

#include "qm.h"

typedef struct qm_cursor {
    const uint8_t *base;
    uint64_t size, pos;
    const char *what; /* file name, for messages */
    qm_err *e;
} qm_cursor;

static inline bool qm_cursor_need(qm_cursor *c, uint64_t n)
{
    if (c->e->code)
        return false;
    /* a subtraction: pos + n may overflow on a hostile length */
    return n <= c->size - c->pos
           || qm_fail(c->e, QM_ECORRUPT,
                      "%s: needs %" PRIu64 " bytes at byte %" PRIu64 ", but the file ends at %" PRIu64
                      "; it is cut short or damaged",
                      c->what, n, c->pos, c->size);
}

static inline const uint8_t *qm_cursor_take(qm_cursor *c, uint64_t n)
{
    if (!qm_cursor_need(c, n))
        return NULL;
    c->pos += n;
    return c->base + (c->pos - n);
}

/* Little-endian machines only, as the whole program. */
#define QM_CURSOR_GET(type, suffix)                     \
    static inline type qm_cursor_##suffix(qm_cursor *c) \
    {                                                   \
        type v = 0;                                     \
        const uint8_t *p = qm_cursor_take(c, sizeof v); \
        if (p)                                          \
            memcpy(&v, p, sizeof v);                    \
        return v;                                       \
    }
QM_CURSOR_GET(uint8_t, u8)
QM_CURSOR_GET(uint32_t, u32)
QM_CURSOR_GET(uint64_t, u64)
#undef QM_CURSOR_GET

#endif
