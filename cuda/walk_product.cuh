/* walk_product.cuh: a product of a program, as matrix_decode.cuh has it for one token, with norms, additions and gates; for
 * walk.cuh. */
#ifndef QM_WALK_PRODUCT_CUH
#define QM_WALK_PRODUCT_CUH

/* ---- products: x --------------------------------------------------------------------------------- */

/* A lane's part of operand B: of unit g, its quarter of each group; and the powers of two of that. */
template <int GROUP> struct walk_operand {
    static constexpr int IN_UNIT = GROUP < 64 ? GROUP : 64, RUN = IN_UNIT / 4, RUNS = 16 / RUN;
    uint32_t word[8], scale[RUNS];

    __device__ void load(const qm_sixteens &x, uint32_t cols, uint32_t slice, uint32_t g, uint32_t t)
    {
#pragma unroll
        for (int i = 0; i < RUNS; i++) {
            const uint32_t at = slice * QM_ITEM_COLS + g * QM_UNIT_COLS + i * IN_UNIT + t * RUN;
            const bool there = at < cols;
            const __half *from = (const __half *)x.half + at;
            scale[i] = there ? __float_as_uint(x.scale[at / 16]) : 0;
            if constexpr (RUN >= 8) {
#pragma unroll
                for (int part = 0; part < RUN / 8; part++) {
                    uint4 v = there ? load_fresh(from + 8 * part) : make_uint4(0, 0, 0, 0);
                    uint32_t *to = word + i * (RUN / 2) + 4 * part;
                    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
                }
            } else {
                uint2 v = there ? *(const uint2 *)from : make_uint2(0, 0);
                word[2 * i] = v.x, word[2 * i + 1] = v.y;
            }
        }
    }

    /* The same of attention's parts, put together; into y as well, or NULL. */
    __device__ void load(const qm_open &x, uint32_t parts, float *y, uint32_t cols, uint32_t slice, uint32_t g, uint32_t t)
    {
#pragma unroll
        for (int i = 0; i < RUNS; i++) {
            const uint32_t at = slice * QM_ITEM_COLS + g * QM_UNIT_COLS + i * IN_UNIT + t * RUN;
            const bool there = at < cols;
            const float2 *stats = (const float2 *)x.stats + (there ? at >> x.dim_bits : 0);
            const __half *from = (const __half *)x.half.half + (there ? at : 0);
            const float *scales = x.half.scale + (there ? at / 16 : 0);
            float2 stat[QM_OPEN_PARTS];
            float by[QM_OPEN_PARTS], most = -INFINITY, total = 0, sum[RUN] = {};
            uint32_t v[QM_OPEN_PARTS][RUN / 2];
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++) {
                const bool has = k < parts;
                stat[k] = has ? stats[k * x.heads] : make_float2(-INFINITY, 0);
                by[k] = has ? scales[k * (cols / 16)] : 0;
#pragma unroll
                for (int w = 0; w < RUN / 2; w += 2) {
                    const uint2 two = has ? *(const uint2 *)(from + k * cols + 2 * w) : make_uint2(0, 0);
                    v[k][w] = two.x, v[k][w + 1] = two.y;
                }
            }
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
                most = fmaxf(most, stat[k].x);
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
                stat[k].y *= __expf(stat[k].x - most), total += stat[k].y;
            const float whole = __fdividef(there ? 1.0f : 0.0f, total);
            float largest = 0;
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++) {
                by[k] *= stat[k].y * whole;
#pragma unroll
                for (int w = 0; w < RUN / 2; w++) {
                    const float2 two = __half22float2(*(const __half2 *)&v[k][w]);
                    sum[2 * w] = __fmaf_rn(two.x, by[k], sum[2 * w]), sum[2 * w + 1] = __fmaf_rn(two.y, by[k], sum[2 * w + 1]);
                }
            }
#pragma unroll
            for (int w = 0; w < RUN; w++)
                largest = fmaxf(largest, fabsf(sum[w]));
            const float to_half = to_half_range(largest);
            scale[i] = there ? __float_as_uint(inverse_power(to_half)) : 0;
#pragma unroll
            for (int w = 0; w < RUN / 2; w++) {
                const __half2 two = __floats2half2_rn(sum[2 * w] * to_half, sum[2 * w + 1] * to_half);
                word[i * (RUN / 2) + w] = *(const uint32_t *)&two;
                if (y && there)
                    *(float2 *)(y + at + 2 * w) = make_float2(sum[2 * w], sum[2 * w + 1]);
            }
        }
    }

    /* To the largest power of two in the warp, which is returned. */
    __device__ float level_out()
    {
        uint32_t most = scale[0];
#pragma unroll
        for (int i = 1; i < RUNS; i++)
            most = max(most, scale[i]);
        most = __reduce_max_sync(~0u, most);
        most = most ? most : 0x3f800000u;
#pragma unroll
        for (int i = 0; i < RUNS; i++) {
            const __half2 by = __float2half2_rn(__uint_as_float(scale[i]) * __uint_as_float(0x7f000000u - most));
#pragma unroll
            for (int k = 0; k < RUN / 2; k++) {
                uint32_t &v = word[i * (RUN / 2) + k];
                const __half2 h = __hmul2(*(const __half2 *)&v, by);
                v = *(const uint32_t *)&h;
            }
        }
        return __uint_as_float(most);
    }
};

