/* matrix_wide.cu: a 4-bit matrix times many tokens, on Hopper's tensor cores; see matrix.h.
 *
 * A block has a tile of 128 rows and TOKENS tokens at a time, 16 to 256.  Two groups of four warps multiply 64 rows each (wgmma); a
 * warp copies codes and another x, both into a ring in shared memory.  Codes become f16 by the table of pairs, and are operand A
 * from registers; x is operand B where it lies.
 *
 * Weights are multiplied by their scales before, and rounded once: level * high(scale) + level * low(scale) with one fused
 * addition, where both are f16 and their sum is the scale to 22 bits.  So that f16 holds them, scales are first multiplied by a power
 * of two that brings the largest of the matrix into 2^13 ... 2^14.  With 16 tokens it is less work to multiply the sums of
 * groups, which costs no rounding to f16.
 *
 * Blocks take tiles in turns.  What does not fill the last turn is dealt out evenly together with the turn before it, along the
 * columns, in pairs of units (128 columns):
 *
 *     tile        0             1             2
 *     columns     |-------------|-------------|-------------|
 *     block       |--- 0 ---|--- 1 ---|--- 2 ---|--- 3 ---|-...
 *
 * Sums of blocks that share a tile are added in the order of the columns (wide_results.cuh).  A block waits for those after it in
 * this order, so they are numbered from the last one launched: whoever is waited for is there already or done, whatever else
 * the GPU is at.  No more are launched than it holds.  Results are the same bits every time; they depend on how many tokens and
 * multiprocessors there are.
 *
 * Counted for 64 columns, in cycles of a multiprocessor (128 bytes of shared memory; a product of 64 x 16 by 16 x 8 in 4): of 128 rows
 * and 256 tokens, products 1024, shared memory 960: x read 512 and written 256, look-ups 128, codes 64.  Of 64 rows and T
 * tokens, two blocks: products 2 T, look-ups 64, codes 32, x read T and written T / 2: so up to 64 tokens shared memory is the
 * limit besides the GPU's, and instructions. */
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

/* Lane i the codes of 16 rows; they do not wait for the kernel before this one. */
template <int TOKENS, uint32_t ITEM> __device__ inline void copy_codes(const wide_job &j, uint32_t block, uint32_t ring, uint32_t full, uint32_t empty)
{
    using shape = wide<TOKENS>;
    constexpr uint32_t BYTES = shape::UNITS * QM_UNIT_BYTES;
    const uint32_t lane = threadIdx.x % 32, padded = qm_panel_tokens(j.x.tokens);
    turn<shape::STAGES> now;
    walk w(j, block);
    for (piece p; w.next(j, p);) {
        const uint32_t row_tile = p.tile / j.token_tiles, left = padded - p.tile % j.token_tiles * TOKENS;
        uint32_t row;
        const wide_part &part = part_of<shape::GATES>(j, row_tile, lane / GROUP_TILES % 2, row);
        const uint32_t own = row / QM_TILE_ROWS + lane % GROUP_TILES, last = (part.rows - 1) / QM_TILE_ROWS;
        const uint8_t *from = part.items + ((uint64_t)(own < last ? own : last) * j.slices + p.from / 4) * ITEM + p.from % 4 * 2 * QM_UNIT_BYTES;
        for (uint32_t unit = p.from * 2; unit < p.to * 2; unit += shape::UNITS) {
            barrier_wait(empty + 8 * now.stage, now.round ^ 1); /* in the first round, all are */
            if (lane == 0)
                barrier_expect(full + 8 * now.stage, WIDE_TILES * BYTES + shape::UNITS * (left < TOKENS ? left : TOKENS) * 128);
            __syncwarp();
            if (lane < WIDE_TILES)
                copy_bulk(ring + now.stage * shape::STAGE + shape::CODES + lane * BYTES, from, BYTES, full + 8 * now.stage);
            from += BYTES;
            if ((unit + shape::UNITS) % QM_ITEM_UNITS == 0)
                from += ITEM - QM_ITEM_UNITS * QM_UNIT_BYTES; /* scales */
            now.next();
        }
    }
}

