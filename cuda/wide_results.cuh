/* wide_results.cuh: how matrix_wide.cu makes results of sums: scales, bias, what is added.
 *
 * Of the blocks that share a tile, the one that has its beginning comes to it last, when the others are done or nearly.  They leave
 * their sums in memory; it adds them to its own and makes the results. */
#ifndef QM_WIDE_RESULTS_CUH
#define QM_WIDE_RESULTS_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ inline void group_meets() { asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / GROUP_THREADS + 1) : "memory"); }

/* ---- groups that share rows ----------------------------------------------------------------------- */

/* Two groups have sums of the same rows, each of its columns.  Each gives the other what it has of half of the tokens; its first
 * TOKENS / 4 are then the sums of the other half.  out: room of all groups, OUT bytes each. */
template <int TOKENS> __device__ inline void exchange(float *sum, float *out)
{
    enum { HALF = TOKENS / 4, AT_ONCE = HALF < 8 ? HALF : 8, ROOM = wide<TOKENS>::OUT / 4 };
    static_assert(AT_ONCE * GROUP_THREADS <= ROOM, "room");
    const uint32_t group = threadIdx.x / GROUP_THREADS, thread = threadIdx.x % GROUP_THREADS;
    const bool second = group / 2;
    const auto both_meet = [&]() { asm volatile("bar.sync %0, 256;" ::"r"(5 + group % 2) : "memory"); };
    float4 *to = (float4 *)(out + (group ^ 2) * ROOM) + thread;
    const float4 *from = (const float4 *)(out + group * ROOM) + thread;
#pragma unroll
    for (int first = 0; first < HALF; first += AT_ONCE) {
        both_meet();
#pragma unroll
        for (int i = first; i < first + AT_ONCE; i += 4)
            to[(i - first) / 4 * GROUP_THREADS] = second ? make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3])
                                                         : make_float4(sum[HALF + i], sum[HALF + i + 1], sum[HALF + i + 2], sum[HALF + i + 3]);
        both_meet();
#pragma unroll
        for (int i = first; i < first + AT_ONCE; i += 4) {
            const float4 v = from[(i - first) / 4 * GROUP_THREADS];
            const float other[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int k = i; k < i + 4; k++)
                sum[k] = (second ? sum[HALF + k] : sum[k]) + other[k - i];
        }
    }
    group_meets(); /* `out` is free for results */
}

/* ---- tiles that blocks share ---------------------------------------------------------------------- */

/* Where a block leaves sums: its threads' next to each other, four of each at a time. */
template <int TOKENS> __device__ inline float4 *sums_of(const wide_job &j, uint32_t block)
{
    return j.sums + (uint64_t)block * (WIDE_ROWS * TOKENS / 4) + threadIdx.x;
}

template <int TOKENS> __device__ inline void leave_sums(const wide_job &j, uint32_t block, const float *sum)
{
    float4 *to = sums_of<TOKENS>(j, block);
#pragma unroll
    for (int i = 0; i < wide<TOKENS>::OWN / 8; i++)
        __stcg(to + i * wide<TOKENS>::CONSUMERS, make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
    group_meets();
    if (threadIdx.x % GROUP_THREADS == 0)
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(j.left + block * wide<TOKENS>::GROUPS + threadIdx.x / GROUP_THREADS), "r"(1) : "memory");
}

/* Adds to the sums of a tile's beginning, up to pair `to` of all that are dealt out, what the next blocks left, and lets it be left
 * again. */
template <int TOKENS> __device__ inline void add_left(const wide_job &j, uint32_t block, uint32_t to, float *sum)
{
    enum { FOURS = wide<TOKENS>::OWN / 8, AT_ONCE = FOURS < 8 ? FOURS : 8 };
    uint32_t last = block + 1;
    while (last < j.blocks && share(j, last) < to)
        last++;
    for (uint32_t other = block + 1 + threadIdx.x % GROUP_THREADS; other < last; other += GROUP_THREADS) {
        uint32_t *left = j.left + other * wide<TOKENS>::GROUPS + threadIdx.x / GROUP_THREADS, there;
        do
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(left) : "memory");
        while (!there);
        *left = 0;
    }
    group_meets();