/* ---- products: items ----------------------------------------------------------------------------- */

/* The tiles of a product that are a block's, and where one of its items is. */
struct walk_span {
    uint32_t tile0, tiles;

    __device__ explicit walk_span(const qm_product_phase &f)
    {
        const uint32_t pair = f.gate ? 1 : 0;
        tile0 = (blockIdx.x * f.each + min(blockIdx.x, f.rest)) << pair;
        tiles = (f.each + (blockIdx.x < f.rest)) << pair;
    }
};

__device__ inline uint32_t part_of(const qm_product_phase &f, uint32_t tile)
{
    return f.gate ? tile & 1 : (tile >= f.part[1].first_tile) + (tile >= f.part[2].first_tile);
}
__device__ inline uint32_t tile_in_part(const qm_product_phase &f, uint32_t tile)
{
    return f.gate ? tile / 2 : tile - f.part[part_of(f, tile)].first_tile;
}

enum { NO_PHASE = UINT32_MAX, NO_ROW = UINT32_MAX };

/* Where an item is; NO_PHASE: there is none. */
struct walk_place {
    uint32_t phase, tile, slice;
};

/* The first item of a warp. */
__device__ inline walk_place first_place(uint32_t phase)
{
    if (phase == NO_PHASE)
        return {NO_PHASE, 0, 0};
    const qm_product_phase &f = phase_at(phase).product;
    const walk_span s(f);
    const uint32_t warp = thread() / 32, tile = warp * f.warp_by >> 16;
    return {warp < s.tiles * f.slices ? phase : NO_PHASE, s.tile0 + tile, warp - tile * f.slices};
}

/* An item under way: codes in registers, scales in shared memory. */
template <int GROUP, qm_scale_type S> struct walk_item {
    static constexpr uint32_t SCALES = QM_ITEM_UNITS * QM_UNIT_BYTES, BYTES = SCALES + 32 * lane_scales<S, GROUP>::BYTES;
    uint4 w[QM_ITEM_UNITS];

    /* Asks for an item's scales, and returns where this lane has its codes, or NULL when there is none. */
    __device__ const uint8_t *next(const walk_place &p, uint8_t *space, uint32_t lane)
    {
        const uint8_t *at = NULL;
        __syncwarp(); /* all have taken those of the item before */
        if (p.phase != NO_PHASE) {
            const qm_product_phase &f = phase_at(p.phase).product;
            const qm_phase_part &part = f.part[part_of(f, p.tile)];
            const uint32_t in = tile_in_part(f, p.tile);
            at = part.items + ((uint64_t)in * f.slices + p.slice) * BYTES;
            item_scales<GROUP, S>::ask(part, f.cols, in, p.slice, at + SCALES, space, lane);
            at += lane * 16;
        }
        copies_begun();
        return at;
    }
    template <int U> __device__ void load(const uint8_t *at) { load_if<U * QM_UNIT_BYTES>(w[U], at, at != NULL); }
    __device__ void load_all(const uint8_t *at)
    {
        load<0>(at), load<1>(at), load<2>(at), load<3>(at);
        load<4>(at), load<5>(at), load<6>(at), load<7>(at);
    }
};

