/* nibbles.cuh: four-bit codes, two a byte, made for speed: the same bytes as the generic kernel, at the speed of
 * memory.  nf4, fp4, int4, uint4, and codebooks of up to 16 levels.
 *
 * Encoding.  A lane has eight values in a row, 16 bytes of bf16, and writes four bytes of codes; four lanes to
 * a whole warp share a block and find its range with each other.  U such vectors are loaded before the first
 * is looked at.
 *
 * By a table, the code of v, in -1 ... 1, is found by one look-up and one comparison:
 *
 *     bin  = the whole part of f32(times v + plus), plus at least 65536: an ulp there is 2^-7, so bits 7 and up
 *     rank = thresholds below the bin + (v > the one threshold in that bin, if there is one)
 *
 * which is exact because the sum is monotonic in v and no two thresholds share a bin; the bins are filled by
 * the same sum (fill_bins).  Where codes are not their ranks, a bin has the two codes that it can lead to instead.
 * fp4 does this with |v|, and adds the sign.  A NaN ends in the last bin, which says the lowest code.  Shared memory has
 * the bins sixteen times: eight bytes are fetched by half a warp at a time, each of whose lanes has banks of its own.
 *
 * Integers are quotients, rounded twice as the format's own code does it: x / scale to an f32, that to a whole
 * number.  With r the rounded reciprocal of scale, and q = x r, the quotient is q + r (x - q scale), each a fused
 * multiply-add, unless scale's mantissa is all ones (Markstein) or something leaves the normal numbers; such
 * blocks, and those with NaN or infinities, divide.
 */
#ifndef QM_NIBBLES_CUH
#define QM_NIBBLES_CUH

enum {
    NIBBLE_THREADS = 256,
    NIBBLE_WARPS = NIBBLE_THREADS / 32,
    LANE_VALUES = 8,
    WARP_VALUES = 32 * LANE_VALUES, /* one vector of a warp */
    FEW_BINS = 64,
    MOST_BINS = 128,
    BIN_COPIES = 16,
    BIN_BIT = 7, /* of the sum; a bin's copies are as many bytes */
};

/* ---- bins ----------------------------------------------------------------------------------------- */

struct bin {
    float threshold;
    uint32_t codes; /* how many thresholds lie below; or the code at or below its own in bits 28 ... 31, and that
                     * above it in bits 24 ... 27 */
};

struct bins {
    uint32_t used, of_nan;
    float times, plus;
    bin of[MOST_BINS];
};
static_assert(BIN_COPIES * sizeof(bin) == 1 << BIN_BIT, "the sum's bits are the address");

#define BIN_PLUS 65536.0f /* an ulp is 2^-BIN_BIT */

static bool codes_are_ranks(const qm_nibble_ranks *r)
{
    for (int i = 0; i <= r->thresholds; i++)
        if (r->code[i] != i)
            return false;
    return true;
}

/* False where two thresholds share a bin, or one falls beyond the last. */
static bool fill_bins(bins *b, const qm_nibble_ranks *r, bool as_ranks, float times, float plus, uint32_t all)
{
    const uint32_t end = all - 1; /* where a NaN goes */
    uint32_t from = 0;
    b->times = times;
    b->plus = plus;
    for (int t = 0; t <= r->thresholds; t++) {
        const uint32_t codes = as_ranks ? (uint32_t)t : (uint32_t)r->code[t] << 28;
        uint32_t at = end, u;
        if (t < r->thresholds) {
            float sum = fmaf(r->threshold[t], times, plus);
            memcpy(&u, &sum, sizeof u);
            at = u >> BIN_BIT & (MOST_BINS - 1);
            if (at < from || at >= end)
                return false;
            b->of[at] = {r->threshold[t], as_ranks ? codes : codes | (uint32_t)r->code[t + 1] << 24};
        }
        for (; from < at; from++)
            b->of[from] = {INFINITY, codes};
        from = at + 1;
    }
    b->used = b->of_nan = end;
    b->of[end] = {INFINITY, as_ranks ? 0 : (uint32_t)r->code[0] << 28};
    return true;
}

/* Whether it is worth filling bins: the same, roughly and at once.  An encoder is called often, and would wait for this. */
static bool might_fill(const qm_nibble_ranks *r, float times, float plus)
{
    int32_t last = -1;
    for (int t = 0; t < r->thresholds; t++) {
        int32_t at = (int32_t)(r->threshold[t] * times + (plus - BIN_PLUS));
        if (at == last)
            return false;
        last = at;
    }
    return true;
}

