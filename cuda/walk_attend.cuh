/* walk_attend.cuh: attention of one token in a program; for walk.cuh.
 *
 * A block has up to eight queries of one key head and a part of the positions, a warp 16 of them at a time.  Scores and
 * sums are made on the tensor cores; queries and weights are two f16, the second of what the first lost, which lie in rows 8
 * below.  Scores are times log2 e, so that a weight is a power of two.
 *
 *     shared memory   | queries: 8 rows, and 8 of the rest | own key, value | for each warp: 16 keys, 16 values, and then
 *                     its sums: [query][dimension] | largest score, then sum of weights: [query][warp] |
 *                     largest scores of all warps: [query] | last |
 */
#ifndef QM_WALK_ATTEND_CUH
#define QM_WALK_ATTEND_CUH

static constexpr float LOG2_E = 1.4426950408889634f;

template <int N> struct number {
    static constexpr int value = N;
};

/* Rows of f16 are 16 bytes further apart than they are long, so that eight of them lie in different banks; those of sums 8 floats. */
template <int DIM> struct attend_space {
    static constexpr uint32_t PITCH = DIM * 2 + 16, ROWS = WALK_KEYS * PITCH, SUMS = DIM + 8, LAST = 16 * PITCH, KEYS = LAST + 2 * DIM * 2,
                              STATE = KEYS + WALK_WARPS * 2 * ROWS, TOTAL = STATE + WALK_WARPS * WALK_GROUP * 4, MOST = TOTAL + WALK_WARPS * WALK_GROUP * 4,
                              DONE = MOST + WALK_GROUP * 4, END = DONE + 16;
    static_assert(WALK_GROUP * SUMS * 4 <= 2 * ROWS && WALK_WARPS == 16 && WALK_THREADS >= WALK_GROUP * DIM / 2, "sums have room where keys and values were");
};

/* Which positions: groups of 16 from `first` to before `end`, in so many parts; and which of them are this block's. */
struct attend_range {
    int32_t position, from;
    uint32_t end, parts;
    uint32_t open;                   /* parts that a product may put together; 0: none */
    uint32_t blocks;                 /* that have something to do */
    uint32_t unit, part, kv;         /* of this block, */
    uint32_t head0, here;            /* its first query and how many, */
    uint32_t own_begin, own_end;     /* and its groups */

    __device__ attend_range(const qm_attend_phase &f, int32_t passed) : position(f.a.at.first + passed)
    {
        from = f.a.window && position >= (int32_t)f.a.window ? position + 1 - (int32_t)f.a.window : 0;
        const uint32_t first = (uint32_t)from / WALK_KEYS;
        end = (uint32_t)position / WALK_KEYS + 1;
        const uint32_t groups = end - first, wanted = (groups + WALK_WARPS - 1) / WALK_WARPS;
        parts = max(min(wanted, f.most), 1u);
        const uint32_t each = (groups + parts - 1) / parts;
        parts = (groups + each - 1) / each; /* none is empty */
        open = parts > 1 && parts <= QM_OPEN_PARTS ? parts : 0;
        blocks = parts * f.units;
        part = block() / f.units, unit = block() % f.units;
        kv = unit / f.rounds;
        const uint32_t done = unit % f.rounds * WALK_GROUP;
        head0 = kv * f.group + done, here = min(f.group - done, (uint32_t)WALK_GROUP);
        own_begin = first + part * each, own_end = min(own_begin + each, end);
    }
};

