/* q5_0: 32 weights to a block of 22 bytes.
 *
 *   | d: f16 | bit 4 of each code: 4 bytes | 16 x (low nibbles of codes j and j + 16) |
 *   value = d * (code - 16)
 *
 * As in q4_0, d may be negative: the weight of largest magnitude always gets code 0, that is -16 * d.
 * ggml, quantize_row_q5_0_ref.
 */
#include "../format.h"
#include "importance.h"
#include "q5_0.h"
#include "symmetric.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    uint8_t code[QM_Q5_0_BLOCK];
    float d = qm_signed_max(x, QM_Q5_0_BLOCK) / -16.0f,
          inverse = d != 0 ? 1.0f / d : 0.0f; /* of d before it becomes an f16 */
    for (int i = 0; i < QM_Q5_0_BLOCK; i++) {
        int32_t q = qm_wrap8(qm_truncate(x[i] * inverse + 16.5f));
        code[i] = (uint8_t)(q < 31 ? q : 31);
    }
    qm_q5_0_pack(d, code, plane[0]);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n;
    uint8_t code[QM_Q5_0_BLOCK];
    float w[QM_Q5_0_BLOCK];
    qm_importance(x, importance, power, QM_Q5_0_BLOCK, w);
    float d = qm_symmetric_fit(x, w, QM_Q5_0_BLOCK, 16, code);
    qm_q5_0_pack(d, code, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q5_0 b;
    uint8_t code[QM_Q5_0_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_five_bits_unpack(b.fifth, b.pair, code);
    float d = qm_f16_to_f32(b.d);
    for (int i = 0; i < QM_Q5_0_BLOCK; i++)
        y[i] = (float)(code[i] - 16) * d;
}

const qm_format qm_format_q5_0 = {
    .name = "q5_0",
    .doc = "5-bit integers, a scale for every 32",
    .source = "ggml (llama-quantize Q5_0)",
    .block = QM_Q5_0_BLOCK,
    .gguf_type = 6,
    .gguf_name = "Q5_0",
    .plane = {{"blocks", QM_U8, 5, 2}},
    .bound = 0.0631, /* a whole step at the end that has 15 of them, 1/16, and 2^-11 for the rounded scale */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
    .row_power = true,
};
