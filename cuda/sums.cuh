/* sums.cuh: error sums of one tensor against another, and largest magnitudes, in one reading.
 *
 * Sixteen values of a thread are multiplied and added in f32 (which costs the eighth digit of the result), all
 * further sums are in double.  Where f32 would overflow, or squares fall below its normal numbers, or there is
 * a NaN, those sixteen are done in double as well.
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

    __device__ void add_sums(sums o)
    {
        xx += o.xx, xd += o.xd, dd += o.dd, d += o.d;
        max_d = max(max_d, o.max_d), max_x = max(max_x, o.max_x);
    }
};

/* Sums of a few values in f32. */
struct few_sums {
    float xx, xd, dd, d, max_d, max_x;

    /* most: the largest magnitude of x. */
    __device__ void add_eight(const float x[8], const float y[8], float most)
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
        max_x = fmaxf(max_x, most);
    }
    __device__ bool will_do() const { return max_x >= 0x1p-40f && xx + dd < 0x1p120f; }
    __device__ sums all() const { return {xx, xd, dd, d, __float_as_uint(max_d), __float_as_uint(max_x)}; }
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

/* What the second tensor's values come from.  from(start): the same, seen from vector `start` on; then fetch brings
 * vector start + i into registers, get decodes it.  one: a value, counted from the beginning. */
template <qm_dtype D> struct plain_values {
    typedef eight<D> raw;
    struct tables {};
    const void *y;
    __device__ uint32_t prepare(tables &) const { return 0; }
    __device__ plain_values from(uint64_t start) const { return {(const char *)y + start * sizeof(raw)}; }
    __device__ raw fetch(uint32_t i) const { return load_eight<D>(y, i); }
    __device__ void get(const tables &, uint32_t, raw v, float x[8]) const { unpack(v, x); }
    __device__ float one(const tables &, uint64_t i) const { return load_one(y, D, i); }
};

template <nibble_product P, bool NESTED> struct nibble_values {
    struct raw {
        uint32_t word;
        scale_bytes scale;
    };
    typedef nibble_tables tables;
    qm_nibbles q;
    uint32_t shift; /* vector of eight -> group; a run begins with one */
    const uint32_t *words;
    uint64_t group;
    /* What get wants to be told. */
    __device__ uint32_t prepare(tables &t) const
    {
        fill_tables<NESTED>(t, q);
        return levels_of_lane(t);
    }
    __device__ nibble_values from(uint64_t start) const
    {
        return {q, shift, (const uint32_t *)q.codes + start, start >> shift};
    }
    __device__ void get(const tables &t, uint32_t levels, raw r, float x[8]) const
    {
        group_scale<P> scale = scale_of<P, NESTED>(t, q, r.scale);
        nibble_levels level(r.word, levels);
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = scale.times(level[k]);
    }
    __device__ float one(const tables &t, uint64_t i) const
    {
        return scale_of<P, NESTED>(t, q, load_scale<P, NESTED>(q, i / 8 >> shift)).times(q.level[q.codes[i / 2] >> (i % 2 ? 0 : 4) & 15]);
    }
};

/* Rows of `vectors` eights; a quotient by that is taken by a product, since a run has few. */
struct int8_values {
    struct raw {
        uint2 codes;
        float scale;
    };
    struct tables {};
    const uint8_t *codes;
    const float *absmax;
    uint32_t vectors, inverse; /* 2^32 / vectors, rounded up */
    uint32_t begun;            /* vectors of the first row that are behind us */
    __device__ uint32_t prepare(tables &) const { return 0; }
    __device__ int8_values from(uint64_t start) const
    {
        uint64_t row = start / vectors;
        return {codes + start * 8, absmax + row, vectors, inverse, (uint32_t)(start - row * vectors)};
    }
    __device__ raw fetch(uint32_t i) const
    {
        uint32_t row = vectors > 1 ? __umulhi(begun + i, inverse) : i;
        return {__ldcs((const uint2 *)codes + i), absmax[row]};
    }
    __device__ void get(const tables &, uint32_t, raw r, float x[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k++) { /* a code and 128 are the low bits of a float of 2^23 and more */
            uint32_t w = (k < 4 ? r.codes.x : r.codes.y) ^ 0x80808080u;
            float code = __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440 + k % 4)) - 8388736.0f;
            x[k] = code * r.scale * QM_INT8_STEP;
        }
    }
    __device__ float one(const tables &, uint64_t i) const { return qm_int8_value((int8_t)codes[i], absmax[i / 8 / vectors]); }
};

