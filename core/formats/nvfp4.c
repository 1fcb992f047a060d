/* nvfp4: four-bit floats in groups of 16 with an 8-bit scale each, and one f32 factor for the tensor.
 *
 *   codes    | code of x[2i+1] << 4 | code of x[2i] |        value = level[code] * scale / factor
 *   scales   one E4M3 a group                                scale = E4M3(factor * absmax / 6)
 *   factor   of the codec, not a plane                       448 * 6 / absmax of the tensor
 *
 * A code is a sign, two bits of exponent and one of mantissa, as in mxfp4; halfway between two levels the
 * even code is taken.  NVIDIA's NVFP4 as compressed-tensors stores it (weight_packed, weight_scale,
 * weight_global_scale).
 */
#include "../format.h"
#include "f8.h"

enum { BLOCK = 16 };

QM_TABLE float level[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

/* Saturates; NaN becomes 0 of its sign. */
QM_FN uint32_t code_of(float v)
{
    float a = qm_abs(v);
    uint32_t code = a <= 6 ? qm_f8_of_magnitude(a, 1, 1) : a > 6 ? 7 : 0;
    return code | (qm_result_bits(v) >> 31) << 3;
}

QM_FN float value_of(uint32_t code) { return code & 8 ? -level[code & 7] : level[code & 7]; }

QM_FN float factor_of(const qm_codec *c) { return c->factor != 0 ? c->factor : 1; }

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n;
    float absmax = 0;
    for (int i = 0; i < BLOCK; i++)
        absmax = qm_abs(x[i]) > absmax ? qm_abs(x[i]) : absmax;
    plane[1][0] = qm_f32_to_e4m3(factor_of(c) * (absmax / 6));
    float scale = qm_e4m3_to_f32(plane[1][0]) / factor_of(c);
    for (int i = 0; i < BLOCK; i += 2) {
        uint32_t low = scale > 0 ? code_of(x[i] / scale) : 0,
                 high = scale > 0 ? code_of(x[i + 1] / scale) : 0;
        plane[0][i / 2] = (uint8_t)(high << 4 | low);
    }
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n;
    float scale = qm_e4m3_to_f32(plane[1][0]) / factor_of(c);
    for (int i = 0; i < BLOCK; i++)
        y[i] = value_of(plane[0][i / 2] >> (i % 2 ? 4 : 0) & 15) * scale;
}

const qm_format qm_format_nvfp4 = {
    .name = "nvfp4",
    .doc = "4-bit floats, an 8-bit float scale for every 16, an f32 for the tensor",
    .source = "NVIDIA NVFP4, compressed-tensors nvfp4-pack-quantized",
    .block = BLOCK,
    .gguf_type = -1,
    .plane = {{"codes", QM_U8, 4, 0}, {"scales", QM_F8_E4M3, 0, 1}},
    .bound = 0.17709,           /* half of the widest gap, 4 to 6, of a scale up to 1/16 too large */
    .bound_abs = 0x1p-10 / 448, /* groups so small that their scale is subnormal */
    .tensor_range = 448 * 6,
    .encode = encode,
    .decode = decode,
};
