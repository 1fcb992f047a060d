/* blocks32.cuh: q8_0 and q4_0, four lanes to a block of 32 values.
 *
 * A block of threads encodes 512 of them (of f32, 256), with all it reads under way at once; their bytes, which begin anywhere, are put together in shared memory
 * and leave sixteen at a time.  Blocks with NaN or infinities, or whose scale is beyond 2^100 or 2^-100, are given to the
 * format's own code. */
#ifndef QM_BLOCKS32_CUH
#define QM_BLOCKS32_CUH

enum { BLOCKS_THREADS = 256, BLOCKS_AT_ONCE = BLOCKS_THREADS / 4 };
template <qm_dtype D> constexpr int blocks_turns = D == QM_F32 ? 4 : 8; /* 32 registers of values */

struct q8_0_code {
    static constexpr int BYTES = sizeof(struct qm_q8_0);
    static constexpr encode_group *PLAIN = format_q8_0::encode;

    __device__ static float scale(const float[8], float high, float low) { return fmaxf(high, -low) / 127.0f; }

    /* The lane's 8 bytes, at an even address. */
    __device__ static void store(const float x[8], float inverse, uint8_t *block, uint32_t lane)
    {
        uint16_t *to = (uint16_t *)(block + 2 + 8 * lane);
#pragma unroll
        for (int i = 0; i < 4; i++)
            to[i] = (uint16_t)__byte_perm(code(x[2 * i] * inverse), code(x[2 * i + 1] * inverse), 0x40);
    }

    __device__ static int code(float v) { return __float2int_rz(v + copysignf(0x1.fffffep-2f, v)); }

    /* Decoding: whether a byte has two codes; the codes of a thread's vector u; what stands for zero; value i of 32. */
    static constexpr bool SHARED = false;
    static constexpr float ZERO = 128;
    __device__ static uint32_t pick(uint32_t w, int) { return w ^ 0x80808080u; }
    __device__ static float code(const uint8_t *bytes, uint32_t i) { return (int8_t)bytes[i]; }
};

struct q4_0_code {
    static constexpr int BYTES = sizeof(struct qm_q4_0);
    static constexpr encode_group *PLAIN = format_q4_0::encode;

    /* Of two that are equally far from zero, the first counts. */
    __device__ static float scale(const float x[8], float high, float low)
    {
        float max = high > -low ? high : low;
        if (__any_sync(~0u, high == -low)) {
            float first = 0;
#pragma unroll
            for (int i = 7; i >= 0; i--)
                first = fabsf(x[i]) == high ? x[i] : first;
            uint32_t lane = threadIdx.x % 32, have = __ballot_sync(~0u, first != 0) >> (lane & 28) & 15;
            first = __shfl_sync(~0u, first, (lane & 28) + (have ? __ffs(have) - 1 : 0));
            max = high != -low ? max : have ? first : 0; /* and of nothing but zeros, +0 */
        }
        return max * -0.125f; /* as divided by -8 */
    }

    /* Values 0 ... 15 are low nibbles, 16 ... 31 high ones: lanes 0 and 1 take those of 2 and 3. */
    __device__ static void store(const float x[8], float inverse, uint8_t *block, uint32_t lane)
    {
        uint32_t whole[8], word[2];
#pragma unroll
        for (int i = 0; i < 8; i++) /* 0.5 ... 16.5: in a sum with 2^23, rounded down, the low bits are the whole number */
            whole[i] = __float_as_uint(__fadd_rz(x[i] * inverse + 8.5f, 8388608.0f));
#pragma unroll
        for (int k = 0; k < 2; k++) { /* sixteen is fifteen as well */
            const uint32_t *w = whole + 4 * k;
            word[k] = __vminu2(__byte_perm(w[0], w[2], 0x5410), 0x000f000f) + (__vminu2(__byte_perm(w[1], w[3], 0x5410), 0x000f000f) << 8);
        }
        word[0] |= __shfl_down_sync(~0u, word[0], 2) << 4;
        word[1] |= __shfl_down_sync(~0u, word[1], 2) << 4;
        if (lane < 2) {
            uint16_t *to = (uint16_t *)(block + 2 + 8 * lane);
            to[0] = (uint16_t)word[0], to[1] = (uint16_t)(word[0] >> 16);
            to[2] = (uint16_t)word[1], to[3] = (uint16_t)(word[1] >> 16);
        }
    }

    static constexpr bool SHARED = true; /* by values 16 apart, the first in the low nibble */
    static constexpr float ZERO = 8;
    __device__ static uint32_t pick(uint32_t w, int u) { return w >> 4 * u & 0x0f0f0f0fu; }
    __device__ static float code(const uint8_t *bytes, uint32_t i) { return (float)((bytes[i % 16] >> (i < 16 ? 0 : 4) & 15) - 8); }
};

