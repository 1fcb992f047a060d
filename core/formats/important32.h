/* important32.h: q4_0, q4_1, q5_0 and q5_1 where columns differ in importance, a block of 32 to a lane;
 * included after wide.h. */
#ifndef QM_IMPORTANT32_H
#define QM_IMPORTANT32_H

#include "affine_lanes.h"
#include "importance_lanes.h"
#include "symmetric_lanes.h"

enum { IMPORTANT_BLOCK = 32 };

/* What becomes of up to LANES blocks. */
typedef struct important_blocks {
    float scale[LANES], least[LANES];
    uint8_t code[LANES][IMPORTANT_BLOCK];
} important_blocks;

static inline void turn_in(const float *values, const float *importance, size_t blocks, float power, lanes *x,
                           lanes *w)
{
    lanes_turn(values, blocks, IMPORTANT_BLOCK, x);
    lanes_turn(importance, blocks, IMPORTANT_BLOCK, w);
    importance_of(x, lanes_of(power), IMPORTANT_BLOCK, w);
}

static inline void turn_out(const lanes *code, important_blocks *b)
{
    for (int i = 0; i < IMPORTANT_BLOCK; i += 16)
        lanes_turn_back(code + i, b->code[0] + i, IMPORTANT_BLOCK);
}

static inline void important_symmetric(const float *values, const float *importance, size_t blocks,
                                       float power, float reach, important_blocks *b)
{
    lanes x[IMPORTANT_BLOCK], w[IMPORTANT_BLOCK];
    turn_in(values, importance, blocks, power, x, w);
    symmetric_lanes fit = symmetric_fit(x, w, IMPORTANT_BLOCK, reach);
    lanes_store(b->scale, fit.scale);
    for (int i = 0; i < IMPORTANT_BLOCK; i++)
        x[i] = symmetric_code(&fit, x[i], reach);
    turn_out(x, b);
}

static inline void important_affine(const float *values, const float *importance, size_t blocks, float power,
                                    int most, important_blocks *b)
{
    lanes x[IMPORTANT_BLOCK], w[IMPORTANT_BLOCK];
    const qm_affine_search search = qm_affine_important(most);
    turn_in(values, importance, blocks, power, x, w);
    affine_lanes fit = affine_fit(&search, x, w, IMPORTANT_BLOCK);
    lanes_store(b->scale, fit.scale);
    lanes_store(b->least, fit.least);
    for (int i = 0; i < IMPORTANT_BLOCK; i++)
        x[i] = affine_code(&fit, x[i], most);
    turn_out(x, b);
}

#endif
