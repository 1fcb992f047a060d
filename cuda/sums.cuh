/* sums.cuh: error sums of one tensor against another, and largest magnitudes, in one reading.
 *
 * Eight values in a row are multiplied and added in f32 (which costs the eighth digit of the result), all
 * further sums are in double.  Where f32 would overflow, or squares fall below its normal numbers, or there is
 * a NaN, those eight are done in double as well.
 *
 * Each run of QM_SUMS_RUN values is added up by one block of threads, in an order that depends on nothing
 * else: a thread takes every 256th vector of eight, then threads are added in pairs, then warps in order.
 * Runs are added in the same way at the end. */
#ifndef QM_SUMS_CUH
#define QM_SUMS_CUH

enum { SUMS_THREADS = 256 };

/* With d = y - x; sums of x*y and y*y follow from these, as in core/vec.c. */
struct sums {
    double xx, xd, dd, d;
    uint32_t max_d, max_x; /* bits of magnitudes, which order them; a NaN is the largest of all */

    __device__ void add_value(float x, float y)
    {
        double a = x, off = y - a;
        xx = __fma_rn(a, a, xx);
        xd = __fma_rn(a, off, xd);
        dd = __fma_rn(off, off, dd);
        d += off;
        max_d = max(max_d, __float_as_uint(y - x) & 0x7fffffffu);
        max_x = max(max_x, __float_as_uint(x) & 0x7fffffffu);
    }

    /* False, and nothing is added, where that would not do. */
    __device__ bool add_eight(const float x[8], const float y[8])
    {
        float vxx = 0, vxd = 0, vdd = 0, vd = 0, most_x = 0, most_d = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float off = y[k] - x[k];
            vxx = __fmaf_rn(x[k], x[k], vxx);
            vxd = __fmaf_rn(x[k], off, vxd);
            vdd = __fmaf_rn(off, off, vdd);
            vd += off;
            most_x = fmaxf(most_x, fabsf(x[k]));
            most_d = fmaxf(most_d, fabsf(off));
        }
        bool will_do = most_x >= 0x1p-40f && vxx + vdd < 0x1p120f;
        if (will_do)
            add_sums({vxx, vxd, vdd, vd, __float_as_uint(most_d), __float_as_uint(most_x)});
        return will_do;
    }

    __device__ void add_sums(sums o)
    {
        xx += o.xx, xd += o.xd, dd += o.dd, d += o.d;
        max_d = max(max_d, o.max_d), max_x = max(max_x, o.max_x);
    }
};

/* All threads' sums; thread 0 has them. */
__device__ inline sums sums_of_threads(sums s)
{
    __shared__ sums warp[SUMS_THREADS / 32];
    for (int half = 16; half; half /= 2) {
        s.add_sums({__shfl_down_sync(~0u, s.xx, half), __shfl_down_sync(~0u, s.xd, half),
                    __shfl_down_sync(~0u, s.dd, half), __shfl_down_sync(~0u, s.d, half),
                    __shfl_down_sync(~0u, s.max_d, half), __shfl_down_sync(~0u, s.max_x, half)});
    }
    if (threadIdx.x % 32 == 0)
        warp[threadIdx.x / 32] = s;
    __syncthreads();
    for (int i = 1; i < SUMS_THREADS / 32 && threadIdx.x == 0; i++)
        s.add_sums(warp[i]);
    return s;
}

/* What the second tensor's values come from, seen from vector `start` on: fetch brings vector start + i into
 * registers, get decodes it. */
template <qm_dtype D> struct plain_values {
    typedef eight<D> raw;
    struct tables {};
    const void *y;
    __device__ void prepare(tables &) const {}
    __device__ raw fetch(uint64_t start, uint32_t i) const { return load_eight<D>(y, start + i); }
    __device__ void get(const tables &, raw v, float x[8]) const { unpack(v, x); }
    __device__ float one(const tables &, uint64_t i) const { return load_one(y, D, i); }
};

template <bool NESTED> struct nibble_values {
    struct raw {
        uint32_t word;
        scale_bytes<NESTED> scale;
    };
    typedef nibble_tables tables;
    qm_nibbles q;
    uint32_t shift; /* vector of eight -> group; a run begins with one */
    __device__ void prepare(tables &t) const { fill_tables<NESTED>(t, q); }
    __device__ raw fetch(uint64_t start, uint32_t i) const
    {
        return {__ldg((const uint32_t *)q.codes + start + i), load_scale<NESTED>(q, (start >> shift) + (i >> shift))};
    }
    __device__ void get(const tables &t, raw r, float x[8]) const
    {
        float scale = scale_of(t, q, r.scale);
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = nibble_value(t, r.word, k, scale);
    }
    __device__ float one(const tables &t, uint64_t i) const
    {
        return nibble_value(t, q.codes[i / 2], i % 2, scale_of(t, q, load_scale<NESTED>(q, i / 8 >> shift)));
    }
};

