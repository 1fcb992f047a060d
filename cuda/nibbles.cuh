/* nibbles.cuh: nf4 and fp4, made for speed: the same bytes as the generic kernel, at the speed of memory.
 *
 * Encoding.  A lane has eight values in a row, 16 bytes of bf16, and writes four bytes of codes; four lanes to
 * a whole warp share a block and find its absmax with each other.  U such vectors are loaded before the first
 * is looked at.  The code of v, in -1 ... 1, is found by one look-up and one comparison:
 *
 *     bin  = bits 8 ... 13 of f32(16 v + 32784)      a unit there is 2^-8, so this is 16 (v + 1), rounded down
 *     code = codes below the bin + (v > the one threshold in that bin, if there is one)
 *
 * which is exact because the sum is monotonic in v and no two thresholds share a bin; the bins are filled by
 * the same sum (bins_of).  fp4 does this with |v| and 32768, and adds the sign.  A NaN ends in bin 63, which
 * says code 0.  Every lane has its own copy of the bins, in its own banks of shared memory.
 *
 * Decoding.  A lane has four bytes of codes and writes eight values; again every lane has its own table.
 */
#ifndef QM_NIBBLES_CUH
#define QM_NIBBLES_CUH

enum {
    NIBBLE_THREADS = 256,
    NIBBLE_WARPS = NIBBLE_THREADS / 32,
    LANE_VALUES = 8,
    WARP_VALUES = 32 * LANE_VALUES, /* one vector of a warp */
    BINS = 34,                      /* 0 ... 32, and that of NaN */
    BIN_OF_NAN = 63,
};

struct bin {
    float threshold;
    uint32_t below;
};

struct bins {
    bin of[BINS]; /* the last is that of NaN */
};

static bins bins_of(const float *threshold, int n, float middle)
{
    bins b;
    for (int i = 0; i < BINS; i++)
        b.of[i] = bin{INFINITY, 0};
    for (int t = 0; t < n; t++) {
        float sum = fmaf(threshold[t], 16, middle);
        uint32_t u;
        memcpy(&u, &sum, sizeof u);
        int at = u >> 8 & 63;
        b.of[at].threshold = threshold[t];
        for (int i = at + 1; i < BINS - 1; i++)
            b.of[i].below = t + 1;
    }
    return b;
}

/* In fp4 the codes of magnitudes are not in their order: 0 1 6 7 4 5 2 3, smallest first.  For eight at once. */
__device__ inline uint32_t fp4_codes_of_ranks(uint32_t word) { return word ^ (word & 0x22222222u) << 1; }

/* word + (v > limit ? step : 0), in place: two instructions, where the compiler would take three. */
template <int STEP> __device__ inline void add_if_above(uint32_t &word, float v, float limit)
{
    asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; @p add.u32 %0, %0, %3; }" : "+r"(word) : "f"(v), "f"(limit), "n"(STEP));
}

template <bool FP4> __device__ inline uint32_t encode_eight(const float x[8], float scale, const bin *mine)
{
    uint32_t word = 0;
#pragma unroll
    for (int k = 7; k >= 0; k--) {
        float v = times_ftz(x[k ^ 1], scale); /* the first of two takes the high nibble */
        float a = FP4 ? fabsf(v) : v;
        uint32_t sum = __float_as_uint(__fmaf_rn(a, 16, FP4 ? 32768.0f : 32784.0f));
        bin b = *(const bin *)((const char *)mine + (sum & BIN_OF_NAN << 8));
        word = word * 16 + b.below;
        add_if_above<1>(word, a, b.threshold);
        if (FP4)
            add_if_above<8>(word, -v, 0);
    }
    return FP4 ? fp4_codes_of_ranks(word) : word;
}

/* The absmax as bnb.h has it: subnormals are zero, and of nothing but NaN it is -FLT_MAX. */
__device__ inline float bnb_absmax(float most)
{
    float r;
    asm("max.ftz.f32 %0, %1, %2;" : "=f"(r) : "f"(most), "f"(-0x1.fffffep127f));
    return r;
}

