/* nibbles.h: decoding nf4 and fp4 with AVX2.  A block's sixteen levels are scaled once; then every
 * weight is a look-up. */
#ifndef QM_AVX2_NIBBLES_H
#define QM_AVX2_NIBBLES_H

#include "../bnb.h"
#include "lanes.h"

typedef struct qm_levels8 {
    __m256 low, high; /* codes 0 … 7 and 8 … 15 */
} qm_levels8;

/* The eight codes of four bytes, each in the low bits of its lane: even ones from high nibbles. */
static inline __m256i qm_nibbles8(const uint8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return _mm256_srlv_epi32(_mm256_set1_epi32(four), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
}

static inline __m256 qm_look_up8(qm_levels8 t, __m256i i)
{
    __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)); /* to the sign, which blendv reads */
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, i), _mm256_permutevar8x32_ps(t.high, i), bit3);
}

static inline void qm_nibbles_decode(const qm_format *f, const float level[16], const uint8_t *const plane[],
                                     size_t n, const qm_codec *c, float *y)
{
    const uint8_t *at[] = {plane[0], plane[1]};
    for (size_t m; n; n -= m, y += m, at[0] += m / 2, at[1] += sizeof(float)) {
        m = n < c->block ? n : c->block;
        if (m < c->block) {
            f->decode(at, (uint32_t)m, c, y);
            continue;
        }
        float absmax, scaled[16];
        memcpy(&absmax, at[1], sizeof absmax);
        for (int i = 0; i < 16; i++)
            scaled[i] = qm_bnb_times(level[i], absmax);
        qm_levels8 t = {_mm256_loadu_ps(scaled), _mm256_loadu_ps(scaled + 8)};
        for (size_t i = 0; i < m; i += 8)
            _mm256_storeu_ps(y + i, qm_look_up8(t, qm_nibbles8(at[0] + i / 2)));
    }
}

#endif
