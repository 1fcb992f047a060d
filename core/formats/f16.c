/* f16: IEEE half precision.  Largest value 65504; smallest normal 2^-14, smallest at all 2^-24.
 *
 *   s eeeee mmmmmmmmmm      2 bytes, little-endian
 */
#include "../format.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = qm_f32_to_f16(x[i]);
        memcpy(plane[0] + 2 * (size_t)i, &h, 2);
    }
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, plane[0] + 2 * (size_t)i, 2);
        y[i] = qm_f16_to_f32(h);
    }
}

const qm_format qm_format_f16 = {
    .name = "f16",
    .doc = "16-bit float, 5 exponent and 10 mantissa bits",
    .source = "IEEE 754 binary16",
    .block = 1,
    .gguf_type = 1,
    .gguf_name = "F16",
    .plane = {{"values", QM_F16, 16, 0}},
    .bound_rel = 0x1p-11,
    .encode = encode,
    .decode = decode,
};
