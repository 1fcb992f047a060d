/* f32: IEEE single precision, as it is.
 *
 *   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm      4 bytes, little-endian
 */
#include "../format.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    memcpy(plane[0], x, sizeof *x * n);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    memcpy(y, plane[0], sizeof *y * n);
}

const qm_format qm_format_f32 = {
    .name = "f32",
    .doc = "32-bit float",
    .source = "IEEE 754 binary32",
    .block = 1,
    .gguf_type = 0,
    .gguf_name = "F32",
    .plane = {{"values", QM_F32, 32, 0}},
    .encode = encode,
    .decode = decode,
};