/* ---- products: results --------------------------------------------------------------------------- */

/* A thread's row of a tile, or of two under a gate, and what it needs beside its sum. */
struct row_needs {
    uint32_t part, n; /* NO_ROW: there is none */
    float bias, weight;
    const float *add; /* or NULL */

    __device__ void load(const qm_product_phase &f, const walk_span &span, uint32_t i)
    {
        const uint32_t tile = i / QM_TILE_ROWS * (f.gate ? 2 : 1), in = span.tile0 + tile;
        part = 0, n = NO_ROW, bias = weight = 0, add = NULL;
        if (tile >= span.tiles)
            return;
        part = part_of(f, in);
        const qm_phase_part &p = f.part[part];
        const uint32_t row = tile_in_part(f, in) * QM_TILE_ROWS + i % QM_TILE_ROWS;
        if (row >= p.rows)
            return;
        n = row;
        bias = p.p.bias ? p.p.bias[n] : 0;
        weight = f.after.weight ? f.after.weight[n] + f.after.add : 0;
        add = p.p.add ? p.p.add + n : NULL;
    }
};

/* A row's sums, in an order of their own. */
__device__ inline float sum_of(const float *part, uint32_t count)
{
    float v[4] = {0, 0, 0, 0};
    uint32_t k = 0;
#pragma unroll 2
    for (; k + 4 <= count; k += 4)
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] += part[(k + i) * QM_TILE_ROWS];
    for (; k < count; k++)
        v[0] += part[k * QM_TILE_ROWS];
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* The rows of a block, a thread each; `needs` and `add`: of its first one. */
__device__ inline void finish_rows(const qm_product_phase &f, const float *sums, const walk_span &span, float by, row_needs needs, float add)
{
    const uint32_t each = f.gate ? 2 : 1, rows = span.tiles / each * QM_TILE_ROWS, slices = f.slices;
    for (uint32_t i = thread(); i - thread() % 32 < rows; i += WALK_THREADS) { /* whole warps */
        if (i != thread()) {
            needs.load(f, span, i);
            add = needs.add ? *needs.add : 0;
        }
        const uint32_t n = needs.n;
        const bool there = n != NO_ROW;
        const qm_phase_part &p = f.part[needs.part];
        const float *part = sums + i / QM_TILE_ROWS * each * slices * QM_TILE_ROWS + i % QM_TILE_ROWS;
        float v = there ? __fmaf_rn(sum_of(part, slices), by * p.factor, needs.bias) : 0;
        if (f.gate) {
            const qm_phase_part &q = f.part[1];
            const float up = there ? __fmaf_rn(sum_of(part + slices * QM_TILE_ROWS, slices), by * q.factor, q.p.bias ? q.p.bias[n] : 0) : 0;
            const float gated = (f.gate == QM_GATE_SILU ? __fdividef(v, 1 + __expf(-v)) : gelu_tanh(v)) * up;
            store_sixteen(f.gated_half, n, gated, there);
            if (there)
                p.p.y[n] = v, q.p.y[n] = up, f.gated[n] = gated;
            continue;
        }
        const float all = v + add;
        if (f.after.weight)
            begin_norm(f.after, n, all, needs.weight, there);
        if (there) {
            p.p.y[n] = v;
            if (needs.add)
                p.p.sum[n] = all;
        }
    }
}

/* ---- products ------------------------------------------------------------------------------------ */

template <int N> struct number {
    static constexpr int value = N;
};

/* A product as one thread sees it: what it knows before it waits for the others, */
struct walk_turn {
    walk_span span;
    uint32_t items, tile, slice; /* of the block; and where the warp's first one is */
    walk_place then;             /* the warp's first of the next product */
    uint32_t parts;              /* of an x that is open */
    row_needs needs;

    __device__ walk_turn(const qm_product_phase &f, uint32_t next) : span(f), then(first_place(next))
    {
        items = span.tiles * f.slices;
        tile = thread() / 32 * f.warp_by >> 16, slice = thread() / 32 - tile * f.slices;
        tile += span.tile0;
        parts = open_parts(f.open);
        needs.load(f, span, thread());
    }
};

