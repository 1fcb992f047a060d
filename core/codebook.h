/* codebook.h: formats made at run time, and who owns them.
 *
 * A codebook is a format whose levels are data (formats/table.h).  An opaque format has bytes and sizes only:
 * what they mean is known to whoever made it, and the core neither encodes nor decodes it.
 *
 * Both are counted: whoever keeps a qm_format pointer for longer than a call holds one reference, as tensors
 * do.  The formats of the folder are constants and the two functions below leave them alone.
 */
#ifndef QM_CODEBOOK_H
#define QM_CODEBOOK_H

#include "format.h"

/* A format of `count` levels, 2 ... 256, in any order, as multiples of a block's largest magnitude; levels
 * beyond -1 ... 1 are all divided by the largest magnitude among them.  block: the default group,
 * QM_BLOCK_ROW for rows.  The name must not be one of the folder's; of the other made ones it may be. */
const qm_format *qm_codebook_new(const char *name, const float *level, int count, uint32_t block, qm_err *e);

/* Codes of 1 ... 8 bits, as formats/bits.h packs them, and `scales` f32 a group. */
const qm_format *qm_opaque_new(const char *name, unsigned bits, unsigned scales, uint32_t block, qm_err *e);

const qm_format *qm_format_ref(const qm_format *f); /* returns f */
void qm_format_unref(const qm_format *f);           /* NULL is fine */

/* Level i of a codebook, in the order given. */
int qm_codebook_count(const qm_format *f); /* 0 when f is no codebook */
float qm_codebook_level(const qm_format *f, int i);

#endif
