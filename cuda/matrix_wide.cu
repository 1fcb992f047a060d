/* matrix_wide.cu: a 4-bit matrix times many tokens, on Hopper's tensor cores; see matrix.h.
 *
 * A block has two groups of four warps, which multiply (wgmma, 64 rows at a time).  Codes go from memory to registers, become f16 by the table of pairs there, are multiplied by their scales, and are operand A from
 * registers; x is operand B, 64 columns deep, from a ring in shared memory:
 *
 *     tokens     rows of a block     stage of the ring        blocks
 *     16 ... 64  128                 8, 4, 2 chunks, 16 KB    2 a multiprocessor
 *     128        256                 1 chunk, 16 KB           1
 *
 * A weight is rounded once: level * high(scale) + level * low(scale) with one fused addition, where both are f16 and their
 * sum is the scale to 22 bits.  So that f16 holds them, scales are first multiplied by a power of two that brings the
 * largest of the matrix into 2^13 ... 2^14.
 *
 * Where there are fewer tiles than multiprocessors, up to eight blocks, a cluster, share a tile: each has a part of the
 * columns, and their sums are added in their order out of each other's shared memory.  Results are the same bits every
 * time; they do depend on how many tokens there are.
 *
 * Counted for 64 x 64 weights and T tokens, in cycles of a multiprocessor (128 bytes of shared memory, or a product of
 * 64 x 16 by 16 x 8 in 4): the table 64, reading x T, writing it T / 2 (T / 4 with 256 rows), loading codes 16; products 2 T.
 * So up to 64 tokens shared memory is the limit besides the GPU's, and from 128 on the tensor cores. */
#include <cuda_fp16.h>
#include <string.h>

#include "matrix.h"

#include "launch.cuh"
#include "mma.cuh"
#include "wgmma.cuh"

enum { WIDE_CONSUMERS = 256, WIDE_THREADS = WIDE_CONSUMERS + 128, MOST_SPLITS = 8 };

template <int TOKENS> struct wide {
    static constexpr int HALVES = TOKENS == 128 ? 2 : 1; /* of a group's rows, 64 each */
    static constexpr int ROWS = 128 * HALVES, TILES = ROWS / QM_TILE_ROWS;
    static constexpr int CHUNKS = TOKENS == 16 ? 4 : 2; /* of 64 columns in a stage of the ring: x, then codes */
    static constexpr int BLOCKS = TOKENS == 128 ? 1 : 2;
    static constexpr int STAGES = TOKENS == 32 ? 4 : 3;
    static constexpr uint32_t X_BYTES = CHUNKS * TOKENS * 128, STAGE = X_BYTES + TILES * CHUNKS * QM_UNIT_BYTES;
    static constexpr uint32_t SUMS = ROWS + 4; /* floats of a token in shared memory, when blocks join */
    static constexpr uint32_t RING = STAGES * STAGE;
    static constexpr uint32_t SHARED = 1024 + RING + PAIRS_BYTES + 256 * sizeof(float) + 2 * STAGES * 8;
    static_assert(TOKENS * SUMS * sizeof(float) <= RING + PAIRS_BYTES, "sums lie where the ring and the table were");
};

/* Matrices that are multiplied together have the tiles of blocks numbered through. */
struct wide_part {
    const uint8_t *items;
    const float *nested, *most;
    float offset, factor;
    uint32_t rows, first;
    qm_product p;
};