/* Lane i x of unit i of a stage. */
template <int TOKENS> __device__ inline void copy_x(const wide_job &j, uint32_t block, uint32_t ring, uint32_t full, uint32_t empty)
{
    using shape = wide<TOKENS>;
    const uint32_t lane = threadIdx.x % 32, padded = qm_panel_tokens(j.x.tokens);
    turn<shape::STAGES> now;
    walk w(j, block);
    wait_for_previous();
    for (piece p; w.next(j, p);) {
        const uint32_t token0 = p.tile % j.token_tiles * TOKENS, left = padded - token0, bytes = (left < TOKENS ? left : TOKENS) * 128;
        const uint8_t *from = (const uint8_t *)j.x.half + ((uint64_t)(p.from * 2 + lane) * padded + token0) * 128;
        for (uint32_t unit = p.from * 2; unit < p.to * 2; unit += shape::UNITS) {
            barrier_wait(empty + 8 * now.stage, now.round ^ 1);
            if (lane < shape::UNITS)
                copy_bulk(ring + now.stage * shape::STAGE + lane * shape::X_BYTES, from, bytes, full + 8 * now.stage);
            from += (uint64_t)shape::UNITS * padded * 128;
            now.next();
        }
    }
}

#endif

/* ---- the kernel ---------------------------------------------------------------------------------- */

