/* attention_wide.cu: attention of a prompt on Hopper's tensor cores; see qm_attend_wide in ops.h.
 *
 * An item is 128 queries of one head.  Two groups of four warps have 64 of them each; a warp copies keys and values, 128 positions
 * at a time, into rings in shared memory, as the tensor cores read them.  Positions are taken from the last to the first, in tiles that end
 * where the item ends:
 *
 *     positions   from ...        end - 256        end - 128         end
 *     tiles          |--- 2 ---|--------- 1 ---------|------- 0 -------|     0 has the diagonal, the last one a window's edge
 *
 * so only the first and last have positions that are not seen by all.  Scores are those of FlashAttention-3 (arXiv 2407.08608): while they
 * become weights, which are operand A from registers, the values of the tile before are multiplied by those before; the other group's
 * products fill what is left.  Weights are powers of two, f16; sums are f32.
 *
 * Blocks stay, and take items of all sizes: the longest first, and forth and back.  Every item is one block's, so results do not depend on
 * how many there are. */
#include <cuda.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "ops.h"

#include "launch.cuh"
#include "functions.cuh"
#include "mma.cuh"
#include "wgmma.cuh"
#include "wide.cuh"

enum {
    QUERIES = 2 * GROUP_ROWS, /* of an item */
    CONSUMERS = 2 * GROUP_THREADS,
    THREADS = CONSUMERS + GROUP_THREADS,
    KEYS = 128, /* of a tile: no fewer than queries, or more than one tile has the diagonal */
    STAGES = 2,
};

struct prompt_job {
    CUtensorMap keys, values;
    const float *q;
    float *y;
    uint32_t tokens, heads, group; /* group: queries to a key head */
    int32_t first;
    uint32_t window;
    float scale, softcap;
    uint32_t items;
};

/* In shared memory: keys and values of STAGES tiles, 64 columns after the other; barriers. */
template <int DIM> struct prompt {
    static constexpr uint32_t TILE = KEYS * DIM * 2, BARRIERS_AT = 2 * STAGES * TILE, SHARED = 1024 + BARRIERS_AT + 4 * STAGES * 8;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static constexpr float LOG2E = 1.4426950408889634f;

/* 1 / v, to 23 bits. */
__device__ inline float reciprocal(float v)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

/* Queries of one head, the position of the first, and the positions that they see. */
struct item {
    uint32_t head, row0;
    int32_t begin, from, end;

    __device__ item(const prompt_job &j, uint32_t i)
    {
        const uint32_t blocks = j.items / j.heads;
        head = i % j.heads;
        row0 = (blocks - 1 - i / j.heads) * QUERIES;
        begin = j.first + (int32_t)row0;
        end = j.first + (int32_t)(row0 + QUERIES < j.tokens ? row0 + QUERIES : j.tokens);
        from = j.window && begin + 1 > (int32_t)j.window ? begin + 1 - (int32_t)j.window : 0;
    }
};

/* The block's items. */
__device__ inline uint32_t item_at(uint32_t round) { return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); }

/* ---- the warp that copies: one lane of it -------------------------------------------------------------- */

template <int DIM>
__device__ inline void copy_tiles(const prompt_job &j, uint32_t keys, uint32_t values, uint32_t keys_full, uint32_t keys_empty, uint32_t values_full,
                                  uint32_t values_empty)
{
    using shape = prompt<DIM>;
    turn<STAGES> now;
    uint32_t i;
    for (uint32_t round = 0; (i = item_at(round)) < j.items; round++) {
        const item it(j, i);
        for (int32_t at = it.end; at > it.from;) {
            at -= KEYS;
            const auto copy = [&](const CUtensorMap *map, uint32_t to, uint32_t full, uint32_t empty) {
                barrier_wait(empty + 8 * now.stage, now.round ^ 1); /* in the first round, all are */
                barrier_expect(full + 8 * now.stage, shape::TILE);
#pragma unroll
                for (int c = 0; c < DIM / 64; c++)
                    copy_box(to + now.stage * shape::TILE + c * KEYS * 128, map, c * 64, at, (int32_t)(it.head / j.group), full + 8 * now.stage);
            };
            copy(&j.keys, keys, keys_full, keys_empty);
            copy(&j.values, values, values_full, values_empty);
            now.next();
        }
    }
}

