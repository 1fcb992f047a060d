/* nibbles_decode.cuh: four-bit codes, two a byte, back into values: a lane has four bytes of codes and writes eight
 * values; every lane has its own table, in its own bank of shared memory. */
#ifndef QM_NIBBLES_DECODE_CUH
#define QM_NIBBLES_DECODE_CUH

/* How a level and a scale make a value: in arithmetic that flushes to zero, or not, or less a zero point. */
enum nibble_product { PRODUCT_FTZ, PRODUCT, PRODUCT_OF_DIFFERENCE };

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

/* What was read for a group. */
struct scale_bytes {
    float scale; /* or the one of the second level */
    uint8_t code; /* into that, or the zero point */
};

template <nibble_product P, bool NESTED> __device__ inline scale_bytes load_scale(const qm_nibbles &q, uint64_t group)
{
    if constexpr (NESTED)
        return {q.nested[group / 256], ((const uint8_t *)q.scales)[group]};
    return {((const float *)q.scales)[group], P == PRODUCT_OF_DIFFERENCE ? q.zeros[group] : (uint8_t)0};
}

template <nibble_product P> struct group_scale {
    float scale, zero;

    __device__ float times(float level) const
    {
        return P == PRODUCT_FTZ ? times_ftz(level, scale) : P == PRODUCT ? level * scale : (level - zero) * scale;
    }
};

template <nibble_product P, bool NESTED>
__device__ inline group_scale<P> scale_of(const nibble_tables &t, const qm_nibbles &q, scale_bytes s)
{
    return {NESTED ? times_ftz(t.nested[s.code], s.scale) + q.offset : s.scale, NESTED ? 0 : (float)s.code};
}

/* Where the lane's own levels lie in shared memory.  Taken once they have been filled in: what reads them by this
 * address cannot be moved before that. */
__device__ inline uint32_t levels_of_lane(const nibble_tables &t)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(&t.level[0][threadIdx.x % 32]), there;
    asm volatile("mov.u32 %0, %1;" : "=r"(there) : "r"(at));
    return there;
}

/* The levels of a word's eight codes, bytes in order, high nibble first. */
struct nibble_levels {
    uint32_t high, low, levels;

    __device__ nibble_levels(uint32_t word, uint32_t levels_at)
        : high(word >> 4 & 0x0f0f0f0fu), low(word & 0x0f0f0f0fu), levels(levels_at)
    {
    }
    __device__ float operator[](int k) const
    {
        uint32_t at = __dp4a(k % 2 ? low : high, 128u << 8 * (k / 2), levels); /* a code is 128 bytes */
        float level;
        asm("ld.shared.f32 %0, [%1];" : "=f"(level) : "r"(at));
        return level;
    }
};

/* An f32 lane has half as many values, so that it, too, writes 16 bytes. */
template <qm_dtype D> struct decoded {
    static constexpr int VALUES = D == QM_F32 ? 4 : 8;
};

template <qm_dtype D> __device__ inline uint32_t codes_at(const uint8_t *codes, uint32_t i)
{
    return D == QM_F32 ? ((const uint16_t *)codes)[i] : ((const uint32_t *)codes)[i];
}

template <nibble_product P, qm_dtype D, bool NESTED, int U>
__global__ void __launch_bounds__(NIBBLE_THREADS)
    nibbles_decode(const __grid_constant__ qm_nibbles q, uint32_t shift, uint64_t n, void *__restrict__ y)
{
    constexpr int VALUES = decoded<D>::VALUES;
    __shared__ nibble_tables t;
    const uint64_t vectors = n / VALUES, start = (uint64_t)blockIdx.x * U * NIBBLE_THREADS;
    const uint8_t *codes = q.codes + start * VALUES / 2;
    const uint64_t group = start >> shift; /* the block of threads begins with a group, or lies in one */
    const uint32_t here = vectors - start < U * NIBBLE_THREADS ? (uint32_t)(vectors - start) : U * NIBBLE_THREADS;
    uint4 *to = (uint4 *)y + start;
    uint32_t word[U];
    scale_bytes scale[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        uint32_t i = u * NIBBLE_THREADS + threadIdx.x;
        if (i < here) {
            word[u] = codes_at<D>(codes, i);
            scale[u] = load_scale<P, NESTED>(q, group + (i >> shift));
        }
    }
    fill_tables<NESTED>(t, q);
    const uint32_t levels = levels_of_lane(t);
#pragma unroll
    for (int u = 0; u < U; u++) {
        uint32_t i = u * NIBBLE_THREADS + threadIdx.x;
        if (i >= here)
            break;
        group_scale<P> by = scale_of<P, NESTED>(t, q, scale[u]);
        nibble_levels level(word[u], levels);
        float v[VALUES];
#pragma unroll
        for (int k = 0; k < VALUES; k++)
            v[k] = by.times(level[k]);
        if constexpr (D == QM_F32)
            __stcs(to + i, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
        else
            __stcs(to + i, make_uint4(pack_pair<D>(v[0], v[1]), pack_pair<D>(v[2], v[3]), pack_pair<D>(v[4], v[5]), pack_pair<D>(v[6], v[7])));
    }
    if (blockIdx.x == 0 && threadIdx.x < n % VALUES) { /* what does not fill a lane */
        uint64_t i = vectors * VALUES + threadIdx.x;
        group_scale<P> by = scale_of<P, NESTED>(t, q, load_scale<P, NESTED>(q, i / VALUES >> shift));
        store_one(y, D, i, by.times(q.level[q.codes[i / 2] >> (i % 2 ? 0 : 4) & 15]));
    }
}

template <nibble_product P, qm_dtype D, int U>
static cudaError_t launch_decode(const qm_nibbles *q, uint64_t n, void *y, cudaStream_t s)
{
    uint32_t shift = 0;
    while (q->block >> shift > decoded<D>::VALUES)
        shift++;
    uint64_t each = (uint64_t)decoded<D>::VALUES * U * NIBBLE_THREADS;
    unsigned grid = (unsigned)((n + each - 1) / each);
    if (q->nested)
        nibbles_decode<P, D, true, U><<<grid, NIBBLE_THREADS, 0, s>>>(*q, shift, n, y);
    else
        nibbles_decode<P, D, false, U><<<grid, NIBBLE_THREADS, 0, s>>>(*q, shift, n, y);
    return cudaGetLastError();
}

template <nibble_product P> static cudaError_t decode_nibbles(const qm_nibbles *q, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    switch (dtype) {
    case QM_F32: return launch_decode<P, QM_F32, 4>(q, n, y, s);
    case QM_F16: return launch_decode<P, QM_F16, 2>(q, n, y, s);
    case QM_BF16: return launch_decode<P, QM_BF16, 2>(q, n, y, s);
    default: return cudaErrorInvalidValue;
    }
}

cudaError_t qm_nibbles_decode(const qm_nibbles *q, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s)
{
    if (n == 0)
        return cudaSuccess;
    return q->flush ? decode_nibbles<PRODUCT_FTZ>(q, n, y, dtype, s)
           : q->zeros ? decode_nibbles<PRODUCT_OF_DIFFERENCE>(q, n, y, dtype, s)
                      : decode_nibbles<PRODUCT>(q, n, y, dtype, s);
}

#endif
