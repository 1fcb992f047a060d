/* pack.h: a weight's codes and scales once more, in an order that a CPU multiplies fast.
 *
 * Sixteen rows make a panel, one row to each 32-bit lane of a 512-bit register; the last panel is filled up
 * with rows of zeros.  A panel's codes come first, 32 columns after 32 columns:
 *
 *   4 bits    4 x 64 bytes   byte 4r + j of number c: code of row r, column 8c + j low, column 8c + 4 + j
 * high 8 bits    8 x 64 bytes   byte 4r + j of number c: code of row r, column 4c + j 16 bits   32 x 32 bytes
 * number c: column c, a float of each row        (32 bits likewise)
 *
 * Behind them, unless codes are floats, its scales, sixteen of each:
 *
 *   halves    an f16 for every 32 columns, then as many least values
 *   floats    an f32 for every group
 *   subs      for every 256 columns: d: f16, dmin: f16, then scales and mins of 16 or 32 columns, one i8 each
 *
 * A column's value is scale * (code - zero) - min, or scale * level[code]; its scale is d * i8 in subs.
 */
#ifndef QM_PACK_H
#define QM_PACK_H

#include "pool.h"
#include "tensor.h"

enum { QM_PACK_ROWS = 16, QM_PACK_COLS = 32 };

typedef enum {
    QM_CODES_NIBBLE,  /* 4 bits, code - zero */
    QM_CODES_LEVEL8,  /* 4 bits; levels that fit a byte, 128 added: then zero is 128 */
    QM_CODES_LEVEL16, /* 4 bits; levels in units of `unit`, 32768 added, in two bytes */
    QM_CODES_BYTE,    /* 8 bits, code - zero */
    QM_CODES_F16,
    QM_CODES_BF16,
    QM_CODES_F32,
} qm_pack_codes;

typedef enum { QM_SCALES_NONE, QM_SCALES_HALF, QM_SCALES_FLOAT, QM_SCALES_SUB } qm_pack_scales;

typedef struct qm_pack {
    qm_pack_codes codes;
    qm_pack_scales scales;
    bool mins;
    uint32_t group; /* columns of one scale; 16 or 32 in subs */
    int32_t zero;
    uint8_t low[16], high[16]; /* of levels */
    float unit;
    int64_t rows, cols; /* all rows of a stack */
    size_t panel;       /* bytes of a panel, of which the first `codes_size` are codes */
    size_t codes_size;
    uint8_t *data;
    int refs;
} qm_pack;

/* A tensor with the same planes and a pack beside them; a second reference to the same planes alone where no
 * pack is of use on this CPU, or for this format or shape. */
qm_tensor *qm_tensor_prepare(const qm_tensor *t, qm_pool *pool, qm_err *e);

/* Bytes of the pack that this makes; 0: none.  Planes are not looked at. */
uint64_t qm_pack_bytes(const qm_tensor *t);

void qm_pack_unref(qm_pack *p); /* NULL is fine */

static inline const uint8_t *qm_pack_panel(const qm_pack *p, int64_t i)
{
    return p->data + (size_t)i * p->panel;
}

#endif
