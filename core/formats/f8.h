/* f8.h: 8-bit floats, one value at a time.
 *
 *   E4M3  s eeee mmm     bias 7, no infinities, NaN is all ones: up to 448 (torch: float8_e4m3fn)
 *   E5M2  s eeeee mm     bias 15, the upper half of an f16: up to 57344
 *
 * Narrowing rounds to nearest, halves to even, and saturates: whatever lies beyond the largest value,
 * infinities included, becomes that value.  NaN stays NaN.  (OCP 8-bit Floating Point 1.0, saturating mode;
 * NVIDIA's cvt.satfinite.  A plain torch cast differs beyond the largest value: there it gives NaN or
 * infinity.)
 */
#ifndef QM_F8_H
#define QM_F8_H

#include "numeric.h"

#define QM_E4M3_MAX 448.0f
#define QM_E5M2_MAX 57344.0f

/* The code of |x| in a small float of so many bits of mantissa and that bias, x not beyond its largest value. */
QM_FN uint8_t qm_f8_of_magnitude(float a, int mantissa, int bias)
{
    uint32_t u = qm_f32_bits(a), cut = 23u - (unsigned)mantissa;
    if (u >> 23 < (uint32_t)(128 - bias)) { /* subnormal: whole steps of 2^(1 - bias - mantissa) */
        float steps = qm_bits_f32((uint32_t)(127 + bias - 1 + mantissa) << 23);
        return (uint8_t)qm_nearest_int(a * steps);
    }
    u += (1u << (cut - 1)) - 1 + (u >> cut & 1);
    return (uint8_t)((u >> cut) - ((uint32_t)(127 - bias) << mantissa));
}

QM_FN uint8_t qm_f8_of(float x, int mantissa, int bias, float most)
{
    uint32_t sign = qm_result_bits(x) >> 24 & 0x80;
    float a = qm_abs(x);
    if (a != a)
        return (uint8_t)(sign | 0x7f);
    return (uint8_t)(sign | qm_f8_of_magnitude(a > most ? most : a, mantissa, bias));
}

QM_FN uint8_t qm_f32_to_e4m3(float x) { return qm_f8_of(x, 3, 7, QM_E4M3_MAX); }
QM_FN uint8_t qm_f32_to_e5m2(float x) { return qm_f8_of(x, 2, 15, QM_E5M2_MAX); }

QM_FN float qm_e5m2_to_f32(uint8_t code) { return qm_f16_to_f32((uint16_t)(code << 8)); }

QM_FN float qm_e4m3_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24, exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 0x7f) == 0x7f)
        return qm_bits_f32(sign | 0x7fc00000u);
    if (exponent == 0) /* mantissa * 2^-9 is exact */
        return qm_bits_f32(sign | qm_f32_bits((float)mantissa * 0x1p-9f));
    return qm_bits_f32(sign | (exponent + 120) << 23 | mantissa << 20);
}

#endif
