/* blocks32.cuh: q8_0 and q4_0, four lanes to a block of 32 values.
 *
 * A block of threads encodes 256 of them; their bytes, which begin anywhere, are put together in shared memory
 * and leave sixteen at a time.  Blocks with NaN or infinities, or so small that the scale has no reciprocal,
 * are given to the format's own code. */
#ifndef QM_BLOCKS32_CUH
#define QM_BLOCKS32_CUH

enum { BLOCKS_THREADS = 256, BLOCKS_TURNS = 4, BLOCKS_AT_ONCE = BLOCKS_THREADS / 4, BLOCKS = BLOCKS_TURNS * BLOCKS_AT_ONCE };

/* The bits of the largest magnitude of four lanes; above infinity's where there is a NaN. */
__device__ inline uint32_t largest_of_block(const float x[8])
{
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    return max(most, __shfl_xor_sync(~0u, most, 2));
}

struct q8_0_code {
    static constexpr int BYTES = sizeof(struct qm_q8_0);
    static constexpr encode_group *PLAIN = format_q8_0::encode;

    /* d, and whether what follows is right for it */
    __device__ static bool scale(const float[8], uint32_t most, float *d, float *inverse)
    {
        *d = __uint_as_float(most) / 127.0f;
        *inverse = *d != 0 ? 1.0f / *d : 0.0f;
        return most < 0x7f800000u && *inverse < INFINITY;
    }

    /* The lane's 8 bytes, at an even address. */
    __device__ static void store(const float x[8], float inverse, uint8_t *block, uint32_t lane)
    {
        uint16_t *to = (uint16_t *)(block + 2 + 8 * lane);
#pragma unroll
        for (int i = 0; i < 4; i++)
            to[i] = (uint16_t)((code(x[2 * i] * inverse) & 255) | code(x[2 * i + 1] * inverse) << 8);
    }

    __device__ static int code(float v) { return __float2int_rz(v + copysignf(0x1.fffffep-2f, v)); }
};

struct q4_0_code {
    static constexpr int BYTES = sizeof(struct qm_q4_0);
    static constexpr encode_group *PLAIN = format_q4_0::encode;

    __device__ static bool scale(const float x[8], uint32_t most, float *d, float *inverse)
    {
        float max = 0; /* the first of the largest, with its sign */
        bool have = false;
#pragma unroll
        for (int i = 7; i >= 0; i--)
            if ((__float_as_uint(x[i]) & 0x7fffffffu) == most) {
                max = x[i];
                have = true;
            }
        uint32_t lane = threadIdx.x % 32, first = __ffs(__ballot_sync(~0u, have) >> (lane & 28)) - 1;
        max = __shfl_sync(~0u, max, (lane & 28) + (first & 3));
        *d = (most ? max : 0.0f) / -8.0f;
        *inverse = *d != 0 ? 1.0f / *d : 0.0f;
        return most < 0x7f800000u && fabsf(*inverse) < INFINITY;
    }

    /* Values 0 ... 15 are low nibbles, 16 ... 31 high ones: lanes 0 and 1 take those of 2 and 3. */
    __device__ static void store(const float x[8], float inverse, uint8_t *block, uint32_t lane)
    {
        uint32_t word[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++)
            word[i / 4] |= (uint32_t)min(__float2int_rz(x[i] * inverse + 8.5f), 15) << 8 * (i % 4);
        word[0] |= __shfl_down_sync(~0u, word[0], 2) << 4;
        word[1] |= __shfl_down_sync(~0u, word[1], 2) << 4;
        if (lane < 2) {
            uint16_t *to = (uint16_t *)(block + 2 + 8 * lane);
            to[0] = (uint16_t)word[0], to[1] = (uint16_t)(word[0] >> 16);
            to[2] = (uint16_t)word[1], to[3] = (uint16_t)(word[1] >> 16);
        }
    }
};

/* By the format's own code, from where the values lie; one lane does it. */
template <class F, qm_dtype D> __device__ __noinline__ void encode_plainly(const void *x, uint64_t block, uint8_t *out)
{
    float v[32];
    for (int i = 0; i < 32; i++)
        v[i] = load_one(x, D, block * 32 + i);
    F::PLAIN(v, 32, NULL, &out);
}

template <class F, qm_dtype D>
__global__ void __launch_bounds__(BLOCKS_THREADS)
    blocks32_encode(const void *__restrict__ x, uint64_t blocks, uint8_t *__restrict__ out)
{
    __shared__ uint4 staged[BLOCKS * F::BYTES / 16];
    const uint64_t first = (uint64_t)blockIdx.x * BLOCKS;
    const uint32_t lane = threadIdx.x % 4, here = blocks - first < BLOCKS ? (uint32_t)(blocks - first) : BLOCKS;
    eight<D> v[BLOCKS_TURNS];
#pragma unroll
    for (int u = 0; u < BLOCKS_TURNS; u++)
        v[u] = first * 4 + u * BLOCKS_THREADS + threadIdx.x < blocks * 4
                   ? load_eight<D>(x, first * 4 + u * BLOCKS_THREADS + threadIdx.x)
                   : eight<D>{};
#pragma unroll
    for (int u = 0; u < BLOCKS_TURNS; u++) {
        uint32_t block = u * BLOCKS_AT_ONCE + threadIdx.x / 4;
        uint8_t *to = (uint8_t *)staged + block * F::BYTES;
        float each[8], d, inverse;
        unpack(v[u], each);
        bool ordinary = F::scale(each, largest_of_block(each), &d, &inverse);
        F::store(each, inverse, to, lane);
        if (lane == 0)
            *(__half *)to = __float2half_rn(d); /* agrees with half.h on all but NaN, which is done plainly */
        __syncwarp();
        if (!ordinary && lane == 0 && block < here)
            encode_plainly<F, D>(x, first + block, to);
    }
    __syncthreads();
    uint8_t *to = out + first * F::BYTES;
    uint32_t bytes = here * F::BYTES;
    for (uint32_t i = threadIdx.x; i < bytes / 16; i += BLOCKS_THREADS)
        __stcs((uint4 *)to + i, staged[i]);
    for (uint32_t i = bytes / 16 * 16 + threadIdx.x; i < bytes; i += BLOCKS_THREADS)
        to[i] = ((uint8_t *)staged)[i];
}

template <class F>
static cudaError_t launch_blocks32(const void *x, qm_dtype dtype, uint64_t n, uint8_t *out, cudaStream_t s)
{
    uint64_t blocks = n / 32;
    unsigned grid = (unsigned)((blocks + BLOCKS - 1) / BLOCKS);
    switch (dtype) {
    case QM_F32: blocks32_encode<F, QM_F32><<<grid, BLOCKS_THREADS, 0, s>>>(x, blocks, out); break;
    case QM_F16: blocks32_encode<F, QM_F16><<<grid, BLOCKS_THREADS, 0, s>>>(x, blocks, out); break;
    case QM_BF16: blocks32_encode<F, QM_BF16><<<grid, BLOCKS_THREADS, 0, s>>>(x, blocks, out); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}

cudaError_t qm_q8_0_encode(const void *x, qm_dtype dtype, uint64_t n, uint8_t *blocks, cudaStream_t s)
{
    return launch_blocks32<q8_0_code>(x, dtype, n, blocks, s);
}

cudaError_t qm_q4_0_encode(const void *x, qm_dtype dtype, uint64_t n, uint8_t *blocks, cudaStream_t s)
{
    return launch_blocks32<q4_0_code>(x, dtype, n, blocks, s);
}

#endif