template <qm_dtype D, bool FP4, uint32_t BLOCK>
__global__ void __launch_bounds__(NIBBLE_THREADS)
    nibbles_encode(const void *__restrict__ x, uint64_t warps, uint32_t *__restrict__ codes,
                   float *__restrict__ absmax, uint32_t zero_word, const __grid_constant__ bins b)
{
    constexpr int U = BLOCK > 2048 ? BLOCK / WARP_VALUES : 8;
    constexpr int LANES = BLOCK < WARP_VALUES ? BLOCK / LANE_VALUES : 32; /* that share a block, */
    constexpr int VECTORS = BLOCK < WARP_VALUES ? 1 : BLOCK / WARP_VALUES; /* and vectors of each */
    __shared__ bin table[BIN_OF_NAN + 1][32];
    const uint32_t lane = threadIdx.x % 32, in_block = threadIdx.x / 32;
    const uint64_t warp = (uint64_t)blockIdx.x * NIBBLE_WARPS + in_block, first = warp * U * 32 + lane;

    eight<D> v[U];
    if (warp < warps)
#pragma unroll
        for (int u = 0; u < U; u++)
            v[u] = load_eight<D>(x, first + u * 32);
    for (uint32_t i = in_block; i < BINS; i += NIBBLE_WARPS)
        table[i < BINS - 1 ? i : BIN_OF_NAN][lane] = b.of[i];
    __syncthreads();
    if (warp >= warps)
        return;
    codes += first;
    absmax += first / (BLOCK / LANE_VALUES);
#pragma unroll
    for (int u = 0; u < U; u += VECTORS) {
        magnitude<D> m = magnitude<D>::of_eight(v[u]);
#pragma unroll
        for (int k = 1; k < VECTORS; k++)
            m = m.join(magnitude<D>::of_eight(v[u + k]));
        float most = bnb_absmax(among_lanes(m, LANES).value()), scale = qm_rcp(most);
        if (lane % LANES == 0)
            absmax[u * 32 / (BLOCK / LANE_VALUES)] = most;
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            float each[8];
            unpack(v[u + k], each);
            uint32_t word = encode_eight<FP4>(each, scale, &table[0][lane]);
            __stcs(codes + (u + k) * 32, most == 0 ? zero_word : word); /* nobody reads them soon */
        }
    }
}

uint64_t qm_nibbles_encodes(uint32_t block, uint64_t n)
{
    uint64_t run = block > 2048 ? block : 2048;
    return block < 32 || block > 4096 || (block & (block - 1)) ? 0 : n / run * run;
}

template <qm_dtype D, bool FP4, uint32_t BLOCK>
static cudaError_t launch_nibbles(const void *x, uint64_t n, bool exact_zero, uint8_t *codes, float *absmax,
                                  const bins &b, cudaStream_t s)
{
    uint64_t warps = n / (BLOCK > 2048 ? BLOCK : 2048);
    unsigned grid = (unsigned)((warps + NIBBLE_WARPS - 1) / NIBBLE_WARPS);
    nibbles_encode<D, FP4, BLOCK><<<grid, NIBBLE_THREADS, 0, s>>>(x, warps, (uint32_t *)codes, absmax,
                                                                  exact_zero && !FP4 ? 0x77777777u : 0, b);
    return cudaGetLastError();
}

template <qm_dtype D, bool FP4>
static cudaError_t nibbles_of_block(const void *x, uint64_t n, uint32_t block, bool exact_zero,
                                    uint8_t *codes, float *absmax, const bins &b, cudaStream_t s)
{
    switch (block) {
#define BLOCK_OF(size)                                                                                       \
    case size: return launch_nibbles<D, FP4, size>(x, n, exact_zero, codes, absmax, b, s)
        BLOCK_OF(32);
        BLOCK_OF(64);
        BLOCK_OF(128);
        BLOCK_OF(256);
        BLOCK_OF(512);
        BLOCK_OF(1024);
        BLOCK_OF(2048);
        BLOCK_OF(4096);
#undef BLOCK_OF
    }
    return cudaErrorInvalidValue;
}

template <qm_dtype D>
static cudaError_t nibbles_of_format(bool fp4, const void *x, uint64_t n, uint32_t block, bool exact_zero,
                                     uint8_t *codes, float *absmax, const bins &b, cudaStream_t s)
{
    return fp4 ? nibbles_of_block<D, true>(x, n, block, exact_zero, codes, absmax, b, s)
               : nibbles_of_block<D, false>(x, n, block, exact_zero, codes, absmax, b, s);
}

cudaError_t qm_nibbles_encode(bool fp4, const float *threshold, const void *x, qm_dtype dtype, uint64_t n,
                              uint32_t block, bool exact_zero, uint8_t *codes, float *absmax, cudaStream_t s)
{
    bins b = fp4 ? bins_of(threshold, 7, 32768) : bins_of(threshold, 15, 32784);
    if (n == 0)
        return cudaSuccess;
    switch (dtype) {
    case QM_F32: return nibbles_of_format<QM_F32>(fp4, x, n, block, exact_zero, codes, absmax, b, s);
    case QM_F16: return nibbles_of_format<QM_F16>(fp4, x, n, block, exact_zero, codes, absmax, b, s);
    case QM_BF16: return nibbles_of_format<QM_BF16>(fp4, x, n, block, exact_zero, codes, absmax, b, s);
    default: return cudaErrorInvalidValue;
    }
}

/* ---- decoding ----------------------------------------------------------------------------------- */

/* Tables in shared memory for a block of threads; filled by all its threads, which then wait. */
struct nibble_tables {
    float level[16][32];
    float nested[256];
};

template <bool NESTED> __device__ inline void fill_tables(nibble_tables &t, const qm_nibbles &q)
{
    for (uint32_t i = threadIdx.x; i < 16 * 32; i += blockDim.x)
        t.level[i / 32][i % 32] = q.level[i / 32];
    if (NESTED)
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x)
            t.nested[i] = qm_dynamic8_value(i);
    __syncthreads();
}

/* The scale of a group, from what was read for it. */
template <bool NESTED> struct scale_bytes {
    float first; /* single: the scale */
    float super;
    uint8_t code;
};

