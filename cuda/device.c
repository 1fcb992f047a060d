/* device.c: opening GPUs, their memory, streams and copies; see cuda.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/rcp.h"
#include "kernels.h"
#include "run.h"

void qm_cuda_enter(const qm_cuda *d) { cudaSetDevice(d->info.index); }

/* ---- errors ------------------------------------------------------------------------------------- */

/* Most errors pass; these leave the process without a GPU. */
static bool is_final(cudaError_t r)
{
    return r == cudaErrorIllegalAddress || r == cudaErrorLaunchFailure || r == cudaErrorAssert
           || r == cudaErrorHardwareStackError || r == cudaErrorIllegalInstruction
           || r == cudaErrorMisalignedAddress || r == cudaErrorECCUncorrectable;
}

bool qm_cuda_fail(const qm_cuda *d, cudaError_t r, const char *doing, qm_err *e)
{
    cudaGetLastError(); /* forget it: the next call is not to blame */
    if (r == cudaErrorMemoryAllocation) {
        size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        return qm_fail(e, QM_ENOFIT,
                       "%s: out of memory %s: %zu MiB of %zu are free; use smaller tensors or close some",
                       d->device.name, doing, free >> 20, total >> 20);
    }
    return qm_fail(e, QM_EFAIL, "%s: %s failed: %s%s", d->device.name, doing, cudaGetErrorString(r),
                   is_final(r) ? "; the GPU can be used again by a new process only" : "");
}

bool qm_cuda_check(const qm_cuda *d, cudaError_t r, const char *doing, qm_err *e)
{
    return r == cudaSuccess || qm_cuda_fail(d, r, doing, e);
}

/* ---- opening and closing ------------------------------------------------------------------------ */

static bool no_gpu(cudaError_t r, qm_err *e)
{
    cudaGetLastError();
    if (r == cudaErrorInsufficientDriver)
        return qm_fail(
            e, QM_EUNSUPPORTED,
            "no GPU: there is no NVIDIA driver, or it is too old for CUDA %d (nvidia-smi shows it)",
            CUDART_VERSION / 1000);
    return qm_fail(e, QM_EUNSUPPORTED, "no GPU: %s", cudaGetErrorString(r));
}

int qm_cuda_count(qm_err *e)
{
    int n = 0;
    cudaError_t r = cudaGetDeviceCount(&n);
    if (r == cudaSuccess)
        return n;
    no_gpu(r, e);
    return -1;
}

static bool read_info(qm_cuda *d, int index, qm_err *e)
{
    struct cudaDeviceProp p;
    if (!qm_cuda_check(d, cudaGetDeviceProperties(&p, index), "asking what it is", e))
        return false;
    qm_cuda_info *i = &d->info;
    snprintf(i->name, sizeof i->name, "%s", p.name);
    i->index = index;
    i->major = p.major;
    i->minor = p.minor;
    i->multiprocessors = p.multiProcessorCount;
    i->memory = p.totalGlobalMem;
    i->l2 = (uint64_t)p.l2CacheSize;
    cudaDriverGetVersion(&i->driver);
    cudaRuntimeGetVersion(&i->runtime);
    return true;
}

/* A pool of our own, which keeps what is given back until the GPU is closed, or memory runs out. */
static cudaError_t make_pool(qm_cuda *d)
{
    struct cudaMemPoolProps props = {.allocType = cudaMemAllocationTypePinned,
                                     .location = {cudaMemLocationTypeDevice, d->info.index}};
    uint64_t keep = UINT64_MAX;
    cudaError_t r = cudaMemPoolCreate(&d->pool, &props);
    return r ? r : cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrReleaseThreshold, &keep);
}

static cudaError_t make_staging(qm_cuda *d)
{
    cudaError_t r = cudaSuccess;
    for (int i = 0; i < QM_STAGES && !r; i++) {
        r = cudaMallocHost(&d->staging[i], QM_STAGING);
        if (!r)
            r = cudaEventCreateWithFlags(&d->staged[i], cudaEventDisableTiming);
    }
    return r;
}

static void close_gpu(qm_device *device)
{
    qm_cuda *d = (qm_cuda *)device;
    qm_cuda_enter(d);
    if (d->stream)
        cudaStreamSynchronize(d->stream);
    qm_cuda_ops_close(d);
    for (int i = 0; i < QM_STAGES; i++) {
        if (d->staging[i])
            cudaFreeHost(d->staging[i]);
        if (d->staged[i])
            cudaEventDestroy(d->staged[i]);
    }
    if (d->pool)
        cudaMemPoolDestroy(d->pool);
    if (d->stream)
        cudaStreamDestroy(d->stream);
    cudaGetLastError();
    free(d);
}