/* ---- a warp's 16 rows of an item ----------------------------------------------------------------------- */

/* Queries times the scale, as operand A; zeros beyond the last token. */
template <int DIM> __device__ inline void load_queries(uint32_t q[DIM / 16][4], const prompt_job &j, const item &it, float scale)
{
    const uint32_t lane = threadIdx.x % 32, first = it.row0 + threadIdx.x / 32 * 16 + lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t row = first + i % 2 * 8, col = k * 16 + i / 2 * 8 + 2 * t;
            const float2 v = row < j.tokens ? *(const float2 *)(j.q + ((uint64_t)row * j.heads + it.head) * DIM + col) : make_float2(0, 0);
            const __half2 h = __floats2half2_rn(v.x * scale, v.y * scale);
            q[k][i] = *(const uint32_t *)&h;
        }
}

template <int DIM> __device__ inline void store_results(const prompt_job &j, const item &it, const float *o, const float by[2])
{
    const uint32_t lane = threadIdx.x % 32, first = it.row0 + threadIdx.x / 32 * 16 + lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = first + 8 * r;
        float *to = j.y + ((uint64_t)row * j.heads + it.head) * DIM + 2 * t;
        if (row < j.tokens)
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
                *(float2 *)(to + n * 8) = make_float2(o[n * 4 + 2 * r] * by[r], o[n * 4 + 2 * r + 1] * by[r]);
    }
}

/* A thread's two of them, 8 apart: their positions, the first that they see, and of their scores so far the largest, and the sum of what
 * they weigh (of the thread's own positions). */
struct rows {
    int32_t mine[2], low[2];
    float most[2], sum[2];

    __device__ rows(const prompt_job &j, const item &it)
    {
        const int32_t first = it.begin + (int32_t)(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            mine[r] = first + 8 * r < it.end ? first + 8 * r : it.end - 1;
            low[r] = j.window && mine[r] + 1 > (int32_t)j.window ? mine[r] + 1 - (int32_t)j.window : 0;
            most[r] = -INFINITY, sum[r] = 0;
        }
    }
};

/* Scores of a tile's positions, from `at` on, to what they weigh; what was added up before shrinks by that much.  edge: not all of the
 * positions are seen by all rows; each row sees one of the first tile. */
template <bool CAP> __device__ inline void soften(float *s, rows &of, float shrink[2], int32_t at, bool edge, float softcap)
{
    if (CAP) {
        const float inner = 2 * LOG2E / softcap, outer = softcap * LOG2E;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) /* tanh(x) = 1 - 2 / (1 + e^2x) */
            s[i] = outer - 2 * outer * reciprocal(1 + power_of_two(s[i] * inner));
    }
    if (edge) {
        const int32_t col = at + 2 * (int32_t)(threadIdx.x % 4);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int32_t last = of.mine[r] - col, first = of.low[r] - col;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (n * 8 + i > last || n * 8 + i < first)
                        s[n * 4 + 2 * r + i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float now = of.most[r], other = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            now = fmaxf(now, s[n * 4 + 2 * r]), other = fmaxf(other, s[n * 4 + 2 * r + 1]);
        now = fmaxf(now, other);
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        shrink[r] = power_of_two(of.most[r] - now);
        of.most[r] = now;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &v = s[n * 4 + 2 * r + i];
                v = power_of_two(v - of.most[r]);
                sum[i] += v;
            }
        of.sum[r] = of.sum[r] * shrink[r] + (sum[0] + sum[1]);
    }
}

/* ---- products ------------------------------------------------------------------------------------------- */