struct wide_job {
    wide_part part[QM_TOGETHER];
    qm_panel x;
    const float *dynamic;
    float level[16];
    uint32_t cols, slices, tiles, token_tiles, splits;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- scales -------------------------------------------------------------------------------------- */

/* What a lane has of an item's scales: as they lie there, and each as two f16 whose sum it is. */
template <qm_scale_type S, int GROUP> struct item_scales {
    static constexpr int PER_ROW = 128 / GROUP, COUNT = 2 * PER_ROW;
    static constexpr int BYTES = COUNT * (S == QM_SCALE_F32 ? 4 : S == QM_SCALE_F16 ? 2 : 1);
    uint32_t word[(BYTES + 3) / 4];
    float super[2][2]; /* nested absmax of both rows' groups; a block of 256 groups may end between two */

    __device__ void load(const uint8_t *at)
    {
        if constexpr (BYTES >= 16) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                uint4 v = load_once(at + 16 * i);
                word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
            }
        } else if constexpr (BYTES == 8) {
            uint2 v = __ldg((const uint2 *)at);
            word[0] = v.x, word[1] = v.y;
        } else if constexpr (BYTES == 4) {
            word[0] = __ldg((const uint32_t *)at);
        } else {
            word[0] = __ldg((const uint16_t *)at);
        }
    }

    /* row: the lane's first, the other 8 on; at: the first group. */
    __device__ void load_nested(const wide_part &p, uint32_t row, uint32_t at, uint32_t groups)
    {
        if constexpr (S == QM_SCALE_NESTED) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const bool there = row + 8 * r < p.rows;
                const uint64_t k = (uint64_t)(row + 8 * r) * groups + at;
                super[r][0] = there && at < groups ? __ldg(p.nested + (k >> 8)) : 0;
                if (PER_ROW > 1)
                    super[r][1] = (k & 255) == 255 && there && at + 1 < groups ? __ldg(p.nested + (k >> 8) + 1) : super[r][0];
            }
        }
    }

    __device__ void decode(uint32_t halves[COUNT], float by, float offset, const float *dynamic) const
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float s;
            if constexpr (S == QM_SCALE_F32)
                s = __uint_as_float(word[i]);
            else if constexpr (S == QM_SCALE_F16) {
                __half2 two = *(const __half2 *)&word[i / 2];
                s = i % 2 ? __high2float(two) : __low2float(two);
            } else {
                uint32_t e = word[i / 4] >> 8 * (i % 4) & 255;
                if constexpr (S == QM_SCALE_E8M0)
                    s = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
                else
                    s = __fadd_rn(__fmul_rn(dynamic[e], super[i / PER_ROW][i % PER_ROW / ((PER_ROW + 1) / 2)]), offset);
            }
            s *= by;
            const __half high = __float2half_rn(s);
            const __half2 both = __halves2half2(high, __float2half_rn(s - __half2float(high)));
            halves[i] = *(const uint32_t *)&both;
        }
    }
};

/* What brings scales of which the largest is `most` into f16's range. */
__device__ inline float scales_by(float most)
{
    int e = (int)(__float_as_uint(most) >> 23 & 255) - 127;
    return e < -100 || e == 128 ? 1.0f : __uint_as_float((uint32_t)(13 - e + 127) << 23);
}

/* ---- weights ------------------------------------------------------------------------------------- */

__device__ inline uint32_t scaled(uint32_t pair, uint32_t high, uint32_t low)
{
    __half2 level = *(__half2 *)&pair, v = __hfma2(level, *(__half2 *)&high, __hmul2(level, *(__half2 *)&low));
    return *(uint32_t *)&v;
}

/* The levels of operand A of one product of a unit, and they times their scales: of row g, then of row g + 8. */
template <int J> __device__ inline void look_up(uint32_t level[4], const uint4 &w, uint32_t pairs)
{
    const uint32_t first = J < 2 ? w.x : w.y, second = J < 2 ? w.z : w.w;
    constexpr int BYTE = 2 * (J % 2);
    level[0] = pair_of<BYTE>(first, pairs), level[1] = pair_of<BYTE>(second, pairs);
    level[2] = pair_of<BYTE + 1>(first, pairs), level[3] = pair_of<BYTE + 1>(second, pairs);
}

__device__ inline void scale_up(uint32_t a[4], const uint32_t level[4], const uint32_t scale[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t high = __byte_perm(scale[r], 0, 0x1010), low = __byte_perm(scale[r], 0, 0x3232);
        a[r] = scaled(level[r], high, low), a[2 + r] = scaled(level[2 + r], high, low);
    }
}

__device__ inline void weights(uint32_t a[4][4], const uint4 &w, uint32_t pairs, const uint32_t scale[4][2])
{
    uint32_t level[4][4];
    look_up<0>(level[0], w, pairs), look_up<1>(level[1], w, pairs);
    look_up<2>(level[2], w, pairs), look_up<3>(level[3], w, pairs);
#pragma unroll
    for (int i = 0; i < 4; i++)
        scale_up(a[i], level[i], scale[i]);
}