/* Asks for 16 positions of keys and values that were there before; the token's own are left out, zeros are behind. */
template <int DIM> __device__ inline void load_keys(const qm_attention &a, const attend_range &r, uint32_t group, uint32_t to, uint32_t lane)
{
    using space = attend_space<DIM>;
    constexpr uint32_t EIGHTHS = DIM / 8, AT_ONCE = 32 / EIGHTHS;
    const uint32_t row = lane / EIGHTHS, eighth = lane % EIGHTHS;
    const int32_t p = (int32_t)(group * WALK_KEYS + row);
    const uint64_t from = ((uint64_t)r.kv * a.context + (uint32_t)p) * DIM + eighth * 8;
    const __half *keys = (const __half *)a.keys + from, *values = (const __half *)a.values + from;
    to += row * space::PITCH + eighth * 16;
    if ((int32_t)((group + 1) * WALK_KEYS) <= r.position) {
#pragma unroll
        for (uint32_t i = 0; i < WALK_KEYS; i += AT_ONCE) {
            copy_async(to + i * space::PITCH, keys + i * DIM, true);
            copy_async(to + i * space::PITCH + space::ROWS, values + i * DIM, true);
        }
    } else {
#pragma unroll 1
        for (uint32_t i = 0; i < WALK_KEYS; i += AT_ONCE) {
            const bool there = p + (int32_t)i < r.position;
            if (p + (int32_t)i == r.position)
                continue;
            copy_async(to + i * space::PITCH, there ? keys + i * DIM : a.keys, there);
            copy_async(to + i * space::PITCH + space::ROWS, there ? values + i * DIM : a.values, there);
        }
    }
    copies_begun();
}

/* The pair of values that turn together. */
__device__ inline void pair_places(const qm_attend_phase &f, uint32_t dim, uint32_t i, uint32_t &a, uint32_t &b)
{
    a = f.neox || !f.inverse ? i : 2 * i, b = f.neox || !f.inverse ? i + dim / 2 : 2 * i + 1;
}

/* Sines and cosines of a position. */
template <int DIM> __device__ inline void make_turns(const qm_attend_phase &f, int32_t position, float2 *turns)
{
    if (thread() >= DIM / 2)
        return;
    float s = 0, c = 1;
    if (f.inverse) {
        sincosf((float)position * f.inverse[thread()], &s, &c);
        s *= f.turn, c *= f.turn;
    }
    turns[thread()] = make_float2(c, s);
}

/* The queries, turned; and, of the last part, the token's own key and value, into the cache and shared memory.  A thread has a
 * pair of a query; those of the last queries one of the key or the value as well. */
template <int DIM>
__device__ inline void take_inputs(const qm_attend_phase &f, const attend_range &r, const float2 *turns, uint8_t *own)
{
    using space = attend_space<DIM>;
    constexpr uint32_t PAIRS = DIM / 2, KEY = WALK_THREADS / PAIRS - 1, VALUE = KEY - 1;
    const qm_attention &a = f.a;
    const uint32_t i = thread() % PAIRS, query = thread() / PAIRS, kv = r.kv, head0 = r.head0, here = r.here;
    const bool first = r.part == 0, last = r.own_end == r.end;
    const bool key = last && query == KEY, value = last && query == VALUE;
    uint32_t at[2];
    pair_places(f, DIM, i, at[0], at[1]);
    const uint32_t x = (head0 + query) * DIM + at[0], y = (head0 + query) * DIM + at[1];
    const uint32_t p = kv * DIM + (value ? i : at[0]), q = kv * DIM + (value ? i + PAIRS : at[1]);
    float2 u = make_float2(0, 0), mine = u;
    if (query < here)
        u = make_float2(a.q[x], a.q[y]);
    if (key || value)
        mine = make_float2((key ? a.k : a.v)[p], (key ? a.k : a.v)[q]);
    const float2 turn = turns[i];
    if (query < here) {
        const float v[2] = {u.x * turn.x - u.y * turn.y, u.x * turn.y + u.y * turn.x};
        const float scale = a.softcap != 0 ? a.scale : a.scale * LOG2_E;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float s = v[k] * scale;
            const __half high = __float2half_rn(s);
            __half *to = (__half *)(own + query * space::PITCH) + at[k];
            to[0] = high;
            to[WALK_GROUP * space::PITCH / 2] = __float2half_rn(s - __half2float(high));
        }
        if (first && f.q)
            f.q[x] = v[0], f.q[y] = v[1];
    }
    if (!key && !value)
        return;
    const float2 turned = key ? make_float2(mine.x * turn.x - mine.y * turn.y, mine.x * turn.y + mine.y * turn.x) : mine;
    const __half one = __float2half_rn(turned.x), two = __float2half_rn(turned.y);
    __half *to = (__half *)(own + space::LAST) + (key ? 0 : DIM);
    to[p - kv * DIM] = one, to[q - kv * DIM] = two;
    if (head0 != kv * f.group) /* another block has the first queries of this key */
        return;
    to = (__half *)(key ? a.keys : a.values) + ((uint64_t)kv * a.context + (uint32_t)r.position) * DIM;
    to[p - kv * DIM] = one, to[q - kv * DIM] = two;
    if (key && f.k)
        f.k[p] = turned.x, f.k[q] = turned.y;
}

