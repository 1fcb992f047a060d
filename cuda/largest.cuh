/* largest.cuh: the largest magnitude of a tensor, in one reading. */
#ifndef QM_LARGEST_CUH
#define QM_LARGEST_CUH

__device__ inline uint32_t larger_number(uint32_t most, float x)
{
    uint32_t m = __float_as_uint(x) & 0x7fffffffu;
    return m <= 0x7f800000u ? max(most, m) : most;
}

enum { LARGEST_THREADS = 256, LARGEST_VECTORS = 4 };

template <qm_dtype D>
__global__ void __launch_bounds__(LARGEST_THREADS) largest_of(const void *__restrict__ x, uint64_t n, uint32_t *most)
{
    const uint64_t first = (uint64_t)blockIdx.x * LARGEST_VECTORS * LARGEST_THREADS + threadIdx.x, vectors = n / 8;
    eight<D> v[LARGEST_VECTORS];
    uint32_t mine = 0;
#pragma unroll
    for (int u = 0; u < LARGEST_VECTORS; u++)
        v[u] = first + u * LARGEST_THREADS < vectors ? load_eight<D>(x, first + u * LARGEST_THREADS) : eight<D>{};
#pragma unroll
    for (int u = 0; u < LARGEST_VECTORS; u++) {
        float each[8];
        unpack(v[u], each);
#pragma unroll
        for (int k = 0; k < 8; k++)
            mine = larger_number(mine, each[k]);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 8)
        mine = larger_number(mine, load_one(x, D, vectors * 8 + threadIdx.x));
    for (int mask = 16; mask; mask /= 2)
        mine = max(mine, __shfl_xor_sync(~0u, mine, mask));
    if (threadIdx.x % 32 == 0 && mine > *(volatile uint32_t *)most)
        atomicMax(most, mine);
}

cudaError_t qm_largest(const void *x, qm_dtype dtype, uint64_t n, uint32_t *most, cudaStream_t s)
{
    uint64_t each = 8 * LARGEST_VECTORS * LARGEST_THREADS;
    unsigned grid = (unsigned)((n + each - 1) / each);
    switch (n ? dtype : QM_DTYPE_COUNT) {
    case QM_F32: largest_of<QM_F32><<<grid, LARGEST_THREADS, 0, s>>>(x, n, most); break;
    case QM_F16: largest_of<QM_F16><<<grid, LARGEST_THREADS, 0, s>>>(x, n, most); break;
    case QM_BF16: largest_of<QM_BF16><<<grid, LARGEST_THREADS, 0, s>>>(x, n, most); break;
    default: return n ? cudaErrorInvalidValue : cudaSuccess;
    }
    return cudaGetLastError();
}

#endif
