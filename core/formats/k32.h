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

#include <math.h>

#include "affine.h"

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
QM_FN void qm_k32_say(const float *x, float *w)
{
    float sum = 0;
    for (int i = 0; i < QM_K32_SUB; i++)
        sum += x[i] * x[i];
    float rms = sqrtf(sum / QM_K32_SUB);
    for (int i = 0; i < QM_K32_SUB; i++)
        w[i] = rms + qm_abs(x[i]);
}

/* Codes once more, with the step and least value that the reader will see. */
QM_FN void qm_k32_requantize(const float *x, float d, float min, int most, uint8_t *code)
{
    for (int i = 0; i < QM_K32_SUB; i++)
        code[i] = (uint8_t)qm_clamp(qm_nearest_int((x[i] + min) / d), 0, most);
}

/* The head and the 256 codes of a block. */
QM_FN void qm_k32_encode(const qm_affine_search *s, const float *x, struct qm_k32 *head, uint8_t *code)
{
    float w[QM_K32_SUB], scale[QM_K32_SUBS], min[QM_K32_SUBS];
    uint8_t six_scale[QM_K32_SUBS], six_min[QM_K32_SUBS];
    for (int j = 0; j < QM_K32_SUBS; j++) {
        const float *sub = x + QM_K32_SUB * j;
        qm_k32_say(sub, w);
        qm_affine a = qm_affine_fit(s, sub, w, QM_K32_SUB, code + QM_K32_SUB * j);
        scale[j] = a.scale;
        min[j] = -a.least;
    }
    head->d = qm_f32_to_f16(qm_k32_six_bits(scale, six_scale));
    head->dmin = qm_f32_to_f16(qm_k32_six_bits(min, six_min));
    qm_k32_pack(six_scale, six_min, head->packed);
    for (int j = 0; j < QM_K32_SUBS; j++) {
        float d = qm_f16_to_f32(head->d) * six_scale[j], dmin = qm_f16_to_f32(head->dmin) * six_min[j];
        if (d != 0)
            qm_k32_requantize(x + QM_K32_SUB * j, d, dmin, s->most, code + QM_K32_SUB * j);
    }
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
