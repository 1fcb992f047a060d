/* fp8_e4m3: 8-bit floats with a scale for every row or group.  See scaled_f8.h. */
#include "scaled_f8.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    qm_scaled_f8_encode(x, n, qm_f32_to_e4m3, QM_E4M3_MAX, plane);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    qm_scaled_f8_decode(plane, n, qm_e4m3_to_f32, y);
}

const qm_format qm_format_fp8_e4m3 = {
    .name = "fp8_e4m3",
    .doc = "8-bit floats (E4M3) times the row's largest magnitude over 448",
    .source = "compressed-tensors float-quantized",
    .block = 0,
    .block_min = 1,
    .block_max = 1u << 30,
    .any_block = true,
    .over_rows = true,
    .gguf_type = -1,
    .plane = {{"codes", QM_F8_E4M3, 8, 0}, {"scales", QM_F32, 0, 4}},
    .bound = 0x1.01p-10 / 448, /* half a subnormal step */
    .bound_rel = 0x1.0001p-4,
    .encode = encode,
    .decode = decode,
};