/* Scales of the four products of a unit of the item: of row g, then of row g + 8.  parity: of the unit. */
template <int GROUP, int COUNT> __device__ inline void scales_of(uint32_t own[4][2], const uint32_t (&scale)[COUNT], uint32_t unit, int parity)
{
    constexpr int IN_UNIT = GROUP < 64 ? 64 / GROUP : 1;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int k = GROUP < 128 ? parity % 2 * IN_UNIT + i * IN_UNIT / 4 : 0;
        if (i * IN_UNIT % 4 == 0) {
            own[i][0] = __shfl_sync(~0u, scale[k], unit / 2, 4);
            own[i][1] = __shfl_sync(~0u, scale[COUNT / 2 + k], unit / 2, 4);
        } else {
            own[i][0] = own[i - 1][0], own[i][1] = own[i - 1][1];
        }
    }
}

/* ---- the kernel ---------------------------------------------------------------------------------- */

/* Which stage of the ring is next for those who fill or use it, and how often, modulo 2, it has been round. */
template <int STAGES> struct turn {
    uint32_t stage = 0, round = 0;

    __device__ void next()
    {
        stage++;
        if (stage == STAGES)
            stage = 0, round ^= 1;
    }
};

/* Product J of four; of all but the last four products the operands are free afterwards. */
template <int J, int TOKENS> __device__ inline void multiply(float *sum, uint32_t (*b)[4], uint32_t x)
{
    products_begin();
    product<TOKENS>(sum, b[J], x + 2 * J);
    products_end();
    products_done<4>();
}

__device__ inline void consumers_meet() { asm volatile("bar.sync 1, %0;" ::"n"((int)WIDE_CONSUMERS) : "memory"); }

/* A lane's sums of a tile: rows n and 8 on, and for HALVES 2 those 64 on; tokens `token` and the next, of every eight.  Loads are
 * under way together, sixteen at a time: each takes as long as a thousand products. */
template <int TOKENS, int HALVES>
__device__ inline void store_tile(const wide_part &part, const qm_panel &x, const float sum[HALVES][TOKENS / 2], uint32_t n, uint32_t token, float factor)
{
    constexpr int ROWS = 2 * HALVES, EIGHTS = TOKENS / 8;
    const qm_product &p = part.p;
    float bias[ROWS], scale[EIGHTS][2];
    bool row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row[r] = n + r / 2 * 64 + r % 2 * 8 < part.rows;
        bias[r] = p.bias && row[r] ? p.bias[n + r / 2 * 64 + r % 2 * 8] : 0;
    }
#pragma unroll
    for (int i = 0; i < EIGHTS * 2; i++)
        scale[i / 2][i % 2] = token + i / 2 * 8 + i % 2 < x.tokens ? __ldcg(x.scale + token + i / 2 * 8 + i % 2) * factor : 0;
#pragma unroll
    for (int e = 0; e < EIGHTS; e += 2) {
        float add[2][2][ROWS];
        if (p.add)
#pragma unroll
            for (int i = 0; i < 4 * ROWS; i++) {
                const uint32_t at = token + (e + i / 2 % 2) * 8 + i % 2, r = i / 4;
                add[i / 2 % 2][i % 2][r] = at < x.tokens && row[r] ? __ldcg(p.add + (uint64_t)at * p.y_stride + n + r / 2 * 64 + r % 2 * 8) : 0;
            }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = token + (e + i / 2) * 8 + i % 2;
            if (at >= x.tokens)
                continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const uint64_t to = (uint64_t)at * p.y_stride + n + r / 2 * 64 + r % 2 * 8;
                const float v = sum[r / 2][(e + i / 2) * 4 + r % 2 * 2 + i % 2] * scale[e + i / 2][i % 2] + bias[r];
                if (!row[r])
                    continue;
                p.y[to] = v;
                if (p.add)
                    p.sum[to] = v + add[i / 2][i % 2][r];
            }
        }
    }
}

/* This block's share of a tile whose columns are dealt to `splits` blocks, up to MOST: four rows of a token a thread,
 * TOGETHER of them at once. */
