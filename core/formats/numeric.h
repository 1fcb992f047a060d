/* numeric.h: roundings that the reference quantisers use, spelt out, so that every compiler and
 * every vector width gives the same integer. */
#ifndef QM_NUMERIC_H
#define QM_NUMERIC_H

#include "../half.h"

QM_FN float qm_abs(float x) { return qm_bits_f32(qm_f32_bits(x) & 0x7fffffffu); }

/* Towards zero.  What does not fit an int, NaN included, gives the most negative int, as x86's
 * cvttss2si does: the references were measured on x86, where a cast is that instruction. */
QM_FN int32_t qm_truncate(float x)
{
    return x >= -2147483648.0f && x < 2147483648.0f ? (int32_t)x : INT32_MIN;
}

/* To nearest, halves away from zero (C's roundf), for |x| < 2^22: the largest float below one half
 * is added before truncation, so that 0.49999997 stays 0. */
QM_FN int32_t qm_round_away(float x)
{
    float half = 0x1.fffffep-2f;
    return qm_truncate(x + (x < 0 ? -half : half));
}

/* To nearest, halves to even, for |x| < 2^22: in [2^23, 2^24) floats are whole numbers.  Beyond that
 * range ggml's nearest_int returns what these bits happen to say, and so must we. */
QM_FN int32_t qm_nearest_int(float x)
{
    return (int32_t)(qm_result_bits(x + 12582912.0f) & 0x7fffffu) - 0x400000;
}

/* The first element of the largest magnitude, with its sign; 0 when there is nothing but zeros. */
QM_FN float qm_signed_max(const float *x, int n)
{
    float most = 0, max = 0;
    for (int i = 0; i < n; i++)
        if (qm_abs(x[i]) > most) {
            most = qm_abs(x[i]);
            max = x[i];
        }
    return max;
}

/* The low byte as a signed number: what a cast to int8_t gives. */
QM_FN int32_t qm_wrap8(int32_t x) { return ((x & 255) ^ 128) - 128; }

QM_FN int32_t qm_clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

#endif