/* Bins for v in -1 ... 1, by widening what a unit of v takes and moving it about until no two thresholds meet;
 * nf4 and tables like it are done at the first try, and have few bins. */
static bool find_bins(bins *b, const qm_nibble_ranks *r, bool *few)
{
    enum { SHIFTS = 25 };
    static const float times[] = {16, 18, 20, 23, 27, 30.9f, 35, 39, 43, 48, 53, 58, 62.9f};
    bool ranks = codes_are_ranks(r);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        *few = ranks && times[i] < 31;
        uint32_t all = times[i] < 31 ? FEW_BINS : MOST_BINS;
        float room = (float)all - 1.01f - 2 * times[i];
        for (int k = 0; k < SHIFTS; k++) {
            float plus = BIN_PLUS + times[i] + (i + k == 0 ? 0 : 0.005f + room * (float)k / (SHIFTS - 1));
            if (might_fill(r, times[i], plus) && fill_bins(b, r, *few, times[i], plus, all)) {
                b->of_nan = *few ? FEW_BINS - 1 : MOST_BINS - 1;
                return true;
            }
        }
    }
    return false;
}

/* ---- encoding ------------------------------------------------------------------------------------- */

/* In fp4 the codes of magnitudes are not in their order: 0 1 6 7 4 5 2 3, smallest first.  For eight at once. */
__device__ inline uint32_t fp4_codes_of_ranks(uint32_t word) { return word ^ (word & 0x22222222u) << 1; }

/* word + (v > limit ? step : 0), in place: two instructions, where the compiler would take three. */
template <int STEP> __device__ inline void add_if_above(uint32_t &word, float v, float limit)
{
    asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; @p add.u32 %0, %0, %3; }" : "+r"(word) : "f"(v), "f"(limit), "n"(STEP));
}

/* The same for the upper code of a bin to take the place of the lower one. */
__device__ inline void upper_if_above(uint32_t &codes, float v, float limit)
{
    asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; @p shl.b32 %0, %0, 4; }" : "+r"(codes) : "f"(v), "f"(limit));
}

/* 1 / x, rounded to nearest, for x of 2^-100 ... 2^100. */
__device__ inline float inverse_of(float x)
{
    float r = rcp_instruction(x);
    return __fmaf_rn(r, __fmaf_rn(-x, r, 1), r);
}

__device__ inline bool is_moderate(float x) { return x > 0x1p-100f && x < 0x1p100f; }

/* What is found out about a block, and how its codes follow.  of: from the largest magnitude, or the range, of its
 * values.  word: of eight values of it, the first of two in the high nibble.  Where that will not do the block is rare:
 * then of_rare is told the range of what is not NaN, and word_of_rare divides. */
template <qm_nibble_kind KIND, qm_dtype D> struct nibble_block;

enum nibble_codes { RANKS, SIGNED_RANKS, ANY_CODES };

template <nibble_codes C, uint32_t ALL, bool FTZ>
__device__ inline uint32_t word_by_table(const float x[8], float scale, const bin *table, float times, float plus)
{
    const uint32_t copy = threadIdx.x % BIN_COPIES * sizeof(bin); /* below the bits that choose the bin */
    uint32_t word = 0;
#pragma unroll
    for (int k = 7; k >= 0; k--) { /* the first of two takes the high nibble */
        float v = FTZ ? times_ftz(x[k ^ 1], scale) : x[k ^ 1] * scale, a = C == SIGNED_RANKS ? fabsf(v) : v;
        uint32_t sum = __float_as_uint(__fmaf_rn(a, times, plus));
        bin b = *(const bin *)((const char *)table + ((sum & (ALL - 1) << BIN_BIT) | copy));
        if (C == ANY_CODES) {
            upper_if_above(b.codes, a, b.threshold);
            word = __funnelshift_l(b.codes, word, 4);
        } else {
            word = word * 16 + b.codes;
            add_if_above<1>(word, a, b.threshold);
            if (C == SIGNED_RANKS)
                add_if_above<8>(word, -v, 0);
        }
    }
    return C == SIGNED_RANKS ? fp4_codes_of_ranks(word) : word;
}

