/* rcp.c: see rcp.h. */
#include "rcp.h"

static int delta_of(uint32_t mantissa)
{
    uint32_t two_bits = qm_rcp_deltas[mantissa / 4] >> (mantissa % 4 * 2) & 3;
    return (int)(two_bits ^ 2) - 2; /* sign extension: 0 1 3 -> 0 1 -1 */
}

float qm_rcp(float a)
{
    uint32_t u = qm_f32_bits(a), exponent = u >> 23 & 255;
    if (exponent == 0) /* zero, or a subnormal that is taken for one: infinity of its sign */
        return qm_bits_f32((u & 0x80000000u) | 0x7f800000u);
    float r = 1.0f / a;
    if (exponent == 255) /* infinity: 0; NaN: NaN */
        return r;
    r = qm_ftz(r);
    return r == 0.0f ? r : qm_bits_f32(qm_f32_bits(r) + (uint32_t)delta_of(u & 0x7fffffu));
}
