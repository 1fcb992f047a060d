/* sums.cuh: error sums of one tensor against another, in one reading.
 *
 * Thirty-two values of a thread are multiplied and added in f32 (which costs the eighth digit of the result), all
 * further sums are in double.  Where f32 would overflow, or squares fall below its normal numbers, or there is a NaN,
 * those are done in double as well.
 *
 * Each run of QM_SUMS_RUN values is added up by one block of threads, in an order that depends on nothing else: a
 * thread takes its vectors of every tile (values.cuh), then threads are added in pairs, then warps in order.  Runs are
 * added in the same way at the end. */
#ifndef QM_SUMS_CUH
#define QM_SUMS_CUH

enum { SUMS_THREADS = VALUE_THREADS };

/* Sums of a few values in f32. */
struct few_sums {
    float xx, xd, dd, d;

    __device__ void add_eight(const float x[8], const float y[8], float &max_d)
    {
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float off = y[k] - x[k];
            xx = __fmaf_rn(x[k], x[k], xx);
            xd = __fmaf_rn(x[k], off, xd);
            dd = __fmaf_rn(off, off, dd);
            d += off;
            max_d = fmaxf(max_d, fabsf(off));
        }
    }
    __device__ bool will_do() const { return xx >= 0x1p-80f && xx + dd < 0x1p120f; }
};

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

    __device__ void add_few(few_sums f) { xx += f.xx, xd += f.xd, dd += f.dd, d += f.d; }
    __device__ void add_sums(sums o)
    {
        xx += o.xx, xd += o.xd, dd += o.dd, d += o.d;
        max_d = max(max_d, o.max_d), max_x = max(max_x, o.max_x);
    }
};

/* The largest magnitude among the values of a thread; NaN is passed over, or the largest. */
template <qm_dtype D> struct largest_magnitude {
    magnitude<D> most = magnitude<D>::of_eight(eight<D>{});

    __device__ void add(eight<D> v) { most = most.join(magnitude<D>::of_eight(v)); }
    __device__ uint32_t bits() const { return __float_as_uint(most.value()); }
};

/* As whole numbers, positive 16-bit values are in order, and so are negative ones by their magnitudes: each word has two,
 * and three words are compared at once. */
template <qm_dtype D> struct largest_of_words {
    uint32_t above = 0, below = 0;

    __device__ void add(eight<D> v)
    {
        const uint4 w = v.part[0];
        above = __vimax3_s16x2(__vimax3_s16x2(above, w.x, w.y), w.z, w.w);
        below = __vimax3_u16x2(__vimax3_u16x2(below, w.x, w.y), w.z, w.w);
    }
    __device__ uint32_t bits() const
    {
        uint32_t most = 0;
        for (int half = 0; half < 32; half += 16) {
            most = max(most, above >> half & 0xffff); /* never negative */
            if (below >> half & 0x8000)
                most = max(most, below >> half & 0x7fff);
        }
        return __float_as_uint(load_one(&most, D, 0));
    }
};

#if __CUDA_ARCH__ >= 900
template <> struct largest_magnitude<QM_F16> : largest_of_words<QM_F16> {};
template <> struct largest_magnitude<QM_BF16> : largest_of_words<QM_BF16> {};
#endif

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

/* A thread's vectors of a tile, the first of which begins at value `at`, each value in double. */
template <qm_dtype D, class Y>
static __device__ __noinline__ sums tile_with_care(const void *x, const Y &y, uint64_t at)
{
    sums s = {};
    for (uint32_t u = 0; u < 2; u++)
        for (uint64_t i = at + 8 * (Y::place() + u * Y::APART), end = i + 8; i < end; i++)
            s.add_value(load_one(x, D, i), y.one(i));
    return s;
}

/* A thread's part of a whole run.  Other warps compute while this one waits: to fetch ahead costs registers, and with them
 * warps, and was slower. */
template <qm_dtype D, class Y>
__device__ inline sums sums_of_thread(const void *x, const Y &y, typename Y::tables &t, uint64_t first)
{
    auto other = y.from(first);
    plain_run<D> own = {(const eight<D> *)x + first + Y::place(), Y::APART};
    largest_magnitude<D> max_x;
    float max_d = 0;
    sums s = {};
    struct {
        decltype(own.fetch()) x;
        decltype(other.fetch()) y;
    } even, odd;
    auto fetch = [&](auto &v) {
        v.x = own.fetch();
        v.y = other.fetch();
        own.next();
        other.next();
    };
    own.prefetch();
    const uint32_t known = other.prepare(t);
    auto add = [&](few_sums &f, const auto &v) {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            float a[8], b[8];
            unpack(v.x.v[u], a);
            other.get(t, known, v.y, u, b);
            f.add_eight(a, b, max_d);
            max_x.add(v.x.v[u]);
        }
    };
