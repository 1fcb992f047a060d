/* fp4.h: FP4's tables. */
#ifndef QM_FP4_H
#define QM_FP4_H

#include "../half.h"

/* Index = code: bit 3 is the sign, the rest picks a magnitude, not in order of size. */
QM_TABLE float qm_fp4_value[16] = {
    0.0f,  0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  0.5f,  2.0f / 12,  0.25f,
    -0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f,
};

/* |v| above threshold i takes magnitude i + 1, counted from the smallest.  The decimals are
 * bitsandbytes' own; most are not the exact midpoints. */
QM_TABLE float qm_fp4_threshold[7] = {
    0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f,
};

/* The code of each magnitude, smallest first. */
QM_TABLE unsigned char qm_fp4_code[8] = {0, 1, 6, 7, 4, 5, 2, 3};

#endif
