/* random.h: random values that are the same on every machine and for every thread count.
 *
 * Value i of a seed is a function of (seed, i) alone: a counter is mixed to 64 bits (SplitMix64's
 * finaliser) and its uniform is turned into the wanted distribution with additions, multiplications,
 * divisions and square roots only, which IEEE 754 rounds the same everywhere; no libm.
 */
#ifndef QM_RANDOM_H
#define QM_RANDOM_H

#include "qm.h"

double qm_random_uniform(uint64_t seed, uint64_t i); /* in (0, 1), 53 bits */
double qm_random_normal(uint64_t seed, uint64_t i);  /* mean 0, deviation 1 */

/* dst[k] = value `first + k`, scaled: normal * std, or uniform in [low, high). */
void qm_random_fill_normal(float *dst, size_t n, uint64_t seed, uint64_t first, double mean, double std);
void qm_random_fill_uniform(float *dst, size_t n, uint64_t seed, uint64_t first, double low, double high);
/* Student's t with a whole number of degrees of freedom >= 1, scaled by std (not its own deviation). */
void qm_random_fill_student(float *dst, size_t n, uint64_t seed, uint64_t first, int freedom, double scale);

/* Fast normal-like bf16 values for synthetic checkpoints: sums of 4 uniforms of 16 bits (Irwin-Hall),
 * deviation std; value i as above. */
void qm_random_fill_bf16(uint16_t *dst, size_t n, uint64_t seed, uint64_t first, float std);

#endif
