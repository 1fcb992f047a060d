/* walk_attend.cuh: attention of one token in a program; for walk.cuh.
 *
 * A block has up to eight queries of one key head and a part of the positions, a warp 16 of them at a time.  Scores and
 * sums are made on the tensor cores; queries and weights are two f16, the second of what the first lost.
 *
 *     shared memory   | sine, cosine | queries: 8 rows, and 8 of the rest | for each warp: 16 keys, 16 values |
 *                     | largest score, sum of weights, factor: [warp][query] each                             |
 */
#ifndef QM_WALK_ATTEND_CUH
#define QM_WALK_ATTEND_CUH


template <int DIM> struct attend_space {
    static constexpr uint32_t ROWS = WALK_KEYS * DIM * 2, QUERIES = DIM / 2 * 8, LAST = QUERIES + 16 * DIM * 2, KEYS = LAST + 2 * DIM * 2,
                              STATE = KEYS + WALK_WARPS * 2 * ROWS, END = STATE + 2 * WALK_WARPS * WALK_GROUP * 4 + 16;
};

/* Address of 16 bytes: rows of DIM f16, whose eighths are exchanged so that eight rows lie in different banks. */
template <int DIM> __device__ inline uint32_t row_at(uint32_t base, uint32_t row, uint32_t eighth)
{
    return base + row * DIM * 2 + (eighth ^ (row & 7)) * 16;
}
template <int DIM> __device__ inline __half *value_at(uint8_t *base, uint32_t row, uint32_t col)
{
    return (__half *)(base + row_at<DIM>(0, row, col / 8)) + col % 8;
}

/* Which positions: groups of 16 from `first` to before `end`, in so many parts. */
struct attend_range {
    int32_t position, from;
    uint32_t rounds, units, first, end, parts, each;

    __device__ attend_range(int32_t position, uint32_t window, uint32_t heads, uint32_t kv_heads) : position(position)
    {
        from = window && position >= (int32_t)window ? position + 1 - (int32_t)window : 0;
        rounds = (heads / kv_heads + WALK_GROUP - 1) / WALK_GROUP, units = kv_heads * rounds;
        first = (uint32_t)from / WALK_KEYS, end = (uint32_t)position / WALK_KEYS + 1;
        const uint32_t wanted = (end - first + WALK_WARPS - 1) / WALK_WARPS, most = gridDim.x / units ? gridDim.x / units : 1;
        parts = wanted < most ? wanted : most, each = (end - first + parts - 1) / parts;
        parts = (end - first + each - 1) / each; /* none is empty */
    }
};

__device__ inline int32_t position_of(const qm_position &at) { return at.first + (at.passed ? __ldcg(at.passed) : 0); }

/* How many parts the product after it puts together; 0: it is whole. */
__device__ inline uint32_t open_parts(const attend_range &r) { return r.parts > 1 && r.parts <= QM_OPEN_PARTS ? r.parts : 0; }
__device__ inline uint32_t open_parts(const qm_open &x) { return x.half.half ? open_parts(attend_range(position_of(x.at), x.window, x.heads, x.kv_heads)) : 0; }

/* Asks for 16 positions of keys and values that were there before; the token's own are left out, zeros are behind. */
template <int DIM> __device__ inline void load_keys(const qm_attention &a, const attend_range &r, uint32_t kv, uint32_t group, uint32_t to, uint32_t lane)
{
#pragma unroll 2
    for (uint32_t i = 0; i < WALK_KEYS * DIM / 8 / 32; i++) {
        const uint32_t row = (i * 32 + lane) / (DIM / 8), eighth = (i * 32 + lane) % (DIM / 8);
        const int32_t p = (int32_t)(group * WALK_KEYS + row);
        const bool there = p < r.position;
        if (p == r.position)
            continue;
        const uint64_t from = ((uint64_t)kv * a.context + (there ? (uint32_t)p : 0)) * DIM + eighth * 8;
        copy_async(row_at<DIM>(to, row, eighth), (const __half *)a.keys + from, there);
        copy_async(row_at<DIM>(to + WALK_KEYS * DIM * 2, row, eighth), (const __half *)a.values + from, there);
    }
    copies_begun();
}

/* The pair of values that turn together. */
__device__ inline void pair_places(const qm_attend_phase &f, uint32_t dim, uint32_t i, uint32_t &a, uint32_t &b)
{
    a = f.neox || !f.inverse ? i : 2 * i, b = f.neox || !f.inverse ? i + dim / 2 : 2 * i + 1;
}

