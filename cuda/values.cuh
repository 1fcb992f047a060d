/* values.cuh: what quantised tensors decode to, eight values at a time, in registers.
 *
 * A block of threads goes through a tensor in tiles, in which every thread has two vectors of eight.  Each kind of
 * tensor has:
 *
 *     tables            what lies in shared memory
 *     place(), APART    which vector of a tile is the thread's first, and how much further the second
 *     one(i)            value i
 *     from(start)       a thread's way through it from vector `start` on, with which a run of RUN_VECTORS may begin:
 *         raw           the bytes of two vectors
 *         prepare(t)    fills the tables for that run, by all threads, which then wait; what get wants to know
 *         fetch()       the thread's bytes in this tile
 *         next()        goes on to the next one
 *         get(...)      one of two vectors, decoded */
#ifndef QM_VALUES_CUH
#define QM_VALUES_CUH

enum { VALUE_THREADS = 256, TILE_VECTORS = 2 * VALUE_THREADS, RUN_VECTORS = QM_SUMS_RUN / 8 };

struct no_tables {};

/* ---- plain values -------------------------------------------------------------------------------- */

/* Vectors of a tensor of plain values, two at a time. */
template <qm_dtype D> struct plain_run {
    struct raw {
        eight<D> v[2];
    };
    const eight<D> *at;
    uint32_t apart;

    __device__ raw fetch() const { return {load_eight<D>(at, 0), load_eight<D>(at, apart)}; }
    __device__ void prefetch() const { asm volatile("prefetch.global.L2 [%0]; prefetch.global.L2 [%1];" ::"l"(at), "l"(at + apart)); }
    __device__ void next() { at += TILE_VECTORS; }
    __device__ uint32_t prepare(no_tables &) const { return 0; }
    __device__ void get(const no_tables &, uint32_t, const raw &r, int u, float x[8]) const { unpack(r.v[u], x); }
};

template <qm_dtype D> struct plain_values {
    typedef no_tables tables;
    enum { APART = VALUE_THREADS };
    const void *y;

    __device__ static uint32_t place() { return threadIdx.x; }
    __device__ plain_run<D> from(uint64_t start) const { return {(const eight<D> *)y + start + place(), APART}; }
    __device__ float one(uint64_t i) const { return load_one(y, D, i); }
};

/* ---- two codes a byte ---------------------------------------------------------------------------- */

/* In shared memory: the two levels of every byte, sixteen times, since half a warp looks at once and each of its lanes
 * then has banks of its own; and the scales of a run. */
template <nibble_product P> struct run_tables {
    float2 pair[256][16];
    float scale[QM_SUMS_RUN / 32];
    uint8_t zero[P == PRODUCT_OF_DIFFERENCE ? QM_SUMS_RUN / 32 : 4];
};

/* The levels of byte k, the high nibble's first. */
__device__ inline float2 levels_of_byte(uint32_t word, int k, uint32_t pairs)
{
    uint32_t at = __dp4a(word, 128u << 8 * k, pairs); /* a byte's pairs are 128 bytes */
    float2 p;
    asm("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(p.x), "=f"(p.y) : "r"(at));
    return p;
}

template <nibble_product P, bool NESTED>
static __device__ __noinline__ float nibble_value_at(const qm_nibbles &q, uint64_t group, uint64_t i)
{
    scale_bytes s = load_scale<P, NESTED>(q, group);
    group_scale<P> by = {NESTED ? times_ftz(nested_value[s.code], s.scale) + q.offset : s.scale, NESTED ? 0 : (float)s.code};
    return by.times(q.level[q.codes[i / 2] >> (i % 2 ? 0 : 4) & 15]);
}

/* From some vector on; q lies where the kernel's arguments do. */
template <nibble_product P, bool NESTED> struct nibble_run {
    struct raw {
        uint32_t word[2], vector; /* the first of the two, in the run */
    };
    typedef run_tables<P> tables;
    const qm_nibbles &q;
    uint32_t shift; /* vector of eight -> group */
    const uint32_t *words;
    uint64_t group; /* the run's first */
    uint32_t vector;

    __device__ uint32_t prepare(tables &t) const
    {
        enum { MOST = QM_SUMS_RUN / 32 / VALUE_THREADS };
        static_assert(VALUE_THREADS == 256, "a thread to every byte");
        const uint32_t i = threadIdx.x, groups = RUN_VECTORS >> shift;
        scale_bytes s[MOST];
#pragma unroll
        for (uint32_t k = 0; k < MOST; k++)
            if (i + k * VALUE_THREADS < groups)
                s[k] = load_scale<P, NESTED>(q, group + i + k * VALUE_THREADS);
        const float high = q.level[i / 16], low = q.level[i % 16];
#pragma unroll
        for (uint32_t k = 0; k < 8; k++)
            ((float4 *)t.pair[i])[(k + i) % 8] = make_float4(high, low, high, low);
#pragma unroll
        for (uint32_t k = 0; k < MOST; k++)
            if (i + k * VALUE_THREADS < groups) {
                t.scale[i + k * VALUE_THREADS] = NESTED ? times_ftz(__ldg(nested_value + s[k].code), s[k].scale) + q.offset : s[k].scale;
                if (P == PRODUCT_OF_DIFFERENCE)
                    t.zero[i + k * VALUE_THREADS] = s[k].code;
            }
        __syncthreads();
        uint32_t at = (uint32_t)__cvta_generic_to_shared(&t.pair[0][threadIdx.x % 16]), there;
        asm volatile("mov.u32 %0, %1;" : "=r"(there) : "r"(at)); /* what reads by this cannot be moved before it */
        return there;
    }

    __device__ raw fetch() const { return {{__ldg(words), __ldg(words + VALUE_THREADS)}, vector}; }
    __device__ void next()
    {
        words += TILE_VECTORS;
        vector += TILE_VECTORS;
    }
    __device__ void get(const tables &t, uint32_t pairs, const raw &r, int u, float x[8]) const
    {
        const uint32_t g = (r.vector + u * VALUE_THREADS) >> shift;
        const group_scale<P> by = {t.scale[g], P == PRODUCT_OF_DIFFERENCE ? (float)t.zero[g] : 0};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float2 p = levels_of_byte(r.word[u], k, pairs);
            x[2 * k] = by.times(p.x);
            x[2 * k + 1] = by.times(p.y);
        }
    }
};