/* Blocks of 32 values of F: an f16 scale, then bytes; see blocks32.cuh. */
template <class F> struct block_values {
    struct raw {
        uint32_t low, high;
        uint16_t scale;
    };
    struct tables {};
    const uint8_t *blocks;
    __device__ uint32_t prepare(tables &) const { return 0; }
    __device__ block_values from(uint64_t start) const { return {blocks + start / 4 * F::BYTES}; } /* a run begins with a block */
    __device__ raw fetch(uint32_t i) const
    {
        const uint16_t *block = (const uint16_t *)(blocks + i / 4 * F::BYTES), *at = block + 1 + F::place(i % 4);
        return {F::pick(__ldg(at) | (uint32_t)__ldg(at + 1) << 16, i % 4), F::pick(__ldg(at + 2) | (uint32_t)__ldg(at + 3) << 16, i % 4),
                __ldg(block)};
    }
    __device__ void get(const tables &, uint32_t, raw r, float x[8]) const
    {
        float scale = __half2float(__ushort_as_half(r.scale));
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = F::value(__byte_perm(k < 4 ? r.low : r.high, 0x4b000000u, 0x7440 + k % 4), scale);
    }
    __device__ float one(const tables &t, uint64_t i) const
    {
        float x[8];
        get(t, 0, from(i / 32 * 4).fetch((uint32_t)(i / 8 % 4)), x);
        float found = 0;
        for (uint32_t k = 0; k < 8; k++)
            found = i % 8 == k ? x[k] : found;
        return found;
    }
};

/* A thread's way through a run: every SUMS_THREADS-th vector, from its own on. */
template <class Y> struct way {
    Y y;
    uint32_t at;

    __device__ way(const Y &whole, uint64_t first) : y(whole.from(first)), at(threadIdx.x) {}
    __device__ typename Y::raw fetch(uint32_t u) const { return y.fetch(at + u * SUMS_THREADS); }
    __device__ void go(uint32_t vectors) { at += vectors * SUMS_THREADS; }
};

/* The same by addresses, where those grow evenly. */
template <nibble_product P, bool NESTED> struct way<nibble_values<P, NESTED>> {
    typedef typename nibble_values<P, NESTED>::raw raw;
    nibble_values<P, NESTED> y;
    const uint32_t *word;
    const char *scale; /* f32, or bytes */
    const float *super;
    const uint8_t *zero;
    uint32_t groups, turn; /* that SUMS_THREADS vectors are; and how far into 256 of them the second level is */

    __device__ way(const nibble_values<P, NESTED> &whole, uint64_t first) : y(whole.from(first))
    {
        uint64_t group = y.group + (threadIdx.x >> y.shift);
        word = y.words + threadIdx.x;
        groups = SUMS_THREADS >> y.shift;
        scale = (const char *)y.q.scales + (NESTED ? group : 4 * group);
        turn = (uint32_t)(group % 256);
        super = NESTED ? y.q.nested + group / 256 : NULL;
        zero = P == PRODUCT_OF_DIFFERENCE ? y.q.zeros + group : NULL;
    }
    __device__ raw fetch(uint32_t u) const
    {
        scale_bytes s = {0, 0};
        if (NESTED)
            s = {__ldg(super + (turn + u * groups) / 256), __ldg((const uint8_t *)scale + u * groups)};
        else
            s.scale = __ldg((const float *)scale + u * groups);
        if (P == PRODUCT_OF_DIFFERENCE)
            s.code = __ldg(zero + u * groups);
        return {__ldg(word + u * SUMS_THREADS), s};
    }
    __device__ void go(uint32_t vectors)
    {
        word += vectors * SUMS_THREADS;
        scale += (NESTED ? 1 : 4) * vectors * groups;
        if (NESTED) {
            turn += vectors * groups;
            super += turn / 256;
            turn %= 256;
        }
        if (P == PRODUCT_OF_DIFFERENCE)
            zero += vectors * groups;
    }
};

/* Two vectors of a thread. */
template <qm_dtype D, class Y> struct fetched {
    eight<D> x[2];
    typename Y::raw y[2];

    __device__ void fetch(const eight<D> *values, const way<Y> &other)
    {
#pragma unroll
        for (int u = 0; u < 2; u++) {
            x[u] = load_eight<D>(values, u * SUMS_THREADS);
            y[u] = other.fetch(u);
        }
    }
};

/* Both vectors, whose first begins at value `at`. */
template <qm_dtype D, class Y>
__device__ inline void add_fetched(sums &s, const fetched<D, Y> &v, const void *x, const Y &y, const typename Y::tables &t,
                                   uint32_t levels, uint64_t at)
{
    few_sums f = {};
#pragma unroll
    for (int u = 0; u < 2; u++) {
        float a[8], b[8];
        unpack(v.x[u], a);
        y.get(t, levels, v.y[u], b);
        f.add_eight(a, b, magnitude<D>::of_eight(v.x[u]).value());
    }
    if (f.will_do())
        s.add_sums(f.all());
    else
#pragma unroll 1
        for (uint32_t k = 0; k < 16; k++) {
            uint64_t i = at + k / 8 * (SUMS_THREADS * 8) + k % 8;
            s.add_value(load_one(x, D, i), y.one(t, i));
        }
}

