/* matrix_wide.cu: a 4-bit matrix times many tokens, on Hopper's tensor cores; see matrix.h.
 *
 * A block has two groups of four warps, which multiply (wgmma, 64 rows at a time), and a warp that copies x and codes into a ring
 * in shared memory.  Codes become f16 by the table of pairs, are multiplied by their scales, and are operand A from
 * registers; x is operand B where it lies:
 *
 *     tokens     rows of a block     stage of the ring                        blocks
 *     16         128                 4 chunks of 64 columns, 24 KB, of 3      2 a multiprocessor
 *     32, 64     128                 2 chunks, 16 KB of 4, 24 KB of 3         2
 *     128        256                 2 chunks, 48 KB, of 3                    1
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
 * 64 x 16 by 16 x 8 in 4): the table 64, reading x T, writing it T / 2 (T / 4 with 256 rows), codes 32; products 2 T.
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

#include "wide_weights.cuh"
#include "wide_results.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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
        if (!w[i].most)
            return cudaErrorInvalidValue;
        j.part[i] = {w[i].items, w[i].nested, w[i].most, w[i].offset, w[i].factor, w[i].rows, 0, p[i]};
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