template <nibble_product P, bool NESTED> struct nibble_values {
    typedef run_tables<P> tables;
    qm_nibbles q;
    uint32_t shift;

    enum { APART = VALUE_THREADS };
    __device__ static uint32_t place() { return threadIdx.x; }
    __device__ nibble_run<P, NESTED> from(uint64_t start) const
    {
        return {q, shift, (const uint32_t *)q.codes + start + place(), start >> shift, place()};
    }
    __device__ float one(uint64_t i) const { return nibble_value_at<P, NESTED>(q, i / 8 >> shift, i); }
};

/* ---- int8 ---------------------------------------------------------------------------------------- */

/* Byte k of w as an unsigned number, in the low bits of an f32 of 2^23 and more, */
__device__ inline float in_low_bits(uint32_t w, int k) { return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440 + k)); }
/* or 256 times as high in one of 2^15 and more. */
__device__ inline float in_middle_bits(uint32_t w, int k) { return __uint_as_float(__byte_perm(w, 0x47000000u, 0x7404 + (k << 4))); }

/* Rows of `vectors` eights; a quotient by that is taken by a product, since a run has few. */
struct int8_run {
    struct raw {
        uint2 codes[2];
        float scale[2];
    };
    const uint2 *codes;
    const float *absmax;       /* of the run's first row */
    uint32_t vectors, inverse; /* 2^32 / vectors, rounded up */
    uint32_t vector;           /* counted from that row's beginning */

    __device__ float scale_of(uint32_t i) const { return __ldg(absmax + (vectors > 1 ? __umulhi(i, inverse) : i)); }
    __device__ raw fetch() const
    {
        return {{__ldg(codes), __ldg(codes + VALUE_THREADS)}, {scale_of(vector), scale_of(vector + VALUE_THREADS)}};
    }
    __device__ void next()
    {
        codes += TILE_VECTORS;
        vector += TILE_VECTORS;
    }
    __device__ uint32_t prepare(no_tables &) const { return 0; }
    __device__ void get(const no_tables &, uint32_t, const raw &r, int u, float x[8]) const
    {
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = (in_low_bits((k < 4 ? r.codes[u].x : r.codes[u].y) ^ 0x80808080u, k % 4) - 8388736.0f) * r.scale[u] * QM_INT8_STEP;
    }
};

struct int8_values {
    typedef no_tables tables;
    enum { APART = VALUE_THREADS };
    const uint8_t *codes;
    const float *absmax;
    uint32_t vectors, inverse;

    __device__ static uint32_t place() { return threadIdx.x; }
    __device__ int8_run from(uint64_t start) const
    {
        uint64_t row = start / vectors;
        return {(const uint2 *)codes + start + place(), absmax + row, vectors, inverse, (uint32_t)(start - row * vectors) + place()};
    }
    __device__ float one(uint64_t i) const { return qm_int8_value((int8_t)codes[i], absmax[i / 8 / vectors]); }
};

/* ---- blocks of 32 -------------------------------------------------------------------------------- */

/* Of F, see blocks32.cuh: an f16 scale, then bytes.  Where a byte has the codes of values 16 apart, a thread's two vectors
 * are those of the same eight bytes.
 *
 * QUICK: a value by one multiply-add: (2^15 + byte) scale - (2^15 + zero) scale, of which the second is exact, as at
 * most 13 bits times 11, and the first is not rounded.  Not for scales that are not finite; and zeros are positive. */