template <int TOKENS, int GROUP, qm_scale_type S>
__global__ void __launch_bounds__(WIDE_THREADS, wide<TOKENS>::BLOCKS) matrix_wide(const __grid_constant__ wide_job j)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using shape = wide<TOKENS>;
    using scales = item_scales<S, GROUP>;
    constexpr int STAGES = shape::STAGES, UNITS = shape::UNITS;
    constexpr bool SUMS_SCALED = sums_scaled<TOKENS, GROUP>;
    constexpr uint32_t SCALES = QM_ITEM_UNITS * QM_UNIT_BYTES, ITEM = SCALES + 32 * scales::BYTES;
    extern __shared__ uint8_t shared[];
    uint8_t *memory = shared + (1024 - (uint32_t)__cvta_generic_to_shared(shared) % 1024) % 1024;
    const uint32_t ring = (uint32_t)__cvta_generic_to_shared(memory);
    uint32_t *table = (uint32_t *)(memory + shape::RING);
    float *out = (float *)(memory + shape::OUT_AT), *token_scale = out + shape::OUT / 4, *dynamic = token_scale + shape::TOKEN_SCALES;
    const uint32_t full = ring + shape::BARRIERS_AT, empty = full + STAGES * 8;
    const uint32_t block = j.blocks - 1 - blockIdx.x; /* waits only for those that began before it */

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
        fewer_registers<shape::FEW_REGISTERS>();
        if (threadIdx.x < WIDE_CONSUMERS + 32)
            copy_codes<TOKENS, ITEM>(j, block, ring, full, empty);
        else if (threadIdx.x < WIDE_CONSUMERS + 64)
            copy_x<TOKENS>(j, block, ring, full, empty);
    } else {
        more_registers<shape::REGISTERS>();
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = threadIdx.x / GROUP_THREADS;
        const uint32_t pairs = ring + shape::RING + 4 * lane;
        const uint32_t codes = ring + shape::CODES + warp * UNITS * QM_UNIT_BYTES + lane * 16;
        constexpr int EACH = (TOKENS + GROUP_THREADS - 1) / GROUP_THREADS; /* of the token's scales */
        float *own_scale = token_scale + group * EACH * GROUP_THREADS;
        turn<STAGES> now;
        walk next(j, block);

        /* Of the piece that comes next: what has to be loaded long before it is used. */
        piece p = {};
        const wide_part *part;
        uint32_t row0, token0; /* the group's first row */
        const uint8_t *at;
        scales raw;
        float most;
        const auto load_scales = [&](uint32_t slice) {
            const uint32_t row = row0 + warp % 4 * QM_TILE_ROWS + lane / 4;
            raw.load(at);
            raw.load_nested(*part, row, slice * (QM_ITEM_COLS / GROUP) + lane % 4 * scales::PER_ROW, j.cols / GROUP);
        };
        const auto begin_piece = [&]() {
            const uint32_t row_tile = p.tile / j.token_tiles;
            part = &part_of<shape::GATES>(j, row_tile, group, row0);
            token0 = p.tile % j.token_tiles * TOKENS;
            const uint32_t own = row0 / QM_TILE_ROWS + warp % 4, last = (part->rows - 1) / QM_TILE_ROWS;
            at = part->items + ((uint64_t)(own < last ? own : last) * j.slices + p.from / 4) * ITEM + SCALES + lane * scales::BYTES;
            load_scales(p.from / 4);
            most = SUMS_SCALED ? 0 : __ldg(part->most);
        };

        bool more = next.next(j, p);
        if (more)
            begin_piece();
        while (more) {
            const piece here = p;
            const wide_part &of = *part;
            const uint32_t n = row0, token = token0;
            const float by = SUMS_SCALED ? 1 : scales_by(most), factor = of.factor / by;
            float sum[TOKENS / 2];
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++)
                sum[i] = 0;
            uint32_t scale[scales::COUNT], a[2][4][4]; /* operands of these products and the next */
            const auto next_scales = [&](uint32_t slice) {
                raw.template decode<SUMS_SCALED>(scale, by, of.offset, dynamic);
                at += ITEM;
                if ((slice + 1) * 4 < here.to)
                    load_scales(slice + 1);
            };
            next_scales(here.from / 4);
            barrier_wait(full + 8 * now.stage, now.round);
            uint4 w = shared_vector(codes + now.stage * shape::STAGE);
            scaled<TOKENS, GROUP, SUMS_SCALED> own[2]; /* of the even units, and of the odd ones */
            own[0].find(scale, here.from % 4 * 2, 0);
            own[0].weights(a[0], w, pairs);
            float some[scaled<TOKENS, GROUP, SUMS_SCALED>::SOME];
            bool begun = false;
#pragma unroll 1
            for (uint32_t pair = here.from; pair < here.to; pair++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    /* While these run, operand A of the next is made. */
                    constexpr int LAST = UNITS - 1;
                    const uint32_t stage = now.stage, before = now.before(), in_stage = i % UNITS;
                    const bool another = i == 0 || pair + 1 < here.to;
                    if (in_stage == LAST)
                        now.next();
                    products_begin();
                    own[i].multiply(sum, some, a[i], (ring + stage * shape::STAGE + in_stage * shape::X_BYTES) >> 4);
                    products_end();
                    if (another) {
                        if (in_stage == LAST)
                            barrier_wait(full + 8 * now.stage, now.round);
                        w = shared_vector(codes + now.stage * shape::STAGE + (in_stage == LAST ? 0 : QM_UNIT_BYTES));
                        if (i == 1 && (pair + 1) % 4 == 0)
                            next_scales((pair + 1) / 4);
                    }
                    if (!SUMS_SCALED) { /* those before these are done: their operands are free */
                        products_done<1>();
                        if (in_stage == 0 && begun && lane == 0)
                            barrier_arrive(empty + 8 * before);
                        begun = true;
                    }
                    if (another) {
                        own[1 - i].find(scale, (2 * pair + i + 1) % QM_ITEM_UNITS, i + 1);
                        own[1 - i].weights(a[1 - i], w, pairs);
                    }
                    if (SUMS_SCALED) {
                        products_done<0>();
                        own[i].add_up(sum, some);
                        if (in_stage == LAST && lane == 0)
                            barrier_arrive(empty + 8 * stage);
                    }
                }
            }
            more = next.next(j, p);
            if (more)
                begin_piece();
            wait_for_previous(); /* what is added, and who reads what will be overwritten */
            float of_token[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const uint32_t at = token + i * GROUP_THREADS + threadIdx.x % GROUP_THREADS;
                of_token[i] = here.from == 0 && at < j.x.tokens ? __ldcg(j.x.scale + at) : 0;
            }
            if (!SUMS_SCALED) {
                products_done<0>();
                if (lane == 0)
                    barrier_arrive(empty + 8 * now.before());
                settle<TOKENS / 2>(sum);
            }

            if (here.from > 0) {
                leave_sums<TOKENS>(j, block, sum);
                continue;
            }
            if (here.to < j.pairs)
                add_left<TOKENS>(j, block, (here.tile - j.whole * j.blocks + 1) * j.pairs, sum);
