/* walk_product.cuh: a product of a program, as matrix_decode.cuh has it for one token, with norms, additions and gates; for
 * walk.cuh. */
#ifndef QM_WALK_PRODUCT_CUH
#define QM_WALK_PRODUCT_CUH

/* ---- products: x --------------------------------------------------------------------------------- */

/* Loads that stay where they stand, before what waits for others. */
__device__ inline uint4 load_now(const void *p)
{
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}

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
                    uint4 v = there ? load_now(from + 8 * part) : make_uint4(0, 0, 0, 0);
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
                        const uint4 four = k < parts ? load_now(from + k * cols + 2 * w) : make_uint4(0, 0, 0, 0);
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

enum : uint32_t { NO_ROW = UINT32_MAX };

/* Which of the matrices a block's tile is of. */
__device__ inline uint32_t part_of(const qm_block_plan &plan, uint32_t tile) { return (tile >= plan.bound[0]) + (tile >= plan.bound[1]); }

/* One of a block's items: of which phase, or QM_NO_PHASE: there is none; which, and its tile and slice. */
struct walk_place {
    uint32_t phase, item, tile, slice;
};

/* The first item of a warp from the product `phase` on, among phases before `end`. */
__device__ inline walk_place first_place(uint32_t phase, uint32_t end)
{
    const uint32_t warp = thread() / 32;
    while (phase < end && plan_at(phase).items <= warp)
        phase = phase_at(phase).product.next;
    if (phase >= end)
        return {(uint32_t)QM_NO_PHASE, 0, 0, 0};
    const qm_product_phase &f = phase_at(phase).product;
    const uint32_t tile = warp * f.warp_by >> 16;
    return {phase, warp, tile, warp - tile * f.slices};
}