template <class F, bool QUICK> struct block_run {
    enum { LANES = F::SHARED ? 2 : 4 /* to a block */, EACH = F::SHARED ? 1 : 2, TURN = VALUE_THREADS / LANES * F::BYTES };
    static_assert(TURN % 4 == 0, "what is odd stays so");
    struct raw {
        uint2 bytes[EACH];
        uint16_t scale[EACH];
    };
    const uint8_t *block, *word; /* word: four-byte words of which the thread's eight begin in the first */
    uint32_t odd;                /* at byte 0 or 2 */

    __device__ static block_run at(const uint8_t *block)
    {
        const uint8_t *bytes = block + 2 + 8 * (threadIdx.x % LANES);
        const uint32_t odd = (uint32_t)(uintptr_t)bytes & 2;
        return {block, bytes - odd, odd};
    }
    __device__ uint2 eight_bytes(int turn) const
    {
        const uint32_t *w = (const uint32_t *)(word + turn * TURN);
        const uint32_t a = __ldg(w), b = __ldg(w + 1), c = odd ? __ldg((const uint16_t *)(w + 2)) : 0;
        return {__funnelshift_r(a, b, 8 * odd), __funnelshift_r(b, c, 8 * odd)};
    }
    __device__ raw fetch() const
    {
        raw r;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            r.bytes[k] = eight_bytes(k);
            r.scale[k] = __ldg((const uint16_t *)(block + k * TURN));
        }
        return r;
    }
    __device__ void next()
    {
        block += EACH * TURN;
        word += EACH * TURN;
    }
    __device__ uint32_t prepare(no_tables &) const { return 0; }
    __device__ void get(const no_tables &, uint32_t, const raw &r, int u, float x[8]) const
    {
        const int from = F::SHARED ? 0 : u;
        const float scale = __half2float(__ushort_as_half(r.scale[from])), off = (32768.0f + F::ZERO) * scale;
        const uint32_t w[2] = {F::pick(r.bytes[from].x, u), F::pick(r.bytes[from].y, u)};
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = QUICK ? __fmaf_rn(in_middle_bits(w[k / 4], k % 4), scale, -off)
                         : (in_low_bits(w[k / 4], k % 4) - (8388608.0f + F::ZERO)) * scale;
    }
};

template <class F, bool QUICK> struct block_values {
    typedef no_tables tables;
    enum { LANES = block_run<F, QUICK>::LANES, APART = F::SHARED ? 2 : VALUE_THREADS };
    const uint8_t *blocks;

    __device__ static uint32_t place() { return threadIdx.x / LANES * 4 + threadIdx.x % LANES; }
    __device__ block_run<F, QUICK> from(uint64_t start) const
    {
        return block_run<F, QUICK>::at(blocks + (start / 4 + threadIdx.x / LANES) * F::BYTES);
    }
    __device__ float one(uint64_t i) const
    {
        const uint8_t *from = blocks + i / 32 * F::BYTES;
        return F::code(from + 2, i % 32) * __half2float(__ushort_as_half(*(const uint16_t *)from));
    }
};

/* ---- decoding of blocks -------------------------------------------------------------------------- */

enum { DECODE_TILES = 2 };

template <qm_dtype D, class Y>
__global__ void __launch_bounds__(VALUE_THREADS) decode_tiles(const __grid_constant__ Y y, uint64_t vectors, void *__restrict__ to)
{
    const uint64_t first = (uint64_t)blockIdx.x * (DECODE_TILES * TILE_VECTORS);
    if (vectors - first < DECODE_TILES * TILE_VECTORS) {
        for (uint64_t i = first + threadIdx.x; i < vectors; i += VALUE_THREADS) {
            float v[8];
            for (int k = 0; k < 8; k++)
                v[k] = y.one(8 * i + k);
            store_eight<D>(to, i, v);
        }
        return;
    }
    auto run = y.from(first);
    decltype(run.fetch()) raw[DECODE_TILES];
#pragma unroll
    for (int tile = 0; tile < DECODE_TILES; tile++, run.next())
        raw[tile] = run.fetch();
#pragma unroll
    for (int tile = 0; tile < DECODE_TILES; tile++)
#pragma unroll
        for (int u = 0; u < 2; u++) {
            float v[8];
            run.get({}, 0, raw[tile], u, v);
            store_eight<D>(to, first + tile * TILE_VECTORS + Y::place() + u * Y::APART, v);
        }
}

template <class F> static cudaError_t decode_blocks(const uint8_t *blocks, uint64_t n, void *to, qm_dtype dtype, cudaStream_t s)
{
    const uint64_t each = 8 * DECODE_TILES * TILE_VECTORS;
    const unsigned grid = (unsigned)((n + each - 1) / each);
    const block_values<F, false> y = {blocks};
    switch (dtype) {
    case QM_F32: decode_tiles<QM_F32><<<grid, VALUE_THREADS, 0, s>>>(y, n / 8, to); break;
    case QM_F16: decode_tiles<QM_F16><<<grid, VALUE_THREADS, 0, s>>>(y, n / 8, to); break;
    case QM_BF16: decode_tiles<QM_BF16><<<grid, VALUE_THREADS, 0, s>>>(y, n / 8, to); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t qm_q8_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    return decode_blocks<q8_0_code>(blocks, n, y, dtype, s);
}

cudaError_t qm_q4_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    return decode_blocks<q4_0_code>(blocks, n, y, dtype, s);
}

#endif