#pragma unroll(TOKENS <= 32 ? 4 : 1)
    for (uint32_t other = block + 1; other < last; other++) {
        const float4 *from = sums_of<TOKENS>(j, other);
#pragma unroll
        for (int i = 0; i < FOURS; i += AT_ONCE) {
            float4 v[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                v[k] = __ldcg(from + (i + k) * wide<TOKENS>::CONSUMERS);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                sum[4 * (i + k)] += v[k].x, sum[4 * (i + k) + 1] += v[k].y, sum[4 * (i + k) + 2] += v[k].z, sum[4 * (i + k) + 3] += v[k].w;
        }
    }
}

/* ---- tiles of one block --------------------------------------------------------------------------- */

/* Results of the sums of 64 rows and some tokens, which lie in shared memory: a token every OUT_STRIDE of `from`,
 * whose scale is in token_scale.  n: the first row; token: the first token, of `tokens`. */
template <int OUT_TOKENS>
__device__ inline void store_results(const wide_part &part, uint32_t n, uint32_t token, uint32_t tokens, const float *token_scale, const float *from)
{
    enum { LANES = GROUP_ROWS / 4, STEP = GROUP_THREADS / LANES, AT_ONCE = OUT_TOKENS / STEP < 4 ? OUT_TOKENS / STEP : 4 };
    static_assert(OUT_TOKENS % (AT_ONCE * STEP) == 0, "whole turns");
    const qm_product &p = part.p;
    const uint32_t thread = threadIdx.x % GROUP_THREADS, row = n + thread % LANES * 4;
    if (row >= part.rows)
        return;
    const bool four = part.rows - row >= 4 && p.y_stride % 4 == 0 && ((uintptr_t)p.y | (uintptr_t)p.add | (uintptr_t)p.sum) % 16 == 0;
    if (!four) {
#pragma unroll 1
        for (uint32_t i = thread / LANES; i < OUT_TOKENS && token + i < tokens; i += STEP)
#pragma unroll 1
            for (uint32_t r = 0; r < 4 && row + r < part.rows; r++) {
                const uint64_t at = (uint64_t)(token + i) * p.y_stride + row + r;
                const float v = from[i * OUT_STRIDE + row - n + r] * token_scale[i] + (p.bias ? p.bias[row + r] : 0);
                p.y[at] = v;
                if (p.add)
                    p.sum[at] = v + __ldcg(p.add + at);
            }
        return;
    }
    float bias[4];
#pragma unroll
    for (uint32_t r = 0; r < 4; r++)
        bias[r] = p.bias ? p.bias[row + r] : 0;
    uint64_t at = (uint64_t)(token + thread / LANES) * p.y_stride + row;
#pragma unroll 1
    for (uint32_t i = thread / LANES; i < OUT_TOKENS; i += AT_ONCE * STEP, at += (uint64_t)AT_ONCE * STEP * p.y_stride) {
        float4 add[AT_ONCE];
        if (p.add)
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++)
                add[k] = token + i + k * STEP < tokens ? __ldcg((const float4 *)(p.add + at + (uint64_t)k * STEP * p.y_stride)) : make_float4(0, 0, 0, 0);
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            const float4 s = *(const float4 *)(from + (i + k * STEP) * OUT_STRIDE + row - n);
            const float by = token_scale[i + k * STEP];
            const float4 v = {s.x * by + bias[0], s.y * by + bias[1], s.z * by + bias[2], s.w * by + bias[3]};
            const uint64_t to = at + (uint64_t)k * STEP * p.y_stride;
            if (token + i + k * STEP >= tokens)
                break;
            *(float4 *)(p.y + to) = v;
            if (p.add)
                *(float4 *)(p.sum + to) = make_float4(v.x + add[k].x, v.y + add[k].y, v.z + add[k].z, v.w + add[k].w);
        }
    }
}