/* The token's own among the 16 of the warp that has them. */
template <int DIM> __device__ inline void place_own(uint8_t *own, uint8_t *keys, uint32_t row, uint32_t lane)
{
    using space = attend_space<DIM>;
    constexpr uint32_t EIGHTHS = DIM / 8;
    if (lane < 2 * EIGHTHS)
        *(uint4 *)(keys + lane / EIGHTHS * space::ROWS + row * space::PITCH + lane % EIGHTHS * 16) = *(const uint4 *)(own + space::LAST + lane * 16);
    __syncwarp();
}

/* Scores of query g and positions 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a group; -infinity of what does not count. */
template <int DIM> __device__ inline void score(float s[4], const qm_attention &a, const attend_range &r, uint32_t group, uint32_t queries, uint32_t keys, uint32_t lane)
{
    using space = attend_space<DIM>;
    float c[2][2][4] = {}; /* even and odd steps by themselves: half as long a chain */
    const uint32_t from_queries = queries + lane % 16 * space::PITCH + lane / 16 * 16, from_keys = keys + (lane / 16 * 8 + lane % 8) * space::PITCH + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        uint32_t q[4], b[4];
        load_matrices(q, from_queries + k * 32);
        load_matrices(b, from_keys + k * 32);
        mma(c[0][k % 2], q[0], q[1], q[2], q[3], b[0], b[1]);
        mma(c[1][k % 2], q[0], q[1], q[2], q[3], b[2], b[3]);
    }
    const int32_t first = (int32_t)(group * WALK_KEYS), from = r.from - first, last = r.position - first;
    const float softcap = a.softcap;
#pragma unroll
    for (int i = 0; i < 4; i++)
        s[i] = (c[i / 2][0][i % 2] + c[i / 2][1][i % 2]) + (c[i / 2][0][2 + i % 2] + c[i / 2][1][2 + i % 2]);
    if (softcap != 0)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[i] = softcap * LOG2_E * tanhf(s[i] / softcap);
    if (from > 0 || last < WALK_KEYS - 1)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t p = i / 2 * 8 + 2 * ((int32_t)lane % 4) + i % 2;
            s[i] = p < from || p > last ? -INFINITY : s[i];
        }
}

/* out[i] = what 16 values with these weights add up to, of query g, dimensions 8 i + 2 t and + 1; + out[i] * by, if there is one. */
template <int DIM, bool FIRST> __device__ inline void add_values(float2 out[DIM / 8], float by, const float weight[4], uint32_t values, uint32_t lane)
{
    using space = attend_space<DIM>;
    uint32_t p[4]; /* rows g: what f16 has of them; 8 below: what it loses */
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const __half2 high = __floats2half2_rn(weight[2 * n], weight[2 * n + 1]);
        const float2 back = __half22float2(high);
        const __half2 low = __floats2half2_rn(weight[2 * n] - back.x, weight[2 * n + 1] - back.y);
        p[2 * n] = *(const uint32_t *)&high, p[2 * n + 1] = *(const uint32_t *)&low;
    }
    const uint32_t from = values + lane % 16 * space::PITCH + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < DIM / 8; i += 2) {
        uint32_t v[4];
        float c[2][4] = {};
        load_matrices_turned(v, from + i * 16);
        mma(c[0], p[0], p[1], p[2], p[3], v[0], v[1]);
        mma(c[1], p[0], p[1], p[2], p[3], v[2], v[3]);
#pragma unroll
        for (int n = 0; n < 2; n++)
            out[i + n].x = FIRST ? c[n][0] + c[n][2] : __fmaf_rn(out[i + n].x, by, c[n][0] + c[n][2]),
            out[i + n].y = FIRST ? c[n][1] + c[n][3] : __fmaf_rn(out[i + n].y, by, c[n][1] + c[n][3]);
    }
}

