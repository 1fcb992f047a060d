/* iq4.h: decoding iq4_nl and iq4_xs with AVX2: sixteen levels fit a register of bytes. */
#ifndef QM_AVX2_IQ4_H
#define QM_AVX2_IQ4_H

#include "codes.h"

#include "../iq4.h"

static inline void qm_iq4_unpair(const uint8_t pair[QM_IQ4_SUB / 2], float d, float *y)
{
    const __m256i level = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)qm_iq4_level));
    const __m256 step = _mm256_set1_ps(d);
    qm_scale32(_mm256_shuffle_epi8(level, qm_unpair32(pair)), step, step, y);
}

#endif