template <int TOKENS, int MOST, int TOGETHER>
__device__ inline void join_blocks(const wide_part &part, const qm_panel &x, uint32_t sums, uint32_t rank, uint32_t splits, uint32_t tile_row,
                                   uint32_t token0, float factor)
{
    using shape = wide<TOKENS>;
    constexpr int FOURS = TOKENS * shape::ROWS / 4;
    const qm_product &p = part.p;
    const uint32_t step = splits * WIDE_CONSUMERS;
    for (uint32_t first = rank * WIDE_CONSUMERS + threadIdx.x; first < FOURS; first += TOGETHER * step) {
        float4 total[TOGETHER];
        float scale[TOGETHER], bias[TOGETHER][4], add[TOGETHER][4];
        uint32_t row[TOGETHER], token[TOGETHER];
        bool there[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const uint32_t at = first + i * step;
            row[i] = at % (shape::ROWS / 4) * 4, token[i] = at / (shape::ROWS / 4);
            there[i] = at < FOURS && token0 + token[i] < x.tokens && tile_row + row[i] < part.rows;
            scale[i] = there[i] ? __ldcg(x.scale + token0 + token[i]) * factor : 0;
            total[i] = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const uint32_t n = tile_row + row[i] + r;
                bias[i][r] = p.bias && there[i] && n < part.rows ? p.bias[n] : 0;
                add[i][r] = p.add && there[i] && n < part.rows ? __ldcg(p.add + (uint64_t)(token0 + token[i]) * p.y_stride + n) : 0;
            }
        }
        float4 v[MOST][TOGETHER];
#pragma unroll
        for (uint32_t k = 0; k < MOST; k++)
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                v[k][i] = there[i] && k < splits ? of_block(sums + (token[i] * shape::SUMS + row[i]) * 4, k) : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < MOST; k++)
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                total[i].x += v[k][i].x, total[i].y += v[k][i].y, total[i].z += v[k][i].z, total[i].w += v[k][i].w;
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const float of[4] = {total[i].x, total[i].y, total[i].z, total[i].w};
            const uint32_t n = tile_row + row[i];
            const uint64_t to = (uint64_t)(token0 + token[i]) * p.y_stride + n;
#pragma unroll
            for (int r = 0; r < 4; r++) {
                if (!there[i] || n + r >= part.rows)
                    continue;
                const float v = of[r] * scale[i] + bias[i][r];
                p.y[to + r] = v;
                if (p.add)
                    p.sum[to + r] = v + add[i][r];
            }
        }
    }
}

#define BLOCK_OF(j)                                                                                             \
    const uint32_t rank = blockIdx.x % j.splits, first_tile = blockIdx.x / j.splits, tile_step = gridDim.x / j.splits; \
    const uint32_t slice0 = rank * j.slices / j.splits, slice1 = (rank + 1) * j.slices / j.splits

/* The warp that copies: lane i the codes of 16 rows, the last ones x. */
template <int TOKENS, uint32_t ITEM> __device__ inline void copy_operands(const wide_job &j, uint32_t ring, uint32_t full, uint32_t empty)
{
    using shape = wide<TOKENS>;
    constexpr int CHUNKS = shape::CHUNKS, TILES = shape::TILES;
    BLOCK_OF(j);
    const uint32_t lane = threadIdx.x % 32, padded = qm_panel_tokens(j.x.tokens), chunk = lane - TILES;
    const bool codes = lane < TILES, mine = lane < TILES + CHUNKS;
    turn<shape::STAGES> now;
    bool waited = false;
    for (uint32_t tile = first_tile; tile < j.tiles; tile += tile_step) {
        const uint32_t row_tile = tile / j.token_tiles, token0 = tile % j.token_tiles * TOKENS;
        const uint32_t here = padded - token0 < TOKENS ? padded - token0 : TOKENS;
        const wide_part &part = j.part[(row_tile >= j.part[1].first) + (row_tile >= j.part[2].first)];
        const uint32_t own = (row_tile - part.first) * TILES + lane, last = (part.rows - 1) / QM_TILE_ROWS;
        const uint8_t *from = codes ? part.items + ((uint64_t)(own < last ? own : last) * j.slices + slice0) * ITEM
                                    : (const uint8_t *)j.x.half + ((uint64_t)(slice0 * QM_ITEM_UNITS + chunk) * padded + token0) * 128;
        const uint32_t bytes = codes ? CHUNKS * QM_UNIT_BYTES : here * 128;
        const uint32_t to = ring + (codes ? shape::X_BYTES + lane * CHUNKS * QM_UNIT_BYTES : chunk * TOKENS * 128);
        for (uint32_t unit = slice0 * QM_ITEM_UNITS; unit < slice1 * QM_ITEM_UNITS; unit += CHUNKS) {
            barrier_wait(empty + 8 * now.stage, now.round ^ 1); /* in the first round, all are */
            if (lane == 0)
                barrier_expect(full + 8 * now.stage, TILES * CHUNKS * QM_UNIT_BYTES + CHUNKS * here * 128);
            __syncwarp();
            if (codes)
                copy_bulk(to + now.stage * shape::STAGE, from, bytes, full + 8 * now.stage);
            if (!waited) /* x is what the kernel before this one made */
                wait_for_previous();
            waited = true;
            if (mine && !codes)
                copy_bulk(to + now.stage * shape::STAGE, from, bytes, full + 8 * now.stage);
            from += codes ? CHUNKS * QM_UNIT_BYTES : (uint64_t)CHUNKS * padded * 128;
            if (codes && (unit + CHUNKS) % QM_ITEM_UNITS == 0)
                from += ITEM - QM_ITEM_UNITS * QM_UNIT_BYTES; /* scales */
            now.next();
        }
    }
}