template <bool NESTED> __device__ inline scale_bytes<NESTED> load_scale(const qm_nibbles &q, uint64_t group)
{
    if constexpr (NESTED)
        return {0, q.nested[group / 256], ((const uint8_t *)q.absmax)[group]};
    else
        return {((const float *)q.absmax)[group], 0, 0};
}

template <bool NESTED> __device__ inline float scale_of(const nibble_tables &t, const qm_nibbles &q, scale_bytes<NESTED> s)
{
    return NESTED ? times_ftz(t.nested[s.code], s.super) + q.offset : s.first;
}

/* Value k of the lane's word: bytes in order, high nibble first. */
__device__ inline float nibble_value(const nibble_tables &t, uint32_t word, int k, float scale)
{
    int from = 8 * (k / 2) + (k % 2 ? 0 : 4) - 7; /* a code is 128 bytes of the table */
    uint32_t at = (from < 0 ? word << -from : word >> from) & 15 << 7;
    return times_ftz(*(const float *)((const char *)&t.level[0][threadIdx.x % 32] + at), scale);
}

/* An f32 lane has half as many values, so that it, too, writes 16 bytes. */
template <qm_dtype D> struct decoded {
    static constexpr int VALUES = D == QM_F32 ? 4 : 8;
};

template <qm_dtype D> __device__ inline uint32_t codes_at(const uint8_t *codes, uint32_t i)
{
    return D == QM_F32 ? ((const uint16_t *)codes)[i] : ((const uint32_t *)codes)[i];
}

template <qm_dtype D, bool NESTED, int U>
__global__ void __launch_bounds__(NIBBLE_THREADS)
    nibbles_decode(const __grid_constant__ qm_nibbles q, uint32_t shift, uint64_t n, void *__restrict__ y)
{
    constexpr int VALUES = decoded<D>::VALUES;
    __shared__ nibble_tables t;
    const uint64_t vectors = n / VALUES, start = (uint64_t)blockIdx.x * U * NIBBLE_THREADS;
    const uint8_t *codes = q.codes + start * VALUES / 2;
    const uint64_t group = start >> shift; /* the block of threads begins with a group: U vectors of it are 4096 values */
    const uint32_t here = vectors - start < U * NIBBLE_THREADS ? (uint32_t)(vectors - start) : U * NIBBLE_THREADS;
    uint4 *to = (uint4 *)y + start;
    uint32_t word[U];
    scale_bytes<NESTED> scale[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        uint32_t i = u * NIBBLE_THREADS + threadIdx.x;
        if (i < here) {
            word[u] = codes_at<D>(codes, i);
            scale[u] = load_scale<NESTED>(q, group + (i >> shift));
        }
    }
    fill_tables<NESTED>(t, q);
#pragma unroll
    for (int u = 0; u < U; u++) {
        uint32_t i = u * NIBBLE_THREADS + threadIdx.x;
        if (i >= here)
            break;
        float by = scale_of(t, q, scale[u]), v[VALUES];
#pragma unroll
        for (int k = 0; k < VALUES; k++)
            v[k] = nibble_value(t, word[u], k, by);
        if constexpr (D == QM_F32)
            __stcs(to + i, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
        else
            __stcs(to + i, make_uint4(pack_pair<D>(v[0], v[1]), pack_pair<D>(v[2], v[3]), pack_pair<D>(v[4], v[5]), pack_pair<D>(v[6], v[7])));
    }
    if (blockIdx.x == 0 && threadIdx.x < n % VALUES) { /* what does not fill a lane */
        uint64_t i = vectors * VALUES + threadIdx.x;
        float by = scale_of(t, q, load_scale<NESTED>(q, i / VALUES >> shift));
        store_one(y, D, i, nibble_value(t, q.codes[i / 2], i % 2, by));
    }
}

template <qm_dtype D, int U>
static cudaError_t launch_decode(const qm_nibbles *q, uint64_t n, void *y, cudaStream_t s)
{
    uint32_t shift = 0;
    while (q->block >> shift > decoded<D>::VALUES)
        shift++;
    uint64_t each = (uint64_t)decoded<D>::VALUES * U * NIBBLE_THREADS;
    unsigned grid = (unsigned)((n + each - 1) / each);
    if (q->nested)
        nibbles_decode<D, true, U><<<grid, NIBBLE_THREADS, 0, s>>>(*q, shift, n, y);
    else
        nibbles_decode<D, false, U><<<grid, NIBBLE_THREADS, 0, s>>>(*q, shift, n, y);
    return cudaGetLastError();
}

cudaError_t qm_nibbles_decode(const qm_nibbles *q, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    if (n == 0)
        return cudaSuccess;
    switch (dtype) {
    case QM_F32: return launch_decode<QM_F32, 4>(q, n, y, s);
    case QM_F16: return launch_decode<QM_F16, 2>(q, n, y, s);
    case QM_BF16: return launch_decode<QM_BF16, 2>(q, n, y, s);
    default: return cudaErrorInvalidValue;
    }
}

#endif