/* nf4 and fp4: the absmax as bnb.h has it: subnormals are zero, and of nothing but NaN it is -FLT_MAX. */
template <qm_dtype D> struct bnb_block {
    typedef magnitude<D> range_of;
    static constexpr bool RARE = false;
    float most, scale;

    __device__ void of(magnitude<D> m)
    {
        asm("max.ftz.f32 %0, %1, %2;" : "=f"(most) : "f"(m.value()), "f"(-0x1.fffffep127f));
        scale = qm_rcp(most);
    }
    __device__ float stored() const { return most; }
    __device__ uint8_t zero_point() const { return 0; }
    __device__ bool rare() const { return false; }
};

template <qm_dtype D> struct nibble_block<QM_NIBBLES_NF4, D> : bnb_block<D> {
    static constexpr uint32_t ALL = FEW_BINS;
    __device__ uint32_t word(const float x[8], const bin *table, float times, float plus, uint32_t zero_word) const
    {
        uint32_t w = word_by_table<RANKS, ALL, true>(x, this->scale, table, times, plus);
        return this->most == 0 ? zero_word : w;
    }
};

template <qm_dtype D> struct nibble_block<QM_NIBBLES_FP4, D> : bnb_block<D> {
    static constexpr uint32_t ALL = FEW_BINS;
    __device__ uint32_t word(const float x[8], const bin *table, float times, float plus, uint32_t) const
    {
        uint32_t w = word_by_table<SIGNED_RANKS, ALL, true>(x, this->scale, table, times, plus);
        return this->most == 0 ? 0 : w;
    }
};

/* Codebooks (table.h). */
template <qm_dtype D, nibble_codes C, uint32_t BINS> struct table_block {
    typedef magnitude<D> range_of;
    static constexpr uint32_t ALL = BINS;
    static constexpr bool RARE = true;
    float most, scale;

    __device__ void of(magnitude<D> m)
    {
        most = fmaxf(m.value(), 0);
        scale = inverse_of(most);
    }
    __device__ void of_rare(number_range) {}
    __device__ float stored() const { return most; }
    __device__ uint8_t zero_point() const { return 0; }
    __device__ bool rare() const { return !is_moderate(most); }
    __device__ uint32_t word(const float x[8], const bin *table, float times, float plus, uint32_t) const
    {
        return word_by_table<C, ALL, false>(x, scale, table, times, plus);
    }
    __device__ uint32_t word_of_rare(float x[8], const bin *table, float times, float plus) const
    {
        for (int k = 0; k < 8; k++)
            x[k] = qm_table_scaled(x[k], most);
        return word_by_table<C, ALL, false>(x, 1, table, times, plus);
    }
};

template <qm_dtype D> struct nibble_block<QM_NIBBLES_TABLE, D> : table_block<D, RANKS, FEW_BINS> {};
template <qm_dtype D> struct nibble_block<QM_NIBBLES_ANY_TABLE, D> : table_block<D, ANY_CODES, MOST_BINS> {};

/* Integers (integers.h).  In q + 1.5 2^23 the low bits are the whole number; words of them are added up with the rest
 * of those bits, which is taken off at the end. */
#define INTEGER_MAGIC 12582912.0f
enum { INTEGER_BITS = 0x4b400000 };

/* Whether quotients by this are those of the fused way. */
__device__ inline bool divides_quickly(float scale) { return is_moderate(scale) && (~__float_as_uint(scale) & 0x7fffffu) != 0; }

/* x / by, rounded to nearest. */
__device__ inline float quotient(float x, float by, float inverse)
{
    float q = x * inverse;
    return __fmaf_rn(__fmaf_rn(-q, by, x), inverse, q);
}

/* low: what code 0 stands for.  HELD: codes beyond 15 may come up, and are 15. */
template <bool HELD> __device__ inline uint32_t word_of_integers(const float x[8], float scale, float inverse, int32_t low)
{
    const float most = INTEGER_MAGIC + (float)(15 + low);
    uint32_t word = 0;
#pragma unroll
    for (int k = 7; k >= 0; k--) {
        float whole = quotient(x[k ^ 1], scale, inverse) + INTEGER_MAGIC;
        word = word * 16 + __float_as_uint(HELD ? fminf(whole, most) : whole);
    }
    return word - (uint32_t)(INTEGER_BITS + low) * 0x11111111u;
}

static __device__ __noinline__ uint32_t word_of_quotients(const float *x, float scale, int32_t low, int32_t high)
{
    uint32_t word = 0;
    for (int k = 7; k >= 0; k--)
        word = word * 16 + (uint32_t)(qm_integer_of(x[k ^ 1] / scale, low, high) - low);
    return word;
}