#endif

template <int TOKENS, int GROUP, qm_scale_type S>
__global__ void __launch_bounds__(WIDE_THREADS, wide<TOKENS>::BLOCKS) matrix_wide(const __grid_constant__ wide_job j)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using shape = wide<TOKENS>;
    using scales = item_scales<S, GROUP>;
    constexpr int HALVES = shape::HALVES, CHUNKS = shape::CHUNKS, STAGES = shape::STAGES;
    constexpr uint32_t SCALES = QM_ITEM_UNITS * QM_UNIT_BYTES, ITEM = SCALES + 32 * scales::BYTES;
    extern __shared__ uint8_t whole[];
    uint8_t *memory = whole + (1024 - (uint32_t)__cvta_generic_to_shared(whole) % 1024) % 1024;
    const uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t *table = (uint32_t *)(memory + shape::RING);
    float *dynamic = (float *)(table + PAIRS_BYTES / 4);
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(dynamic + 256), empty = full + STAGES * 8;

    let_next_begin();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++)
            barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, WIDE_CONSUMERS / 32);
        barriers_are_set();
    }
    fill_pairs(table, j.level, WIDE_THREADS);
    if (S == QM_SCALE_NESTED)
        for (uint32_t i = threadIdx.x; i < 256; i += WIDE_THREADS)
            dynamic[i] = __ldg(j.dynamic + i);
    __syncthreads();

    if (threadIdx.x >= WIDE_CONSUMERS) {
        fewer_registers<shape::BLOCKS == 1 ? 40 : 24>();
        if (threadIdx.x < WIDE_CONSUMERS + 32)
            copy_operands<TOKENS, ITEM>(j, ring, full, empty);
    } else {
        more_registers<shape::BLOCKS == 1 ? 232 : 104>();
        BLOCK_OF(j);
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const uint32_t in_tile = warp / 4 * 64 * HALVES + warp % 4 * QM_TILE_ROWS; /* the warp's rows, and 64 on */
        const uint32_t pairs = (uint32_t)__cvta_generic_to_shared(table) + 4 * lane;
        const uint32_t codes = ring + shape::X_BYTES + in_tile / QM_TILE_ROWS * CHUNKS * QM_UNIT_BYTES + lane * 16;
        turn<STAGES> now;
        bool waited = false;
        for (uint32_t tile = first_tile; tile < j.tiles; tile += tile_step) {
            const uint32_t row_tile = tile / j.token_tiles, token0 = tile % j.token_tiles * TOKENS;
            const wide_part &part = j.part[(row_tile >= j.part[1].first) + (row_tile >= j.part[2].first)];
            const uint32_t tile_row = (row_tile - part.first) * shape::ROWS, row0 = tile_row + in_tile;
            const float by = scales_by(__ldg(part.most));
            const uint8_t *at[HALVES];
            scales raw[HALVES];
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                uint32_t own = row0 / QM_TILE_ROWS + 4 * h, last = (part.rows - 1) / QM_TILE_ROWS;
                at[h] = part.items + ((uint64_t)(own < last ? own : last) * j.slices + slice0) * ITEM + SCALES + lane * scales::BYTES;
                raw[h].load(at[h]);
                raw[h].load_nested(part, row0 + 64 * h + g, slice0 * (QM_ITEM_COLS / GROUP) + t * scales::PER_ROW, j.cols / GROUP);
            }
            float sum[HALVES][TOKENS / 2];
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++)
                    sum[h][i] = 0;
            uint32_t scale[HALVES][scales::COUNT], a[2][4][4]; /* operands of this product and the next */
            const auto next_scales = [&](uint32_t slice) {
#pragma unroll
                for (int h = 0; h < HALVES; h++) {
                    raw[h].decode(scale[h], by, part.offset, dynamic);
                    at[h] += ITEM;
                    if (slice + 1 < slice1) {
                        raw[h].load(at[h]);
                        raw[h].load_nested(part, row0 + 64 * h + g, (slice + 1) * (QM_ITEM_COLS / GROUP) + t * scales::PER_ROW, j.cols / GROUP);
                    }
                }
            };
            next_scales(slice0);
            barrier_wait(full + 8 * now.stage, now.round);
            uint4 w = shared_vector(codes + now.stage * shape::STAGE);
            uint32_t own[4][2];
            scales_of<GROUP>(own, scale[0], 0, 0);
            weights(a[0], w, pairs, own);
            bool begun = false;
            for (uint32_t slice = slice0; slice < slice1; slice++) {
#pragma unroll 1
                for (uint32_t unit0 = 0; unit0 < QM_ITEM_UNITS; unit0 += CHUNKS) {
                    const uint32_t x0 = (ring + now.stage * shape::STAGE) >> 4, here = codes + now.stage * shape::STAGE;
                    const uint32_t before = empty + 8 * (now.stage ? now.stage - 1 : STAGES - 1);
                    now.next();
#pragma unroll
                    for (int i = 0; i < CHUNKS * HALVES; i++) {
                        /* While four products run, operand A of the next four is made, out of the next stage at last. */
                        constexpr int LAST = CHUNKS * HALVES - 1;
                        const int h = i % HALVES, u = i / HALVES, next_h = (i + 1) % HALVES, next_u = (i + 1) / HALVES % CHUNKS;
                        const uint32_t next_unit = i == LAST ? (unit0 + CHUNKS) % QM_ITEM_UNITS : unit0 + next_u;
                        if (i < LAST) {
                            w = shared_vector(here + (next_h * 4 * CHUNKS + next_u) * QM_UNIT_BYTES);
                        } else if (unit0 + CHUNKS < QM_ITEM_UNITS || slice + 1 < slice1) {
                            if (unit0 + CHUNKS == QM_ITEM_UNITS)
                                next_scales(slice + 1);
                            barrier_wait(full + 8 * now.stage, now.round);
                            w = shared_vector(codes + now.stage * shape::STAGE);
                        }
                        scales_of<GROUP>(own, scale[next_h], next_unit, next_u);
                        uint32_t(*b)[4] = a[i % 2], (*next)[4] = a[(i + 1) % 2];
                        const uint32_t x = x0 + u * TOKENS * 8;
                        if (TOKENS == 128) { /* long ones: what is looked up after one is there after the next */
                            uint32_t level[2][4];
                            multiply<0, TOKENS>(sum[h], b, x);
                            look_up<0>(level[0], w, pairs);
                            multiply<1, TOKENS>(sum[h], b, x);
                            look_up<1>(level[1], w, pairs);
                            scale_up(next[0], level[0], own[0]);
                            multiply<2, TOKENS>(sum[h], b, x);
                            look_up<2>(level[0], w, pairs);
                            scale_up(next[1], level[1], own[1]);
                            multiply<3, TOKENS>(sum[h], b, x);
                            look_up<3>(level[1], w, pairs);
                            scale_up(next[2], level[0], own[2]);
                            scale_up(next[3], level[1], own[3]);
                        } else {
                            products_begin();
#pragma unroll
                            for (int k = 0; k < 4; k++)
                                product<TOKENS>(sum[h], b[k], x + 2 * k);
                            products_end();
                            products_done<1>(); /* those before these: their operands are free */
                            weights(next, w, pairs, own);
                        }
                        if (i == 0) {
                            if (begun && lane == 0)
                                barrier_arrive(before);
                            begun = true;
                        }
                    }
                }
            }
            products_done<0>();
            if (lane == 0)
                barrier_arrive(empty + 8 * (now.stage ? now.stage - 1 : STAGES - 1));
            if (!waited)
                wait_for_previous(); /* what is added, and who reads what will be overwritten */
            waited = true;

            const float factor = part.factor / by;
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                settle<TOKENS / 2>(sum[h]);
            if (j.splits == 1) {
                store_tile<TOKENS, HALVES>(part, j.x, sum, row0 + g, token0 + 2 * t, factor);
                continue;
            }
            float *sums = (float *)memory;
            consumers_meet(); /* nobody needs the ring or the table any more */
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++)
                    sums[(i / 4 * 8 + 2 * t + i % 2) * shape::SUMS + in_tile + g + 64 * h + i % 4 / 2 * 8] = sum[h][i];
            cluster_meet();
            if (j.splits == 2)
                join_blocks<TOKENS, 2, 3>(part, j.x, ring, rank, 2, tile_row, token0, factor);
            else
                join_blocks<TOKENS, MOST_SPLITS, 1>(part, j.x, ring, rank, j.splits, tile_row, token0, factor);
            cluster_meet(); /* the others have read what is here */
        }
    }