#pragma unroll
            for (int i = 0; i < EACH; i++)
                own_scale[i * GROUP_THREADS + threadIdx.x % GROUP_THREADS] = of_token[i] * factor;
            if (shape::GATES && j.gate)
                store_gated<TOKENS>(j, sum, n, token, token_scale, EACH * GROUP_THREADS, dynamic + 256, out);
            else
                store_sums<TOKENS>(of, j.x.tokens, sum, n, token, own_scale, out + group * shape::OUT_TOKENS * OUT_STRIDE);
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

/* Words of two groups for each of two blocks a multiprocessor. */
static uint64_t left_bytes() { return (multiprocessors() * 2 * 2 * sizeof(uint32_t) + 255) / 256 * 256; }

uint64_t qm_matrix_join_bytes(void)
{
    if (!qm_matrix_takes_wide())
        return 0;
    return left_bytes() + (uint64_t)multiprocessors() * WIDE_ROWS * MOST_WIDE_TOKENS * sizeof(float);
}

/* Numbers the tiles, and deals them out to so many blocks, of which up to `parts` share one.  Sharing costs as much as some pairs of
 * units take; and blocks that are not at the same columns read x at different times, which matters where the second-level
 * cache does not hold it. */
static void deal(wide_job *j, uint32_t tokens, uint32_t blocks, uint32_t parts)
{
    enum { COST = 4 };
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
    const bool shared = idle > COST && idle * (x * 2 < (uint64_t)cache ? 12 : 3) > turns * j->pairs;
    if (j->tiles < blocks) { /* of two pairs and more each */
        const uint32_t each = parts * 2 < j->pairs ? parts : j->pairs / 2, most = shared ? j->tiles * each : j->tiles;
        blocks = most < blocks ? most : blocks;
    }
    j->blocks = blocks;
    j->whole = !shared ? turns : turns > 2 ? turns - 2 : 0;
    j->dealt = shared ? (j->tiles - j->whole * j->blocks) * j->pairs : 0;
}

template <int TOKENS, int GROUP, qm_scale_type S> static cudaError_t launch_wide(const wide_job &job, void *join, cudaStream_t s)
{
    using shape = wide<TOKENS>;
    static constexpr auto kernel = matrix_wide<TOKENS, GROUP, S>;
    wide_job j = job;
    int held = 0; /* blocks a multiprocessor */
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::SHARED);
    r = r ? r : cudaOccupancyMaxActiveBlocksPerMultiprocessor(&held, kernel, WIDE_THREADS, shape::SHARED);
    if (r || held < 1 || !join)
        return r ? r : cudaErrorInvalidValue;
    deal(&j, TOKENS, multiprocessors() * (held < shape::BLOCKS ? held : shape::BLOCKS), TOKENS <= 32 ? 16 : 8);
    j.left = (uint32_t *)join, j.sums = (float4 *)((char *)join + left_bytes());
    return launch(kernel, dim3(j.blocks), WIDE_THREADS, shape::SHARED, s, j);
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
