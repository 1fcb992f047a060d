/* q4_1: 32 weights to a block of 20 bytes.
 *
 *   | d: f16 | least: f16 | 16 x (x[j] in the low nibble, x[j + 16] in the high) |
 *   value = d * code + least
 *
 * ggml, quantize_row_q4_1_ref.
 */
#include "../format.h"
#include "affine.h"
#include "importance.h"
#include "q4_1.h"

QM_FN uint32_t code_of(float x, float least, float inverse)
{
    int32_t q = qm_wrap8(qm_truncate((x - least) * inverse + 0.5f));
    return (uint32_t)(q < 15 ? q : 15);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q4_1 b;
    float low = x[0], high = x[0];
    for (int i = 1; i < QM_Q4_1_BLOCK; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float d = (high - low) / 15.0f, inverse = d != 0 ? 1.0f / d : 0.0f; /* of d before it becomes an f16 */
    b.d = qm_f32_to_f16(d);
    b.least = qm_f32_to_f16(low);
    for (int i = 0; i < QM_Q4_1_BLOCK / 2; i++)
        b.pair[i] = (uint8_t)(code_of(x[i], low, inverse)
                              | code_of(x[i + QM_Q4_1_BLOCK / 2], low, inverse) << 4);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n;
    uint8_t code[QM_Q4_1_BLOCK];
    float w[QM_Q4_1_BLOCK];
    qm_importance(x, importance, power, QM_Q4_1_BLOCK, w);
    qm_affine_search search = qm_affine_important(15);
    qm_affine a = qm_affine_fit(&search, x, w, QM_Q4_1_BLOCK, code);
    qm_q4_1_pack(a.scale, a.least, code, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q4_1 b;
    memcpy(&b, plane[0], sizeof b);
    float d = qm_f16_to_f32(b.d), least = qm_f16_to_f32(b.least);
    for (int i = 0; i < QM_Q4_1_BLOCK / 2; i++) {
        y[i] = (float)(b.pair[i] & 15) * d + least;
        y[i + QM_Q4_1_BLOCK / 2] = (float)(b.pair[i] >> 4) * d + least;
    }
}

const qm_format qm_format_q4_1 = {
    .name = "q4_1",
    .doc = "4-bit integers, a scale and a least value for every 32",
    .source = "ggml (llama-quantize Q4_1)",
    .block = QM_Q4_1_BLOCK,
    .gguf_type = 3,
    .gguf_name = "Q4_1",
    .plane = {{"blocks", QM_U8, 4, 4}},
    .bound = 0.069, /* half a step of 2/15, and 2^-11 of the least value and of fifteen steps */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
    .row_power = true,
};
