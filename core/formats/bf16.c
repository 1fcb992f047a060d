/* bf16: the upper half of an f32.  The range of f32, three decimal digits less.
 *
 *   s eeeeeeee mmmmmmm      2 bytes, little-endian
 */
#include "../format.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h = qm_f32_to_bf16(x[i]);
        memcpy(plane[0] + 2 * (size_t)i, &h, 2);
    }
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    for (uint32_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, plane[0] + 2 * (size_t)i, 2);
        y[i] = qm_bf16_to_f32(h);
    }
}

const qm_format qm_format_bf16 = {
    .name = "bf16",
    .doc = "16-bit float, 8 exponent and 7 mantissa bits",
    .source = "Google Brain; the upper half of an IEEE 754 binary32",
    .block = 1,
    .gguf_type = 30,
    .gguf_name = "BF16",
    .plane = {{"values", QM_BF16, 16, 0}},
    .bound_rel = 0x1p-8,
    .encode = encode,
    .decode = decode,
};
