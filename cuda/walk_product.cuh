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

enum { NO_PHASE = UINT32_MAX };

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
    __device__ const uint8_t *next(const walk_place &p, uint8_t *space, uint32_t lane, uint32_t g, uint32_t t)
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

/* What a thread's row needs beside its sum. */
struct row_needs {
    float bias, weight;
    const float *add; /* or NULL */

    __device__ void load(const qm_product_phase &f, const qm_phase_part &p, uint32_t n, bool there)
    {
        bias = there && p.p.bias ? p.p.bias[n] : 0;
        weight = there && f.after.weight ? f.after.weight[n] + f.after.add : 0;
        add = there && p.p.add ? p.p.add + n : NULL;
    }
};

__device__ inline float sum_of(const qm_product_phase &f, const float *sums, uint32_t tile, uint32_t row)
{
    const float *part = sums + tile * f.slices * QM_TILE_ROWS + row;
    float sum = 0;
#pragma unroll 8
    for (uint32_t k = 0; k < f.slices; k++)
        sum += part[k * QM_TILE_ROWS];
    return sum;
}

/* A thread has a row of a tile, or of two under a gate; `first` and `add`: what it needs in the first turn. */
__device__ inline void finish_rows(const qm_product_phase &f, const float *sums, const walk_span &span, float by, const row_needs &first, float add)
{
    const uint32_t each = f.gate ? 2 : 1, rows = span.tiles / each * QM_TILE_ROWS;
    for (uint32_t i = thread(); i - thread() % 32 < rows; i += WALK_THREADS) { /* whole warps */
        const uint32_t tile = i / QM_TILE_ROWS * each, row = i % QM_TILE_ROWS;
        const bool inside = i < rows;
        const qm_phase_part &p = f.part[inside ? part_of(f, span.tile0 + tile) : 0];
        const uint32_t n = inside ? tile_in_part(f, span.tile0 + tile) * QM_TILE_ROWS + row : 0;
        const bool there = inside && n < p.rows;
        row_needs needs = first;
        if (i != thread()) {
            needs.load(f, p, n, there);
            add = needs.add ? *needs.add : 0;
        }
        float v = there ? sum_of(f, sums, tile, row) * (by * p.factor) + needs.bias : 0;
        if (there)
            p.p.y[n] = v;
        if (f.gate) {
            const qm_phase_part &q = f.part[1];
            float up = there ? sum_of(f, sums, tile + 1, row) * (by * q.factor) + (q.p.bias ? q.p.bias[n] : 0) : 0;
            v = (f.gate == QM_GATE_SILU ? silu(v) : gelu_tanh(v)) * up;
            if (there)
                q.p.y[n] = up, f.gated[n] = v;
            store_sixteen(f.gated_half, n, v, there);
            continue;
        }
        if (there && p.p.add)
            p.p.sum[n] = v += add;
        if (f.after.weight)
            begin_norm(f.after, n, v, needs.weight, there);
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
    row_needs needs;
    float own; /* the factor of its own value of the norm */

    __device__ walk_turn(const qm_product_phase &f, uint32_t next) : span(f), then(first_place(next))
    {
        items = span.tiles * f.slices;
        tile = thread() / 32 * f.warp_by >> 16, slice = thread() / 32 - tile * f.slices;
        tile += span.tile0;
        const uint32_t i = thread() / QM_TILE_ROWS * (f.gate ? 2 : 1), in = span.tile0 + (i < span.tiles ? i : 0);
        const qm_phase_part &p = f.part[part_of(f, in)];
        const uint32_t n = tile_in_part(f, in) * QM_TILE_ROWS + thread() % QM_TILE_ROWS, mine = blockIdx.x * WALK_THREADS + thread();
        needs.load(f, p, n, i < span.tiles && n < p.rows);
        own = f.before.weight && mine < f.cols ? f.before.weight[mine] + f.before.add : 0;
    }
};

/* and what it does then.  `now`: the warp's first item of this phase, when it has one; afterwards that of the next product. */
template <int GROUP, qm_scale_type S>
__device__ inline void walk_product(uint32_t phase, const walk_turn &turn, walk_item<GROUP, S> &now, uint8_t *space, float *sums, uint32_t pairs,
                                    const float *dynamic, uint32_t lane, uint32_t g, uint32_t t, uint32_t never)
{
    using scales = lane_scales<S, GROUP>;
    constexpr uint32_t STEP = WALK_WARPS;
    const qm_product_phase &f = phase_at(phase).product;
    const uint32_t items = turn.items, mine = blockIdx.x * WALK_THREADS + thread();
    uint32_t item = thread() / 32, slice = turn.slice, tile = turn.tile;
    const bool late = f.before.weight != NULL;
    const qm_sixteens &x = late ? f.before.half : f.x;
    walk_operand<GROUP> b;
    if (item < items)
        b.load(x, f.cols, slice, g, t);

    /* What is needed at the end is under way now. */
    const float add = turn.needs.add ? *turn.needs.add : 0;
    float squares = 0, own = turn.own;
    const bool results = thread() - lane < turn.span.tiles * QM_TILE_ROWS || mine - lane < f.cols; /* of this warp */
    if (late && results) {
        const uint32_t sixteens = f.cols / 16;
        for (uint32_t i = lane; i < sixteens; i += 256) { /* eight at a time */
            float v[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = i + 32 * k < sixteens ? f.before.squares[i + 32 * k] : 0;
            squares += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
        }
        own = mine < f.cols ? f.before.x[mine] * own : 0;
    }

    if (item >= items)
        now.load_all(now.next(turn.then, space, lane, g, t));
    for (; item < items; item += STEP) {
        float scale[scales::COUNT], sum[2][2] = {{0, 0}, {0, 0}};
        const float ones[2] = {1, 1};
        item_scales<GROUP, S>::take(scale, space, dynamic, lane);
        const bool more = item + STEP < items;
        slice += f.more_slices, tile += f.more_tiles;
        if (slice >= f.slices)
            slice -= f.slices, tile++;
        const uint8_t *at = now.next(more ? walk_place{phase, tile, slice} : turn.then, space, lane, g, t);
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
            b.load(x, f.cols, slice, g, t);
        store_item<1>(sums + item * QM_TILE_ROWS, sum, g, t);
    }
    float by = 1;
    if (late && results) {
#pragma unroll
        for (int i = 16; i; i /= 2)
            squares += __shfl_xor_sync(~0u, squares, i);
        by = 1 / sqrtf(squares / (float)f.cols + f.before.eps);
    }
    __syncthreads();
    finish_rows(f, sums, turn.span, by, turn.needs, add);
    if (late && results)
        for (uint32_t i = mine; i < f.cols; i += gridDim.x * WALK_THREADS)
            f.before.y[i] = (i == mine ? own : f.before.x[i] * (f.before.weight[i] + f.before.add)) * by;
}

#endif
