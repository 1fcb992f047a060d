/* wide_results.cuh: how matrix_wide.cu makes results of sums: scales, bias, what is added.
 *
 * Of the blocks that share a tile, the one that has its beginning comes to it last, when the others are done or nearly.  They leave
 * their sums in memory; it adds them to its own and makes the results. */
#ifndef QM_WIDE_RESULTS_CUH
#define QM_WIDE_RESULTS_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ inline void group_meets() { asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / GROUP_THREADS + 1) : "memory"); }

/* ---- tiles that blocks share ---------------------------------------------------------------------- */

/* Where a block leaves sums: its threads' next to each other, four of each at a time. */
template <int TOKENS> __device__ inline float4 *sums_of(const wide_job &j, uint32_t block)
{
    return j.sums + (uint64_t)block * (TOKENS / 8 * WIDE_CONSUMERS) + threadIdx.x;
}

template <int TOKENS> __device__ inline void leave_sums(const wide_job &j, uint32_t block, const float *sum)
{
    float4 *to = sums_of<TOKENS>(j, block);
#pragma unroll
    for (int i = 0; i < TOKENS / 8; i++)
        __stcg(to + i * WIDE_CONSUMERS, make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
    group_meets();
    if (threadIdx.x % GROUP_THREADS == 0)
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(j.left + block * 2 + threadIdx.x / GROUP_THREADS), "r"(1) : "memory");
}

/* Adds to the sums of a tile's beginning, up to pair `to` of all that are dealt out, what the next blocks left, and lets it be left
 * again. */
template <int TOKENS> __device__ inline void add_left(const wide_job &j, uint32_t block, uint32_t to, float *sum)
{
    enum { FOURS = TOKENS / 8, AT_ONCE = FOURS < 8 ? FOURS : 8 };
    uint32_t last = block + 1;
    while (last < j.blocks && share(j, last) < to)
        last++;
    for (uint32_t other = block + 1 + threadIdx.x % GROUP_THREADS; other < last; other += GROUP_THREADS) {
        uint32_t *left = j.left + other * 2 + threadIdx.x / GROUP_THREADS, there;
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
                v[k] = __ldcg(from + (i + k) * WIDE_CONSUMERS);
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
    for (int i = 0; i < TOKENS / 2; i++)
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
    for (int first = 0; first < TOKENS && token + first < tokens; first += OUT_TOKENS) {
        put_sums<TOKENS>(sum, first, out);
        group_meets();
        store_results<OUT_TOKENS>(part, n, token + first, tokens, token_scale + first, out);
        group_meets();
    }
}

/* ---- a gate and what it is for ---------------------------------------------------------------------- */

__device__ inline void groups_meet() { asm volatile("bar.sync 3, %0;" ::"n"((int)WIDE_CONSUMERS) : "memory"); }

/* gelu by tanh is x times a sigmoid, too. */
__device__ inline float gated(qm_gate f, float x, float up)
{
    const float z = f == QM_GATE_SILU ? x : 1.5957691216057308f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1 + __expf(-z)) * up;
}

/* Results of both groups' sums, of which the first has a gate's rows and the second the same of what it is for; together.
 * token_scale: of the tile's tokens, first those of the gate, `apart` after them the others'. */
template <int TOKENS>
__device__ inline void store_gated(const wide_job &j, const float *sum, uint32_t n, uint32_t token, const float *token_scale, uint32_t apart, float *out)
{
    constexpr int OUT_TOKENS = wide<TOKENS>::OUT_TOKENS, LANES = GROUP_ROWS / 4, STEP = WIDE_CONSUMERS / LANES;
    const qm_product &p = j.part[0].p;
    const float *gate_bias = p.bias, *up_bias = j.part[1].p.bias;
    const uint32_t in = threadIdx.x % LANES * 4, row = n + in, tokens = j.x.tokens;
    const bool there = row < j.part[0].rows;
    float g[4], u[4];
#pragma unroll
    for (uint32_t r = 0; r < 4; r++) {
        g[r] = there && gate_bias ? gate_bias[row + r] : 0;
        u[r] = there && up_bias ? up_bias[row + r] : 0;
    }
#pragma unroll 1
    for (int first = 0; first < TOKENS && token + first < tokens; first += OUT_TOKENS) {
        put_sums<TOKENS>(sum, first, out + threadIdx.x / GROUP_THREADS * OUT_TOKENS * OUT_STRIDE);
        groups_meet();
#pragma unroll 2
        for (uint32_t i = threadIdx.x / LANES; i < OUT_TOKENS; i += STEP) {
            const float4 a = *(const float4 *)(out + i * OUT_STRIDE + in), b = *(const float4 *)(out + (OUT_TOKENS + i) * OUT_STRIDE + in);
            const float by = token_scale[first + i], up_by = token_scale[apart + first + i];
            const float4 v = {gated(j.gate, a.x * by + g[0], b.x * up_by + u[0]), gated(j.gate, a.y * by + g[1], b.y * up_by + u[1]),
                              gated(j.gate, a.z * by + g[2], b.z * up_by + u[2]), gated(j.gate, a.w * by + g[3], b.w * up_by + u[3])};
            if (there && token + first + i < tokens)
                *(float4 *)(p.y + (uint64_t)(token + first + i) * p.y_stride + row) = v;
        }
        groups_meet();
    }
}

#endif
#endif