/* What there is before the queries are known: the first keys and values.  Only in a captured step, where the cache was written
 * by steps before. */
template <int DIM> __device__ inline void begin_attend(const qm_attend_phase &f, const attend_range &r, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    const uint32_t warp = thread() / 32, group = r.own_begin + warp;
    if (group < r.own_end)
        load_keys<DIM>(f.a, r, group, (uint32_t)__cvta_generic_to_shared(own) + space::KEYS + warp * 2 * space::ROWS, lane);
}

/* Parts of a unit into its results. */
template <int DIM>
__device__ inline void join_parts(const qm_attend_phase &f, const attend_range &r, uint32_t unit, uint32_t head0, uint32_t here)
{
    const float *parts = f.a.partial + (uint64_t)unit * r.parts * WALK_GROUP * (DIM + 2);
#pragma unroll 1
    for (uint32_t i = thread(); i < here * DIM; i += WALK_THREADS) {
        const uint32_t q = i / DIM, d = i % DIM;
        const float sink = f.a.sinks ? f.a.sinks[head0 + q] * LOG2_E : -INFINITY;
        float most = sink, total = 0, v = 0;
        for (uint32_t k = 0; k < r.parts; k += 4) { /* four at a time are under way */
            float part[4][3], now = most;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const float *p = parts + ((k + n) * WALK_GROUP + q) * (DIM + 2);
                const bool there = k + n < r.parts;
                part[n][0] = there ? __ldcg(p) : -INFINITY, part[n][1] = there ? __ldcg(p + 1) : 0, part[n][2] = there ? __ldcg(p + 2 + d) : 0;
            }
#pragma unroll
            for (uint32_t n = 0; n < 4; n++)
                now = fmaxf(now, part[n][0]);
            const float shrink = power_of_two(most - now);
            most = now, total *= shrink, v *= shrink;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const float by = power_of_two(part[n][0] - now);
                total += by * part[n][1], v += by * part[n][2];
            }
        }
        v /= total + power_of_two(sink - most);
        f.a.y[(head0 + q) * DIM + d] = v;
        store_sixteen(f.half, (head0 + q) * DIM + d, v, true);
    }
}

