/* bits.h: codes of 1 to 8 bits, one after another, the first in the highest bits of the first byte.  With
 * four bits this is bitsandbytes' order of nibbles.
 *
 *   5 bits      | a a a a a b b b | b b c c c c c d | d d d d e e e e | ...
 */
#ifndef QM_BITS_H
#define QM_BITS_H

#include "../half.h"

typedef struct qm_bits_out {
    uint8_t *at;
    uint32_t held;  /* its low `count` bits are not written yet */
    unsigned count; /* 0 ... 7 between calls */
} qm_bits_out;

QM_FN void qm_bits_put(qm_bits_out *o, uint32_t code, unsigned bits)
{
    o->held = o->held << bits | code;
    o->count += bits;
    if (o->count >= 8) {
        o->count -= 8;
        *o->at++ = (uint8_t)(o->held >> o->count);
    }
}

/* The last byte, filled up with zeros. */
QM_FN void qm_bits_end(qm_bits_out *o)
{
    if (o->count)
        *o->at = (uint8_t)(o->held << (8 - o->count));
}

typedef struct qm_bits_in {
    const uint8_t *at;
    uint32_t held;
    unsigned count;
} qm_bits_in;

QM_FN uint32_t qm_bits_get(qm_bits_in *in, unsigned bits)
{
    if (in->count < bits) {
        in->held = in->held << 8 | *in->at++;
        in->count += 8;
    }
    in->count -= bits;
    return in->held >> in->count & ((1u << bits) - 1);
}

#endif