qm_cuda *qm_cuda_open(int index, qm_err *e)
{
    int n = qm_cuda_count(e);
    if (n < 0)
        return NULL;
    if (index < 0 || index >= n) {
        qm_fail(e, QM_EUSAGE, "cuda:%d: there is no such GPU; there are %d, counted from 0", index, n);
        return NULL;
    }
    qm_cuda *d = calloc(1, sizeof *d);
    if (!d) {
        qm_fail(e, QM_ENOFIT, "out of memory opening cuda:%d", index);
        return NULL;
    }
    d->info.index = index;
    d->device.refs = 1;
    d->device.close = close_gpu;
    snprintf(d->device.name, sizeof d->device.name, "cuda:%d", index);
    qm_cuda_tensor_table(&d->device);
    qm_cuda_enter(d);
    if (read_info(d, index, e)
        && qm_cuda_check(d, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "opening it", e)
        && qm_cuda_check(d, make_pool(d), "making a pool of its memory", e)
        && qm_cuda_check(d, make_staging(d), "taking pinned memory", e)
        && qm_cuda_check(d, qm_kernels_prepare(qm_rcp_deltas, &d->info.own_rcp, d->stream), "starting", e))
        return d;
    qm_device_unref(&d->device);
    return NULL;
}

qm_device *qm_cuda_device(qm_cuda *d) { return &d->device; }

qm_cuda *qm_cuda_of(qm_device *d) { return d && d->close == close_gpu ? (qm_cuda *)d : NULL; }

const qm_cuda_info *qm_cuda_get_info(const qm_cuda *d) { return &d->info; }

void qm_cuda_generic_only(qm_cuda *d, bool yes) { d->generic_only = yes; }

/* ---- memory ------------------------------------------------------------------------------------- */

bool qm_cuda_memory(qm_cuda *d, uint64_t *free, uint64_t *total, qm_err *e)
{
    size_t f, t;
    uint64_t reserved = 0, used = 0;
    qm_cuda_enter(d);
    if (!qm_cuda_check(d, cudaMemGetInfo(&f, &t), "asking for its memory", e))
        return false;
    cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrReservedMemCurrent, &reserved);
    cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemCurrent, &used);
    *free = f + (reserved - used);
    *total = t;
    return true;
}

bool qm_cuda_used(qm_cuda *d, uint64_t *used, uint64_t *most, uint64_t *held, qm_err *e)
{
    uint64_t from_now = 0;
    qm_cuda_enter(d);
    cudaError_t r = cudaStreamSynchronize(d->stream); /* what was freed there counts until it is reached */
    if (!r)
        r = cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemCurrent, used);
    if (!r)
        r = cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemHigh, most);
    if (!r)
        r = cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrReservedMemHigh, held);
    if (!r)
        r = cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrUsedMemHigh, &from_now);
    if (!r)
        r = cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrReservedMemHigh, &from_now);
    return qm_cuda_check(d, r, "asking for its memory", e);
}

void *qm_cuda_scratch(qm_cuda *d, cudaStream_t s, uint64_t size, qm_err *e)
{
    void *p = NULL;
    cudaError_t r = cudaMallocFromPoolAsync(&p, size ? size : 1, d->pool, s);
    if (r == cudaErrorMemoryAllocation) { /* what the pool keeps may lie in the wrong pieces */
        cudaGetLastError();
        cudaStreamSynchronize(s);
        cudaMemPoolTrimTo(d->pool, 0);
        r = cudaMallocFromPoolAsync(&p, size ? size : 1, d->pool, s);
    }
    if (r == cudaSuccess)
        return p;
    char doing[64];
    snprintf(doing, sizeof doing, "taking %" PRIu64 " MiB", size >> 20);
    qm_cuda_fail(d, r, doing, e);
    return NULL;
}

void qm_cuda_unscratch(void *p, cudaStream_t s)
{
    if (p)
        cudaFreeAsync(p, s);
}

void *qm_cuda_alloc(qm_cuda *d, uint64_t size, qm_err *e)
{
    qm_cuda_enter(d);
    void *p = qm_cuda_scratch(d, d->stream, size, e);
    if (p && !qm_cuda_check(d, cudaStreamSynchronize(d->stream), "taking memory", e)) {
        qm_cuda_unscratch(p, d->stream);
        return NULL;
    }
    return p; /* any stream may use it: all that came before on its own is done */
}