__device__ inline void to_operand(uint32_t p[KEYS / 16][4], const float *s)
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const __half2 h = __floats2half2_rn(s[(2 * k + i / 2) * 4 + i % 2 * 2], s[(2 * k + i / 2) * 4 + i % 2 * 2 + 1]);
            p[k][i] = *(const uint32_t *)&h;
        }
}

template <int DIM> __device__ inline void multiply_keys(float *s, const uint32_t q[DIM / 16][4], uint32_t at)
{
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
        product<KEYS>(s, q[k], (at + k / 4 * KEYS * 128) / 16 + k % 4 * 2, k > 0);
}

template <int DIM> __device__ inline void multiply_values(float *o, const uint32_t p[KEYS / 16][4], uint32_t at, bool adds)
{
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
        product<DIM, KEYS * 128>(o, p[k], (at + k * 2048) / 16, adds || k > 0);
}

#endif

/* ---- the kernel ----------------------------------------------------------------------------------------- */

template <int DIM, bool CAP> __global__ void __launch_bounds__(THREADS, 1) attention_wide(const __grid_constant__ prompt_job j)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using shape = prompt<DIM>;
    extern __shared__ uint8_t shared[];
    const uint32_t plain = (uint32_t)__cvta_generic_to_shared(shared), keys = plain + (1024 - plain % 1024) % 1024;
    const uint32_t values = keys + STAGES * shape::TILE, keys_full = keys + shape::BARRIERS_AT, keys_empty = keys_full + 8 * STAGES;
    const uint32_t values_full = keys_empty + 8 * STAGES, values_empty = values_full + 8 * STAGES;

    let_next_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(keys_full + 8 * i, 1), barrier_init(keys_empty + 8 * i, CONSUMERS / 32);
            barrier_init(values_full + 8 * i, 1), barrier_init(values_empty + 8 * i, CONSUMERS / 32);
        }
        barriers_are_set();
    }
    __syncthreads();

    if (threadIdx.x >= CONSUMERS) {
        fewer_registers<24>();
        if (threadIdx.x == CONSUMERS) {
            map_is_near(&j.keys), map_is_near(&j.values);
            wait_for_previous();
            copy_tiles<DIM>(j, keys, values, keys_full, keys_empty, values_full, values_empty);
        }
    } else {
        more_registers<240>();
        const auto release = [](uint32_t empty) {
            if (threadIdx.x % 32 == 0)
                barrier_arrive(empty);
        };
        const float scale = CAP ? j.scale : j.scale * LOG2E;
        turn<STAGES> now;
        wait_for_previous();
        uint32_t i;
        for (uint32_t round = 0; (i = item_at(round)) < j.items; round++) {
            const item it(j, i);
            rows of(j, it);
            uint32_t q[DIM / 16][4], p[KEYS / 16][4];
            float s[KEYS / 2], o[DIM / 2], shrink[2];
            load_queries<DIM>(q, j, it, scale);
            int32_t at = it.end - KEYS;
            barrier_wait(keys_full + 8 * now.stage, now.round);
            products_begin();
            multiply_keys<DIM>(s, q, keys + now.stage * shape::TILE);
            products_end();
            products_done<0>();
            settle<KEYS / 2>(s);
            release(keys_empty + 8 * now.stage);
            soften<CAP>(s, of, shrink, at, true, j.softcap);
            to_operand(p, s);
            barrier_wait(values_full + 8 * now.stage, now.round);

            /* Of tiles that begin below it, some row of the group does not see all. */
            const int32_t last = it.begin + (int32_t)((threadIdx.x / GROUP_THREADS + 1) * GROUP_ROWS);
            const int32_t edge = j.window && last > (int32_t)j.window ? last - (int32_t)j.window : 0;
            uint32_t before = now.stage; /* whose values are to be multiplied */
            bool adds = false;
            now.next();
#pragma unroll 1
            for (; at > it.from; adds = true) {
                at -= KEYS;
                barrier_wait(keys_full + 8 * now.stage, now.round);
                products_begin();
                multiply_keys<DIM>(s, q, keys + now.stage * shape::TILE);
                products_end();
                multiply_values<DIM>(o, p, values + before * shape::TILE, adds);
                products_end();
                products_done<1>();
                settle<KEYS / 2>(s);
                release(keys_empty + 8 * now.stage);
                soften<CAP>(s, of, shrink, at, at < edge, j.softcap);
                settle<KEYS / 2>(s);
                /* Only the next round needs them, but what the compiler sees here is a loop, and it does not begin the wait below before
                 * all of the above. */
                barrier_wait(values_full + 8 * now.stage, now.round);
                products_done<0>();
                settle<DIM / 2>(o);
                release(values_empty + 8 * before);
#pragma unroll
                for (int k = 0; k < DIM / 2; k++)
                    o[k] *= shrink[k / 2 % 2];
                to_operand(p, s);
                before = now.stage;
                now.next();
            }
            products_begin();
            multiply_values<DIM>(o, p, values + before * shape::TILE, adds);
            products_end();
            float by[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                by[r] = of.sum[r] + __shfl_xor_sync(~0u, of.sum[r], 1);
                by[r] = 1 / (by[r] + __shfl_xor_sync(~0u, by[r], 2));
            }
            products_done<0>();
            settle<DIM / 2>(o);
            release(values_empty + 8 * before);
            store_results<DIM>(j, it, o, by);
        }
    }