/* Two vectors of a thread, on their way. */
template <qm_dtype D, class Y> struct fetched {
    eight<D> x[2];
    typename Y::raw y[2];

    __device__ void fetch(const void *values, const Y &other, uint64_t first, uint32_t i, uint32_t here)
    {
#pragma unroll
        for (int u = 0; u < 2; u++)
            if (i + u * SUMS_THREADS < here) {
                x[u] = load_eight<D>(values, first + i + u * SUMS_THREADS);
                y[u] = other.fetch(first, i + u * SUMS_THREADS);
            }
    }
};

template <qm_dtype D, class Y>
__global__ void __launch_bounds__(SUMS_THREADS, 3)
    sums_of_run(const void *__restrict__ x, const __grid_constant__ Y y, uint64_t n, sums *partial)
{
    __shared__ typename Y::tables t;
    const uint64_t first = (uint64_t)blockIdx.x * (QM_SUMS_RUN / 8), vectors = n / 8;
    const uint32_t here = vectors - first < QM_SUMS_RUN / 8 ? (uint32_t)(vectors - first) : QM_SUMS_RUN / 8;
    fetched<D, Y> now, next;
    now.fetch(x, y, first, threadIdx.x, here);
    y.prepare(t);
    sums s = {};
    for (uint32_t i = threadIdx.x; i < here; i += 2 * SUMS_THREADS) {
        next.fetch(x, y, first, i + 2 * SUMS_THREADS, here);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            uint32_t at = i + u * SUMS_THREADS;
            float a[8], b[8];
            unpack(now.x[u], a);
            y.get(t, now.y[u], b);
            if (at < here && !s.add_eight(a, b))
#pragma unroll 1
                for (int k = 0; k < 8; k++)
                    s.add_value(load_one(x, D, (first + at) * 8 + k), y.one(t, (first + at) * 8 + k));
        }
        now = next;
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x < n % 8) /* what does not fill a vector */
        s.add_value(load_one(x, D, vectors * 8 + threadIdx.x), y.one(t, vectors * 8 + threadIdx.x));
    s = sums_of_threads(s);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = s;
}

static __global__ void __launch_bounds__(SUMS_THREADS)
    sums_of_partials(const sums *partial, uint64_t runs, uint64_t n, qm_errsum *sum)
{
    sums s = {};
    for (uint64_t i = threadIdx.x; i < runs; i += SUMS_THREADS)
        s.add_sums(partial[i]);
    s = sums_of_threads(s);
    if (threadIdx.x == 0)
        *sum = {s.xx, s.xx + 2 * s.xd + s.dd,         s.xx + s.xd,               s.dd,
                s.d,  __uint_as_float(s.max_d), __uint_as_float(s.max_x), n};
}

uint64_t qm_sums_scratch(uint64_t n) { return (n + QM_SUMS_RUN - 1) / QM_SUMS_RUN * sizeof(sums); }

void *qm_sums_at(void *partial, uint64_t i) { return (sums *)partial + i / QM_SUMS_RUN; }

cudaError_t qm_sums_finish(const void *partial, uint64_t n, qm_errsum *sum, cudaStream_t s)
{
    sums_of_partials<<<1, SUMS_THREADS, 0, s>>>((const sums *)partial, (n + QM_SUMS_RUN - 1) / QM_SUMS_RUN, n, sum);
    return cudaGetLastError();
}

template <class Y>
static cudaError_t launch_sums(const void *x, qm_dtype dtype, Y y, uint64_t n, void *partial, cudaStream_t s)
{
    unsigned runs = (unsigned)((n + QM_SUMS_RUN - 1) / QM_SUMS_RUN);
    switch (dtype) {
    case QM_F32: sums_of_run<QM_F32, Y><<<runs, SUMS_THREADS, 0, s>>>(x, y, n, (sums *)partial); break;
    case QM_F16: sums_of_run<QM_F16, Y><<<runs, SUMS_THREADS, 0, s>>>(x, y, n, (sums *)partial); break;
    case QM_BF16: sums_of_run<QM_BF16, Y><<<runs, SUMS_THREADS, 0, s>>>(x, y, n, (sums *)partial); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t qm_sums_plain(const void *x, qm_dtype dtype, const void *y, qm_dtype other, uint64_t n,
                          void *partial, cudaStream_t s)
{
    switch (other) {
    case QM_F32: return launch_sums(x, dtype, plain_values<QM_F32>{y}, n, partial, s);
    case QM_F16: return launch_sums(x, dtype, plain_values<QM_F16>{y}, n, partial, s);
    case QM_BF16: return launch_sums(x, dtype, plain_values<QM_BF16>{y}, n, partial, s);
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t qm_sums_nibbles(const void *x, qm_dtype dtype, const qm_nibbles *q, uint64_t n,
                            void *partial, cudaStream_t s)
{
    uint32_t shift = 0;
    while (q->block >> shift > 8)
        shift++;
    return q->nested ? launch_sums(x, dtype, nibble_values<true>{*q, shift}, n, partial, s)
                     : launch_sums(x, dtype, nibble_values<false>{*q, shift}, n, partial, s);
}

/* ---- largest magnitude -------------------------------------------------------------------------- */

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
