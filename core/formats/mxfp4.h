/* mxfp4.h: the block of mxfp4, and how it comes by its exponent. */
#ifndef QM_MXFP4_H
#define QM_MXFP4_H

#include "numeric.h"

enum { QM_MXFP4_BLOCK = 32 };

struct qm_mxfp4 {
    uint8_t exponent;
    uint8_t pair[QM_MXFP4_BLOCK / 2];
};
_Static_assert(sizeof(struct qm_mxfp4) == 17, "mxfp4: an exponent and 16 pairs");

/* Doubled, to be whole numbers. */
QM_TABLE int8_t qm_mxfp4_level[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* floor(log2f(x)) of 0 < x < infinity, where log2f is the true logarithm rounded to f32, as libm's is near
 * powers of two.  Rounding matters just below a power of two 2^k: there the logarithm is k - d / ln 2 for
 * x = 2^k (1 - d), and becomes k itself when that lies within half a unit of k's last place.  One step of x
 * is d = 2^-24; a unit in the last place below k is 2^(E - 23) with E = floor(log2 |k|), or one less when k
 * is itself a positive power of two.  So the nearest floor(2^E ln 2) steps are lifted to k. */
QM_FN int32_t qm_mxfp4_floor_log2(float x)
{
    static const uint8_t lifted[8] = {0, 1, 2, 5, 11, 22, 44, 88}; /* floor(2^E ln 2) */
    uint32_t bits = qm_f32_bits(x), mantissa = bits & 0x7fffffu;
    int32_t exponent = (int32_t)(bits >> 23) - 127;
    if (exponent == -127) /* subnormal */
        for (exponent = -126; mantissa < 0x800000u; exponent--)
            mantissa <<= 1;
    uint32_t below = 0x800000u - (mantissa & 0x7fffffu); /* steps to the next power of two */
    int32_t next = exponent + 1, size = next > 0 ? next - 1 : -next, e = 0;
    while (size >> (e + 1))
        e++;
    return size > 0 && below <= lifted[e] ? next : exponent;
}

/* 2^(e - 128), half of what the exponent says, as levels are doubled. */
QM_FN float qm_mxfp4_scale(uint8_t e)
{
    return qm_bits_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

#endif