/* 1 / d, rounded to nearest, for d between 2^-100 and 2^100: what the compiler makes of a division, but for its way out. */
__device__ inline float reciprocal(float d)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return __fmaf_rn(r, __fmaf_rn(-d, r, 1.0f), r);
}

/* By the format's own code, from where the values lie; one lane does it. */
template <class F, qm_dtype D> __device__ __noinline__ void encode_plainly(const void *x, uint64_t block, uint8_t *out)
{
    float v[32];
    for (int i = 0; i < 32; i++)
        v[i] = load_one(x, D, block * 32 + i);
    F::PLAIN(v, 32, NULL, &out);
}

template <class F, qm_dtype D>
__global__ void __launch_bounds__(BLOCKS_THREADS, 4)
    blocks32_encode(const void *__restrict__ x, uint64_t blocks, uint8_t *__restrict__ out)
{
    constexpr int TURNS = blocks_turns<D>, BLOCKS = TURNS * BLOCKS_AT_ONCE;
    __shared__ uint4 staged[BLOCKS * F::BYTES / 16];
    const uint64_t first = (uint64_t)blockIdx.x * BLOCKS;
    const uint32_t lane = threadIdx.x % 4, here = blocks - first < BLOCKS ? (uint32_t)(blocks - first) : BLOCKS;
    eight<D> v[TURNS];
#pragma unroll
    for (int u = 0; u < TURNS; u++)
        v[u] = first * 4 + u * BLOCKS_THREADS + threadIdx.x < blocks * 4
                   ? load_eight<D>(x, first * 4 + u * BLOCKS_THREADS + threadIdx.x)
                   : eight<D>{};
    uint8_t *const mine = (uint8_t *)staged + threadIdx.x / 4 * F::BYTES;
    uint32_t plain = 0; /* turns */
#pragma unroll
    for (int u = 0; u < TURNS; u++) {
        uint8_t *to = mine + u * BLOCKS_AT_ONCE * F::BYTES;
        float each[8];
        unpack(v[u], each);
        range<D> r = among_lanes(range<D>::of_eight(v[u]), 4);
        const float d = F::scale(each, r.top(), r.bottom()), size = fabsf(d); /* NaN where there is one */
        if (!(size == 0 || (size >= 0x1p-100f && size <= 0x1p100f)))
            plain |= 1u << u;
        F::store(each, size != 0 ? reciprocal(d) : 0, to, lane);
        if (lane == 0)
            *(__half *)to = __float2half_rn(d); /* agrees with half.h on all but NaN, which is done plainly */
    }
    __syncwarp(); /* what its other lanes stored, lane 0 writes over */
    if (__any_sync(~0u, plain) && lane == 0)
        for (uint32_t u = 0, block = threadIdx.x / 4; u < TURNS; u++, block += BLOCKS_AT_ONCE)
            if (plain >> u & 1 && block < here)
                encode_plainly<F, D>(x, first + block, (uint8_t *)staged + block * F::BYTES);
    __syncthreads();
    uint8_t *to = out + first * F::BYTES;
    uint32_t bytes = here * F::BYTES;
    for (uint32_t i = threadIdx.x; i < bytes / 16; i += BLOCKS_THREADS)
        __stcs((uint4 *)to + i, staged[i]);
    for (uint32_t i = bytes / 16 * 16 + threadIdx.x; i < bytes; i += BLOCKS_THREADS)
        to[i] = ((uint8_t *)staged)[i];
}

template <class F, qm_dtype D> static cudaError_t launch_blocks32_of(const void *x, uint64_t blocks, uint8_t *out, cudaStream_t s)
{
    constexpr uint64_t EACH = blocks_turns<D> * BLOCKS_AT_ONCE;
    blocks32_encode<F, D><<<(unsigned)((blocks + EACH - 1) / EACH), BLOCKS_THREADS, 0, s>>>(x, blocks, out);
    return cudaGetLastError();
}

template <class F>
static cudaError_t launch_blocks32(const void *x, qm_dtype dtype, uint64_t n, uint8_t *out, cudaStream_t s)
{
    switch (dtype) {
    case QM_F32: return launch_blocks32_of<F, QM_F32>(x, n / 32, out, s);
    case QM_F16: return launch_blocks32_of<F, QM_F16>(x, n / 32, out, s);
    case QM_BF16: return launch_blocks32_of<F, QM_BF16>(x, n / 32, out, s);
    default: return cudaErrorInvalidValue;
    }
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
