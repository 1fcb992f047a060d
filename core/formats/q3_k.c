/* q3_k: 256 weights to a block of 110 bytes: sixteen sub-blocks of 16, each with a scale.
 *
 *   | 32 x upper bits | 64 x four pairs of lower bits (two_bits.h) | 12 bytes of scales | d: f16 |
 *   value = d * (scale - 32) * (code - 4)
 *
 * Codes have three bits: the upper bit of code i is bit i / 32 of byte i % 32.  Scales have six: with s[j]
 * that of sub-block j,
 *
 *   byte j      (j < 8)   s[j] & 15 | (s[j + 8] & 15) << 4
 *   byte j + 8  (j < 4)   s[j] >> 4 | s[j + 4] >> 4 << 2 | s[j + 8] >> 4 << 4 | s[j + 12] >> 4 << 6
 *
 * ggml, quantize_row_q3_K_ref.
 */
#include "../format.h"
#include "importance.h"
#include "q3_k.h"
#include "symmetric.h"
#include "two_bits.h"

/* One more or one less for each code in turn, wherever that leaves a smaller error.  top and bottom are the
 * sums of w x l and w l l over the sub-block, w = x^2.  Returns how many codes changed. */
QM_FN int improve(const float *x, int32_t *l, float *top, float *bottom)
{
    int changed = 0;
    for (int i = 0; i < QM_Q3_K_SUB; i++) {
        float w = x[i] * x[i], t = *top - w * x[i] * (float)l[i];
        if (!(t > 0))
            continue;
        float b = *bottom - w * (float)l[i] * (float)l[i];
        int32_t other = qm_clamp(qm_nearest_int(x[i] * b / t), -4, 3);
        if (other == l[i])
            continue;
        t += w * x[i] * (float)other;
        b += w * (float)other * (float)other;
        if (b > 0 && t * t * *bottom > *top * *top * b) {
            l[i] = other;
            *top = t;
            *bottom = b;
            changed++;
        }
    }
    return changed;
}

/* The scale that fits a sub-block best, and its codes, 0 … 7. */
QM_FN float fit_scale(const float *x, uint8_t *code)
{
    float max = qm_signed_max(x, QM_Q3_K_SUB), top = 0, bottom = 0;
    int32_t l[QM_Q3_K_SUB];
    if (qm_abs(max) < QM_Q3_K_TINY) {
        memset(code, 0, QM_Q3_K_SUB);
        return 0;
    }
    float inverse = -4.0f / max;
    for (int i = 0; i < QM_Q3_K_SUB; i++) {
        l[i] = qm_clamp(qm_nearest_int(inverse * x[i]), -4, 3);
        float w = x[i] * x[i];
        top += w * x[i] * (float)l[i];
        bottom += w * (float)l[i] * (float)l[i];
    }
    for (int sweep = 0; sweep < 5; sweep++)
        if (!improve(x, l, &top, &bottom))
            break;
    for (int i = 0; i < QM_Q3_K_SUB; i++)
        code[i] = (uint8_t)(l[i] + 4);
    return bottom > 0 ? top / bottom : 0.0f;
}

/* Codes once more, with the step that the reader will see. */
QM_FN void requantize(const float *x, float d, uint8_t *code)
{
    for (int i = 0; i < QM_Q3_K_SUB; i++)
        code[i] = (uint8_t)(qm_clamp(qm_nearest_int(x[i] / d), -4, 3) + 4);
}

QM_FN void pack_third(const uint8_t *code, uint8_t third[32])
{
    memset(third, 0, 32);
    for (int i = 0; i < QM_Q3_K_BLOCK; i++)
        third[i % 32] = (uint8_t)(third[i % 32] | code[i] >> 2 << i / 32);
}

/* The second half of encoding: d and the scales are known, and codes follow them. */
QM_FN void finish(const float *x, const uint8_t six[QM_Q3_K_SUBS], uint8_t *code, struct qm_q3_k *b)
{
    for (int j = 0; j < QM_Q3_K_SUBS; j++) {
        float d = qm_f16_to_f32(b->d) * (float)(six[j] - 32);
        if (d != 0)
            requantize(x + QM_Q3_K_SUB * j, d, code + QM_Q3_K_SUB * j);
    }
    qm_q3_k_pack_scales(six, b->packed);
    qm_two_bits_pack(code, b->quad);
    pack_third(code, b->third);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q3_k b;
    uint8_t code[QM_Q3_K_BLOCK], six[QM_Q3_K_SUBS];
    float scale[QM_Q3_K_SUBS];
    for (int j = 0; j < QM_Q3_K_SUBS; j++)
        scale[j] = fit_scale(x + QM_Q3_K_SUB * j, code + QM_Q3_K_SUB * j);
    b.d = qm_f32_to_f16(qm_q3_k_six_bits(scale, six));
    finish(x, six, code, &b);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    struct qm_q3_k b;
    uint8_t code[QM_Q3_K_BLOCK], six[QM_Q3_K_SUBS];
    float w[QM_Q3_K_SUB], sum_w[QM_Q3_K_SUBS], scale[QM_Q3_K_SUBS];
    float mean = 2 * qm_sum_squares(x, QM_Q3_K_BLOCK) / QM_Q3_K_BLOCK;
    for (int j = 0; j < QM_Q3_K_SUBS; j++) {
        const float *sub = x + QM_Q3_K_SUB * j;
        qm_importance(sub, importance + QM_Q3_K_SUB * j, mean, QM_Q3_K_SUB, w);
        sum_w[j] = qm_sum(w, QM_Q3_K_SUB);
        scale[j] = qm_symmetric_fit(sub, w, QM_Q3_K_SUB, 4, code + QM_Q3_K_SUB * j);
    }
    b.d = qm_f32_to_f16(qm_symmetric_fit(scale, sum_w, QM_Q3_K_SUBS, 32, six));
    finish(x, six, code, &b);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q3_k b;
    uint8_t code[QM_Q3_K_BLOCK], six[QM_Q3_K_SUBS];
    memcpy(&b, plane[0], sizeof b);
    qm_two_bits_unpack(b.quad, code);
    qm_q3_k_unpack_scales(b.packed, six);
    float d = qm_f16_to_f32(b.d);
    for (int i = 0; i < QM_Q3_K_BLOCK; i++) {
        int q = code[i] + (b.third[i % 32] >> i / 32 & 1) * 4, scale = six[i / QM_Q3_K_SUB] - 32;
        y[i] = d * (float)scale * (float)(q - 4);
    }
}

const qm_format qm_format_q3_k = {
    .name = "q3_k",
    .doc = "3-bit integers, a 6-bit scale for every 16, an f16 scale for every 256",
    .source = "ggml (llama-quantize Q3_K)",
    .block = QM_Q3_K_BLOCK,
    .gguf_type = 11,
    .gguf_name = "Q3_K",
    .plane = {{"blocks", QM_U8, 3, 14}},
    .bound = 0.32, /* a whole step at the end that has 3 of them, scales of six bits; seen: 0.29 */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
