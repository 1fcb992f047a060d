/* q4_0: 32 weights to a block of 18 bytes.
 *
 *   | d: f16 | 16 x (x[j] in the low nibble, x[j + 16] in the high) |      value = d * (code - 8)
 *
 * d may be negative: the weight of largest magnitude always gets code 0, that is -8 * d, because
 * four bits reach one further on that side.  ggml, quantize_row_q4_0_ref.
 */
#include "../format.h"
#include "importance.h"
#include "q4_0.h"
#include "symmetric.h"

QM_FN uint32_t code_of(float x, float inverse)
{
    int32_t q = qm_wrap8(qm_truncate(x * inverse + 8.5f));
    return (uint32_t)(q < 15 ? q : 15);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q4_0 b;
    float d = qm_signed_max(x, QM_Q4_0_BLOCK) / -8.0f,
          inverse = d != 0 ? 1.0f / d : 0.0f; /* of d before it becomes an f16 */
    b.d = qm_f32_to_f16(d);
    for (int i = 0; i < QM_Q4_0_BLOCK / 2; i++)
        b.pair[i] = (uint8_t)(code_of(x[i], inverse) | code_of(x[i + QM_Q4_0_BLOCK / 2], inverse) << 4);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n;
    uint8_t code[QM_Q4_0_BLOCK];
    float w[QM_Q4_0_BLOCK];
    qm_importance(x, importance, power, QM_Q4_0_BLOCK, w);
    float d = qm_symmetric_fit(x, w, QM_Q4_0_BLOCK, 8, code);
    qm_q4_0_pack(d, code, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q4_0 b;
    memcpy(&b, plane[0], sizeof b);
    float d = qm_f16_to_f32(b.d);
    for (int i = 0; i < QM_Q4_0_BLOCK / 2; i++) {
        y[i] = (float)((b.pair[i] & 15) - 8) * d;
        y[i + QM_Q4_0_BLOCK / 2] = (float)((b.pair[i] >> 4) - 8) * d;
    }
}

const qm_format qm_format_q4_0 = {
    .name = "q4_0",
    .doc = "4-bit integers, a scale for every 32",
    .source = "ggml (llama-quantize Q4_0)",
    .block = QM_Q4_0_BLOCK,
    .gguf_type = 2,
    .gguf_name = "Q4_0",
    .plane = {{"blocks", QM_U8, 4, 2}},
    .bound = 0.1256, /* a whole step at the end that has 7 of them, 1/8, and 2^-11 for the rounded scale */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
    .row_power = true,
};
