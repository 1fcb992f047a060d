/* k32.h: what q4_k and q5_k have in common: 256 weights as eight sub-blocks of 32, each with a scale and
 * a least value of six bits.
 *
 *   | d: f16 | dmin: f16 | 12 bytes of scales |      value = d * scale * code - dmin * min
 *
 * The sixteen six-bit numbers, with scale[j] and min[j] of sub-block j:
 *
 *   byte j      (j < 4)   scale[j]         | scale[j + 4] >> 4 << 6
 *   byte j + 4  (j < 4)   min[j]           | min[j + 4] >> 4 << 6
 *   byte j + 8  (j < 4)   scale[j + 4] & 15 | (min[j + 4] & 15) << 4
 */
#ifndef QM_K32_H
#define QM_K32_H

#include "affine.h"
#include "importance.h"
#include "positive.h"

enum { QM_K32_BLOCK = 256, QM_K32_SUB = 32, QM_K32_SUBS = 8 };

struct qm_k32 {
    uint16_t d, dmin;
    uint8_t packed[12];
};
_Static_assert(sizeof(struct qm_k32) == 16, "q4_k and q5_k: two f16 and 16 six-bit numbers, no padding");

QM_FN void qm_k32_pack(const uint8_t scale[QM_K32_SUBS], const uint8_t min[QM_K32_SUBS], uint8_t packed[12])
{
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        packed[j + 4] = (uint8_t)(min[j] | min[j + 4] >> 4 << 6);
        packed[j + 8] = (uint8_t)((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
    }
}

QM_FN void qm_k32_unpack(const uint8_t packed[12], uint8_t scale[QM_K32_SUBS], uint8_t min[QM_K32_SUBS])
{
    for (int j = 0; j < 4; j++) {
        scale[j] = packed[j] & 63;
        min[j] = packed[j + 4] & 63;
        scale[j + 4] = (uint8_t)((packed[j + 8] & 15) | packed[j] >> 6 << 4);
        min[j + 4] = (uint8_t)(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
}

/* Six bits for each of eight numbers, in units of the result: the largest, if positive, becomes 63. */
QM_FN float qm_k32_six_bits(const float v[QM_K32_SUBS], uint8_t six[QM_K32_SUBS])
{
    float max = 0;
    for (int j = 0; j < QM_K32_SUBS; j++)
        max = v[j] > max ? v[j] : max;
    float inverse = max > 0 ? 63.0f / max : 0.0f;
    for (int j = 0; j < QM_K32_SUBS; j++) {
        uint8_t l = (uint8_t)qm_nearest_int(inverse * v[j]);
        six[j] = l < 63 ? l : 63;
    }
    return max / 63.0f;
}

/* A weight's say in the error: its magnitude, and the sub-block's root mean square. */
QM_FN void qm_k32_weigh(const float *x, float *w)
{
    float rms = sqrtf(qm_sum_squares(x, QM_K32_SUB) / QM_K32_SUB);
    for (int i = 0; i < QM_K32_SUB; i++)
        w[i] = rms + qm_abs(x[i]);
}

/* Codes once more, with the step and least value that the reader will see. */
QM_FN void qm_k32_requantize(const float *x, float d, float min, int most, uint8_t *code)
{
    for (int i = 0; i < QM_K32_SUB; i++)
        code[i] = (uint8_t)qm_clamp(qm_nearest_int((x[i] + min) / d), 0, most);
}

/* The second half of encoding: scales and mins are in six bits now, and codes follow them as the reader will
 * see them. */
QM_FN void qm_k32_finish(const float *x, int most, struct qm_k32 *head, uint8_t *code)
{
    uint8_t scale[QM_K32_SUBS], min[QM_K32_SUBS];
    qm_k32_unpack(head->packed, scale, min);
    for (int j = 0; j < QM_K32_SUBS; j++) {
        float d = qm_f16_to_f32(head->d) * scale[j], dmin = qm_f16_to_f32(head->dmin) * min[j];
        if (d != 0)
            qm_k32_requantize(x + QM_K32_SUB * j, d, dmin, most, code + QM_K32_SUB * j);
    }
}

/* Scales and mins become six bits each. */
QM_FN void qm_k32_round(const float scale[QM_K32_SUBS], const float min[QM_K32_SUBS], struct qm_k32 *head)
{
    uint8_t six_scale[QM_K32_SUBS], six_min[QM_K32_SUBS];
    head->d = qm_f32_to_f16(qm_k32_six_bits(scale, six_scale));
    head->dmin = qm_f32_to_f16(qm_k32_six_bits(min, six_min));
    qm_k32_pack(six_scale, six_min, head->packed);
}

QM_FN void qm_k32_clip(uint8_t six[QM_K32_SUBS])
{
    for (int j = 0; j < QM_K32_SUBS; j++)
        six[j] = six[j] < 63 ? six[j] : 63;
}

/* The same where columns differ in importance; sum_w is that of each sub-block. */
QM_FN void qm_k32_round_important(const float scale[QM_K32_SUBS], const float min[QM_K32_SUBS],
                                  const float sum_w[QM_K32_SUBS], int most, struct qm_k32 *head)
{
    uint8_t six_scale[QM_K32_SUBS], six_min[QM_K32_SUBS];
    head->d = qm_f32_to_f16(qm_positive_fit(scale, sum_w, QM_K32_SUBS, 63, six_scale));
    head->dmin = qm_f32_to_f16(qm_positive_fit(min, sum_w, QM_K32_SUBS, 63, six_min));
    if (most > 15) { /* ggml sees to it for q5_k, not for q4_k; only extreme importances bring more than 63
                        about */
        qm_k32_clip(six_scale);
        qm_k32_clip(six_min);
    }
    qm_k32_pack(six_scale, six_min, head->packed);
}

/* The head and the 256 codes of a block. */
QM_FN void qm_k32_encode(const qm_affine_search *s, const float *x, struct qm_k32 *head, uint8_t *code)
{
    float w[QM_K32_SUB], scale[QM_K32_SUBS], min[QM_K32_SUBS];
    for (int j = 0; j < QM_K32_SUBS; j++) {
        const float *sub = x + QM_K32_SUB * j;
        qm_k32_weigh(sub, w);
        qm_affine a = qm_affine_fit(s, sub, w, QM_K32_SUB, code + QM_K32_SUB * j);
        scale[j] = a.scale;
        min[j] = -a.least;
    }
    qm_k32_round(scale, min, head);
    qm_k32_finish(x, s->most, head, code);
}

QM_FN void qm_k32_encode_important(int most, const float *x, const float *importance, struct qm_k32 *head,
                                   uint8_t *code)
{
    const qm_affine_search search = qm_affine_important(most);
    float w[QM_K32_SUB], scale[QM_K32_SUBS], min[QM_K32_SUBS], sum_w[QM_K32_SUBS];
    float power = 2 * qm_sum_squares(x, QM_K32_BLOCK) / QM_K32_BLOCK;
    for (int j = 0; j < QM_K32_SUBS; j++) {
        const float *sub = x + QM_K32_SUB * j;
        qm_importance(sub, importance + QM_K32_SUB * j, power, QM_K32_SUB, w);
        sum_w[j] = qm_sum(w, QM_K32_SUB);
        qm_affine a = qm_affine_fit(&search, sub, w, QM_K32_SUB, code + QM_K32_SUB * j);
        scale[j] = a.scale;
        min[j] = -a.least;
    }
    qm_k32_round_important(scale, min, sum_w, most, head);
    qm_k32_finish(x, most, head, code);
}

QM_FN void qm_k32_decode(const struct qm_k32 *head, const uint8_t *code, float *y)
{
    uint8_t scale[QM_K32_SUBS], min[QM_K32_SUBS];
    qm_k32_unpack(head->packed, scale, min);
    for (int j = 0; j < QM_K32_SUBS; j++) {
        float d = qm_f16_to_f32(head->d) * scale[j], dmin = qm_f16_to_f32(head->dmin) * min[j];
        for (int i = QM_K32_SUB * j; i < QM_K32_SUB * (j + 1); i++)
            y[i] = d * code[i] - dmin;
    }
}

#endif