#endif
}
#undef BLOCK_OF

/* ---- launching ----------------------------------------------------------------------------------- */

bool qm_matrix_takes_wide(void)
{
#ifdef QM_WGMMA /* there is code for sm_90a in this build */
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    return major == 9 && minor == 0;
#else
    return false;
#endif
}

template <int TOKENS, int GROUP, qm_scale_type S> static cudaError_t launch_wide(const wide_job &job, const uint32_t rows[QM_TOGETHER], cudaStream_t s)
{
    using shape = wide<TOKENS>;
    static constexpr auto kernel = matrix_wide<TOKENS, GROUP, S>;
    wide_job j = job;
    for (int i = 0; i < QM_TOGETHER; i++) {
        j.part[i].first = rows[i] || i == 0 ? j.tiles : UINT32_MAX;
        j.tiles += (rows[i] + shape::ROWS - 1) / shape::ROWS;
    }
    j.token_tiles = (j.x.tokens + TOKENS - 1) / TOKENS;
    j.tiles *= j.token_tiles;
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    const uint32_t slots = (uint32_t)multiprocessors * shape::BLOCKS;
    j.splits = slots / j.tiles;
    j.splits = j.splits > MOST_SPLITS ? MOST_SPLITS : j.splits;
    j.splits = j.splits > j.slices ? j.slices : j.splits < 1 ? 1 : j.splits;
    const uint32_t grid = j.splits > 1 ? j.tiles * j.splits : j.tiles < slots ? j.tiles : slots;
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::SHARED);
    return r ? r : launch_clusters(kernel, j.splits, dim3(grid), WIDE_THREADS, shape::SHARED, s, j);
}