template <qm_dtype D> struct nibble_block<QM_NIBBLES_INT4, D> {
    typedef range<D> range_of; /* which says whether there is a NaN */
    static constexpr uint32_t ALL = 0;
    static constexpr bool RARE = true;
    float scale, inverse;

    __device__ void of(range<D> r)
    {
        scale = quotient(fmaxf(r.top(), -r.bottom()), 7, 1 / 7.0f);
        inverse = inverse_of(scale);
    }
    __device__ void of_rare(number_range r) { scale = fmaxf(r.high, -r.low) / 7; }
    __device__ float stored() const { return scale; }
    __device__ uint8_t zero_point() const { return 0; }
    __device__ bool rare() const { return !divides_quickly(scale); }
    __device__ uint32_t word(const float x[8], const bin *, float, float, uint32_t) const
    {
        return word_of_integers<false>(x, scale, inverse, -8); /* which never comes up */
    }
    __device__ uint32_t word_of_rare(float x[8], const bin *, float, float) const
    {
        return word_of_quotients(x, scale, -7, 7) + 0x11111111u;
    }
};

template <qm_dtype D> struct nibble_block<QM_NIBBLES_UINT4, D> {
    typedef range<D> range_of;
    static constexpr uint32_t ALL = 0;
    static constexpr bool RARE = true;
    float scale;
    int32_t zero;

    __device__ void of(range<D> r)
    {
        float low = -max_or_nan(-r.bottom(), 0), high = max_or_nan(r.top(), 0);
        scale = quotient(high * 0.5f - low * 0.5f, 15, 1 / 15.0f) * 2;
        zero = (int32_t)(__float_as_uint(quotient(-low, scale, inverse_of(scale)) + INTEGER_MAGIC) - INTEGER_BITS);
    }
    __device__ void of_rare(number_range r)
    {
        scale = (r.high * 0.5f - r.low * 0.5f) / 15 * 2;
        zero = qm_integer_of(-r.low / scale, 0, 15);
    }
    __device__ float stored() const { return scale; }
    __device__ uint8_t zero_point() const { return (uint8_t)zero; }
    __device__ bool rare() const { return !divides_quickly(scale); }
    __device__ uint32_t word(const float x[8], const bin *, float, float, uint32_t) const
    {
        return word_of_integers<true>(x, scale, inverse_of(scale), -zero); /* the highest might be 16 */
    }
    __device__ uint32_t word_of_rare(float x[8], const bin *, float, float) const
    {
        return word_of_quotients(x, scale, -zero, 15 - zero);
    }
};

template <qm_nibble_kind KIND, qm_dtype D>
static __device__ __noinline__ uint32_t rare_word(nibble_block<KIND, D> block, eight<D> v, const bin *table, float times, float plus)
{
    float each[8];
    unpack(v, each);
    return block.rare() ? block.word_of_rare(each, table, times, plus) : block.word(each, table, times, plus, 0);
}

template <qm_dtype D> static __device__ __noinline__ number_range numbers_of(eight<D> v, number_range r)
{
    float each[8];
    unpack(v, each);
    for (int k = 0; k < 8; k++)
        r = {fmaxf(r.high, each[k]), fminf(r.low, each[k])};
    return r;
}

/* How the lanes of a warp share its vectors: U to a lane, 32 apart. */
template <uint32_t BLOCK> struct warp_share {
    static constexpr int U = BLOCK > 2048 ? BLOCK / WARP_VALUES : 8;
    static constexpr int LANES = BLOCK < WARP_VALUES ? BLOCK / LANE_VALUES : 32; /* that share a block, */
    static constexpr int VECTORS = BLOCK < WARP_VALUES ? 1 : BLOCK / WARP_VALUES; /* and vectors of each */
    static constexpr int GROUPS = U / VECTORS;
};

/* Where a lane's results go. */
template <uint32_t BLOCK> struct nibble_places {
    uint32_t *codes;
    float *scales;
    uint8_t *zeros;

    __device__ nibble_places(uint32_t *all_codes, float *all_scales, uint8_t *all_zeros, uint64_t first)
        : codes(all_codes + first), scales(all_scales + first / (BLOCK / LANE_VALUES)),
          zeros(all_zeros ? all_zeros + first / (BLOCK / LANE_VALUES) : NULL)
    {
    }
    __device__ void put_codes(int u, uint32_t word) const { __stcs(codes + u * 32, word); } /* nobody reads them soon */
    template <class B> __device__ void put_scale(int u, const B &block) const
    {
        if (threadIdx.x % warp_share<BLOCK>::LANES)
            return;
        scales[u * 32 / (BLOCK / LANE_VALUES)] = block.stored();
        if (zeros)
            zeros[u * 32 / (BLOCK / LANE_VALUES)] = block.zero_point();
    }
};

