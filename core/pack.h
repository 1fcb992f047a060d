/* pack.h: a weight's codes and scales once more, in an order that a CPU multiplies fast.
 *
 * Sixteen rows make a panel, one row to each 32-bit lane of a 512-bit register; the last panel is filled up
 * with rows of zeros.  A panel is a row of steps of `span` columns, and a weight its panels one behind the
 * other: from the first byte to the last in the order in which they are needed, without a gap, because that
 * is what a CPU reads ahead by itself (docs/performance.md).  A step of integers is
 *
 *   head    the scales of its columns, sixteen of each
 *   codes   of 32 columns after 32 columns, `bits` times 64 bytes each: 2, 3, 4, 5, 6 or 8
 *
 *   halves  span 64     d: f16 of columns 0-31, d of 32-63; with mins as many least values
 *   floats  span group  an f32
 *   subs    span 256    d: f16, dmin: f16 (or unused), then scales and mins of 16 or 32 columns, one i8 each
 *
 * A column's value is scale * (code - zero) - min, or scale * level[code]; its scale is d * i8 in subs.
 *
 * The 32 columns of a row are eight dwords of four codes; codes lie in planes of 8, 4, 2 or 1 bits (6 bits
 * are a plane of the low 4 and one of the high 2, 5 are 4 + 1, 3 are 2 + 1).  A plane of b bits is b times 64
 * bytes:
 *
 *   4 bits  byte 4r + j of line l: row r, column 8l + j in the low half, column 8l + 4 + j in the high one
 *   b bits  byte 4r + j of line l: row r, columns 4 (8 / b) l + 4f + j in bits bf ... bf + b - 1
 *
 * Floats have no head: a column after a column, an f16, bf16 or f32 of each row.
 */
#ifndef QM_PACK_H
#define QM_PACK_H

#include "pool.h"
#include "tensor.h"

enum { QM_PACK_ROWS = 16, QM_PACK_COLS = 32 };

typedef enum {
    QM_CODES_INT,     /* code - zero */
    QM_CODES_LEVEL8,  /* 4 bits; levels that fit a byte, 128 added: then zero is 128 */
    QM_CODES_LEVEL16, /* 4 bits; levels in units of `unit`, 32768 added, in two bytes */
    QM_CODES_F16,
    QM_CODES_BF16,
    QM_CODES_F32,
} qm_pack_codes;

typedef enum { QM_SCALES_NONE, QM_SCALES_HALF, QM_SCALES_FLOAT, QM_SCALES_SUB } qm_pack_scales;

typedef struct qm_pack {
    qm_pack_codes codes;
    qm_pack_scales scales;
    bool mins;
    uint32_t bits;  /* of a code, or a float */
    uint32_t group; /* columns of one scale; 16 or 32 in subs */
    int32_t zero;
    uint8_t low[16], high[16]; /* of levels */
    float unit;
    int64_t rows, cols;       /* all rows of a stack */
    int64_t steps, span;      /* of a panel; the last step is filled up with zeros */
    size_t head, step, panel; /* bytes */
    uint8_t *data;
    int refs;
} qm_pack;

/* Puts a pack beside the planes of a tensor that nobody else uses yet; nothing where none is of use on this
 * CPU, or for this format or shape.  pool: NULL on a thread that is one's already. */
bool qm_tensor_lay_out(qm_tensor *t, qm_pool *pool, qm_err *e);

/* A second reference to t's planes, laid out. */
qm_tensor *qm_tensor_prepare(const qm_tensor *t, qm_pool *pool, qm_err *e);

/* Gives the planes of a tensor back that is laid out and that nobody else uses yet, so that the pack is all it
 * takes: they are what quantising `origin` makes, and are made so again when they are asked for.  Nothing is
 * done where there is no pack, or where origin would have to be kept in memory, because it lies in no file.
 * Of a plan what stands for the pack stays. */
bool qm_tensor_give_back(qm_tensor *t, const qm_tensor *origin, qm_err *e);

/* Bytes of the pack that this makes; 0: none.  Planes are not looked at. */
uint64_t qm_pack_bytes(const qm_tensor *t);

void qm_pack_unref(qm_pack *p); /* NULL is fine */

/* The width of the lower plane of codes. */
static inline uint32_t qm_pack_low_bits(uint32_t bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }

static inline const uint8_t *qm_pack_panel(const qm_pack *p, int64_t i)
{
    return p->data + (size_t)i * p->panel;
}

#endif
