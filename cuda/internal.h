/* internal.h: what the C files of cuda/ share. */
#ifndef QM_CUDA_INTERNAL_H
#define QM_CUDA_INTERNAL_H

#include <cuda_runtime_api.h>

#include "cuda.h"

enum { QM_STAGING = 8 << 20, QM_STAGES = 2 };

struct qm_cuda {
    qm_device device; /* first: a qm_device * of a GPU points here, too; counts the references */
    qm_cuda_info info;
    bool generic_only;
    cudaMemPool_t pool;
    cudaStream_t stream; /* of tensors */
    void *staging[QM_STAGES];
    cudaEvent_t staged[QM_STAGES]; /* the copy from or to it is done */
    struct qm_cuda_ops *ops;       /* run.h; NULL before the first op */
};

struct qm_cuda_stream {
    qm_cuda *gpu;
    cudaStream_t handle;
};

/* Makes this GPU the current one of the thread; nearly free when it is already. */
void qm_cuda_enter(const qm_cuda *d);

/* Records what CUDA says, for `doing` something on this GPU; false. */
bool qm_cuda_fail(const qm_cuda *d, cudaError_t r, const char *doing, qm_err *e);

/* True when r is success. */
bool qm_cuda_check(const qm_cuda *d, cudaError_t r, const char *doing, qm_err *e);

/* Memory on a stream: there for what is put on it between these two. */
void *qm_cuda_scratch(qm_cuda *d, cudaStream_t s, uint64_t size, qm_err *e);
void qm_cuda_unscratch(void *p, cudaStream_t s); /* NULL is fine */

/* Tensors (tensor.c): fills in the table that core/tensor.c asks. */
void qm_cuda_tensor_table(qm_device *device);

#endif
