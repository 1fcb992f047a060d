/* double_quant.h: bitsandbytes' second level: the f32 scales of a 4-bit tensor, themselves encoded
 * by the 8-bit dynamic map in blocks of QM_DOUBLE_QUANT_BLOCK.
 *
 *     codes, nested_absmax = dynamic8(absmax - offset)        absmax' = level[code] * nested_absmax + offset
 *
 * bitsandbytes takes the mean for offset, whose last bits depend on the GPU that summed it; any
 * offset is legal, since the file stores it.  Ours is the mean rounded to the nearest bf16: readers that
 * load it in a 16-bit default dtype then lose nothing.
 *
 * The sum is taken in double and in an order that a GPU can follow: every 256 scales are folded, the upper
 * half onto the lower, eight times over; the sums are folded by 256 again, until one is left.  The last of
 * each level are filled up with zeros.
 */
#ifndef QM_DOUBLE_QUANT_H
#define QM_DOUBLE_QUANT_H

#include "format.h"
#include "qm.h"

#define QM_DOUBLE_QUANT_BLOCK 256

/* Flat groups of a few bits with one f32 scale each: bitsandbytes' 4-bit formats, and ours like them. */
static inline bool qm_can_double_quant(const qm_format *f)
{
    return f->over_rows && f->plane[0].bits < 8 && f->plane[1].bytes == 4 && f->plane[1].dtype == QM_F32
           && !f->plane[2].name;
}

float qm_double_quant_offset(const float *absmax, size_t n);

/* codes: n bytes; nested_absmax: one per block begun. */
void qm_double_quant(const float *absmax, size_t n, float offset, uint8_t *codes, float *nested_absmax);
void qm_double_dequant(const uint8_t *codes, const float *nested_absmax, size_t n, float offset,
                       float *absmax);

#endif
