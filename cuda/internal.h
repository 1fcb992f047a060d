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

/* f32, f16 or bf16 when those are what a format holds, or QM_DTYPE_COUNT; f may be NULL. */
static inline qm_dtype qm_cuda_plain_type(const qm_format *f)
{
    qm_dtype d = f && f->block == 1 && !f->made ? f->plane[0].dtype : QM_DTYPE_COUNT;
    return d == QM_F32 || d == QM_F16 || d == QM_BF16 ? d : QM_DTYPE_COUNT;
}

/* Memory on a stream: there for what is put on it between these two. */
void *qm_cuda_scratch(qm_cuda *d, cudaStream_t s, uint64_t size, qm_err *e);
void qm_cuda_unscratch(void *p, cudaStream_t s); /* NULL is fine */

/* Whether there are kernels for a format in such groups. */
bool qm_cuda_can_code(const qm_format *f, const qm_codec *c);

/* The second level of qm_cuda_encode_double, from f32 scales that are there. */
bool qm_cuda_encode_scales(qm_cuda_stream *s, const float *absmax, uint64_t groups, const qm_cuda_coded *to,
                           bool offset_given, float *offset, qm_err *e);

/* As qm_cuda_errors, with the sums on the GPU, and without waiting. */
bool qm_cuda_errors_start(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b,
                          uint64_t n, qm_errsum *there, qm_err *e);

/* Couriers (courier.c). */
struct qm_job;
bool qm_cuda_courier_takes(const struct qm_job *job);
qm_courier *qm_cuda_courier_new(qm_device *device, qm_err *e);
uint64_t qm_cuda_courier_memory(const struct qm_job *job, uint64_t n, uint64_t *pinned);

/* Tensors (tensor.c): fills in the table that core/tensor.c asks. */
void qm_cuda_tensor_table(qm_device *device);

#endif
