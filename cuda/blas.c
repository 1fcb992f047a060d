/* blas.c: cuBLAS, opened at run time where it is installed: products with many tokens are its trade.
 *
 * Its interface is NVIDIA's cublas_v2.h: the few declarations that are used are made here, so that nothing of
 * it is needed to build. */
#include <dlfcn.h>
#include <stdlib.h>

#include "run.h"

typedef struct blas {
    void *library, *handle;
    int (*destroy)(void *);
    int (*gemm)(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a,
                int atype, int lda, const void *b, int btype, int ldb, const void *beta, void *c, int ctype,
                int ldc, int compute, int algorithm);
    float *one;      /* 0 and 1, on the GPU */
    void *workspace; /* of ours: so it is counted, and none is taken while a step is captured */
} blas;

enum { OP_N, OP_T };                                          /* cublasOperation_t */
enum { R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68 }; /* cudaDataType, cublasComputeType_t */
enum { POINTERS_ON_DEVICE = 1, DEFAULT_ALGORITHM = -1 };      /* cublasPointerMode_t, cublasGemmAlgo_t */

static void *open_library(void)
{
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12"};
    for (int i = 0; i < 2; i++) {
        void *l = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (l)
            return l;
    }
    return NULL;
}

static bool open_blas(qm_cuda *d, blas *b)
{
    int (*create)(void **), (*set_stream)(void *, cudaStream_t), (*set_mode)(void *, int),
        (*workspace)(void *, void *, size_t);
    if (!(b->library = open_library()))
        return false;
    *(void **)&create = dlsym(b->library, "cublasCreate_v2");
    *(void **)&set_stream = dlsym(b->library, "cublasSetStream_v2");
    *(void **)&set_mode = dlsym(b->library, "cublasSetPointerMode_v2");
    *(void **)&workspace = dlsym(b->library, "cublasSetWorkspace_v2");
    *(void **)&b->destroy = dlsym(b->library, "cublasDestroy_v2");
    *(void **)&b->gemm = dlsym(b->library, "cublasGemmEx");
    const float constants[2] = {0, 1};
    qm_err ignored = {0};
    return create && set_stream && set_mode && workspace && b->destroy && b->gemm && create(&b->handle) == 0
           && set_stream(b->handle, d->stream) == 0 && set_mode(b->handle, POINTERS_ON_DEVICE) == 0
           && (b->workspace = qm_cuda_alloc(d, QM_BLAS_WORKSPACE, &ignored)) != NULL
           && workspace(b->handle, b->workspace, QM_BLAS_WORKSPACE) == 0
           && (b->one = qm_cuda_alloc(d, sizeof constants, &ignored)) != NULL
           && qm_cuda_upload(d, b->one, constants, sizeof constants, &ignored);
}

bool qm_cuda_has_blas(qm_cuda *d)
{
    qm_cuda_ops *o = d->ops;
    if (o->blas_sought)
        return o->blas != NULL;
    o->blas_sought = true;
    blas *b = calloc(1, sizeof *b);
    if (b && open_blas(d, b)) {
        o->blas = b;
        return true;
    }
    free(b);
    return false;
}

void qm_cuda_blas_close(qm_cuda *d)
{
    blas *b = d->ops->blas;
    if (!b)
        return;
    b->destroy(b->handle);
    qm_cuda_free(d, b->one);
    qm_cuda_free(d, b->workspace);
    free(b);
    d->ops->blas = NULL;
}

/* In the library's columns: y (rows x tokens) = w^T (rows x cols) x (cols x tokens). */
bool qm_cuda_blas(qm_cuda *d, const void *w, qm_dtype dtype, uint32_t rows, uint32_t cols, const void *x,
                  uint32_t tokens, const float *alpha, bool accumulate, float *y, uint32_t stride, qm_err *e)
{
    if (!qm_cuda_has_blas(d))
        return qm_fail(e, QM_EUNSUPPORTED, "%s: cuBLAS is not installed", d->device.name);
    blas *b = d->ops->blas;
    int type = dtype == QM_F32 ? R_32F : dtype == QM_F16 ? R_16F : R_16BF;
    int r = b->gemm(b->handle, OP_T, OP_N, (int)rows, (int)tokens, (int)cols, alpha ? alpha : b->one + 1, w,
                    type, (int)cols, x, type, (int)cols, b->one + accumulate, y, R_32F, (int)stride,
                    COMPUTE_32F, DEFAULT_ALGORITHM);
    return r == 0
           || qm_fail(e, QM_EFAIL, "%s: cuBLAS failed with %d multiplying %u x %u by %u tokens",
                      d->device.name, r, rows, cols, tokens);
}
