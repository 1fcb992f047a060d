/* rows.cuh: int8, one block of threads to a row, which is read once and kept as f16 in shared memory where it
 * fits, between finding its absmax and encoding it. */
#ifndef QM_ROWS_CUH
#define QM_ROWS_CUH

enum { ROW_THREADS = 256, ROW_KEPT = 40 * 1024 / 16 }; /* vectors of eight f16 */

template <qm_dtype D> __device__ inline uint4 as_halves(eight<D> v)
{
    if constexpr (D == QM_F16)
        return v.part[0];
    float x[8];
    unpack(v, x);
    return make_uint4(pack_pair<QM_F16>(x[0], x[1]), pack_pair<QM_F16>(x[2], x[3]), pack_pair<QM_F16>(x[4], x[5]),
                      pack_pair<QM_F16>(x[6], x[7]));
}

/* The largest in the block of threads; of nothing but NaN, 0. */
__device__ inline float row_absmax(magnitude<QM_F16> m)
{
    __shared__ float most[ROW_THREADS / 32];
    float mine = among_lanes(m, 32).value();
    if (threadIdx.x % 32 == 0)
        most[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = 0;
    for (int i = 0; i < blockDim.x / 32; i++)
        mine = fmaxf(mine, most[i]);
    return mine;
}

/* The nearest whole number, as a byte; NaN gives 0.  See numeric.h: |v| < 127.5, and the sum's last byte is it. */
__device__ inline uint32_t int8_code(float x, float scale)
{
    float v = x * scale;
    return v == v ? __float_as_uint(v + 12582912.0f) & 255 : 0;
}

__device__ inline uint32_t int8_codes(uint32_t a, uint32_t b, float scale)
{
    float2 low = __half22float2(*(__half2 *)&a), high = __half22float2(*(__half2 *)&b);
    return int8_code(low.x, scale) | int8_code(low.y, scale) << 8 | int8_code(high.x, scale) << 16
           | int8_code(high.y, scale) << 24;
}

template <qm_dtype D>
__global__ void __launch_bounds__(ROW_THREADS)
    int8_encode(const void *__restrict__ x, uint32_t vectors, uint8_t *__restrict__ codes, float *__restrict__ absmax)
{
    extern __shared__ uint4 kept[];
    const uint64_t row = (uint64_t)blockIdx.x * vectors;
    magnitude<QM_F16> m = magnitude<QM_F16>::of_eight({});
    for (uint32_t i = threadIdx.x; i < vectors; i += blockDim.x) {
        uint4 h = as_halves(load_eight<D>(x, row + i));
        if (vectors <= ROW_KEPT)
            kept[i] = h;
        m = m.join(magnitude<QM_F16>::of_words(h));
    }
    float most = row_absmax(m), scale = 127.0f * qm_rcp(most);
    if (threadIdx.x == 0)
        absmax[blockIdx.x] = most;
    for (uint32_t i = threadIdx.x; i < vectors; i += blockDim.x) { /* each thread has kept its own */
        uint4 h = vectors <= ROW_KEPT ? kept[i] : as_halves(load_eight<D>(x, row + i));
        __stcs((uint2 *)codes + row + i, make_uint2(int8_codes(h.x, h.y, scale), int8_codes(h.z, h.w, scale)));
    }
}

template <qm_dtype D>
static cudaError_t launch_int8(const void *x, uint64_t rows, uint32_t cols, uint8_t *codes, float *absmax,
                               cudaStream_t s)
{
    uint32_t vectors = cols / 8, threads = vectors < ROW_THREADS ? (vectors + 31) / 32 * 32 : ROW_THREADS;
    size_t shared = vectors <= ROW_KEPT ? vectors * sizeof(uint4) : 0;
    int8_encode<D><<<(unsigned)rows, threads, shared, s>>>(x, vectors, codes, absmax);
    return cudaGetLastError();
}

cudaError_t qm_int8_encode(const void *x, qm_dtype dtype, uint64_t rows, uint32_t cols, uint8_t *codes,
                           float *absmax, cudaStream_t s)
{
    switch (dtype) {
    case QM_F32: return launch_int8<QM_F32>(x, rows, cols, codes, absmax, s);
    case QM_F16: return launch_int8<QM_F16>(x, rows, cols, codes, absmax, s);
    case QM_BF16: return launch_int8<QM_BF16>(x, rows, cols, codes, absmax, s);
    default: return cudaErrorInvalidValue;
    }
}

#endif