/* All of a warp's vectors, of which some block is rare. */
template <qm_nibble_kind KIND, qm_dtype D, uint32_t BLOCK>
static __device__ __noinline__ void encode_rare(const void *x, uint64_t first, nibble_places<BLOCK> to, const bin *table, float times,
                                                float plus)
{
    typedef warp_share<BLOCK> share;
    typedef nibble_block<KIND, D> block_of;
#pragma unroll 1
    for (int u = 0; u < share::U; u += share::VECTORS) {
        typename block_of::range_of m = block_of::range_of::of_eight(load_eight<D>(x, first + u * 32));
        number_range r = {0, 0};
#pragma unroll 1
        for (int k = 0; k < share::VECTORS; k++) {
            eight<D> v = load_eight<D>(x, first + (u + k) * 32);
            m = m.join(block_of::range_of::of_eight(v));
            r = numbers_of<D>(v, r);
        }
        block_of block;
        block.of(among_lanes(m, share::LANES));
        r = among_lanes(r, share::LANES);
        if (block.rare())
            block.of_rare(r);
        to.put_scale(u, block);
#pragma unroll 1
        for (int k = 0; k < share::VECTORS; k++)
            to.put_codes(u + k, rare_word<KIND, D>(block, load_eight<D>(x, first + (u + k) * 32), table, times, plus));
    }
}

template <qm_nibble_kind KIND, qm_dtype D, uint32_t BLOCK>
__global__ void __launch_bounds__(NIBBLE_THREADS)
    nibbles_encode(const void *__restrict__ x, uint64_t warps, uint32_t *__restrict__ codes, float *__restrict__ scales,
                   uint8_t *__restrict__ zeros, uint32_t zero_word, const __grid_constant__ bins b)
{
    typedef warp_share<BLOCK> share;
    typedef nibble_block<KIND, D> block_of;
    typedef typename block_of::range_of range_of;
    constexpr int U = share::U, GROUPS = share::GROUPS;
    constexpr int AT_ONCE = block_of::RARE ? GROUPS : 1; /* looked at before one is encoded: the warp is asked once */
    __shared__ __align__(16) bin tables[block_of::ALL ? block_of::ALL : 1][BIN_COPIES];
    const uint64_t warp = (uint64_t)blockIdx.x * NIBBLE_WARPS + threadIdx.x / 32, first = warp * U * 32 + threadIdx.x % 32;

    eight<D> v[U];
    if (warp < warps)
#pragma unroll
        for (int u = 0; u < U; u++)
            v[u] = load_eight<D>(x, first + u * 32);
    if (block_of::ALL) {
        enum { PAIRS = BIN_COPIES / 2 };
        for (uint32_t i = threadIdx.x / PAIRS; i <= b.used; i += NIBBLE_THREADS / PAIRS) {
            const uint32_t threshold = __float_as_uint(b.of[i].threshold), of = b.of[i].codes;
            ((uint4 *)tables[i < b.used ? i : b.of_nan])[threadIdx.x % PAIRS] = make_uint4(threshold, of, threshold, of);
        }
        __syncthreads();
    }
    if (warp >= warps)
        return;
    const nibble_places<BLOCK> to(codes, scales, KIND == QM_NIBBLES_UINT4 ? zeros : NULL, first);
#pragma unroll
    for (int begin = 0; begin < GROUPS; begin += AT_ONCE) {
        block_of block[AT_ONCE];
        bool rare = false;
#pragma unroll
        for (int g = 0; g < AT_ONCE; g++) {
            const int u = (begin + g) * share::VECTORS;
            range_of m = range_of::of_eight(v[u]);
#pragma unroll
            for (int k = 1; k < share::VECTORS; k++)
                m = m.join(range_of::of_eight(v[u + k]));
            block[g].of(among_lanes(m, share::LANES));
            rare |= block[g].rare();
        }
        if constexpr (block_of::RARE)
            if (__any_sync(~0u, rare)) {
                encode_rare<KIND, D, BLOCK>(x, first, to, &tables[0][0], b.times, b.plus);
                return;
            }
#pragma unroll
        for (int g = 0; g < AT_ONCE; g++) {
            const int u = (begin + g) * share::VECTORS;
            to.put_scale(u, block[g]);
#pragma unroll
            for (int k = 0; k < share::VECTORS; k++) {
                float each[8];
                unpack(v[u + k], each);
                to.put_codes(u + k, block[g].word(each, &tables[0][0], b.times, b.plus, zero_word));
            }
        }
    }
}

