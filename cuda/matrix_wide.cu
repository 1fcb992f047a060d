/* matrix_wide.cu: a 4-bit matrix times many tokens, on Hopper's tensor cores; see matrix.h.
 *
 * A block has a tile of 128 rows and TOKENS tokens at a time, 16 to 256.  Groups of four warps multiply 64 rows each (wgmma); two
 * warps copy codes and another x, into two rings in shared memory.  Codes become f16 by the table of pairs, and are operand A
 * from registers; x is operand B where it lies.  Up to 64 tokens there are four groups, of which two have the same rows: each
 * takes every other unit of columns, and their sums are added at the end.  Beyond, registers are enough for two.
 *
 *     tokens     groups: rows x columns     while unit u is multiplied
 *     16, 32     2 x 2                      codes of u + 1 are looked up; sums of u's groups are multiplied by their scales
 *     64         2 x 2                      levels of u + 1 are multiplied by their scales, codes of u + 2 are looked up
 *     128 ...    2 x 1                      the same
 *
 * Where weights are multiplied by their scales, they are rounded once: level * high(scale) + level * low(scale) with one fused
 * addition, where both are f16 and their sum is the scale to 22 bits.  So that f16 holds them, scales are first multiplied by a power
 * of two that brings the largest of the matrix into 2^13 ... 2^14.  Up to 32 tokens it is less work to multiply the sums of
 * groups, which costs no rounding to f16.
 *
 * Blocks take tiles in turns.  What does not fill the last turn is dealt out evenly together with the turn before it, along the
 * columns, in pairs of units (128 columns), or in items (512) where groups share rows:
 *
 *     tile        0             1             2
 *     columns     |-------------|-------------|-------------|
 *     block       |--- 0 ---|--- 1 ---|--- 2 ---|--- 3 ---|-...
 *
 * Sums of blocks that share a tile are added in the order of the columns (wide_results.cuh).  A block waits for those after it in
 * this order, so they are numbered from the last one launched: whoever is waited for is there already or done, whatever else
 * the GPU is at.  No more are launched than it holds, one a multiprocessor.  Results are the same bits every time; they depend
 * on how many tokens and multiprocessors there are.
 *
 * Counted for 128 rows and 64 columns, in cycles of a multiprocessor (128 bytes of shared memory; a product of 64 x 16 by 16 x 8 in 4):
 * products 4 T with T tokens; shared memory: look-ups 128, codes 64, x written T and read 2 T. */
#include <cuda_fp16.h>
#include <string.h>

#include "matrix.h"

#include "launch.cuh"
#include "functions.cuh"
#include "mma.cuh"
#include "wgmma.cuh"
#include "wide.cuh"

#include "wide_results.cuh"
#include "wide_weights.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- the warps that copy ------------------------------------------------------------------------- */

/* So that the compiler knows that it is the same for all lanes. */
__device__ inline uint32_t this_warp() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

enum { CODE_WARPS = 2 };

/* Codes, and scales with an item's first; each of the warps every other 16 rows'.  They do not wait for the kernel before this one. */
template <class shape, uint32_t SCALES>
__device__ inline void copy_codes(const wide_job &j, uint32_t block, uint32_t warp, uint32_t ring, uint32_t full, uint32_t empty)
{
    constexpr uint32_t CODES = QM_ITEM_UNITS * QM_UNIT_BYTES, ITEM = CODES + SCALES, BYTES = shape::PARTS * QM_UNIT_BYTES;
    turn<shape::STAGES> now;
    uint32_t slot = 0;
    walk w(j, block);
    for (piece p; w.next(j, p);) {
        const uint32_t row_tile = p.tile / j.token_tiles;
        for (uint32_t unit = p.from * 2; unit < p.to * 2; unit += shape::PARTS) {
            const bool scales = shape::SLOTS && unit % QM_ITEM_UNITS == 0;
            const uint32_t barrier = full + 8 * now.stage;
            barrier_wait(empty + 8 * now.stage, now.round ^ 1); /* in the first round, all are */
            if (threadIdx.x == shape::CONSUMERS)
                barrier_expect(barrier, WIDE_TILES * (scales ? BYTES + SCALES : BYTES));
            __syncwarp();
#pragma unroll
            for (uint32_t i = 0; i < WIDE_TILES / CODE_WARPS; i++) {
                const uint32_t t = i * CODE_WARPS + warp;
                uint32_t row;
                const wide_part &part = part_of<shape::GATES>(j, row_tile, i * CODE_WARPS / GROUP_TILES, row);
                const uint32_t in_part = row / QM_TILE_ROWS + t % GROUP_TILES, last = (part.rows - 1) / QM_TILE_ROWS;
                const uint32_t own = in_part < last ? in_part : last;
                const uint8_t *item = part.items + ((uint64_t)own * j.slices + unit / QM_ITEM_UNITS) * ITEM;
                copy_bulk(ring + shape::CODES_AT + now.stage * shape::CODES + t * BYTES, item + unit % QM_ITEM_UNITS * QM_UNIT_BYTES, BYTES, barrier);
                if (scales)
                    copy_bulk(ring + shape::SLOTS_AT + slot * shape::SLOT + t * SCALES, item + CODES, SCALES, barrier);
            }
            if (scales)
                slot = slot + 1 == shape::SLOTS ? 0 : slot + 1;
            now.next();
        }
    }
}