/* A whole run, by all threads: while two vectors are added up, the next two are on their way. */
template <qm_dtype D, class Y>
__device__ inline void add_run(sums &s, const void *x, const Y &y, typename Y::tables &t, uint64_t first)
{
    enum { ROUNDS = QM_SUMS_RUN / 8 / SUMS_THREADS / 4 };
    const eight<D> *values = (const eight<D> *)x + first + threadIdx.x;
    uint64_t at = (first + threadIdx.x) * 8;
    way<Y> other(y, first);
    fetched<D, Y> even, odd;
    even.fetch(values, other);
    uint32_t levels = y.prepare(t);
#pragma unroll 1
    for (uint32_t round = 0; round < ROUNDS; round++) {
        values += 2 * SUMS_THREADS;
        other.go(2);
        odd.fetch(values, other);
        add_fetched<D>(s, even, x, y, t, levels, at);
        at += 2 * SUMS_THREADS * 8;
        if (round + 1 < ROUNDS) {
            values += 2 * SUMS_THREADS;
            other.go(2);
            even.fetch(values, other);
        }
        add_fetched<D>(s, odd, x, y, t, levels, at);
        at += 2 * SUMS_THREADS * 8;
    }
}

/* Part of a run, one value after another. */
template <qm_dtype D, class Y>
__device__ inline void add_part(sums &s, const void *x, const Y &y, typename Y::tables &t, uint64_t first, uint32_t here)
{
    y.prepare(t);
    for (uint32_t i = threadIdx.x; i < here; i += SUMS_THREADS)
        for (uint64_t k = (first + i) * 8, end = k + 8; k < end; k++)
            s.add_value(load_one(x, D, k), y.one(t, k));
}

template <qm_dtype D, class Y>
__global__ void __launch_bounds__(SUMS_THREADS, 3)
    sums_of_run(const void *__restrict__ x, const __grid_constant__ Y y, uint64_t n, sums *partial)
{
    __shared__ typename Y::tables t;
    const uint64_t first = (uint64_t)blockIdx.x * (QM_SUMS_RUN / 8), vectors = n / 8;
    sums s = {};
    if (vectors - first >= QM_SUMS_RUN / 8)
        add_run<D>(s, x, y, t, first);
    else
        add_part<D>(s, x, y, t, first, (uint32_t)(vectors - first));
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

template <nibble_product P>
static cudaError_t sums_nibbles(const void *x, qm_dtype dtype, const qm_nibbles *q, uint64_t n, void *partial, cudaStream_t s)
{
    uint32_t shift = 0;
    while (q->block >> shift > 8)
        shift++;
    return q->nested ? launch_sums(x, dtype, nibble_values<P, true>{*q, shift, NULL, 0}, n, partial, s)
                     : launch_sums(x, dtype, nibble_values<P, false>{*q, shift, NULL, 0}, n, partial, s);
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
    return launch_sums(x, dtype, int8_values{codes, absmax, vectors, (uint32_t)(((1ull << 32) + vectors - 1) / vectors), 0}, n,
                       partial, s);
}

cudaError_t qm_sums_q8_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial, cudaStream_t s)
{
    return launch_sums(x, dtype, block_values<q8_0_code>{blocks}, n, partial, s);
}

cudaError_t qm_sums_q4_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial, cudaStream_t s)
{
    return launch_sums(x, dtype, block_values<q4_0_code>{blocks}, n, partial, s);
}

/* ---- decoding of blocks ------------------------------------------------------------------------ */

enum { DECODE_VECTORS = 4 };

template <qm_dtype D, class Y>
__global__ void __launch_bounds__(SUMS_THREADS) decode_vectors(const __grid_constant__ Y y, uint64_t vectors, void *__restrict__ to)
{
    const uint64_t first = (uint64_t)blockIdx.x * (DECODE_VECTORS * SUMS_THREADS);
    const uint32_t here = vectors - first < DECODE_VECTORS * SUMS_THREADS ? (uint32_t)(vectors - first) : DECODE_VECTORS * SUMS_THREADS;
    const Y from = y.from(first);
    typename Y::raw raw[DECODE_VECTORS];
#pragma unroll
    for (int u = 0; u < DECODE_VECTORS; u++)
        if (threadIdx.x + u * SUMS_THREADS < here)
            raw[u] = from.fetch(threadIdx.x + u * SUMS_THREADS);
#pragma unroll
    for (int u = 0; u < DECODE_VECTORS; u++)
        if (threadIdx.x + u * SUMS_THREADS < here) {
            float v[8];
            y.get({}, 0, raw[u], v);
            store_eight<D>(to, first + threadIdx.x + u * SUMS_THREADS, v);
        }
}

template <class Y> static cudaError_t launch_vectors(Y y, uint64_t n, void *to, qm_dtype dtype, cudaStream_t s)
{
    uint64_t each = 8 * DECODE_VECTORS * SUMS_THREADS;
    unsigned grid = (unsigned)((n + each - 1) / each);
    switch (dtype) {
    case QM_F32: decode_vectors<QM_F32><<<grid, SUMS_THREADS, 0, s>>>(y, n / 8, to); break;
    case QM_F16: decode_vectors<QM_F16><<<grid, SUMS_THREADS, 0, s>>>(y, n / 8, to); break;
    case QM_BF16: decode_vectors<QM_BF16><<<grid, SUMS_THREADS, 0, s>>>(y, n / 8, to); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t qm_q8_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    return launch_vectors(block_values<q8_0_code>{blocks}, n, y, dtype, s);
}

cudaError_t qm_q4_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    return launch_vectors(block_values<q4_0_code>{blocks}, n, y, dtype, s);
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