/* An item under way: codes in registers, scales in shared memory. */
template <int GROUP, qm_scale_type S> struct walk_item {
    static constexpr uint32_t SCALES = QM_ITEM_UNITS * QM_UNIT_BYTES, BYTES = SCALES + 32 * lane_scales<S, GROUP>::BYTES;
    uint4 w[QM_ITEM_UNITS];

    /* Where the warp's scales are: found anew every time, as is thread(). */
    __device__ static uint8_t *space()
    {
        extern __shared__ uint4 shared[];
        return (uint8_t *)shared + WALK_OWN + thread() / 32 * item_scales<GROUP, S>::SPACE;
    }
    /* Asks for an item's scales, and returns where this lane has its codes, or NULL when there is none. */
    __device__ const uint8_t *next(const walk_place &p, uint32_t lane)
    {
        const uint8_t *at = NULL;
        __syncwarp(); /* all have taken those of the item before */
        if (p.phase != (uint32_t)QM_NO_PHASE) {
            const qm_product_phase &f = phase_at(p.phase).product;
            const qm_block_plan &plan = plan_at(p.phase);
            const uint32_t part = part_of(plan, p.tile);
            at = (const uint8_t *)(uintptr_t)(plan.item[part] + (uint64_t)p.item * BYTES);
            item_scales<GROUP, S>::ask(f.part[part], f.cols, p.tile + plan.tile[part], p.slice, at + SCALES, space(), lane);
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
    uint32_t part, n; /* NO_ROW: there is none */

    __device__ row_needs(const qm_product_phase &f, const qm_block_plan &plan, uint32_t set)
    {
        const uint32_t lane = thread() % 32, tile = f.gate && lane >= 16 ? set + plan.bound[0] : set;
        part = part_of(plan, tile);
        n = (tile + plan.tile[part]) * QM_TILE_ROWS + lane % 16;
        n = tile < plan.tiles && n < f.part[part].rows ? n : NO_ROW;
    }
    __device__ float bias(const qm_product_phase &f) const
    {
        const float *from = f.part[part].p.bias;
        return from && n != NO_ROW ? from[n] : 0;
    }
    __device__ float weight(const qm_product_phase &f) const { return f.after.weight && n != NO_ROW ? f.after.weight[n] + f.after.add : 0; }
    __device__ float add(const qm_product_phase &f) const
    {
        const float *from = f.part[part].p.add;
        return from && n != NO_ROW ? from[n] : 0;
    }
};

/* Where a row's result goes, or NULL, and what its sum is multiplied with; of each thread in shared memory, until it is needed. */
struct row_end {
    float *to;
    float factor;

    __device__ static row_end &here()
    {
        extern __shared__ uint4 shared[];
        return ((row_end *)((uint8_t *)shared + WALK_ROWS))[thread()];
    }
    __device__ row_end(const qm_product_phase &f, const row_needs &row, uint32_t lane) : factor(f.part[row.part].factor)
    {
        const qm_product &p = f.part[row.part].p;
        to = row.n == NO_ROW ? NULL : f.gate || lane < 16 ? p.y + row.n : p.add ? p.sum + row.n : NULL;
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

/* What a thread has found of its first row before the sums are there, and that it has left in row_end. */
struct row_known {
    row_needs row;
    float bias, weight, add;
};

/* The rows of a block, of which each warp takes those of a tile.  The block's threads meet when they know where and how. */
__device__ inline void finish_rows(const qm_product_phase &f, const qm_block_plan &plan, const float *sums, row_known row, uint32_t lane)
{
    const bool gate = f.gate != QM_GATE_NONE;
    const uint32_t second = lane / 16, slices = f.slices, sets = gate ? plan.bound[0] : plan.tiles;
    uint32_t set = thread() / 32;
    row_end end = row_end::here();
    const qm_sixteens half = gate ? f.gated_half : f.after.half;
    float *const more = gate ? f.gated : f.after.squares; /* NULL: nothing is made of the result */
    const bool late = f.before.weight != NULL;
    __syncthreads();
    if (set >= sets)
        return;
    const float by = late ? known().factor : 1;
    for (;;) {
        const uint32_t n = row.row.n;
        const bool there = n != NO_ROW;
        const float *part = sums + ((gate && second ? set + sets : set) * slices + (gate ? 0 : second)) * QM_TILE_ROWS + lane % 16;
        float v = sum_of(part, gate ? slices : (slices + 1 - second) / 2, gate ? QM_TILE_ROWS : 2 * QM_TILE_ROWS), result, square = 0;
        if (!gate)
            v += __shfl_xor_sync(~0u, v, 16);
        v = there ? __fmaf_rn(v, by * end.factor, row.bias) : 0;
        if (gate) {
            const float other = __shfl_xor_sync(~0u, v, 16), first = second ? other : v, up = second ? v : other;
            result = (f.gate == QM_GATE_SILU ? __fdividef(first, 1 + __expf(-first)) : gelu_tanh(first)) * up;
        } else {
            const float all = v + row.add;
            result = all * row.weight, square = all * all;
            v = second ? all : v;
        }
        if (end.to)
            *end.to = v;
        if (more) {
            if (!gate)
                square = sum_of_sixteen(there ? square : 0);
            store_sixteen(half, n, there ? result : 0, there && !second);
            if (there && second && (gate || n % 16 == 0))
                more[gate ? n : n / 16] = gate ? result : square;
        }
        set += WALK_WARPS;
        if (set >= sets)
            return;
        const row_needs next(f, plan, set);
        end = row_end(f, next, lane);
        row = {next, next.bias(f), next.weight(f), next.add(f)};
    }
}

/* ---- products ------------------------------------------------------------------------------------ */

__device__ inline const qm_sixteens &x_of(const qm_product_phase &f) { return f.before.weight ? f.before.half : f.open.half.half ? f.open.half : f.x; }

/* A product as one thread sees it: what it knows before it waits for the others, */
struct walk_turn {
    uint32_t tile, slice; /* of the warp's first item */
    walk_place then;      /* the warp's first of the next product */
    uint32_t parts;       /* of an x that is open, or 0 */
    qm_sixteens x;        /* else */
    row_needs row;
    float bias, weight; /* of it */

    __device__ walk_turn(uint32_t phase, const qm_product_phase &f, const qm_block_plan &plan, uint32_t parts)
        : then(first_place(f.next, phase + WALK_AHEAD)), parts(f.open.half.half ? parts : 0), x(x_of(f)), row(f, plan, thread() / 32), bias(row.bias(f)), weight(row.weight(f))
    {
        tile = thread() / 32 * f.warp_by >> 16, slice = thread() / 32 - tile * f.slices;
        row_end::here() = row_end(f, row, thread() % 32);
    }
};

/* A warp of each block finishes a norm: 1 / sqrt(mean of squares + eps), and its part of the result. */
__device__ inline void finish_norm(const qm_norm &norm, uint32_t cols, float *factor, uint32_t lane)
{
    const uint32_t sixteens = cols / 16, first = block() * 32 + lane;
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
    for (uint32_t i = block() * 32 + lane; i < cols; i += gridDim.x * 32) {
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
__device__ inline void walk_product(uint32_t phase, const walk_turn &turn, walk_item<GROUP, S> &now, float *sums, uint32_t pairs,
                                    const float *dynamic, uint32_t lane, uint32_t g, uint32_t t, uint32_t never)
{
    using scales = lane_scales<S, GROUP>;
    const qm_product_phase &f = phase_at(phase).product;
    const qm_block_plan &plan = plan_at(phase);
    const uint32_t items = plan.items;
    constexpr uint32_t STEP = WALK_WARPS;
    uint32_t item = thread() / 32, slice = turn.slice, tile = turn.tile;
    const bool late = f.before.weight != NULL;
    walk_operand<GROUP> b;
    auto load_x = [&](const qm_sixteens &x) {
        if (turn.parts)
            b.load(f.open, turn.parts, f.cols, slice, g, t);
        else
            b.load(x, f.cols, slice, g, t);
    };
    if (item < items)
        load_x(turn.x);
    const row_known row = {turn.row, turn.bias, turn.weight, turn.row.add(f)}; /* is needed at the end, and under way now */
    if (thread() / 32 == WALK_WARPS - 1) { /* the warp that has the fewest items */
        if (late)
            finish_norm(f.before, f.cols, &known().factor, lane);
        else if (turn.parts)
            close(f.open, turn.parts, f.cols, lane);
    }
    uint32_t &held = known().held[thread() / 32];
    if (item >= items) {
        if (held == turn.then.phase)
            copies_begun(); /* of none: the kernel counts them */
        else
            now.load_all(now.next(turn.then, lane));
    }
    __syncwarp();
    if (lane == 0)
        held = turn.then.phase;
    for (; item < items; item += STEP) {
        float scale[scales::COUNT], sum[2][2] = {{0, 0}, {0, 0}};
        const float ones[2] = {1, 1};
        item_scales<GROUP, S>::take(scale, now.space(), dynamic, lane);
        const bool more = item + STEP < items;
        slice += f.more_slices, tile += f.more_tiles;
        if (slice >= f.slices)
            slice -= f.slices, tile++;
        const uint8_t *at = now.next(more ? walk_place{phase, item + STEP, tile, slice} : turn.then, lane);
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
            load_x(x_of(f));
        store_item<1>(sums + item * QM_TILE_ROWS, sum, g, t);
    }
    finish_rows(f, plan, sums, row, lane);
}

#endif
