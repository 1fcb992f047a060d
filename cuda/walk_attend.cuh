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
    static constexpr uint32_t ROWS = WALK_KEYS * DIM * 2, QUERIES = DIM / 2 * 8, KEYS = QUERIES + 16 * DIM * 2,
                              STATE = KEYS + WALK_WARPS * 2 * ROWS, END = STATE + 3 * WALK_WARPS * WALK_GROUP * 4 + 16;
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

    __device__ attend_range(const qm_attention &a, int32_t passed)
    {
        position = a.at.first + passed;
        from = a.window && position >= (int32_t)a.window ? position + 1 - (int32_t)a.window : 0;
        rounds = (a.heads / a.kv_heads + WALK_GROUP - 1) / WALK_GROUP, units = a.kv_heads * rounds;
        first = (uint32_t)from / WALK_KEYS, end = (uint32_t)position / WALK_KEYS + 1;
        const uint32_t wanted = (end - first + WALK_WARPS - 1) / WALK_WARPS, most = gridDim.x / units ? gridDim.x / units : 1;
        parts = wanted < most ? wanted : most, each = (end - first + parts - 1) / parts;
    }
};

/* Asks for 16 positions of keys and values that were there before. */
template <int DIM> __device__ inline void load_keys(const qm_attention &a, const attend_range &r, uint32_t kv, uint32_t group, uint32_t to, uint32_t lane)
{
#pragma unroll 2
    for (uint32_t i = 0; i < WALK_KEYS * DIM / 8 / 32; i++) {
        const uint32_t row = (i * 32 + lane) / (DIM / 8), eighth = (i * 32 + lane) % (DIM / 8);
        const int32_t p = (int32_t)(group * WALK_KEYS + row);
        const bool there = p < r.position;
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

/* The token's own key and value: into the cache, and among the 16 in shared memory. */
template <int DIM>
__device__ inline void append_own(const qm_attend_phase &f, const attend_range &r, uint32_t kv, uint8_t *keys, const float2 *turns, bool keep, uint32_t lane)
{
    const qm_attention &a = f.a;
    const uint32_t row = (uint32_t)r.position % WALK_KEYS;
    const uint64_t to = ((uint64_t)kv * a.context + (uint32_t)r.position) * DIM;
    float read[DIM / 64][4];
#pragma unroll
    for (int n = 0; n < DIM / 64; n++) {
        uint32_t p, q;
        const uint32_t i = lane + 32 * n;
        pair_places(f, DIM, i, p, q);
        read[n][0] = a.k[kv * DIM + p], read[n][1] = a.k[kv * DIM + q];
        read[n][2] = a.v[kv * DIM + i], read[n][3] = a.v[kv * DIM + i + DIM / 2];
    }
#pragma unroll
    for (int n = 0; n < DIM / 64; n++) {
        uint32_t p, q;
        const uint32_t i = lane + 32 * n;
        pair_places(f, DIM, i, p, q);
        const float x = read[n][0], y = read[n][1], u = x * turns[i].x - y * turns[i].y, v = x * turns[i].y + y * turns[i].x;
        const __half first = __float2half_rn(u), second = __float2half_rn(v);
        const __half value[2] = {__float2half_rn(read[n][2]), __float2half_rn(read[n][3])};
        *value_at<DIM>(keys, row, p) = first, *value_at<DIM>(keys, row, q) = second;
        *value_at<DIM>(keys + WALK_KEYS * DIM * 2, row, i) = value[0], *value_at<DIM>(keys + WALK_KEYS * DIM * 2, row, i + DIM / 2) = value[1];
        if (!keep)
            continue;
        ((__half *)a.keys)[to + p] = first, ((__half *)a.keys)[to + q] = second;
        ((__half *)a.values)[to + i] = value[0], ((__half *)a.values)[to + i + DIM / 2] = value[1];
        if (f.k)
            f.k[kv * DIM + p] = u, f.k[kv * DIM + q] = v;
    }
    __syncwarp();
}

template <int DIM>
__device__ inline void take_queries(const qm_attend_phase &f, uint32_t head0, uint32_t here, uint8_t *queries, const float2 *turns, bool keep)
{
#pragma unroll 1
    for (uint32_t i = thread(); i < WALK_GROUP * DIM / 2; i += WALK_THREADS) {
        const uint32_t q = i / (DIM / 2), pair = i % (DIM / 2);
        uint32_t at[2];
        pair_places(f, DIM, pair, at[0], at[1]);
        float v[2] = {0, 0};
        if (q < here) {
            const float *from = f.a.q + (head0 + q) * DIM;
            const float x = from[at[0]], y = from[at[1]];
            v[0] = x * turns[pair].x - y * turns[pair].y, v[1] = x * turns[pair].y + y * turns[pair].x;
            if (keep && f.q)
                f.q[(head0 + q) * DIM + at[0]] = v[0], f.q[(head0 + q) * DIM + at[1]] = v[1];
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float s = v[k] * f.a.scale;
            const __half high = __float2half_rn(s);
            *value_at<DIM>(queries, q, at[k]) = high;
            *value_at<DIM>(queries, q + WALK_GROUP, at[k]) = __float2half_rn(s - __half2float(high));
        }
    }
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
template <int DIM> __device__ inline void begin_attend(const qm_attend_phase &f, int32_t passed, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    const attend_range r(f.a, passed);
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

template <int DIM> __device__ inline void walk_attend(const qm_attend_phase &f, int32_t passed, uint8_t *own, uint32_t lane)
{
    using space = attend_space<DIM>;
    const attend_range r(f.a, passed);
    const uint32_t warp = thread() / 32, base = (uint32_t)__cvta_generic_to_shared(own), group_heads = f.a.heads / f.a.kv_heads;
    const float2 *turns = (const float2 *)own;
    uint8_t *keys = own + space::KEYS + warp * 2 * space::ROWS;
    float *most = (float *)(own + space::STATE), *total = most + WALK_WARPS * WALK_GROUP, *factor = total + WALK_WARPS * WALK_GROUP;
    uint32_t *last = (uint32_t *)(factor + WALK_WARPS * WALK_GROUP);
    for (uint32_t work = blockIdx.x; work < r.units * r.parts; work += gridDim.x) {
        const uint32_t unit = work % r.units, part = work / r.units, kv = unit / r.rounds, round = unit % r.rounds;
        const uint32_t head0 = kv * group_heads + round * WALK_GROUP, here = min(group_heads - round * WALK_GROUP, (uint32_t)WALK_GROUP);
        const uint32_t begin = r.first + part * r.each, end = min(begin + r.each, r.end);
        attend_sums<DIM> sums = {};
        sums.most = -INFINITY;
        auto take_keys = [&](uint32_t group, bool begun) {
            if (!begun)
                load_keys<DIM>(f.a, r, kv, group, base + space::KEYS + warp * 2 * space::ROWS, lane);
            copies_done<0>();
            __syncwarp();
            if (group == r.end - 1)
                append_own<DIM>(f, r, kv, keys, turns, round == 0, lane);
        };
        take_queries<DIM>(f, head0, here, own + space::QUERIES, turns, part == 0);
        if (begin + warp < end)
            take_keys(begin + warp, work == blockIdx.x);
        __syncthreads();
        for (uint32_t group = begin + warp; group < end; group += WALK_WARPS) {
            if (group != begin + warp)
                take_keys(group, false);
            sums.add(f.a, r, group, base + space::QUERIES, base + space::KEYS + warp * 2 * space::ROWS, lane);
            __syncwarp();
        }
        const uint32_t g = lane / 4, t = lane % 4;
        if (begin + warp < end) {
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
        const uint32_t warps = min(end - begin, (uint32_t)WALK_WARPS);
        if (thread() < WALK_WARPS * WALK_GROUP) {
            const uint32_t q = thread() % WALK_GROUP;
            float m = -INFINITY;
#pragma unroll
            for (uint32_t k = 0; k < WALK_WARPS; k++)
                m = fmaxf(m, k < warps ? most[k * WALK_GROUP + q] : -INFINITY);
            factor[thread()] = thread() / WALK_GROUP < warps ? expf(most[thread()] - m) : 0;
        }
        __syncthreads();
        const uint32_t slot = unit * r.parts + part;
#pragma unroll 1
        for (uint32_t i = thread(); i < WALK_GROUP * DIM; i += WALK_THREADS) {
            const uint32_t q = i / DIM, d = i % DIM;
            float v = 0, sum = 0, m = -INFINITY;
#pragma unroll 4
            for (uint32_t k = 0; k < warps; k++) {
                const float by = factor[k * WALK_GROUP + q];
                v += by * ((const float *)(own + space::KEYS + k * 2 * space::ROWS))[i];
                sum += by * total[k * WALK_GROUP + q];
                m = fmaxf(m, most[k * WALK_GROUP + q]);
            }
            if (r.parts == 1) {
                if (f.a.sinks && q < here)
                    sum += expf(f.a.sinks[head0 + q] - m);
                v /= sum;
                if (q < here)
                    f.a.y[(head0 + q) * DIM + d] = v;
                store_sixteen(f.half, (head0 + q) * DIM + d, v, q < here);
            } else {
                float *p = f.a.partial + ((uint64_t)slot * WALK_GROUP + q) * (DIM + 2);
                p[2 + d] = v;
                if (d == 0)
                    p[0] = m, p[1] = sum;
            }
        }
        if (r.parts > 1) {
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
}

#endif
