/* mxfp4: 32 weights to a block of 17 bytes: four-bit floats with a shared power of two.
 *
 *   | e: u8 | 16 x (code j in the low nibble, code j + 16 in the high) |
 *   value = 2^(e - 128) * level[code]
 *
 * A code is a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats 1.0); levels are
 * written doubled here.  There is a code for -0, which the encoder does not use.  ggml,
 * quantize_row_mxfp4_ref.
 */
#include "../format.h"
#include "mxfp4.h"

/* Of the nearest level; halfway between two, of the one nearer to zero. */
QM_FN uint32_t code_of(float x, const float middle[7])
{
    uint32_t code = 0;
    for (int i = 0; i < 7; i++)
        code += qm_abs(x) > middle[i];
    return code && x < 0 ? code | 8 : code;
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_mxfp4 b;
    float most = 0;
    for (int i = 0; i < QM_MXFP4_BLOCK; i++)
        most = most < qm_abs(x[i]) ? qm_abs(x[i]) : most;
    b.exponent = (uint8_t)(most > 0 ? qm_mxfp4_floor_log2(most) - 2 + 127 : 0);
    float d = qm_mxfp4_scale(b.exponent), middle[7];
    for (int i = 0; i < 7; i++)
        middle[i] = 0.5f * (float)(qm_mxfp4_level[i] + qm_mxfp4_level[i + 1]) * d;
    for (int j = 0; j < QM_MXFP4_BLOCK / 2; j++)
        b.pair[j] = (uint8_t)(code_of(x[j], middle) | code_of(x[j + 16], middle) << 4);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_mxfp4 b;
    memcpy(&b, plane[0], sizeof b);
    float d = qm_mxfp4_scale(b.exponent);
    for (int j = 0; j < QM_MXFP4_BLOCK / 2; j++) {
        y[j] = (float)qm_mxfp4_level[b.pair[j] & 15] * d;
        y[j + 16] = (float)qm_mxfp4_level[b.pair[j] >> 4] * d;
    }
}

const qm_format qm_format_mxfp4 = {
    .name = "mxfp4",
    .doc = "4-bit floats, a power of two for every 32",
    .source = "ggml (llama-quantize MXFP4)",
    .block = QM_MXFP4_BLOCK,
    .gguf_type = 39,
    .gguf_name = "MXFP4",
    .plane = {{"blocks", QM_U8, 4, 1}},
    .bound = 0.2501, /* codes end at 6, and the largest weight may be just below 8 */
    .encode = encode,
    .decode = decode,
};
