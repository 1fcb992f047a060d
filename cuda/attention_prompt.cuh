/* attention_prompt.cuh: attention of a prompt on the tensor cores of GPUs that have no wgmma (attention_wide.cu), and which way a call
 * takes. */
#ifndef QM_ATTENTION_PROMPT_CUH
#define QM_ATTENTION_PROMPT_CUH

/* Scores are never stored (FlashAttention-2, arXiv 2307.08691): a block of threads has 64 tokens of one head, a warp 16 of
 * them; keys and values come by 64 positions into shared memory, the next while these are used.  Weights and values are f16
 * there, sums f32. */

enum { FLASH_THREADS = 128, FLASH_ROWS = 64, FLASH_KEYS = 64 };

/* Address of 16 bytes: rows of DIM f16, whose eighths are exchanged so that eight rows lie in different banks. */
template <int DIM> __device__ inline uint32_t flash_at(uint32_t base, uint32_t row, uint32_t eighth)
{
    return base + row * DIM * 2 + (eighth ^ (row & 7)) * 16;
}

template <int DIM> __device__ inline void flash_load(uint32_t to, const __half *from, int32_t first, int32_t end)
{
    for (uint32_t i = threadIdx.x; i < FLASH_KEYS * DIM / 8; i += FLASH_THREADS) {
        uint32_t row = i / (DIM / 8), eighth = i % (DIM / 8);
        int32_t at = first + (int32_t)row;
        copy_async(flash_at<DIM>(to, row, eighth), from + (int64_t)(at < end ? at : 0) * DIM + eighth * 8, at < end);
    }
}

/* The first `each` codes of every head as f16, keys and then values; the grid's y is the head, its z which of the two. */
__global__ void unpack_kv(const __grid_constant__ qm_attention a, __half *to, uint32_t each)
{
    let_next_begin();
    wait_for_previous();
    const kv_part<QM_I8> part(a, blockIdx.z ? a.values : a.keys);
    uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= each)
        return;
    float4 v = part.four((uint64_t)blockIdx.y * a.context * a.head_dim + i);
    __half2 two[2] = {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
    *(uint2 *)(to + ((uint64_t)blockIdx.z * a.kv_heads + blockIdx.y) * each + i) = *(uint2 *)two;
}