/* A thread's sums of OUT_TOKENS tokens from the tile's `first` on, into its group's room in shared memory. */
template <int TOKENS> __device__ inline void put_sums(const float *sum, int first, float *out)
{
    constexpr int OUT_TOKENS = wide<TOKENS>::OUT_TOKENS;
    const uint32_t lane = threadIdx.x % 32;
    float *to = out + lane % 4 * 2 * OUT_STRIDE + threadIdx.x % GROUP_THREADS / 32 * QM_TILE_ROWS + lane / 4;
#pragma unroll
    for (int i = 0; i < wide<TOKENS>::OWN / 2; i++)
        if (i / (OUT_TOKENS / 2) == first / OUT_TOKENS)
            to[(i / 4 * 8 % OUT_TOKENS + i % 2) * OUT_STRIDE + i / 2 % 2 * 8] = sum[i];
}

/* Results of a group's sums, by way of shared memory, so that 16 threads store what is next to each other: 64 rows of a token.
 * n: the group's first row; token_scale: of the tile's tokens; out: room for OUT_TOKENS. */
template <int TOKENS>
__device__ inline void store_sums(const wide_part &part, uint32_t tokens, const float *sum, uint32_t n, uint32_t token, const float *token_scale,
                                  float *out)
{
    constexpr int OUT_TOKENS = wide<TOKENS>::OUT_TOKENS;
#pragma unroll 1 /* for code that is run once comes as slowly as data */
    for (int first = 0; first < wide<TOKENS>::OWN && token + first < tokens; first += OUT_TOKENS) {
        put_sums<TOKENS>(sum, first, out);
        group_meets();
        store_results<OUT_TOKENS>(part, n, token + first, tokens, token_scale + first, out);
        group_meets();
    }
}

/* ---- a gate and what it is for ---------------------------------------------------------------------- */

__device__ inline void groups_meet() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

/* f(x) * up for eight at a time, without branches, since a thread has little else to do while it waits.  gelu by tanh is x times a
 * sigmoid, too. */
__device__ inline void gated(qm_gate f, float x[8], const float up[8])
{
    float z[8];
    if (f == QM_GATE_SILU)
#pragma unroll
        for (int i = 0; i < 8; i++)
            z[i] = -1.4426950408889634f * x[i];
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            z[i] = -2.302208198144325f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
#pragma unroll
    for (int i = 0; i < 8; i++)
        z[i] = power_of_two(z[i]);
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] = __fdividef(x[i], 1 + z[i]) * up[i];
}

__device__ inline int exponent(float v) { return (int)(__float_as_uint(v) >> 23 & 255) - 127; }

/* What a token's values are multiplied by so that f16 holds them.  Its largest is known when all tiles are done, and all
 * of a token shall have one power of two; so each tile takes a guess, which brings the squared product of the largest x and the
 * largest weight to 1/2 (results are 2^-5 to 2^15 times as large), if with it the tile's own largest is between 2^-8, of which f16's
 * smallest step is a 2^16th, and 2^16.  If not, it takes a power of its own, and settle_panel (panel.cuh) makes all alike.
 * scale, up_scale: of sums; see scales_by and to_half_range for how large weights and x are in those. */
__device__ inline float likely_by(float scale, float up_scale)
{
    enum { MOST = 13 + 15, TO = -1 };
    const int e = TO - exponent(scale) - exponent(up_scale) - 2 * MOST;
    return __uint_as_float((uint32_t)((e < -100 ? -100 : e > 100 ? 100 : e) + 127) << 23);
}
__device__ inline float by_for(float most, float likely)
{
    const float v = most * likely;
    return most == 0 || (v >= 0.00390625f && v <= 60000.0f) ? likely : to_half_range(most);
}

/* A chunk of the panel out of both groups' sums, of which the first has a gate's rows and the second the same of what it is
 * for; a thread makes a piece of a token's eight.  token_scale: of the tile's tokens, first those of the gate, `apart` after
 * them the others'; bias: room for those of both.  Tokens four apart are read at a time: those are in different banks. */