/* 1 / sqrt(mean of squares + eps), in all lanes of a warp. */
__device__ inline float norm_factor(const qm_norm &norm, uint32_t cols, uint32_t lane)
{
    const uint32_t sixteens = cols / 16;
    float squares = 0;
    for (uint32_t i = lane; i < sixteens; i += 256) { /* eight at a time */
        float v[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = i + 32 * k < sixteens ? norm.squares[i + 32 * k] : 0;
        squares += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }
#pragma unroll
    for (int i = 16; i; i /= 2)
        squares += __shfl_xor_sync(~0u, squares, i);
    return rsqrtf(__fdividef(squares, (float)cols) + norm.eps);
}

/* and what it does then.  `now`: the warp's first item of this phase, when it has one; afterwards that of the next product. */
template <int GROUP, qm_scale_type S>
__device__ inline void walk_product(uint32_t phase, const walk_turn &turn, walk_item<GROUP, S> &now, uint8_t *space, float *sums, float *factor, uint32_t pairs,
                                    const float *dynamic, uint32_t lane, uint32_t g, uint32_t t, uint32_t never)
{
    using scales = lane_scales<S, GROUP>;
    const qm_product_phase &f = phase_at(phase).product;
    const uint32_t items = turn.items;
    constexpr uint32_t STEP = WALK_WARPS;
    uint32_t item = thread() / 32, slice = turn.slice, tile = turn.tile;
    const bool late = f.before.weight != NULL;
    const qm_sixteens &x = late ? f.before.half : f.open.half.half ? f.open.half : f.x;
    walk_operand<GROUP> b;
    auto load_x = [&] {
        if (turn.parts)
            b.load(f.open, turn.parts, tile == 0 ? f.open.y : NULL, f.cols, slice, g, t);
        else
            b.load(x, f.cols, slice, g, t);
    };
    if (item < items)
        load_x();
    const float add = turn.needs.add ? *turn.needs.add : 0; /* is needed at the end, and under way now */
    if (late && thread() / 32 == WALK_WARPS - 1) {          /* the warp that has the fewest items */
        const float by = norm_factor(f.before, f.cols, lane);
        if (lane == 0)
            *factor = by;
    }
    if (item >= items)
        now.load_all(now.next(turn.then, space, lane));
    for (; item < items; item += STEP) {
        float scale[scales::COUNT], sum[2][2] = {{0, 0}, {0, 0}};
        const float ones[2] = {1, 1};
        item_scales<GROUP, S>::take(scale, space, dynamic, lane);
        const bool more = item + STEP < items;
        slice += f.more_slices, tile += f.more_tiles;
        if (slice >= f.slices)
            slice -= f.slices, tile++;
        const uint8_t *at = now.next(more ? walk_place{phase, tile, slice} : turn.then, space, lane);
        const float of_x = b.level_out();
#pragma unroll
        for (int i = 0; i < scales::COUNT; i++)
            scale[i] *= of_x;
        auto unit = [&](auto which) {
            constexpr int U = decltype(which)::value, IN_UNIT = GROUP < 64 ? 64 / GROUP : 1;
            if (U % 2 == 0)
                cut(never);
            add_unit<1, GROUP>(sum, now.w[U], b.word, pairs, (int)t == U / 2, U % 2, ones, [&](int r, int i) {
                return scale[GROUP < 128 ? r * scales::PER_ROW + U % 2 * IN_UNIT + i : r];
            });
            now.template load<U>(at);
        };
        unit(number<0>()), unit(number<1>()), unit(number<2>()), unit(number<3>());
        unit(number<4>()), unit(number<5>()), unit(number<6>()), unit(number<7>());
        if (more)
            load_x();
        store_item<1>(sums + item * QM_TILE_ROWS, sum, g, t);
    }
    __syncthreads();
    const float by = late ? *factor : 1;
    finish_rows(f, sums, turn.span, by, turn.needs, add);
    constexpr uint32_t IDLE = WALK_THREADS / 2; /* the second half of the threads have no rows to finish, or few */
    if (late && thread() >= IDLE)
        for (uint32_t i = blockIdx.x * IDLE + thread() - IDLE; i < f.cols; i += gridDim.x * IDLE)
            f.before.y[i] = f.before.x[i] * (f.before.weight[i] + f.before.add) * by;
}

#endif