/* x, when the kernel before this one is done. */
template <int TOKENS, class shape> __device__ inline void copy_x(const wide_job &j, uint32_t block, uint32_t ring, uint32_t full, uint32_t empty)
{
    const uint32_t padded = qm_panel_tokens(j.x.tokens);
    turn<shape::X_STAGES> now;
    walk w(j, block);
    wait_for_previous();
    for (piece p; w.next(j, p);) {
        const uint32_t token0 = p.tile % j.token_tiles * TOKENS, left = padded - token0, bytes = (left < TOKENS ? left : TOKENS) * 128;
        const uint8_t *from = (const uint8_t *)j.x.half + ((uint64_t)p.from * 2 * padded + token0) * 128;
        for (uint32_t unit = p.from * 2; unit < p.to * 2; unit += shape::PARTS) {
            barrier_wait(empty + 8 * now.stage, now.round ^ 1);
            if (threadIdx.x % 32 == 0)
                barrier_expect(full + 8 * now.stage, shape::PARTS * bytes);
            __syncwarp();
#pragma unroll
            for (int i = 0; i < shape::PARTS; i++, from += (uint64_t)padded * 128)
                copy_bulk(ring + now.stage * shape::X + i * shape::X_BYTES, from, bytes, full + 8 * now.stage);
            now.next();
        }
    }
}

#endif

/* ---- the kernel ---------------------------------------------------------------------------------- */