uint64_t qm_nibbles_encodes(uint32_t block, uint64_t n)
{
    uint64_t run = block > 2048 ? block : 2048;
    return block < 32 || block > 4096 || (block & (block - 1)) ? 0 : n / run * run;
}

/* One call of the encoder, on its way to the kernel for its kind, type and block. */
struct nibble_call {
    const void *x;
    uint64_t n;
    uint32_t block, zero_word;
    uint8_t *codes, *zeros;
    float *scales;
    cudaStream_t stream;
    bins b;
};

template <qm_nibble_kind KIND, qm_dtype D, uint32_t BLOCK> static cudaError_t launch_nibbles(const nibble_call &c)
{
    uint64_t warps = c.n / (BLOCK > 2048 ? BLOCK : 2048);
    unsigned grid = (unsigned)((warps + NIBBLE_WARPS - 1) / NIBBLE_WARPS);
    nibbles_encode<KIND, D, BLOCK><<<grid, NIBBLE_THREADS, 0, c.stream>>>(c.x, warps, (uint32_t *)c.codes, c.scales, c.zeros,
                                                                         c.zero_word, c.b);
    return cudaGetLastError();
}

template <qm_nibble_kind KIND, qm_dtype D> static cudaError_t nibbles_of_block(const nibble_call &c)
{
    switch (c.block) {
    case 32: return launch_nibbles<KIND, D, 32>(c);
    case 64: return launch_nibbles<KIND, D, 64>(c);
    case 128: return launch_nibbles<KIND, D, 128>(c);
    case 256: return launch_nibbles<KIND, D, 256>(c);
    case 512: return launch_nibbles<KIND, D, 512>(c);
    case 1024: return launch_nibbles<KIND, D, 1024>(c);
    case 2048: return launch_nibbles<KIND, D, 2048>(c);
    case 4096: return launch_nibbles<KIND, D, 4096>(c);
    }
    return cudaErrorInvalidValue;
}

template <qm_nibble_kind KIND> static cudaError_t nibbles_of_type(qm_dtype dtype, const nibble_call &c)
{
    switch (dtype) {
    case QM_F32: return nibbles_of_block<KIND, QM_F32>(c);
    case QM_F16: return nibbles_of_block<KIND, QM_F16>(c);
    case QM_BF16: return nibbles_of_block<KIND, QM_BF16>(c);
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t qm_nibbles_encode(qm_nibble_kind kind, const qm_nibble_ranks *ranks, const void *x, qm_dtype dtype, uint64_t n,
                              uint32_t block, bool exact_zero, uint8_t *codes, float *scales, uint8_t *zeros, cudaStream_t s)
{
    nibble_call c = {x, n, block, exact_zero && kind == QM_NIBBLES_NF4 ? 0x77777777u : 0, codes, zeros, scales, s, {}};
    bool few = true;
    if (n == 0)
        return cudaSuccess;
    if (kind == QM_NIBBLES_FP4 ? !fill_bins(&c.b, ranks, true, 16, BIN_PLUS, FEW_BINS) : ranks && !find_bins(&c.b, ranks, &few))
        return cudaErrorNotSupported;
    switch (kind) {
    case QM_NIBBLES_NF4: return nibbles_of_type<QM_NIBBLES_NF4>(dtype, c);
    case QM_NIBBLES_FP4: return nibbles_of_type<QM_NIBBLES_FP4>(dtype, c);
    case QM_NIBBLES_INT4: return nibbles_of_type<QM_NIBBLES_INT4>(dtype, c);
    case QM_NIBBLES_UINT4: return nibbles_of_type<QM_NIBBLES_UINT4>(dtype, c);
    default: return few ? nibbles_of_type<QM_NIBBLES_TABLE>(dtype, c) : nibbles_of_type<QM_NIBBLES_ANY_TABLE>(dtype, c);
    }
}

#endif