template <int DIM> __global__ void __launch_bounds__(FLASH_THREADS) flash(const __grid_constant__ qm_attention a)
{
    extern __shared__ uint4 shared16[];
    constexpr uint32_t TILE = FLASH_KEYS * DIM * 2;
    const uint32_t memory = (uint32_t)__cvta_generic_to_shared(shared16);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t block = gridDim.x - 1 - blockIdx.x; /* those that see most begin first */
    const uint32_t head = blockIdx.y, kv = head / (a.heads / a.kv_heads), row0 = block * FLASH_ROWS + warp * 16;
    constexpr float LOG2E = 1.4426950408889634f; /* weights are powers of two here */
    let_next_begin();
    wait_for_previous();

    const __half *keys = (const __half *)a.keys + (uint64_t)kv * a.context * DIM, *values = (const __half *)a.values + (uint64_t)kv * a.context * DIM;
    const int32_t block0 = a.at.first + (int32_t)(block * FLASH_ROWS);
    const int32_t rows = (int32_t)a.tokens - (int32_t)(block * FLASH_ROWS), end = block0 + (rows < FLASH_ROWS ? rows : FLASH_ROWS);
    const int32_t from = a.window && block0 + 1 > (int32_t)a.window ? (block0 + 1 - (int32_t)a.window) / FLASH_KEYS * FLASH_KEYS : 0;
    const int32_t mine[2] = {a.at.first + (int32_t)(row0 + g), a.at.first + (int32_t)(row0 + g) + 8}; /* positions of my rows */

    const float scale = a.softcap != 0 ? a.scale : a.scale * LOG2E;
    uint32_t q[DIM / 16][4];
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t row = row0 + g + i % 2 * 8, col = k * 16 + i / 2 * 8 + 2 * t;
            float2 v = row < a.tokens ? *(const float2 *)(a.q + ((uint64_t)row * a.heads + head) * DIM + col) : make_float2(0, 0);
            __half2 h = __floats2half2_rn(v.x * scale, v.y * scale);
            q[k][i] = *(uint32_t *)&h;
        }

    float out[DIM / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    flash_load<DIM>(memory, keys, from, end);
    flash_load<DIM>(memory + TILE, values, from, end);
    copies_begun();
    for (int32_t at = from, turn = 0; at < end; at += FLASH_KEYS, turn ^= 1) {
        if (at + FLASH_KEYS < end) {
            flash_load<DIM>(memory + (turn ^ 1) * 2 * TILE, keys, at + FLASH_KEYS, end);
            flash_load<DIM>(memory + (turn ^ 1) * 2 * TILE + TILE, values, at + FLASH_KEYS, end);
            copies_begun();
            copies_done<1>();
        } else {
            copies_done<0>();
        }
        __syncthreads();
        const uint32_t k0 = memory + turn * 2 * TILE, v0 = k0 + TILE;
        float s[FLASH_KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < DIM / 16; k++)
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 16; n++) {
                uint32_t b[4];
                load_matrices(b, flash_at<DIM>(k0, n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
                mma(s[2 * n], q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
                mma(s[2 * n + 1], q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
            }
        if (a.softcap != 0)
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[n][i] = a.softcap * LOG2E * tanhf(s[n][i] / a.softcap);
        if (at + FLASH_KEYS > a.at.first + (int32_t)row0 || a.window) /* not all of them are seen by all rows */
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int32_t p = at + n * 8 + (int32_t)(2 * t) + i % 2, row = mine[i / 2];
                    if (p > row || (a.window && p + (int32_t)a.window <= row))
                        s[n][i] = -INFINITY;
                }
        float now[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                now[i / 2] = fmaxf(now[i / 2], s[n][i]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 1));
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 2));
            float base = now[r] == -INFINITY ? 0 : now[r], shrink = power_of_two(most[r] - base);
            most[r] = now[r];
            now[r] = base;
            sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
                out[n][2 * r] *= shrink, out[n][2 * r + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = power_of_two(s[n][i] - now[i / 2]);
                sum[i / 2] += s[n][i];
            }
#pragma unroll
        for (int k = 0; k < FLASH_KEYS / 16; k++) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                __half2 h = __floats2half2_rn(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
                w[i] = *(uint32_t *)&h;
            }
#pragma unroll
            for (int n = 0; n < DIM / 16; n++) {
                uint32_t b[4];
                load_matrices_turned(b, flash_at<DIM>(v0, k * 16 + lane % 16, n * 2 + lane / 16));
                mma(out[2 * n], w[0], w[1], w[2], w[3], b[0], b[1]);
                mma(out[2 * n + 1], w[0], w[1], w[2], w[3], b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        uint32_t row = row0 + g + 8 * r;
#pragma unroll
        for (int n = 0; n < DIM / 8 && row < a.tokens; n++)
            *(float2 *)(a.y + ((uint64_t)row * a.heads + head) * DIM + n * 8 + 2 * t) = make_float2(out[n][2 * r] / sum[r], out[n][2 * r + 1] / sum[r]);
    }
}

/* ---- launching ----------------------------------------------------------------------------------- */

template <int DIM> static cudaError_t launch_flash(const qm_attention *a, cudaStream_t s)
{
    const size_t shared = 4 * FLASH_KEYS * DIM * 2;
    cudaError_t r = cudaFuncSetAttribute(flash<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return r ? r : launch(flash<DIM>, dim3((a->tokens + FLASH_ROWS - 1) / FLASH_ROWS, a->heads), FLASH_THREADS, shared, s, *a);
}

/* Whether the tensor cores do it: they take f16, and codes that are brought to it first.  A bf16 may be beyond f16. */
static bool is_prompt(const qm_attention *a)
{
    return a->tokens > QM_HALF_TOKENS && (a->dtype == QM_F16 || a->dtype == QM_I8) && !a->sinks && !a->at.passed
           && (a->head_dim == 64 || a->head_dim == 128);
}

uint64_t qm_attention_unpacked(const qm_attention *a)
{
    uint64_t seen = (uint64_t)a->at.first + a->tokens;
    return is_prompt(a) && a->dtype == QM_I8 ? 2 * a->kv_heads * seen * a->head_dim * sizeof(__half) : 0;
}

static cudaError_t attend_prompt(const qm_attention *a, cudaStream_t s)
{
    qm_attention b = *a;
    cudaError_t r = a->dtype == QM_F16 ? append<QM_F16>(a, s) : append<QM_I8>(a, s);
    if (a->dtype == QM_I8) {
        b.context = (uint32_t)a->at.first + a->tokens;
        uint32_t each = b.context * a->head_dim;
        __half *to = (__half *)a->unpacked;
        b.keys = to, b.values = to + (uint64_t)a->kv_heads * each;
        if (!r)
            r = launch(unpack_kv, dim3((each / 4 + 255) / 256, a->kv_heads, 2), 256, 0, s, *a, to, each);
    }
    if (r || qm_matrix_takes_wide())
        return r ? r : qm_attend_wide(&b, s);
    return a->head_dim == 64 ? launch_flash<64>(&b, s) : launch_flash<128>(&b, s);
}

cudaError_t qm_attend(const qm_attention *a, cudaStream_t s)
{
    if (is_prompt(a))
        return attend_prompt(a, s);
    switch (a->dtype) {
    case QM_F32: return launch_attend<QM_F32>(a, s);
    case QM_F16: return launch_attend<QM_F16>(a, s);
    case QM_BF16: return launch_attend<QM_BF16>(a, s);
    default: return launch_attend<QM_I8>(a, s);
    }
}

#endif