template <int TOKENS, int GROUP, qm_scale_type S>
__global__ void __launch_bounds__(wide<TOKENS>::THREADS, 1) matrix_wide(const __grid_constant__ wide_job j)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr uint32_t SCALES = scale_bytes<GROUP, S>, ITEM = QM_ITEM_UNITS * QM_UNIT_BYTES + SCALES;
    using shape = wide_memory<TOKENS, SCALES>;
    constexpr int PARTS = shape::PARTS, UNITS = shape::UNITS, CONSUMERS = shape::CONSUMERS;
    using scales = item_scales<S, GROUP, PARTS>;
    constexpr bool SUMS_SCALED = sums_scaled<TOKENS, GROUP>;
    extern __shared__ uint8_t shared[];
    uint8_t *memory = shared + (1024 - (uint32_t)__cvta_generic_to_shared(shared) % 1024) % 1024;
    const uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t *table = (uint32_t *)(memory + shape::TABLE_AT);
    float *out = (float *)(memory + shape::OUT_AT), *token_scale = out + shape::GROUPS * shape::OUT / 4;
    float *dynamic = token_scale + shape::GROUPS * shape::TOKEN_SCALES;
    const uint32_t full = ring + shape::BARRIERS_AT, empty = full + shape::STAGES * 8;
    const uint32_t full_x = empty + shape::STAGES * 8, empty_x = full_x + shape::X_STAGES * 8;
    const uint32_t block = j.blocks - 1 - blockIdx.x; /* waits only for those that began before it */

    let_next_begin();
    if (threadIdx.x < CONSUMERS) {
        fill_pairs(table, j.level, CONSUMERS);
        if (S == QM_SCALE_NESTED)
            for (uint32_t i = threadIdx.x; i < 256; i += CONSUMERS)
                dynamic[i] = __ldg(j.dynamic + i);
    } else if (threadIdx.x == CONSUMERS) {
        for (int i = 0; i < shape::STAGES; i++)
            barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, CONSUMERS / 32);
        for (int i = 0; i < shape::X_STAGES; i++)
            barrier_init(full_x + 8 * i, 1), barrier_init(empty_x + 8 * i, CONSUMERS / 32);
        barriers_are_set();
    }
    if (threadIdx.x >= CONSUMERS) { /* these begin before the table is there */
        fewer_registers<shape::FEW_REGISTERS>();
        asm volatile("bar.sync 7, 128;" ::: "memory");
        asm volatile("bar.arrive 0, %0;" ::"n"(shape::THREADS) : "memory");
        const uint32_t warp = this_warp() - CONSUMERS / 32;
        if (warp < CODE_WARPS)
            copy_codes<shape, SCALES>(j, block, warp, ring, full, empty);
        else if (warp == CODE_WARPS)
            copy_x<TOKENS, shape>(j, block, ring, full_x, empty_x);
    } else {
        more_registers<shape::REGISTERS>();
        asm volatile("bar.sync 0, %0;" ::"n"(shape::THREADS) : "memory");

        const uint32_t warp = this_warp(), lane = threadIdx.x % 32, group = warp / 4;
        const uint32_t part = PARTS == 2 ? group / 2 : 0; /* of a stage's units, the group's */
        const uint32_t pairs = ring + shape::TABLE_AT + 4 * lane;
        const uint32_t codes = ring + shape::CODES_AT + (warp % WIDE_TILES * PARTS + part) * QM_UNIT_BYTES + lane * 16;
        const uint32_t slots = ring + shape::SLOTS_AT + warp % WIDE_TILES * SCALES + lane * scales::BYTES;
        constexpr int EACH = shape::TOKEN_SCALES / GROUP_THREADS; /* of the token's scales */
        float *own_scale = token_scale + group * shape::TOKEN_SCALES;
        turn<shape::STAGES, UNITS> now; /* of codes */
        turn<shape::X_STAGES, UNITS> now_x;
        uint32_t slot = 0;
        walk next(j, block);

        /* Of the piece that comes next: what has to be loaded long before it is used. */
        piece p = {};
        const wide_part *matrix;
        uint32_t row0, token0; /* the group's first row, and its first token of results */
        const uint8_t *at;
        scales raw;
        float most;
        const auto load_scales = [&](uint32_t slice) {
            const uint32_t row = row0 + warp % 4 * QM_TILE_ROWS + lane / 4;
            if constexpr (PARTS == 1)
                raw.load(at);
            raw.load_nested(*matrix, row, slice * (QM_ITEM_COLS / GROUP) + lane % 4 * scales::PER_ROW, j.cols / GROUP);
        };
        const auto begin_piece = [&]() {
            const uint32_t row_tile = p.tile / j.token_tiles;
            matrix = &part_of<shape::GATES>(j, row_tile, group % 2, row0);
            token0 = p.tile % j.token_tiles * TOKENS + part * shape::OWN;
            const uint32_t own = row0 / QM_TILE_ROWS + warp % 4, last = (matrix->rows - 1) / QM_TILE_ROWS;
            at = matrix->items + ((uint64_t)(own < last ? own : last) * j.slices + p.from / 4) * ITEM + ITEM - SCALES + lane * scales::BYTES;
            load_scales(p.from / 4);
            most = SUMS_SCALED ? 0 : __ldg(matrix->most);
        };

        bool more = next.next(j, p);
        if (more)
            begin_piece();
        while (more) {
            const piece here = p;
            const wide_part &of = *matrix;
            const uint32_t n = row0, token = token0;
            const float by = SUMS_SCALED ? 1 : scales_by(most), factor = of.factor / by;
            float sum[TOKENS / 2];
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++)
                sum[i] = 0;
            uint32_t scale[scales::OWN], a[2][4][4], level[4][4]; /* a: operands of these products and the next */
            float some[scaled<TOKENS, GROUP, SUMS_SCALED>::SOME];
            scaled<TOKENS, GROUP, SUMS_SCALED> own;
            uint4 w;
            const auto next_scales = [&](uint32_t slice) {
                if constexpr (PARTS == 2)
                    raw.load_shared(slots + slot * shape::SLOT), slot = slot + 1 == shape::SLOTS ? 0 : slot + 1;
                raw.template decode<SUMS_SCALED>(scale, part, by, of.offset, dynamic);
                at += ITEM;
                if ((slice + 1) * 4 < here.to)
                    load_scales(slice + 1);
            };
            const auto load_codes = [&](uint32_t stage) { w = shared_vector(codes + stage * shape::CODES); };
            /* Lane 0 says for all that they have theirs: products, or __syncwarp, must have been between. */
            const auto look_up_codes = [&](uint32_t(&to)[4][4], uint32_t stage) {
                look_up(to, w, pairs);
                if (lane == 0)
                    barrier_arrive(empty + 8 * stage);
            };
            barrier_wait(full + 8 * now.stage, now.round);
            load_codes(now.stage);
            __syncwarp();
            next_scales(here.from / 4);
            look_up_codes(SUMS_SCALED ? a[0] : level, now.stage);
            barrier_wait(full + 8 * (now.stage + 1), now.round);
            load_codes(now.stage + 1);
            __syncwarp();
            if constexpr (!SUMS_SCALED) {
                own.find(scale, here.from % 4, 0);
                own.weights(a[0], level);
                look_up_codes(level, now.stage + 1);
                own.find(scale, PARTS == 2 ? 1 : here.from % 4, PARTS == 2 ? 0 : 1);
                if (PARTS == 2) {
                    barrier_wait(full + 8 * (now.stage + 2), now.round);
                    load_codes(now.stage + 2);
                }
            }
            /* What depends on this stays where it is: otherwise weights are made after the next look-ups, for which registers are too few. */
            const bool always = j.blocks > 0;
            bool x_ready = false; /* whether the next unit's is there for sure */
            uint32_t before = 0;
#pragma unroll 1
            for (uint32_t pair = here.from; pair < here.to; pair += shape::PAIRS) {
                const bool last = pair + shape::PAIRS == here.to;
                auto later = now;
                auto later_x = now_x;
                later.next(), later_x.next();
#pragma unroll
                for (int i = 0; i < UNITS; i++) {
                    const auto is_there = [&](int k) { return k < UNITS || !last; }; /* unit k from the turn's first */
                    const auto stage = [&](int k) { return k < UNITS ? now.stage + k : later.stage + k - UNITS; };
                    const auto round = [&](int k) { return k < UNITS ? now.round : later.round; };
                    const uint32_t stage_x = now_x.stage + i, x = (ring + stage_x * shape::X + part * shape::X_BYTES) >> 4;
                    if (!x_ready)
                        barrier_wait(full_x + 8 * stage_x, now_x.round);
                    if constexpr (SUMS_SCALED)
                        own.find(scale, PARTS == 2 ? i : pair % 4, PARTS == 2 ? 0 : i);
                    products_begin();
                    own.multiply(sum, some, a[i % 2], x);
                    products_end();
                    if (TOKENS == 64 && is_there(i + 1)) /* elsewhere it is slower */
                        x_ready = i + 1 < UNITS ? barrier_is_over(full_x + 8 * (stage_x + 1), now_x.round)
                                                : barrier_is_over(full_x + 8 * later_x.stage, later_x.round);
                    constexpr int AHEAD = SUMS_SCALED || PARTS == 1 ? 2 : 3; /* of codes */
                    if constexpr (SUMS_SCALED) {
                        if (is_there(i + 1))
                            look_up_codes(a[1 - i % 2], stage(i + 1));
                        if (is_there(i + AHEAD)) {
                            barrier_wait(full + 8 * stage(i + AHEAD), round(i + AHEAD));
                            load_codes(stage(i + AHEAD));
                        }
                        if (i + 1 == UNITS && !last && (pair + shape::PAIRS) % 4 == 0)
                            next_scales(pair / 4 + 1);
                        products_done<0>();
                        own.add_up(sum, some);
                        if (lane == 0)
                            barrier_arrive(empty_x + 8 * stage_x);
                    } else {
                        products_done<1>(); /* those before these are done: their operands are free */
                        if ((i > 0 || pair > here.from) && lane == 0)
                            barrier_arrive(empty_x + 8 * before);
                        before = stage_x;
                        if (PARTS == 2 ? always && is_there(i + 1) : is_there(i + 1))
                            own.weights(a[1 - i % 2], level);
                        if (is_there(i + AHEAD))
                            barrier_wait(full + 8 * stage(i + AHEAD), round(i + AHEAD));
                        if (is_there(i + 2)) {
                            if (PARTS == 1) {
                                load_codes(stage(i + 2));
                                __syncwarp();
                            }
                            look_up_codes(level, stage(i + 2));
                            if (PARTS == 2 && is_there(i + 3))
                                load_codes(stage(i + 3));
                            if (i + 2 == UNITS && (pair + shape::PAIRS) % 4 == 0)
                                next_scales(pair / 4 + 1);
                            own.find(scale, PARTS == 2 ? (i + 2) % 4 : (pair + 1) % 4, PARTS == 2 ? 0 : i);
                        }
                    }
                }
                now = later, now_x = later_x;
            }
            more = next.next(j, p);
            if (more)
                begin_piece();
            wait_for_previous(); /* what is added, and who reads what will be overwritten */
            float of_token[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const uint32_t in = i * GROUP_THREADS + threadIdx.x % GROUP_THREADS;
                of_token[i] = here.from == 0 && in < shape::OWN && token + in < j.x.tokens ? __ldcg(j.x.scale + token + in) : 0;
            }
            if (!SUMS_SCALED) {
                products_done<0>();
                if (lane == 0)
                    barrier_arrive(empty_x + 8 * before);
                settle<TOKENS / 2>(sum);
            }
            if constexpr (PARTS == 2)
                exchange<TOKENS>(sum, out);

            if (here.from > 0) {
                leave_sums<TOKENS>(j, block, sum);
                continue;
            }
            if (here.to < j.pairs)
                add_left<TOKENS>(j, block, (here.tile - j.whole * j.blocks + 1) * j.pairs, sum);
#pragma unroll
            for (int i = 0; i < EACH; i++)
                own_scale[i * GROUP_THREADS + threadIdx.x % GROUP_THREADS] = of_token[i] * factor;
            if constexpr (shape::GATES)
                if (j.gate) {
                    store_gated<TOKENS>(j, sum, n, token, token_scale, EACH * GROUP_THREADS, dynamic + 256, out);
                    continue;
                }
            store_sums<TOKENS>(of, j.x.tokens, sum, n, token, own_scale, out + group * shape::OUT / 4);
        }
    }