/* A block's part of its unit, which it has. */
template <int DIM> __device__ inline void walk_attend(const qm_attend_phase &f, const attend_range &r, const float2 *turns, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    const uint32_t warp = thread() / 32, base = (uint32_t)__cvta_generic_to_shared(own), g = lane / 4, t = lane % 4;
    const uint32_t begin = r.own_begin, end = r.own_end, warps = min(end - begin, (uint32_t)WALK_WARPS);
    const uint32_t keys = space::KEYS + warp * 2 * space::ROWS;
    float *most_of = (float *)(own + space::STATE), *total_of = (float *)(own + space::TOTAL), *block_most = (float *)(own + space::MOST);
    take_inputs<DIM>(f, r, turns, own);
    copies_done<0>();
    __syncthreads();
    float2 out[DIM / 8];
    float most = -INFINITY, total = 0;
    auto pass = [&](auto is_first, uint32_t group) { /* a group of each warp */
        constexpr bool FIRST = decltype(is_first)::value;
        float s[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        if (!FIRST) {
            __syncthreads(); /* all have seen the largest scores before */
            if (group < end)
                load_keys<DIM>(f.a, r, group, base + keys, lane);
            copies_done<0>();
            __syncwarp();
        }
        if (group < end) {
            if (group == r.end - 1)
                place_own<DIM>(own, own + keys, (uint32_t)r.position % WALK_KEYS, lane);
            score<DIM>(s, f.a, r, group, base, base + keys, lane);
        }
        float now = fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        if (t == 0)
            most_of[g * WALK_WARPS + warp] = now;
        __syncthreads();
        const float4 four = *(const float4 *)(most_of + g * WALK_WARPS + 4 * t);
        now = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(fmaxf(now, __shfl_xor_sync(~0u, now, 2)), most);
        const float shrink = FIRST ? 0 : power_of_two(most - now);
        most = now, total *= shrink;
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[i] = power_of_two(s[i] - most), total += s[i];
        if (group < end)
            add_values<DIM, FIRST>(out, shrink, s, base + keys + space::ROWS, lane);
        else
#pragma unroll
            for (int i = 0; i < DIM / 8; i++)
                out[i] = FIRST ? make_float2(0, 0) : make_float2(out[i].x * shrink, out[i].y * shrink);
    };
    pass(number<1>(), begin + warp);
#pragma unroll 1
    for (uint32_t at = begin + WALK_WARPS; at < end; at += WALK_WARPS)
        pass(number<0>(), at + warp);
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (t == 0)
        total_of[g * WALK_WARPS + warp] = total;
    if (warp == 0 && t == 0)
        block_most[g] = most;
    __syncwarp();
    if (warp < (warps + 3) / 4 * 4 && g < r.here) { /* four at a time are read below */
        float *to = (float *)(own + keys) + g * space::SUMS + 2 * t; /* the warp is done with its keys and values */
#pragma unroll
        for (int i = 0; i < DIM / 8; i++)
            *(float2 *)(to + 8 * i) = out[i];
    }
    __syncthreads();

    /* A thread has two dimensions of a query. */
    const bool open = f.open && r.open;
    const uint32_t q = thread() / (DIM / 2), d = thread() % (DIM / 2) * 2, head = r.head0 + q, part = r.part;
    if (q < r.here) {
        const bool whole = r.parts == 1 || (open && part == 0);
        const float *of_warp = (const float *)(own + space::KEYS) + q * space::SUMS + d;
        float m = block_most[q], sum = 0;
        float2 v = make_float2(0, 0);
#pragma unroll
        for (uint32_t i = 0; i < WALK_WARPS; i += 4) {
            const float4 four = *(const float4 *)(total_of + q * WALK_WARPS + i);
            sum += (four.x + four.y) + (four.z + four.w); /* zero of warps that have none */
            if (i < warps)
#pragma unroll
                for (uint32_t k = 0; k < 4; k++) {
                    const float2 two = *(const float2 *)(of_warp + (i + k) * (2 * space::ROWS / 4));
                    v.x += two.x, v.y += two.y;
                }
        }
        if (f.a.sinks && whole) {
            const float sink = f.a.sinks[head] * LOG2_E, now = fmaxf(m, sink), shrink = power_of_two(m - now);
            sum = __fmaf_rn(sum, shrink, power_of_two(sink - now));
            v.x *= shrink, v.y *= shrink, m = now;
        }
        if (open || r.parts == 1) {
            const float by = __fdividef(1, sum);
            v.x *= by, v.y *= by;
            const uint32_t cols = f.a.heads * DIM;
            store_pairs({(__half *)f.half.half + part * cols, f.half.scale + part * (cols / 16)}, head * DIM + d, v);
            if (d == 0)
                ((float2 *)f.stats)[part * f.a.heads + head] = make_float2(m, sum);
            if (!open)
                *(float2 *)(f.a.y + head * DIM + d) = v;
        } else {
            float *p = f.a.partial + ((uint64_t)(r.unit * r.parts + part) * WALK_GROUP + q) * (DIM + 2);
            *(float2 *)(p + 2 + d) = v;
            if (d == 0)
                p[0] = m, p[1] = sum;
        }
    }
    if (open || r.parts == 1)
        return;
    uint32_t *done = (uint32_t *)(own + space::DONE);
    __syncthreads();
    if (thread() == 0) {
        uint32_t before;
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(f.a.counters + r.unit) : "memory");
        *done = before + 1 == r.parts;
    }
    __syncthreads();
    if (*done) {
        join_parts<DIM>(f, r, r.unit, r.head0, r.here);
        if (thread() == 0)
            f.a.counters[r.unit] = 0;
    }
}

#endif