template <int TOKENS>
__device__ inline void store_gated(const wide_job &j, const float *sum, uint32_t n, uint32_t token, const float *token_scale, uint32_t apart, float *bias,
                                   float *out)
{
    constexpr int OUT_TOKENS = wide<TOKENS>::OUT_TOKENS, STEP = wide<TOKENS>::CONSUMERS / 8;
    const uint32_t tokens = j.x.tokens, padded = qm_panel_tokens(tokens), chunk = n / QM_UNIT_COLS, piece = threadIdx.x % 8;
    const uint32_t slot = threadIdx.x / 8, own = (slot & ~7u) | (slot & 1) << 2 | (slot >> 1 & 3);
    const bool biased = j.part[0].p.bias || j.part[1].p.bias;
    const uint32_t rows = j.part[0].rows, col = qm_panel_column(8 * piece, j.to.group), next = j.to.group / 4; /* to the next two of a piece */
    if (biased && threadIdx.x % GROUP_THREADS < GROUP_ROWS) {
        const uint32_t group = threadIdx.x / GROUP_THREADS, row = n + threadIdx.x % GROUP_THREADS;
        const float *from = j.part[group].p.bias;
        bias[group * GROUP_ROWS + row - n] = from && row < rows ? from[row] : 0;
    }
    bool there[4];
#pragma unroll
    for (uint32_t t = 0; t < 4; t++)
        there[t] = n + col + t * next < rows;
#pragma unroll 1
    for (int first = 0; first < TOKENS && token + first < padded; first += OUT_TOKENS) {
        put_sums<TOKENS>(sum, first, out + threadIdx.x / GROUP_THREADS * OUT_TOKENS * OUT_STRIDE);
        groups_meet();
#pragma unroll
        for (uint32_t k = 0; k < OUT_TOKENS / STEP; k++) {
            const uint32_t i = own + k * STEP, at = token + first + i;
            const float scale = token_scale[first + i], up_scale = token_scale[apart + first + i];
            const float *gate = out + i * OUT_STRIDE + col, *up = gate + OUT_TOKENS * OUT_STRIDE;
            float v[8], u[8], most = 0;
#pragma unroll
            for (uint32_t t = 0; t < 4; t++) {
                const float2 a = *(const float2 *)(gate + t * next), b = *(const float2 *)(up + t * next);
                v[2 * t] = a.x * scale, v[2 * t + 1] = a.y * scale, u[2 * t] = b.x * up_scale, u[2 * t + 1] = b.y * up_scale;
            }
            if (biased)
#pragma unroll
                for (uint32_t t = 0; t < 4; t++) {
                    const float2 a = *(const float2 *)(bias + col + t * next), b = *(const float2 *)(bias + GROUP_ROWS + col + t * next);
                    v[2 * t] += a.x, v[2 * t + 1] += a.y, u[2 * t] += b.x, u[2 * t + 1] += b.y;
                }
            gated(j.gate, v, u);
#pragma unroll
            for (uint32_t t = 0; t < 8; t++) {
                v[t] = there[t / 2] && at < tokens ? v[t] : 0;
                most = fmaxf(most, fabsf(v[t]));
            }
#pragma unroll
            for (int lanes = 1; lanes < 8; lanes *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
            const float by = by_for(most, likely_by(scale, up_scale));
            uint32_t word[4];
#pragma unroll
            for (uint32_t t = 0; t < 4; t++) {
                const __half2 h = __floats2half2_rn(v[2 * t] * by, v[2 * t + 1] * by);
                word[t] = *(const uint32_t *)&h;
            }
            if (at < padded) {
                ((uint4 *)j.to.half)[((uint64_t)chunk * padded + at) * 8 + (piece ^ at % 8)] = make_uint4(word[0], word[1], word[2], word[3]);
                if (piece == 0)
                    j.by[(uint64_t)chunk * padded + at] = by;
            }
        }
        groups_meet();
    }
}

#endif
#endif
