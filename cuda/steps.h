/* steps.h: what steps.cu has; each call puts its work on the stream, as those of kernels.h do.  Matrices are
 * row-major f32. */
#ifndef QM_CUDA_STEPS_H
#define QM_CUDA_STEPS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "../core/qm.h"
#include "../core/vec.h"

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t qm_steps_round(qm_round how, float *x, uint64_t n, cudaStream_t s);

/* left [rows x rank], right [rank x cols]; what is added is rounded to `delta` before, the sum to `after`. */
cudaError_t qm_steps_low_rank(const float *left, const float *right, uint32_t rank, float scale,
                              qm_round delta, qm_round after, float *x, uint64_t rows, uint64_t cols,
                              cudaStream_t s);

/* Every row gets the length `magnitude`; factor: rows floats of scratch.  And every column, whose norms are known. */
cudaError_t qm_steps_dora_rows(const float *magnitude, float *factor, qm_round after, float *x, uint64_t rows,
                               uint64_t cols, cudaStream_t s);
cudaError_t qm_steps_dora_columns(const float *magnitude, const float *norm, qm_round after, float *x,
                                  uint64_t rows, uint64_t cols, cudaStream_t s);

/* Row i of values becomes row row[i] of x, for `n` of them; QM_NO_ROW for none. */
#define QM_NO_ROW 0xffffffffu
cudaError_t qm_steps_rows(const float *values, const uint32_t *row, uint64_t n, float *x, uint64_t cols,
                          cudaStream_t s);

/* Of heads of `head` rows each, in which the two halves' rows take turns, the first half and then the second. */
cudaError_t qm_steps_part_heads(const float *x, float *y, uint64_t rows, uint64_t cols, uint64_t head,
                                cudaStream_t s);

/* *first becomes the index of the first NaN or infinity if that is less. */
cudaError_t qm_steps_nonfinite(const void *x, qm_dtype t, uint64_t n, uint64_t *first, cudaStream_t s);

/* As qm_vec.errors, to the bit, of every `each` values by themselves: sum[i] is of chunk i.  y: NULL for x itself. */
uint64_t qm_steps_errors_scratch(uint64_t n, uint64_t each);
cudaError_t qm_steps_errors(const void *x, qm_dtype t, const float *y, uint64_t n, uint64_t each,
                            void *scratch, qm_errsum *sum, cudaStream_t s);

/* As qm_vec.group_sums. */
cudaError_t qm_steps_group_sums(const void *x, qm_dtype t, const float *y, uint64_t n, uint32_t block,
                                qm_groupsum *group, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
