/* draw.h: the arithmetic of drawing a token, which a GPU does with the same bits (core/ops/sample.c says what
 * is drawn, cuda/sample.cu does it there).
 *
 * Probabilities are whole numbers, so that their sums do not depend on an order: the largest logit has 2^40,
 * and the others floor(2^40 e^((logit - largest) / temperature)).  What comes to 0 is never drawn. */
#ifndef QM_DRAW_H
#define QM_DRAW_H

#include "half.h"

enum { QM_DRAW_BITS = 40, QM_DRAW_MOST = 1 << 23 /* tokens, so that sums fit */ };

/* 64 bits that depend on seed and number alone (SplitMix64's finaliser). */
QM_FN uint64_t qm_random_bits(uint64_t seed, uint64_t i)
{
    uint64_t z = seed * 0xd1342543de82ef95u + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* temperature > 0; top: the largest logit, finite.  2^y is 2^n e^t with n whole and t in [0, ln 2), e^t the
 * start of its series: the first term left out is below 2^-46.  Products and sums are rounded one by one
 * everywhere. */
QM_FN uint64_t qm_draw_weight(float logit, float top, double temperature)
{
    double y = (double)(logit - top) / temperature * 1.4426950408889634;
    if (!(y > -(double)QM_DRAW_BITS))
        return 0;
    int n = (int)y;
    n -= y < n;
    const double inverse[] = {1.0 / 6227020800,
                              1.0 / 479001600,
                              1.0 / 39916800,
                              1.0 / 3628800,
                              1.0 / 362880,
                              1.0 / 40320,
                              1.0 / 5040,
                              1.0 / 720,
                              1.0 / 120,
                              1.0 / 24,
                              1.0 / 6,
                              1.0 / 2,
                              1,
                              1};
    double t = (y - n) * 0.69314718055994531, sum = 1.0 / 87178291200;
    for (int i = 0; i < 14; i++)
        sum = sum * t + inverse[i]; /* 1 / 13! … 1 / 0! */
    return (uint64_t)(sum * (double)((uint64_t)1 << (QM_DRAW_BITS + n)));
}

/* How much of a sum of weights the largest of them must reach to have a share top_p of it; 1 at least. */
QM_FN uint64_t qm_draw_share(double top_p, uint64_t all)
{
    double want = top_p * (double)all;
    uint64_t least = want < (double)all ? (uint64_t)want : all;
    return least + (least < all && (double)least < want) + (want <= 0);
}

/* bits * all / 2^64: a place among weights that come to `all`; the token there is drawn. */
QM_FN uint64_t qm_draw_place(uint64_t bits, uint64_t all)
{
    uint64_t low = (bits & 0xffffffffu) * (all & 0xffffffffu),
             middle = (bits >> 32) * (all & 0xffffffffu) + (low >> 32);
    uint64_t other = (bits & 0xffffffffu) * (all >> 32) + (middle & 0xffffffffu);
    return (bits >> 32) * (all >> 32) + (middle >> 32) + (other >> 32);
}

#endif