/* The queries, turned; and, where `last`, the token's own key and value, into the cache and shared memory. */
template <int DIM>
__device__ inline void take_inputs(const qm_attend_phase &f, const attend_range &r, uint32_t kv, uint32_t head0, uint32_t here, uint8_t *own, bool first, bool last)
{
    using space = attend_space<DIM>;
    const qm_attention &a = f.a;
    const float2 *turns = (const float2 *)own;
    const uint32_t i = thread() % (DIM / 2);
    const bool key = last && thread() < DIM / 2, value = last && thread() - DIM / 2 < DIM / 2;
    uint32_t at[2];
    pair_places(f, DIM, i, at[0], at[1]);
    const uint32_t p = kv * DIM + (key ? at[0] : i), q = kv * DIM + (key ? at[1] : i + DIM / 2);
    float2 mine;
    if (key || value)
        mine = make_float2((key ? a.k : a.v)[p], (key ? a.k : a.v)[q]);
#pragma unroll 1
    for (uint32_t n = thread(); n < WALK_GROUP * DIM / 2; n += WALK_THREADS) {
        const uint32_t query = n / (DIM / 2), x = (head0 + query) * DIM + at[0], y = (head0 + query) * DIM + at[1];
        float v[2] = {0, 0};
        if (query < here) {
            const float2 u = make_float2(a.q[x], a.q[y]);
            v[0] = u.x * turns[i].x - u.y * turns[i].y, v[1] = u.x * turns[i].y + u.y * turns[i].x;
            if (first && f.q)
                f.q[x] = v[0], f.q[y] = v[1];
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float s = v[k] * a.scale;
            const __half high = __float2half_rn(s);
            *value_at<DIM>(own + space::QUERIES, query, at[k]) = high;
            *value_at<DIM>(own + space::QUERIES, query + WALK_GROUP, at[k]) = __float2half_rn(s - __half2float(high));
        }
    }
    if (!key && !value)
        return;
    const float2 turned = key ? make_float2(mine.x * turns[i].x - mine.y * turns[i].y, mine.x * turns[i].y + mine.y * turns[i].x) : mine;
    const __half x = __float2half_rn(turned.x), y = __float2half_rn(turned.y);
    __half *to = (__half *)(own + space::LAST) + (key ? 0 : DIM);
    to[p - kv * DIM] = x, to[q - kv * DIM] = y;
    if (head0 % (a.heads / a.kv_heads)) /* another block has the first queries of this key */
        return;
    to = (__half *)(key ? a.keys : a.values) + ((uint64_t)kv * a.context + (uint32_t)r.position) * DIM;
    to[p - kv * DIM] = x, to[q - kv * DIM] = y;
    if (key && f.k)
        f.k[p] = turned.x, f.k[q] = turned.y;
}

/* The token's own among the 16 of the warp that has them. */
template <int DIM> __device__ inline void place_own(uint8_t *own, uint8_t *keys, uint32_t row, uint32_t lane)
{
    constexpr uint32_t EIGHTHS = DIM / 8;
    if (lane < 2 * EIGHTHS)
        *(uint4 *)(keys + lane / EIGHTHS * attend_space<DIM>::ROWS + row_at<DIM>(0, row, lane % EIGHTHS)) = *(const uint4 *)(own + attend_space<DIM>::LAST + lane * 16);
    __syncwarp();
}

/* A warp's sums over its positions: out[i] of dimensions 16 i + g and + 8, queries 2 t and 2 t + 1; most and total of
 * query g. */