#endif
}

/* ---- launching ----------------------------------------------------------------------------------- */

bool qm_matrix_takes_wide(void)
{
#ifdef QM_WGMMA /* there is code for sm_90a in this build */
    return of_device(cudaDevAttrComputeCapabilityMajor) == 9 && of_device(cudaDevAttrComputeCapabilityMinor) == 0;
#else
    return false;
#endif
}

/* Words of up to four groups for each block. */
static uint64_t left_bytes() { return (multiprocessors() * 4 * sizeof(uint32_t) + 255) / 256 * 256; }

uint64_t qm_matrix_join_bytes(void)
{
    if (!qm_matrix_takes_wide())
        return 0;
    return left_bytes() + (uint64_t)multiprocessors() * WIDE_ROWS * MOST_WIDE_TOKENS * sizeof(float);
}

/* Numbers the tiles, and deals them out to so many blocks, of which up to `parts` share one, `each` pairs of units at a time.  Sharing
 * costs as much as `cost` pairs take; and blocks that are not at the same columns read x at different times, which matters where
 * the second-level cache does not hold it. */
static void deal(wide_job *j, uint32_t tokens, uint32_t blocks, uint32_t parts, uint32_t each, uint32_t cost)
{
    const int cache = of_device(cudaDevAttrL2CacheSize);
    const uint32_t parts_of_tiles = j->gate ? 1 : QM_TOGETHER, rows = j->gate ? GROUP_ROWS : WIDE_ROWS;
    for (uint32_t i = 0; i < QM_TOGETHER; i++)
        j->part[i].first = UINT32_MAX;
    for (uint32_t i = 0; i < parts_of_tiles && j->part[i].rows; i++) {
        j->part[i].first = j->tiles;
        j->tiles += (j->part[i].rows + rows - 1) / rows;
    }
    j->token_tiles = (j->x.tokens + tokens - 1) / tokens;
    j->tiles *= j->token_tiles;
    j->pairs = j->slices * (QM_ITEM_UNITS / 2);
    const uint64_t x = (uint64_t)qm_panel_tokens(j->x.tokens) * qm_panel_chunks(j->cols) * QM_UNIT_COLS * 2;
    const uint32_t rest = j->tiles % blocks, turns = j->tiles / blocks + (rest > 0), idle = rest ? (blocks - rest) * j->pairs / blocks : 0;
    const bool shared = idle > cost && idle * (x * 2 < (uint64_t)cache ? 12 : 3) > turns * j->pairs;
    if (j->tiles < blocks) { /* of two pairs and more each; as many of each tile, if that takes no longer */
        const uint32_t fewest = each > 2 ? each : 2, n = j->pairs / fewest, most = !shared ? j->tiles : j->tiles * (parts < n ? parts : n);
        blocks = most < blocks ? most : blocks;
        const uint32_t in_tile = j->pairs / each, longest = (j->tiles * in_tile + blocks - 1) / blocks, equal = (in_tile + longest - 1) / longest;
        if (j->tiles * equal <= blocks)
            blocks = j->tiles * equal;
    }
    j->blocks = blocks;
    j->whole = !shared ? turns : turns > 2 ? turns - 2 : 0;
    j->each = each;
    j->dealt = shared ? (j->tiles - j->whole * j->blocks) * j->pairs / each : 0;
}

