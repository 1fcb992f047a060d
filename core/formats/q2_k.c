/* q2_k: 256 weights to a block of 84 bytes: sixteen sub-blocks of 16, each with a scale and a least value.
 *
 *   | 16 x (scale: 4 bits low, min: 4 bits high) | 64 x four codes (two_bits.h) | d: f16 | dmin: f16 |
 *   value = d * scale * code - dmin * min
 *
 * ggml, quantize_row_q2_K_ref.
 */
#include "../format.h"
#include "importance.h"
#include "positive.h"
#include "q2_k.h"
#include "two_bits.h"

/* Codes once more, with the step and least value that the reader will see. */
QM_FN void requantize(const float *x, float d, float min, uint8_t *code)
{
    for (int i = 0; i < QM_Q2_K_SUB; i++)
        code[i] = (uint8_t)qm_clamp(qm_nearest_int((x[i] + min) / d), 0, 3);
}

/* The second half of encoding: d, dmin and scales are known, and codes follow them. */
QM_FN void finish(const float *x, const uint8_t *low, const uint8_t *high, uint8_t *code, struct qm_q2_k *b)
{
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        b->scales[j] = (uint8_t)(low[j] | high[j] << 4);
        float d = qm_f16_to_f32(b->d) * (float)(b->scales[j] & 15);
        if (d != 0)
            requantize(x + QM_Q2_K_SUB * j, d, qm_f16_to_f32(b->dmin) * (float)(b->scales[j] >> 4),
                       code + QM_Q2_K_SUB * j);
    }
    qm_two_bits_pack(code, b->quad);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q2_k b;
    uint8_t code[QM_Q2_K_BLOCK], low[QM_Q2_K_SUBS], high[QM_Q2_K_SUBS];
    float w[QM_Q2_K_SUB], scale[QM_Q2_K_SUBS], min[QM_Q2_K_SUBS];
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        const float *sub = x + QM_Q2_K_SUB * j;
        for (int i = 0; i < QM_Q2_K_SUB; i++)
            w[i] = qm_abs(sub[i]);
        qm_affine a = qm_affine_fit(&qm_q2_k_search, sub, w, QM_Q2_K_SUB, code + QM_Q2_K_SUB * j);
        scale[j] = a.scale;
        min[j] = -a.least;
    }
    b.d = qm_f32_to_f16(qm_q2_k_four_bits(scale, low));
    b.dmin = qm_f32_to_f16(qm_q2_k_four_bits(min, high));
    finish(x, low, high, code, &b);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    const qm_affine_search search = qm_affine_important(3);
    struct qm_q2_k b;
    uint8_t code[QM_Q2_K_BLOCK], low[QM_Q2_K_SUBS], high[QM_Q2_K_SUBS];
    float w[QM_Q2_K_SUB], sum_w[QM_Q2_K_SUBS], scale[QM_Q2_K_SUBS], min[QM_Q2_K_SUBS];
    float mean = qm_sum_squares(x, QM_Q2_K_BLOCK) / QM_Q2_K_BLOCK;
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        const float *sub = x + QM_Q2_K_SUB * j;
        qm_importance(sub, importance + QM_Q2_K_SUB * j, mean, QM_Q2_K_SUB, w);
        sum_w[j] = qm_sum(w, QM_Q2_K_SUB);
        qm_affine a = qm_affine_fit(&search, sub, w, QM_Q2_K_SUB, code + QM_Q2_K_SUB * j);
        scale[j] = a.scale;
        min[j] = -a.least;
    }
    b.d = qm_f32_to_f16(qm_positive_fit(scale, sum_w, QM_Q2_K_SUBS, 15, low));
    b.dmin = qm_f32_to_f16(qm_positive_fit(min, sum_w, QM_Q2_K_SUBS, 15, high));
    finish(x, low, high, code, &b);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q2_k b;
    uint8_t code[QM_Q2_K_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_two_bits_unpack(b.quad, code);
    float d = qm_f16_to_f32(b.d), dmin = qm_f16_to_f32(b.dmin);
    for (int i = 0; i < QM_Q2_K_BLOCK; i++) {
        uint8_t scales = b.scales[i / QM_Q2_K_SUB];
        y[i] = d * (float)(scales & 15) * (float)code[i] - dmin * (float)(scales >> 4);
    }
}

const qm_format qm_format_q2_k = {
    .name = "q2_k",
    .doc = "2-bit integers, a 4-bit scale and least value for every 16, two f16 for every 256",
    .source = "ggml (llama-quantize Q2_K)",
    .block = QM_Q2_K_BLOCK,
    .gguf_type = 10,
    .gguf_name = "Q2_K",
    .plane = {{"blocks", QM_U8, 2, 20}},
    .bound = 0.5, /* half a step of 2/3, scales of four bits, what the search gives up; seen: 0.43 */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