template <int DIM> struct attend_sums {
    float out[DIM / 16][4], most, total;

    __device__ void add(const qm_attention &a, const attend_range &r, uint32_t group, uint32_t queries, uint32_t keys, uint32_t lane)
    {
        const uint32_t t = lane % 4;
        float c[2][4] = {};
#pragma unroll 2 /* all the registers there are would not do */
        for (int k = 0; k < DIM / 16; k++) {
            uint32_t q[4], b[4];
            load_matrices(q, row_at<DIM>(queries, lane % 16, k * 2 + lane / 16));
            load_matrices(b, row_at<DIM>(keys, lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            mma(c[0], q[0], q[1], q[2], q[3], b[0], b[1]);
            mma(c[1], q[0], q[1], q[2], q[3], b[2], b[3]);
        }
        float s[2][2], now = most;
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int32_t p = (int32_t)(group * WALK_KEYS + n * 8 + 2 * t) + i;
                s[n][i] = c[n][i] + c[n][2 + i];
                if (a.softcap != 0)
                    s[n][i] = a.softcap * tanhf(s[n][i] / a.softcap);
                if (p < r.from || p > r.position)
                    s[n][i] = -INFINITY;
                now = fmaxf(now, s[n][i]);
            }
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2)); /* a group of 16 has a position that counts */
        const float shrink = expf(most - now);
        most = now, total *= shrink;
        uint32_t high[2], low[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            s[n][0] = expf(s[n][0] - now), s[n][1] = expf(s[n][1] - now);
            total += s[n][0] + s[n][1];
            const __half2 h = __floats2half2_rn(s[n][0], s[n][1]);
            const float2 back = __half22float2(h);
            const __half2 l = __floats2half2_rn(s[n][0] - back.x, s[n][1] - back.y);
            high[n] = *(const uint32_t *)&h, low[n] = *(const uint32_t *)&l;
        }
        const float by[2] = {__shfl_sync(~0u, shrink, 8 * t), __shfl_sync(~0u, shrink, 8 * t + 4)};
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            uint32_t v[4];
            out[i][0] *= by[0], out[i][1] *= by[1], out[i][2] *= by[0], out[i][3] *= by[1];
            load_matrices_turned(v, row_at<DIM>(keys + WALK_KEYS * DIM * 2, lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2));
            mma(out[i], v[0], v[1], v[2], v[3], high[0], high[1]);
            mma(out[i], v[0], v[1], v[2], v[3], low[0], low[1]);
        }
    }
};

/* What there is before the queries are known: sines, and the first keys and values.  Only in a captured step, where the
 * cache was written by steps before. */
template <int DIM> __device__ inline void begin_attend(const qm_attend_phase &f, const attend_range &r, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    if (blockIdx.x >= r.units * r.parts)
        return;
    float2 *turns = (float2 *)own;
    if (thread() < DIM / 2) {
        float s = 0, c = 1;
        if (f.inverse) {
            sincosf((float)r.position * f.inverse[thread()], &s, &c);
            s *= f.turn, c *= f.turn;
        }
        turns[thread()] = make_float2(c, s);
    }
    const uint32_t unit = blockIdx.x % r.units, warp = thread() / 32, group = r.first + blockIdx.x / r.units * r.each + warp;
    const uint32_t end = min(r.first + (blockIdx.x / r.units + 1) * r.each, r.end);
    if (group < end)
        load_keys<DIM>(f.a, r, unit / r.rounds, group, (uint32_t)__cvta_generic_to_shared(own) + space::KEYS + warp * 2 * space::ROWS, lane);
}

/* Parts of a unit into its results. */
template <int DIM>
__device__ inline void join_parts(const qm_attend_phase &f, const attend_range &r, uint32_t unit, uint32_t head0, uint32_t here)
{
    const float *parts = f.a.partial + (uint64_t)unit * r.parts * WALK_GROUP * (DIM + 2);
#pragma unroll 1
    for (uint32_t i = thread(); i < WALK_GROUP * DIM; i += WALK_THREADS) {
        const uint32_t q = i / DIM, d = i % DIM;
        const float sink = f.a.sinks && q < here ? f.a.sinks[head0 + q] : -INFINITY;
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
            const float shrink = expf(most - now);
            most = now, total *= shrink, v *= shrink;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                const float by = expf(part[n][0] - now);
                total += by * part[n][1], v += by * part[n][2];
            }
        }
        v /= total + expf(sink - most);
        if (q < here)
            f.a.y[(head0 + q) * DIM + d] = v;
        store_sixteen(f.half, (head0 + q) * DIM + d, v, q < here);
    }
}

