/* rcp.h: NVIDIA's approximate reciprocal (rcp.approx.ftz.f32), bit for bit.
 *
 * bitsandbytes is built with --use_fast_math, so its 1/absmax is this instruction.  It is within
 * one unit in the last place of IEEE division, and how far off depends on the mantissa of its
 * operand alone: a table of 2^23 deltas, measured on an H200, says it for every mantissa
 * (core/data/README.md).  Subnormal operands and results are flushed to zero.
 */
#ifndef QM_RCP_H
#define QM_RCP_H

#include "half.h"

/* Four deltas a byte, lowest bits first, two bits each: 0, 1 and 3 (which is -1). */
extern const uint8_t qm_rcp_deltas[1u << 21];

QM_FN float qm_ftz(float x);

/* By a table like that. */
QM_FN float qm_rcp_by(const uint8_t *deltas, float a)
{
    uint32_t u = qm_f32_bits(a), exponent = u >> 23 & 255, mantissa = u & 0x7fffffu;
    if (exponent == 0) /* zero, or a subnormal that is taken for one: infinity of its sign */
        return qm_bits_f32((u & 0x80000000u) | 0x7f800000u);
    float r = 1.0f / a;
    if (exponent == 255) /* infinity: 0; NaN: NaN */
        return r;
    r = qm_ftz(r);
    uint32_t two_bits = deltas[mantissa / 4] >> (mantissa % 4 * 2) & 3;
    uint32_t delta = (two_bits ^ 2) - 2; /* sign extension: 0 1 3 -> 0 1 -1 */
    return r == 0.0f ? r : qm_bits_f32(qm_f32_bits(r) + delta);
}

#ifdef __CUDACC__
QM_FN float qm_rcp(float a); /* cuda/rcp.cuh: the instruction itself where it agrees with the table */
#else
float qm_rcp(float a);
#endif

/* Flush to zero, as the GPU instructions with .ftz do: a subnormal becomes a zero of its sign. */
QM_FN float qm_ftz(float x)
{
    uint32_t u = qm_f32_bits(x);
    return (u & 0x7f800000u) ? x : qm_bits_f32(u & 0x80000000u);
}

#endif
