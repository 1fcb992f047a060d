/* rows.cuh: int8, one block of threads to a row.  It is read once, and kept as f16 between finding its absmax and
 * encoding it: in registers, or in shared memory, or if it is too long for that it is read again. */
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

__device__ inline void store_codes(uint8_t *codes, uint64_t at, uint4 h, float scale)
{
    __stcs((uint2 *)codes + at, make_uint2(int8_codes(h.x, h.y, scale), int8_codes(h.z, h.w, scale)));
}

/* Rows of up to U vectors a thread. */
template <qm_dtype D, int U>
__global__ void __launch_bounds__(ROW_THREADS)
    int8_encode(const void *__restrict__ x, uint32_t vectors, uint8_t *__restrict__ codes, float *__restrict__ absmax)
{
    const uint64_t row = (uint64_t)blockIdx.x * vectors;
    uint4 kept[U];
    eight<D> v[U];
#pragma unroll
    for (int u = 0; u < U; u++)
        v[u] = threadIdx.x + u * blockDim.x < vectors ? load_eight<D>(x, row + threadIdx.x + u * blockDim.x) : eight<D>{};
    magnitude<QM_F16> m = magnitude<QM_F16>::of_words({});
#pragma unroll
    for (int u = 0; u < U; u++) {
        kept[u] = as_halves(v[u]);
        m = m.join(magnitude<QM_F16>::of_words(kept[u]));
    }
    float most = row_absmax(m), scale = 127.0f * qm_rcp(most);
    if (threadIdx.x == 0)
        absmax[blockIdx.x] = most;
#pragma unroll
    for (int u = 0; u < U; u++)
        if (threadIdx.x + u * blockDim.x < vectors)
            store_codes(codes, row + threadIdx.x + u * blockDim.x, kept[u], scale);
}

template <qm_dtype D>
__global__ void __launch_bounds__(ROW_THREADS)
    int8_encode_long(const void *__restrict__ x, uint32_t vectors, uint8_t *__restrict__ codes, float *__restrict__ absmax)
{
    extern __shared__ uint4 kept[];
    const uint64_t row = (uint64_t)blockIdx.x * vectors;
    magnitude<QM_F16> m = magnitude<QM_F16>::of_words({});
    for (uint32_t i = threadIdx.x; i < vectors; i += blockDim.x) {
        uint4 h = as_halves(load_eight<D>(x, row + i));
        if (vectors <= ROW_KEPT)
            kept[i] = h;
        m = m.join(magnitude<QM_F16>::of_words(h));
    }
    float most = row_absmax(m), scale = 127.0f * qm_rcp(most);
    if (threadIdx.x == 0)
        absmax[blockIdx.x] = most;
    for (uint32_t i = threadIdx.x; i < vectors; i += blockDim.x) /* each thread has kept its own */
        store_codes(codes, row + i, vectors <= ROW_KEPT ? kept[i] : as_halves(load_eight<D>(x, row + i)), scale);
}

template <qm_dtype D>
static cudaError_t launch_int8(const void *x, uint64_t rows, uint32_t cols, uint8_t *codes, float *absmax,
                               cudaStream_t s)
{
    uint32_t vectors = cols / 8, threads = vectors < 2 * ROW_THREADS ? (vectors + 63) / 64 * 32 : ROW_THREADS;
    unsigned grid = (unsigned)rows;
    if (vectors <= 2 * threads)
        int8_encode<D, 2><<<grid, threads, 0, s>>>(x, vectors, codes, absmax);
    else if (vectors <= 4 * threads)
        int8_encode<D, 4><<<grid, threads, 0, s>>>(x, vectors, codes, absmax);
    else if (vectors <= 8 * threads)
        int8_encode<D, 8><<<grid, threads, 0, s>>>(x, vectors, codes, absmax);
    else
        int8_encode_long<D><<<grid, threads, vectors <= ROW_KEPT ? vectors * sizeof(uint4) : 0, s>>>(x, vectors, codes, absmax);
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

/* ---- decoding ------------------------------------------------------------------------------------ */

template <qm_dtype D> __device__ inline void store_eight(void *y, uint64_t i, const float v[8])
{
    if constexpr (D == QM_F32) {
        __stcs((float4 *)y + 2 * i, make_float4(v[0], v[1], v[2], v[3]));
        __stcs((float4 *)y + 2 * i + 1, make_float4(v[4], v[5], v[6], v[7]));
    } else {
        __stcs((uint4 *)y + i, make_uint4(pack_pair<D>(v[0], v[1]), pack_pair<D>(v[2], v[3]), pack_pair<D>(v[4], v[5]),
                                          pack_pair<D>(v[6], v[7])));
    }
}

/* A row to each block.y of threads. */
template <qm_dtype D>
__global__ void __launch_bounds__(ROW_THREADS)
    int8_decode(const uint8_t *__restrict__ codes, const float *__restrict__ absmax, uint64_t rows, uint32_t vectors,
                void *__restrict__ y)
{
    for (uint64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float scale = absmax[row];
        for (uint32_t i = blockIdx.x * ROW_THREADS + threadIdx.x; i < vectors; i += gridDim.x * ROW_THREADS) {
            uint2 w = __ldcs((const uint2 *)codes + row * vectors + i);
            float v[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = qm_int8_value((int8_t)((k < 4 ? w.x : w.y) >> 8 * (k % 4)), scale);
            store_eight<D>(y, row * vectors + i, v);
        }
    }
}

cudaError_t qm_int8_decode(const uint8_t *codes, const float *absmax, uint64_t rows, uint32_t cols, void *y,
                           qm_dtype dtype, cudaStream_t s)
{
    uint32_t vectors = cols / 8;
    dim3 grid((vectors + ROW_THREADS - 1) / ROW_THREADS, rows < 65535 ? (unsigned)rows : 65535);
    switch (dtype) {
    case QM_F32: int8_decode<QM_F32><<<grid, ROW_THREADS, 0, s>>>(codes, absmax, rows, vectors, y); break;
    case QM_F16: int8_decode<QM_F16><<<grid, ROW_THREADS, 0, s>>>(codes, absmax, rows, vectors, y); break;
    case QM_BF16: int8_decode<QM_BF16><<<grid, ROW_THREADS, 0, s>>>(codes, absmax, rows, vectors, y); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

#endif
