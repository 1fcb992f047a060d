/* q8_0: 32 weights to a block of 34 bytes.
 *
 *   | d: f16 | 32 x int8 |      value = d * code
 *
 * ggml, quantize_row_q8_0_ref.
 */
#include "../format.h"
#include "q8_0.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q8_0 b;
    float absmax = 0;
    for (int i = 0; i < QM_Q8_0_BLOCK; i++) {
        float a = qm_abs(x[i]);
        absmax = absmax > a ? absmax : a; /* this way round, for a NaN to do what it does in ggml */
    }
    float d = absmax / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f; /* of d before it becomes an f16 */
    b.d = qm_f32_to_f16(d);
    for (int i = 0; i < QM_Q8_0_BLOCK; i++)
        b.code[i] = (int8_t)qm_round_away(x[i] * inverse);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q8_0 b;
    memcpy(&b, plane[0], sizeof b);
    float d = qm_f16_to_f32(b.d);
    for (int i = 0; i < QM_Q8_0_BLOCK; i++)
        y[i] = (float)b.code[i] * d;
}

const qm_format qm_format_q8_0 = {
    .name = "q8_0",
    .doc = "8-bit integers, a scale for every 32",
    .source = "ggml (llama-quantize Q8_0)",
    .block = QM_Q8_0_BLOCK,
    .gguf_type = 8,
    .gguf_name = "Q8_0",
    .plane = {{"blocks", QM_U8, 8, 2}},
    .bound = 0.00443, /* half a step, 1/254, and 2^-11 for the rounded scale */
    .encode = encode,
    .decode = decode,
};
