/* plain.cuh: f32, f16 and bf16 into each other, as core/half.h rounds them. */
#ifndef QM_PLAIN_CUH
#define QM_PLAIN_CUH

enum { PLAIN_THREADS = 256 };

/* Not by the GPU's own instructions: those do not keep what a NaN says. */
template <qm_dtype D> __device__ inline uint32_t exact_pair(float low, float high)
{
    if constexpr (D == QM_F16)
        return qm_f32_to_f16(low) | (uint32_t)qm_f32_to_f16(high) << 16;
    return qm_f32_to_bf16(low) | (uint32_t)qm_f32_to_bf16(high) << 16;
}

template <qm_dtype D> __device__ inline float exact_value(eight<D> v, int i)
{
    if constexpr (D == QM_F32)
        return __uint_as_float((&v.part[i / 4].x)[i % 4]);
    uint16_t h = (uint16_t)((&v.part[0].x)[i / 2] >> 16 * (i % 2));
    return D == QM_F16 ? qm_f16_to_f32(h) : qm_bf16_to_f32(h);
}

template <qm_dtype FROM, qm_dtype TO>
__global__ void __launch_bounds__(PLAIN_THREADS) convert(const void *__restrict__ x, uint64_t n, void *__restrict__ y)
{
    const uint64_t i = (uint64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x, vectors = n / 8;
    if (i < vectors) {
        eight<FROM> v = load_eight<FROM>(x, i);
        eight<TO> w;
#pragma unroll
        for (int k = 0; k < 8; k++)
            if constexpr (TO == QM_F32)
                (&w.part[k / 4].x)[k % 4] = __float_as_uint(exact_value(v, k));
            else if (k % 2 == 0)
                (&w.part[0].x)[k / 2] = exact_pair<TO>(exact_value(v, k), exact_value(v, k + 1));
#pragma unroll
        for (int k = 0; k < eight<TO>::PARTS; k++)
            __stcs((uint4 *)y + i * eight<TO>::PARTS + k, w.part[k]);
    }
    if (i < n % 8)
        store_one(y, TO, vectors * 8 + i, load_one(x, FROM, vectors * 8 + i));
}

template <qm_dtype FROM>
static cudaError_t convert_from(const void *x, uint64_t n, void *y, qm_dtype to, cudaStream_t s)
{
    unsigned grid = (unsigned)((n / 8 + PLAIN_THREADS) / PLAIN_THREADS);
    switch (to) {
    case QM_F32: convert<FROM, QM_F32><<<grid, PLAIN_THREADS, 0, s>>>(x, n, y); break;
    case QM_F16: convert<FROM, QM_F16><<<grid, PLAIN_THREADS, 0, s>>>(x, n, y); break;
    case QM_BF16: convert<FROM, QM_BF16><<<grid, PLAIN_THREADS, 0, s>>>(x, n, y); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t qm_convert(const void *x, qm_dtype from, uint64_t n, void *y, qm_dtype to, cudaStream_t s)
{
    switch (from) {
    case QM_F32: return convert_from<QM_F32>(x, n, y, to, s);
    case QM_F16: return convert_from<QM_F16>(x, n, y, to, s);
    case QM_BF16: return convert_from<QM_BF16>(x, n, y, to, s);
    default: return cudaErrorInvalidValue;
    }
}

#endif