template <int TOKENS, int GROUP, qm_scale_type S> static cudaError_t launch_wide(const wide_job &job, void *join, cudaStream_t s)
{
    using shape = wide_memory<TOKENS, scale_bytes<GROUP, S>>;
    static constexpr auto kernel = matrix_wide<TOKENS, GROUP, S>;
    wide_job j = job;
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::SHARED);
    if (r || !join)
        return r ? r : cudaErrorInvalidValue;
    deal(&j, TOKENS, multiprocessors(), shape::PARTS == 2 ? 16 : 8, shape::PAIRS, shape::PARTS == 2 ? 6 : 4);
    j.left = (uint32_t *)join, j.sums = (float4 *)((char *)join + left_bytes());
    return launch(kernel, dim3(j.blocks), shape::THREADS, shape::SHARED, s, j);
}

/* Tiles of so many tokens as waste least: of those beyond the last, and of what a tile costs whatever its width. */
static uint32_t tile_tokens(uint32_t tokens)
{
    enum { EACH = 48 };
    uint32_t best = MOST_WIDE_TOKENS;
    if (tokens <= 64)
        return tokens <= 16 ? 16 : tokens <= 32 ? 32 : 64;
    for (uint32_t t = 192; t >= 128; t -= 64)
        if ((tokens + t - 1) / t * (t + EACH) < (tokens + best - 1) / best * (best + EACH))
            best = t;
    return best;
}