#pragma unroll 1
    for (uint32_t tile = 0; tile < RUN_VECTORS; tile += 2 * TILE_VECTORS) {
        few_sums f = {};
        fetch(even);
        fetch(odd);
        add(f, even);
        add(f, odd);
        if (f.will_do())
            s.add_few(f);
        else
            for (uint32_t k = 0; k < 2; k++)
                s.add_sums(tile_with_care<D>(x, y, (first + tile + k * TILE_VECTORS) * 8));
    }
    s.max_d = max(s.max_d, __float_as_uint(max_d));
    s.max_x = max(s.max_x, max_x.bits());
    return s;
}

/* Its part of less than a run, one value after another. */
template <qm_dtype D, class Y>
static __device__ __noinline__ sums sums_of_rest(const void *x, const Y &y, uint64_t first, uint64_t n)
{
    sums s = {};
    for (uint64_t i = first * 8 + threadIdx.x; i < n; i += SUMS_THREADS)
        s.add_value(load_one(x, D, i), y.one(i));
    return s;
}

template <qm_dtype D, class Y>
__global__ void __launch_bounds__(SUMS_THREADS, 4)
    sums_of_run(const void *__restrict__ x, const __grid_constant__ Y y, uint64_t n, sums *partial)
{
    __shared__ typename Y::tables t;
    const uint64_t first = (uint64_t)blockIdx.x * RUN_VECTORS;
    let_next_begin(); /* which waits for all of this one */
    sums s = n - first * 8 >= QM_SUMS_RUN ? sums_of_thread<D>(x, y, t, first) : sums_of_rest<D>(x, y, first, n);
    s = sums_of_threads(s);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = s;
}

static __global__ void __launch_bounds__(SUMS_THREADS)
    sums_of_partials(const sums *partial, uint64_t runs, uint64_t n, qm_errsum *sum)
{
    sums s = {};
    wait_for_previous();
#pragma unroll 8
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
    return launch(sums_of_partials, 1, SUMS_THREADS, 0, s, (const sums *)partial, (n + QM_SUMS_RUN - 1) / QM_SUMS_RUN, n, sum);
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

template <nibble_product P>
static cudaError_t sums_nibbles(const void *x, qm_dtype dtype, const qm_nibbles *q, uint64_t n, void *partial, cudaStream_t s)
{
    uint32_t shift = 0;
    while (q->block >> shift > 8)
        shift++;
    return q->nested ? launch_sums(x, dtype, nibble_values<P, true>{*q, shift}, n, partial, s)
                     : launch_sums(x, dtype, nibble_values<P, false>{*q, shift}, n, partial, s);
}

cudaError_t qm_sums_nibbles(const void *x, qm_dtype dtype, const qm_nibbles *q, uint64_t n,
                            void *partial, cudaStream_t s)
{
    return q->flush ? sums_nibbles<PRODUCT_FTZ>(x, dtype, q, n, partial, s)
           : q->zeros ? sums_nibbles<PRODUCT_OF_DIFFERENCE>(x, dtype, q, n, partial, s)
                      : sums_nibbles<PRODUCT>(x, dtype, q, n, partial, s);
}

cudaError_t qm_sums_int8(const void *x, qm_dtype dtype, const uint8_t *codes, const float *absmax, uint32_t cols, uint64_t n,
                         void *partial, cudaStream_t s)
{
    uint32_t vectors = cols / 8;
    return launch_sums(x, dtype, int8_values{codes, absmax, vectors, (uint32_t)(((1ull << 32) + vectors - 1) / vectors)}, n,
                       partial, s);
}

cudaError_t qm_sums_q8_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial, cudaStream_t s)
{
    return launch_sums(x, dtype, block_values<q8_0_code, true>{blocks}, n, partial, s);
}

cudaError_t qm_sums_q4_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial, cudaStream_t s)
{
    return launch_sums(x, dtype, block_values<q4_0_code, true>{blocks}, n, partial, s);
}

#endif
