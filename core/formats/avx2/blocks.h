/* blocks.h: the loop over blocks that nf4, fp4 and dynamic8 share. */
#ifndef QM_AVX2_BLOCKS_H
#define QM_AVX2_BLOCKS_H

#include "../bnb.h"
#include "lanes.h"

/* Encodes one full block of well-behaved values. */
typedef void qm_block_encode(const float *x, uint32_t n, float scale, uint8_t *codes);

static inline bool qm_tame(float absmax) { return absmax >= QM_BNB_TAME_MIN && absmax <= QM_BNB_TAME_MAX; }

/* A reciprocal takes longer than a block's codes do and nothing else depends on it, so the
 * magnitudes of a few blocks are found ahead. */
enum { QM_AHEAD = 16 };

static inline void qm_blocks_encode(const qm_format *f, qm_block_encode *block, const float *x, size_t n,
                                    const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at[] = {plane[0], plane[1]};
    const size_t size = (size_t)c->block * f->plane[0].bits / 8;
    for (; c->nearest && n >= c->block; n -= c->block, x += c->block, at[0] += size, at[1] += sizeof(float))
        f->encode(x, c->block, c, at);
    while (n >= c->block) {
        size_t count = n / c->block < QM_AHEAD ? n / c->block : QM_AHEAD;
        float absmax[QM_AHEAD], scale[QM_AHEAD];
        for (size_t i = 0; i < count; i++) {
            absmax[i] = qm_bits_f32(qm_largest_magnitude(x + i * c->block, c->block));
            scale[i] = qm_rcp(absmax[i]);
        }
        for (size_t i = 0; i < count;
             i++, n -= c->block, x += c->block, at[0] += size, at[1] += sizeof(float)) {
            if (qm_tame(absmax[i])) {
                memcpy(at[1], &absmax[i], sizeof absmax[i]);
                block(x, c->block, scale[i], at[0]);
            } else {
                f->encode(x, c->block, c, at);
            }
        }
    }
    if (n)
        f->encode(x, (uint32_t)n, c, at);
}

#endif
