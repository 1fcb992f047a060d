/* f8_e4m3: 8-bit float, 4 bits of exponent and 3 of mantissa.  A plain cast that saturates; see f8.h. */
#include "../format.h"
#include "f8.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    for (uint32_t i = 0; i < n; i++)
        plane[0][i] = qm_f32_to_e4m3(x[i]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    for (uint32_t i = 0; i < n; i++)
        y[i] = qm_e4m3_to_f32(plane[0][i]);
}

const qm_format qm_format_f8_e4m3 = {
    .name = "f8_e4m3",
    .doc = "8-bit float, 4 exponent and 3 mantissa bits, up to 448",
    .source = "OCP 8-bit floating point, saturating",
    .block = 1,
    .gguf_type = -1,
    .plane = {{"values", QM_F8_E4M3, 8, 0}},
    .bound_rel = 0x1p-4,
    .bound_abs = 0x1p-10, /* half a subnormal step */
    .encode = encode,
    .decode = decode,
};