template <int GROUP, qm_scale_type S> static cudaError_t wide_tokens(const wide_job &j, const uint32_t rows[QM_TOGETHER], cudaStream_t s)
{
    return j.x.tokens <= 16   ? launch_wide<16, GROUP, S>(j, rows, s)
           : j.x.tokens <= 32 ? launch_wide<32, GROUP, S>(j, rows, s)
           : j.x.tokens <= 64 ? launch_wide<64, GROUP, S>(j, rows, s)
                              : launch_wide<128, GROUP, S>(j, rows, s);
}

cudaError_t qm_matrix_wide(const qm_matrix *w, const qm_product *p, int n, const qm_panel *x, cudaStream_t s)
{
    wide_job j = {};
    uint32_t rows[QM_TOGETHER] = {};
    if (x->group != (w->group < QM_UNIT_COLS ? w->group : QM_UNIT_COLS) || x->cols != w->cols)
        return cudaErrorInvalidValue;
    j.x = *x, j.cols = w->cols, j.slices = qm_matrix_slices(w->cols), j.dynamic = w->dynamic;
    memcpy(j.level, w->level, sizeof j.level);
    for (int i = 0; i < n; i++) {
        const float *most = (const float *)(w[i].items + qm_matrix_items(w[i].scale, w[i].group, w[i].rows, w[i].cols));
        j.part[i] = {w[i].items, w[i].nested, most, w[i].offset, w[i].factor, w[i].rows, 0, p[i]};
        rows[i] = w[i].rows;
    }
#define KIND(group_size, type)                               \
    if (w->group == group_size && w->scale == type)          \
    return wide_tokens<group_size, type>(j, rows, s)
    KIND(64, QM_SCALE_F32);
    KIND(64, QM_SCALE_NESTED);
    KIND(32, QM_SCALE_F32);
    KIND(32, QM_SCALE_F16);
    KIND(32, QM_SCALE_E8M0);
    KIND(32, QM_SCALE_NESTED);
    KIND(128, QM_SCALE_F32);
    KIND(128, QM_SCALE_NESTED);
    KIND(16, QM_SCALE_F32);
#undef KIND
    return cudaErrorInvalidValue;
}
