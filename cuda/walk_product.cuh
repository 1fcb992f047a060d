/* walk_product.cuh: a product of a program, as matrix_decode.cuh has it for one token, with norms, additions and gates; for
 * walk.cuh. */
#ifndef QM_WALK_PRODUCT_CUH
#define QM_WALK_PRODUCT_CUH

/* ---- products: x --------------------------------------------------------------------------------- */

/* What each of attention's parts counts at column `at`, with the powers of two of its sixteen. */
struct open_weights {
    float part[QM_OPEN_PARTS];

    __device__ open_weights(const qm_open &x, uint32_t parts, uint32_t cols, uint32_t at)
    {
        const float2 *stats = (const float2 *)x.stats + (at >> x.dim_bits);
        float2 stat[QM_OPEN_PARTS];
        float most = -INFINITY, total = 0;
#pragma unroll
        for (uint32_t k = 0; k < QM_OPEN_PARTS; k++) {
            stat[k] = k < parts ? stats[k * x.heads] : make_float2(-INFINITY, 0);
            part[k] = k < parts ? x.half.scale[(k * cols + at) / 16] : 0;
        }
#pragma unroll
        for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
            most = fmaxf(most, stat[k].x);
#pragma unroll
        for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
            stat[k].y *= power_of_two(stat[k].x - most), total += stat[k].y;
        const float whole = __fdividef(1, total);
#pragma unroll
        for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
            part[k] *= stat[k].y * whole;
    }
};

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

    /* The same of attention's parts, put together. */
    __device__ void load(const qm_open &x, uint32_t parts, uint32_t cols, uint32_t slice, uint32_t g, uint32_t t)
    {
#pragma unroll
        for (int i = 0; i < RUNS; i++) {
            const uint32_t at = slice * QM_ITEM_COLS + g * QM_UNIT_COLS + i * IN_UNIT + t * RUN;
            const bool there = at < cols;
            const __half *from = (const __half *)x.half.half + (there ? at : 0);
            uint32_t v[QM_OPEN_PARTS][RUN / 2];
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
#pragma unroll
                for (int w = 0; w < RUN / 2; w += RUN >= 8 ? 4 : 2) {
                    if constexpr (RUN >= 8) {
                        const uint4 four = k < parts ? load_fresh(from + k * cols + 2 * w) : make_uint4(0, 0, 0, 0);
                        v[k][w] = four.x, v[k][w + 1] = four.y, v[k][w + 2] = four.z, v[k][w + 3] = four.w;
                    } else {
                        const uint2 two = k < parts ? *(const uint2 *)(from + k * cols + 2 * w) : make_uint2(0, 0);
                        v[k][w] = two.x, v[k][w + 1] = two.y;
                    }
                }
            open_weights by(x, parts, cols, there ? at : 0);
            /* in f16, with a power of two that leaves room for the sum of three */
            float most = 0;
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
                most = fmaxf(most, by.part[k]);
            const uint32_t power = __float_as_uint(most) & 0x7f800000u;
            scale[i] = there ? power + (2u << 23) : 0;
#pragma unroll
            for (uint32_t k = 0; k < QM_OPEN_PARTS; k++) {
                const __half2 part = __float2half2_rn(by.part[k] * inverse_power(__uint_as_float(power + (2u << 23))));
#pragma unroll
                for (int w = 0; w < RUN / 2; w++) {
                    const __half2 two = *(const __half2 *)&v[k][w], sum = k ? __hfma2(two, part, *(const __half2 *)&word[i * (RUN / 2) + w]) : __hmul2(two, part);
                    word[i * (RUN / 2) + w] = *(const uint32_t *)&sum;
                }
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

/* A warp finishes a tile, or the two under a gate: a lane has row lane % 16, of which two lanes share the work.  The first has
 * y or, of a gate, the first matrix and its results; the second the sum y + add, or the second matrix.  What it needs: */
struct row_needs {
    uint32_t n; /* NO_ROW: there is none */
    float factor, bias, weight;
    const float *add; /* or NULL */
    float *to;        /* or NULL */

    __device__ void load(const qm_product_phase &f, const walk_span &span, uint32_t set)
    {
        const uint32_t lane = thread() % 32, tile = f.gate ? 2 * set + lane / 16 : set, in = span.tile0 + tile;
        n = NO_ROW, factor = bias = weight = 0, add = NULL, to = NULL;
        if (tile >= span.tiles)
            return;
        const qm_phase_part &p = f.part[part_of(f, in)];
        const uint32_t row = tile_in_part(f, in) * QM_TILE_ROWS + lane % 16;
        if (row >= p.rows)
            return;
        n = row;
        factor = p.factor;
        bias = p.p.bias ? p.p.bias[n] : 0;
        weight = f.after.weight ? f.after.weight[n] + f.after.add : 0;
        add = p.p.add ? p.p.add + n : NULL;
        to = f.gate || lane < 16 ? p.p.y + n : p.p.add ? p.p.sum + n : NULL;
    }
};

/* `count` of a row's sums, every `step`-th. */
__device__ inline float sum_of(const float *part, uint32_t count, uint32_t step)
{
    float v[4] = {0, 0, 0, 0};
#pragma unroll 1
    for (uint32_t k = 0; k < count; k += 4) {
        float now[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            now[i] = k + i < count ? part[(k + i) * step] : 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] += now[i];
    }
    return (v[0] + v[1]) + (v[2] + v[3]);
}

/* The rows of a block, of which each warp takes those of a tile; `needs` and `add`: of its first one. */
__device__ inline void finish_rows(const qm_product_phase &f, const float *sums, const walk_span &span, float by, row_needs needs, float add)
{
    const bool gate = f.gate != QM_GATE_NONE;
    const uint32_t lane = thread() % 32, second = lane / 16, each = gate ? 2 : 1, slices = f.slices;
#pragma unroll 1
    for (uint32_t set = thread() / 32; set * each < span.tiles; set += WALK_WARPS) {
        if (set != thread() / 32) {
            needs.load(f, span, set);
            add = needs.add ? *needs.add : 0;
        }
        const uint32_t n = needs.n;
        const bool there = n != NO_ROW;
        const float *part = sums + (set * each * slices + second * (gate ? slices : 1)) * QM_TILE_ROWS + lane % 16;
        float v = sum_of(part, gate ? slices : (slices + 1 - second) / 2, gate ? QM_TILE_ROWS : 2 * QM_TILE_ROWS);
        if (!gate)
            v += __shfl_xor_sync(~0u, v, 16);
        v = there ? __fmaf_rn(v, by * needs.factor, needs.bias) : 0;
        if (gate) {
            const float other = __shfl_xor_sync(~0u, v, 16), first = second ? other : v, up = second ? v : other;
            const float gated = (f.gate == QM_GATE_SILU ? __fdividef(first, 1 + __expf(-first)) : gelu_tanh(first)) * up;
            store_sixteen(f.gated_half, n, gated, there && !second);
            if (there)
                *needs.to = v;
            if (there && second)
                f.gated[n] = gated;
            continue;
        }
        const float all = v + add;
        if (f.after.weight)
            begin_norm(f.after, n, there ? all : 0, needs.weight, there && !second);
        if (needs.to)
            *needs.to = second ? all : v;
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
    uint32_t parts;              /* of an x that is open, or 0 */
    qm_sixteens x;               /* else */
    row_needs needs;

    __device__ walk_turn(const qm_product_phase &f, uint32_t next, uint32_t parts)
        : span(f), then(first_place(next)), parts(f.open.half.half ? parts : 0), x(f.before.weight ? f.before.half : f.open.half.half ? f.open.half : f.x)
    {
        items = span.tiles * f.slices;
        tile = thread() / 32 * f.warp_by >> 16, slice = thread() / 32 - tile * f.slices;
        tile += span.tile0;
        needs.load(f, span, thread() / 32);
    }
};

/* A warp of each block finishes a norm: 1 / sqrt(mean of squares + eps), and its part of the result. */
__device__ inline void finish_norm(const qm_norm &norm, uint32_t cols, float *factor, uint32_t lane)
{
    const uint32_t sixteens = cols / 16, first = blockIdx.x * 32 + lane;
    const float mine = first < cols ? norm.x[first] * (norm.weight[first] + norm.add) : 0;
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
    const float by = rsqrtf(__fdividef(squares, (float)cols) + norm.eps);
    if (lane == 0)
        *factor = by;
    if (first < cols)
        norm.y[first] = mine * by;
    for (uint32_t i = first + gridDim.x * 32; i < cols; i += gridDim.x * 32)
        norm.y[i] = norm.x[i] * (norm.weight[i] + norm.add) * by;
}

/* And its part of attention's result, put together. */
__device__ inline void close(const qm_open &x, uint32_t parts, uint32_t cols, uint32_t lane)
{
    for (uint32_t i = blockIdx.x * 32 + lane; i < cols; i += gridDim.x * 32) {
        const open_weights by(x, parts, cols, i);
        float v = 0;
#pragma unroll
        for (uint32_t k = 0; k < QM_OPEN_PARTS; k++)
            v += k < parts ? by.part[k] * __half2float(((const __half *)x.half.half)[k * cols + i]) : 0;
        x.y[i] = v;
    }
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
    walk_operand<GROUP> b;
    auto load_x = [&] {
        if (turn.parts)
            b.load(f.open, turn.parts, f.cols, slice, g, t);
        else
            b.load(turn.x, f.cols, slice, g, t);
    };
    if (item < items)
        load_x();
    const float add = turn.needs.add ? *turn.needs.add : 0; /* is needed at the end, and under way now */
    if (thread() / 32 == WALK_WARPS - 1) { /* the warp that has the fewest items */
        if (late)
            finish_norm(f.before, f.cols, factor, lane);
        else if (turn.parts)
            close(f.open, turn.parts, f.cols, lane);
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
}

#endif
