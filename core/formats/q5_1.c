/* q5_1: 32 weights to a block of 24 bytes.
 *
 *   | d: f16 | least: f16 | bit 4 of each code: 4 bytes | 16 x (low nibbles of codes j and j + 16) |
 *   value = d * code + least
 *
 * ggml, quantize_row_q5_1_ref.
 */
#include "../format.h"
#include "affine.h"
#include "importance.h"
#include "q5_1.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    uint8_t code[QM_Q5_1_BLOCK];
    float low = x[0], high = x[0];
    for (int i = 1; i < QM_Q5_1_BLOCK; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float d = (high - low) / 31.0f, inverse = d != 0 ? 1.0f / d : 0.0f; /* of d before it becomes an f16 */
    for (int i = 0; i < QM_Q5_1_BLOCK; i++)
        code[i] = (uint8_t)qm_truncate((x[i] - low) * inverse + 0.5f);
    qm_q5_1_pack(d, low, code, plane[0]);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n;
    uint8_t code[QM_Q5_1_BLOCK];
    float w[QM_Q5_1_BLOCK];
    qm_importance(x, importance, power, QM_Q5_1_BLOCK, w);
    qm_affine_search search = qm_affine_important(31);
    qm_affine a = qm_affine_fit(&search, x, w, QM_Q5_1_BLOCK, code);
    qm_q5_1_pack(a.scale, a.least, code, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q5_1 b;
    uint8_t code[QM_Q5_1_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_five_bits_unpack(b.fifth, b.pair, code);
    float d = qm_f16_to_f32(b.d), least = qm_f16_to_f32(b.least);
    for (int i = 0; i < QM_Q5_1_BLOCK; i++)
        y[i] = (float)code[i] * d + least;
}

const qm_format qm_format_q5_1 = {
    .name = "q5_1",
    .doc = "5-bit integers, a scale and a least value for every 32",
    .source = "ggml (llama-quantize Q5_1)",
    .block = QM_Q5_1_BLOCK,
    .gguf_type = 7,
    .gguf_name = "Q5_1",
    .plane = {{"blocks", QM_U8, 5, 4}},
    .bound = 0.034, /* half a step of 2/31, and 2^-11 of the least value and of 31 steps */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
    .row_power = true,
};
