/* k32.h: decoding q4_k and q5_k with AVX2. */
#ifndef QM_AVX2_K32_H
#define QM_AVX2_K32_H

#include "codes.h"

#include "../k32.h"

/* What codes of each sub-block are multiplied with, and what is taken off. */
typedef struct qm_k32_steps {
    float d[QM_K32_SUBS], min[QM_K32_SUBS];
} qm_k32_steps;

static inline qm_k32_steps qm_k32_steps_of(const uint8_t *at)
{
    qm_k32_steps s;
    struct qm_k32 head;
    uint8_t scale[QM_K32_SUBS], min[QM_K32_SUBS];
    memcpy(&head, at, sizeof head);
    float d = qm_f16_to_f32(head.d), dmin = qm_f16_to_f32(head.dmin);
    qm_k32_unpack(head.packed, scale, min);
    for (int j = 0; j < QM_K32_SUBS; j++) {
        s.d[j] = d * scale[j];
        s.min[j] = dmin * min[j];
    }
    return s;
}

static inline void qm_k32_sub(const qm_k32_steps *s, int j, __m256i codes, float *y)
{
    qm_affine16(_mm256_castsi256_si128(codes), s->d[j], s->min[j], y);
    qm_affine16(_mm256_extracti128_si256(codes, 1), s->d[j], s->min[j], y + 16);
}

#endif