void qm_cuda_free(qm_cuda *d, void *p)
{
    qm_cuda_enter(d);
    qm_cuda_unscratch(p, d->stream);
}

void *qm_cuda_pinned_alloc(qm_cuda *d, uint64_t size, qm_err *e)
{
    void *p = NULL;
    qm_cuda_enter(d);
    cudaError_t r = cudaMallocHost(&p, size ? size : 1);
    if (r == cudaSuccess)
        return p;
    cudaGetLastError();
    qm_fail(e, QM_ENOFIT, "%s: %" PRIu64 " MiB of pinned memory cannot be had: %s", d->device.name,
            size >> 20, cudaGetErrorString(r));
    return NULL;
}

void qm_cuda_pinned_free(qm_cuda *d, void *p)
{
    qm_cuda_enter(d);
    cudaFreeHost(p);
}

/* ---- streams and copies ------------------------------------------------------------------------- */

qm_cuda_stream *qm_cuda_stream_new(qm_cuda *d, qm_err *e)
{
    qm_cuda_stream *s = calloc(1, sizeof *s);
    if (!s) {
        qm_fail(e, QM_ENOFIT, "%s: out of memory for a stream", d->device.name);
        return NULL;
    }
    qm_cuda_enter(d);
    if (!qm_cuda_check(d, cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking), "making a stream",
                       e)) {
        free(s);
        return NULL;
    }
    s->gpu = d;
    qm_device_ref(&d->device);
    return s;
}

void qm_cuda_stream_free(qm_cuda_stream *s)
{
    if (!s)
        return;
    qm_cuda_enter(s->gpu);
    cudaStreamSynchronize(s->handle);
    cudaStreamDestroy(s->handle);
    qm_device_unref(&s->gpu->device);
    free(s);
}

bool qm_cuda_wait(qm_cuda_stream *s, qm_err *e)
{
    qm_cuda_enter(s->gpu);
    return qm_cuda_check(s->gpu, cudaStreamSynchronize(s->handle), "work", e);
}

bool qm_cuda_copy(qm_cuda_stream *s, void *to, const void *from, uint64_t size, qm_err *e)
{
    qm_cuda_enter(s->gpu);
    return qm_cuda_check(s->gpu, cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, s->handle), "copying", e);
}

static uint64_t piece(uint64_t left) { return left < QM_STAGING ? left : QM_STAGING; }

/* The CPU fills one half of the staging memory while the GPU fetches the other. */
bool qm_cuda_upload(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e)
{
    cudaError_t r = cudaSuccess;
    qm_cuda_enter(d);
    for (uint64_t at = 0, turn = 0; at < size && !r; at += piece(size - at), turn++) {
        int i = (int)(turn % QM_STAGES);
        if (turn >= QM_STAGES)
            r = cudaEventSynchronize(d->staged[i]);
        memcpy(d->staging[i], (const char *)from + at, piece(size - at));
        if (!r)
            r = cudaMemcpyAsync((char *)to + at, d->staging[i], piece(size - at), cudaMemcpyHostToDevice,
                                d->stream);
        if (!r)
            r = cudaEventRecord(d->staged[i], d->stream);
    }
    cudaError_t last = cudaStreamSynchronize(d->stream);
    return qm_cuda_check(d, r ? r : last, "copying to it", e);
}

/* The same the other way: while piece k is on its way, piece k - 1 is taken out. */
bool qm_cuda_download(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e)
{
    cudaError_t r = cudaSuccess;
    uint64_t pieces = (size + QM_STAGING - 1) / QM_STAGING;
    qm_cuda_enter(d);
    for (uint64_t k = 0; k <= pieces && !r; k++) {
        uint64_t at = k * QM_STAGING, i = k % QM_STAGES, before = (k + 1) % QM_STAGES;
        if (k < pieces) {
            r = cudaMemcpyAsync(d->staging[i], (const char *)from + at, piece(size - at),
                                cudaMemcpyDeviceToHost, d->stream);
            if (!r)
                r = cudaEventRecord(d->staged[i], d->stream);
        }
        if (k == 0 || r)
            continue;
        at -= QM_STAGING;
        r = cudaEventSynchronize(d->staged[before]);
        if (!r)
            memcpy((char *)to + at, d->staging[before], piece(size - at));
    }
    cudaError_t last = cudaStreamSynchronize(d->stream);
    return qm_cuda_check(d, r ? r : last, "copying from it", e);
}