template <int GROUP, qm_scale_type S> static cudaError_t wide_tokens(const wide_job &j, void *join, cudaStream_t s)
{
    switch (tile_tokens(j.x.tokens)) {
    case 16: return launch_wide<16, GROUP, S>(j, join, s);
    case 32: return launch_wide<32, GROUP, S>(j, join, s);
    case 64: return launch_wide<64, GROUP, S>(j, join, s);
    case 128: return launch_wide<128, GROUP, S>(j, join, s);
    case 192: return launch_wide<192, GROUP, S>(j, join, s);
    default: return launch_wide<256, GROUP, S>(j, join, s);
    }
}

static cudaError_t multiply(wide_job j, const qm_matrix *w, const qm_product *p, int n, const qm_panel *x, void *join, cudaStream_t s)
{
    if (x->group != (w->group < QM_UNIT_COLS ? w->group : QM_UNIT_COLS) || x->cols != w->cols)
        return cudaErrorInvalidValue;
    j.x = *x, j.cols = w->cols, j.slices = qm_matrix_slices(w->cols), j.dynamic = w->dynamic;
    memcpy(j.level, w->level, sizeof j.level);
    for (int i = 0; i < n; i++) {
        if (!w[i].most)
            return cudaErrorInvalidValue;
        j.part[i] = {w[i].items, w[i].nested, w[i].most, w[i].offset, w[i].factor, w[i].rows, 0, p[i]};
    }
#define KIND(group_size, type)                               \
    if (w->group == group_size && w->scale == type)          \
    return wide_tokens<group_size, type>(j, join, s)
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

cudaError_t qm_matrix_wide(const qm_matrix *w, const qm_product *p, int n, const qm_panel *x, void *join, cudaStream_t s)
{
    return multiply({}, w, p, n, x, join, s);
}

cudaError_t qm_matrix_glu(const qm_matrix *w, const float *const *bias, qm_gate f, const qm_panel *x, const qm_panel *to, float *by, void *join,
                          cudaStream_t s)
{
    const qm_product p[2] = {{.bias = bias[0]}, {.bias = bias[1]}};
    wide_job j = {};
    j.gate = f, j.to = *to, j.by = by;
    if (x->tokens < QM_GLU_TOKENS || to->tokens != x->tokens || w[0].rows != w[1].rows || w[0].rows != to->cols || to->cols % QM_TILE_ROWS)
        return cudaErrorInvalidValue;
    const cudaError_t r = multiply(j, w, p, 2, x, join, s);
    return r ? r : qm_settle_panel(to, by, s);
}
