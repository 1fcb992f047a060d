/* iq4.h: the sixteen levels of iq4_nl and iq4_xs, and the search for a scale of 32 weights.
 *
 * The levels lie closer together near zero.  They are whole numbers from -127 to 113: a scale may be
 * negative, so that whichever side has the largest weight gets the longer reach.
 */
#ifndef QM_IQ4_H
#define QM_IQ4_H

#include "numeric.h"

enum { QM_IQ4_SUB = 32, QM_IQ4_TRIALS = 7 };

/* Sub-blocks below this are taken for zero. */
#define QM_IQ4_TINY 1e-15f

QM_TABLE int8_t qm_iq4_level[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Of the nearest level; halfway between two, of the upper one.  (Both differences are exact there, so that
 * this is also what ggml's comparison of the two says.  Of NaN, as there, the uppermost.) */
QM_FN uint32_t qm_iq4_code(float x)
{
    uint32_t code = 0;
    for (int i = 0; i < 15; i++)
        code += !(x < 0.5f * (float)(qm_iq4_level[i] + qm_iq4_level[i + 1]));
    return code;
}

typedef struct qm_iq4_sums {
    float top, bottom; /* sum of w l x and of w l l, over the levels l of the rounded weights */
} qm_iq4_sums;

QM_FN qm_iq4_sums qm_iq4_try(const float *x, const float *w, float inverse)
{
    qm_iq4_sums s = {0, 0};
    for (int i = 0; i < QM_IQ4_SUB; i++) {
        float l = qm_iq4_level[qm_iq4_code(inverse * x[i])];
        s.top += w[i] * l * x[i];
        s.bottom += w[i] * l * l;
    }
    return s;
}

/* The scale that fits 32 weights best: the obvious one, or one of fifteen around it. */
QM_FN float qm_iq4_fit(const float *x, const float *w)
{
    float max = qm_signed_max(x, QM_IQ4_SUB);
    if (qm_abs(max) < QM_IQ4_TINY)
        return 0;
    qm_iq4_sums s = qm_iq4_try(x, w, 1.0f / (-max / qm_iq4_level[0]));
    float scale = s.bottom > 0 ? s.top / s.bottom : 0.0f, best = scale * s.top;
    for (int k = -QM_IQ4_TRIALS; k <= QM_IQ4_TRIALS; k++) {
        s = qm_iq4_try(x, w, (float)(k + qm_iq4_level[0]) / max);
        if (s.bottom > 0 && s.top * s.top > best * s.bottom) {
            scale = s.top / s.bottom;
            best = scale * s.top;
        }
    }
    return scale;
}

/* Byte j of the pairs: code j low, code j + 16 high. */
QM_FN void qm_iq4_pack(const float *x, float d, uint8_t pair[QM_IQ4_SUB / 2])
{
    float inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int j = 0; j < QM_IQ4_SUB / 2; j++)
        pair[j] = (uint8_t)(qm_iq4_code(inverse * x[j]) | qm_iq4_code(inverse * x[j + 16]) << 4);
}

QM_FN void qm_iq4_unpack(const uint8_t pair[QM_IQ4_SUB / 2], float d, float *y)
{
    for (int j = 0; j < QM_IQ4_SUB / 2; j++) {
        y[j] = d * qm_iq4_level[pair[j] & 15];
        y[j + 16] = d * qm_iq4_level[pair[j] >> 4];
    }
}

#endif