/* A block has one part of one unit, or nothing. */
template <int DIM> __device__ inline void walk_attend(const qm_attend_phase &f, const attend_range &r, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    if (blockIdx.x >= r.units * r.parts)
        return;
    const uint32_t warp = thread() / 32, base = (uint32_t)__cvta_generic_to_shared(own), group_heads = f.a.heads / f.a.kv_heads;
    uint8_t *keys = own + space::KEYS + warp * 2 * space::ROWS;
    float *most = (float *)(own + space::STATE), *total = most + WALK_WARPS * WALK_GROUP;
    uint32_t *last = (uint32_t *)(total + WALK_WARPS * WALK_GROUP);
    const uint32_t unit = blockIdx.x % r.units, part = blockIdx.x / r.units, kv = unit / r.rounds, round = unit % r.rounds;
    const uint32_t head0 = kv * group_heads + round * WALK_GROUP, here = min(group_heads - round * WALK_GROUP, (uint32_t)WALK_GROUP);
    const uint32_t begin = r.first + part * r.each, end = min(begin + r.each, r.end);
    take_inputs<DIM>(f, r, kv, head0, here, own, part == 0, end == r.end);
    copies_done<0>();
    __syncthreads();
    attend_sums<DIM> sums = {};
    sums.most = -INFINITY;
    for (uint32_t group = begin + warp; group < end; group += WALK_WARPS) {
        if (group != begin + warp) {
            load_keys<DIM>(f.a, r, kv, group, base + space::KEYS + warp * 2 * space::ROWS, lane);
            copies_done<0>();
            __syncwarp();
        }
        if (group == r.end - 1)
            place_own<DIM>(own, keys, (uint32_t)r.position % WALK_KEYS, lane);
        sums.add(f.a, r, group, base + space::QUERIES, base + space::KEYS + warp * 2 * space::ROWS, lane);
        __syncwarp();
    }
    const uint32_t g = lane / 4, t = lane % 4, warps = min(end - begin, (uint32_t)WALK_WARPS);
    if (warp < warps) {
        float all = sums.total;
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        float *out = (float *)keys; /* [query][dimension]; the warp's keys are done with */
#pragma unroll
        for (int i = 0; i < DIM / 16; i++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                out[(2 * t + k % 2) * DIM + 16 * i + g + k / 2 * 8] = sums.out[i][k];
        if (t == 0)
            most[warp * WALK_GROUP + g] = sums.most, total[warp * WALK_GROUP + g] = all;
    }
    __syncthreads();

    /* A warp has one query; a lane two dimensions, and what warp lane % 16 counts. */
    const bool open = f.open && open_parts(r);
    if (thread() < WALK_GROUP * DIM / 2) {
        const uint32_t q = thread() / (DIM / 2), d = thread() % (DIM / 2) * 2, k = lane % 16, head = head0 + q;
        const bool whole = r.parts == 1 || (open && part == 0);
        const float sink = f.a.sinks && q < here && whole ? f.a.sinks[head] : -INFINITY, own_most = k < warps ? most[k * WALK_GROUP + q] : -INFINITY;
        float m = fmaxf(own_most, sink);
#pragma unroll
        for (int i = 8; i; i /= 2)
            m = fmaxf(m, __shfl_xor_sync(~0u, m, i));
        const float factor = k < warps ? expf(own_most - m) : 0;
        float sum = k < warps ? factor * total[k * WALK_GROUP + q] : 0;
#pragma unroll
        for (int i = 8; i; i /= 2)
            sum += __shfl_xor_sync(~0u, sum, i);
        sum += expf(sink - m);
        float2 v = make_float2(0, 0);
#pragma unroll 4
        for (uint32_t i = 0; i < warps; i++) {
            const float by = __shfl_sync(~0u, factor, i);
            const float2 two = *(const float2 *)(own + space::KEYS + i * 2 * space::ROWS + (q * DIM + d) * 4);
            v.x = __fmaf_rn(by, two.x, v.x), v.y = __fmaf_rn(by, two.y, v.y);
        }
        if (open || r.parts == 1) {
            v.x /= sum, v.y /= sum;
            if (q < here) {
                const uint32_t cols = f.a.heads * DIM;
                store_pairs({(__half *)f.half.half + part * cols, f.half.scale + part * (cols / 16)}, head * DIM + d, v);
                if (d == 0)
                    ((float2 *)f.stats)[part * f.a.heads + head] = make_float2(m, sum);
            }
            if (q < here && !open)
                *(float2 *)(f.a.y + head * DIM + d) = v;
        } else {
            float *p = f.a.partial + ((uint64_t)(unit * r.parts + part) * WALK_GROUP + q) * (DIM + 2);
            p[2 + d] = v.x, p[3 + d] = v.y;
            if (d == 0)
                p[0] = m, p[1] = sum;
        }
    }
    if (!open && r.parts > 1) {
        __syncthreads();
        if (thread() == 0) {
            uint32_t before;
            asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(f.a.counters + unit) : "memory");
            *last = before + 1 == r.parts;
        }
        __syncthreads();
        if (*last) {
            join_parts<DIM>(f, r, unit, head0, here);
            if (thread() == 0)
                f.a.counters[unit] = 0;
        }
    }
    __syncthreads();
}

#endif