#endif
}

/* ---- launching ------------------------------------------------------------------------------------------ */

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* Keys or values: [kv_heads][seen of context][head_dim] f16, of which boxes of KEYS x 64 are copied, zeros beyond those that are seen. */
static cudaError_t map_of(CUtensorMap *m, const qm_attention *a, void *data)
{
    void *encode = NULL; /* the driver's, with which the program is not linked */
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    cudaError_t r = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found);
#else
    cudaError_t r = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &encode, cudaEnableDefault, &found);
#endif
    if (r || found != cudaDriverEntryPointSuccess)
        return r ? r : cudaErrorCallRequiresNewerDriver;
    const cuuint64_t size[3] = {a->head_dim, (cuuint64_t)a->at.first + a->tokens, a->kv_heads};
    const cuuint64_t stride[2] = {a->head_dim * 2, (cuuint64_t)a->context * a->head_dim * 2};
    const cuuint32_t box[3] = {64, KEYS, 1}, step[3] = {1, 1, 1};
    const CUresult c = ((encode_tiled *)encode)(m, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, data, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return c == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <int DIM, bool CAP> static cudaError_t launch_prompt(const prompt_job &j, cudaStream_t s)
{
    static constexpr auto kernel = attention_wide<DIM, CAP>;
    const uint32_t most = multiprocessors();
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)prompt<DIM>::SHARED);
    return r ? r : launch(kernel, dim3(j.items < most ? j.items : most), THREADS, prompt<DIM>::SHARED, s, j);
}

cudaError_t qm_attend_wide(const qm_attention *a, cudaStream_t s)
{
    prompt_job j = {};
    cudaError_t r = map_of(&j.keys, a, a->keys);
    r = r ? r : map_of(&j.values, a, a->values);
    if (r)
        return r;
    j.q = a->q, j.y = a->y, j.tokens = a->tokens, j.heads = a->heads, j.group = a->heads / a->kv_heads;
    j.first = a->at.first, j.window = a->window, j.scale = a->scale, j.softcap = a->softcap;
    j.items = (a->tokens + QUERIES - 1) / QUERIES * a->heads;
    if (a->head_dim == 64)
        return a->softcap != 0 ? launch_prompt<64, true>(j, s) : launch_prompt<64, false>(j, s);
    return a->softcap != 0 ? launch_prompt<128, true>(j, s) : launch_prompt<128, false>(j, s);
}
