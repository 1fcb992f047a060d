/* extras.h: what a job's steps and sinks need on the GPU, matrices, rows and importances, travels with each parcel
 * (core/courier.h), behind the source's bytes:
 *
 *     | source: c->raw bytes | two arrays of every step | importances of every sink that has some |
 *
 * each at a multiple of QM_COURIER_ALIGN. */
#ifndef QM_CUDA_EXTRAS_H
#define QM_CUDA_EXTRAS_H

#include <cuda_runtime_api.h>

#include "../core/courier.h"

/* Whether a sink is encoded by importances. */
bool qm_by_importance(const qm_sink *s);

/* Bytes for `rows` rows from `row` on; row < 0: the most it can be for any. */
uint64_t qm_extras_size(const qm_job *job, int64_t row, int64_t rows);

/* Fills them in; here: where the parcel's bytes begin in this machine's memory. */
void qm_extras_bring(const qm_parcel *c, uint8_t *here);

/* All steps, on x [rows x cols]; there: where the parcel's bytes begin on the GPU. */
cudaError_t qm_extras_steps(const qm_parcel *c, uint8_t *there, float *x, cudaStream_t s);

/* A sink's importances, from the matrix that the parcel's first row is in. */
const float *qm_extras_importance(const qm_parcel *c, int sink, const uint8_t *there);

#endif
