/* experts.cuh: a mixture of experts: which ones a token takes, and everything around the products with them.
 *
 * The tokens of an expert are cut into slots (qm_slots).  Slots are in the order of experts and, within one, of tokens, whoever
 * finds them, so sums have one order; slot s has rows s * each ... of everything that is computed between choosing and adding
 * up, and the last slot of an expert may have rows that are nobody's. */
#ifndef QM_EXPERTS_CUH
#define QM_EXPERTS_CUH

enum { ROUTE_THREADS = 256, ROUTE_WARPS = ROUTE_THREADS / 32, ARRANGE_THREADS = 1024 };

/* ---- choosing ----------------------------------------------------------------------------------------- */

/* The most of a warp, and of equals the lowest index; v >= 0. */
__device__ inline uint32_t first_of_most(uint32_t order, uint32_t index)
{
#if __CUDA_ARCH__ >= 800
    const uint32_t most = __reduce_max_sync(~0u, order);
    return __reduce_min_sync(~0u, order == most ? index : ~0u);
#else
    return ~(uint32_t)most_in_warp((unsigned long long)order << 32 | (uint32_t)~index);
#endif
}

/* Of a lone token: a slot for each of its experts. */
__device__ inline void place_one(const qm_routing &j, uint32_t slot, uint32_t expert)
{
    j.slots.expert[slot] = (int32_t)expert;
    j.row[slot] = (int32_t)(slot * j.slots.each);
    for (uint32_t c = 0; c < j.slots.each; c++)
        j.slots.token[slot * j.slots.each + c] = c ? -1 : 0;
}

/* One token's experts, as core/ops/moe.c chooses them; a warp, lane l having experts l, l + 32 ... of up to 32 EACH. */
template <int EACH> __device__ inline void choose_experts(const qm_routing &j, uint32_t token)
{
    const uint32_t lane = threadIdx.x % 32;
    const float *logits = j.logits + (uint64_t)token * j.experts;
    float p[EACH], part[EACH], top = -INFINITY;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        p[i] = lane + 32 * i < j.experts ? logits[lane + 32 * i] : -INFINITY;
        top = fmaxf(top, p[i]);
    }
    top = most_in_warp(top);
    double all = 0, chosen = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const bool there = lane + 32 * i < j.experts;
        p[i] = there ? expf(p[i] - top) : -1; /* -1: not to be chosen, or chosen already */
        part[i] = -1;
        all += there ? p[i] : 0;
    }
    all = sum_in_warp(all);
    for (uint32_t k = 0; k < j.k; k++) { /* the largest of what is left; of equal ones the first; a NaN before all */
        uint32_t order = 0, index = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (in_order(p[i]) > order)
                order = in_order(p[i]), index = lane + 32 * i;
        const uint32_t e = first_of_most(order, index);
        float share = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (e == lane + 32 * i)
                share = part[i] = p[i], p[i] = -1;
        chosen += __shfl_sync(~0u, share, e % 32);
    }
    const double whole = j.normalise ? chosen : all;
    uint32_t found = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const float share = (float)((double)part[i] / whole);
        const bool takes = part[i] != -1 && share != 0; /* nothing times an expert is not computed */
        const uint32_t those = __ballot_sync(~0u, takes), at = found + __popc(those & ((1u << lane) - 1));
        if (takes) {
            j.choice[(uint64_t)token * j.k + at] = (int32_t)(lane + 32 * i);
            j.part[(uint64_t)token * j.k + at] = share;
            if (j.tokens == 1)
                place_one(j, at, lane + 32 * i);
        }
        found += __popc(those);
    }
    for (uint32_t i = found + lane; i < j.k; i += 32) {
        j.choice[(uint64_t)token * j.k + i] = -1;
        if (j.tokens == 1)
            j.row[i] = -1;
    }
    if (j.tokens == 1 && lane == 0)
        *j.slots.count = (int32_t)found;
}

/* ---- slots -------------------------------------------------------------------------------------------- */

/* Choices are sorted by expert, those of one staying in order: every warp counts its share of them, learns how many others have
 * before it, and places its own.  counts: [warps][experts]; first: [experts]. */
__device__ inline void arrange_many(const qm_routing &j, uint16_t *counts, uint32_t *first)
{
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, each = j.slots.each;
    const uint32_t pairs = j.tokens * j.k, share = (pairs + 32 * warps - 1) / (32 * warps) * 32, from = warp * share;
    uint16_t *own = counts + warp * j.experts;
    for (uint32_t i = threadIdx.x; i < warps * j.experts; i += blockDim.x)
        counts[i] = 0;
    __syncthreads();
    for (uint32_t i = from + lane; i < from + share; i += 32) {
        const int32_t e = i < pairs ? j.choice[i] : -1;
        const uint32_t same = __match_any_sync(~0u, e);
        if (e >= 0 && (same & ((1u << lane) - 1)) == 0)
            own[e] = (uint16_t)(own[e] + __popc(same));
        __syncwarp();
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < j.experts; e += blockDim.x) {
        uint32_t sum = 0;
        for (uint32_t w = 0; w < warps; w++) {
            const uint32_t n = counts[w * j.experts + e];
            counts[w * j.experts + e] = (uint16_t)sum;
            sum += n;
        }
        first[e] = sum;
    }
    __syncthreads();
    if (warp == 0) { /* numbers of tokens become the first of their slots */
        uint32_t before = 0;
        for (uint32_t some = 0; some < j.experts; some += 32) {
            const uint32_t e = some + lane, n = e < j.experts ? first[e] : 0, slots = (n + each - 1) / each;
            uint32_t to = slots;
#pragma unroll
            for (int i = 1; i < 32; i *= 2) {
                uint32_t more = __shfl_up_sync(~0u, to, i);
                to += lane >= (uint32_t)i ? more : 0;
            }
            const uint32_t slot = before + to - slots;
            if (e < j.experts)
                first[e] = slot;
            for (uint32_t i = 0; i < slots; i++)
                j.slots.expert[slot + i] = (int32_t)e;
            for (uint32_t i = n; i < slots * each; i++)
                j.slots.token[slot * each + i] = -1;
            before += __shfl_sync(~0u, to, 31);
        }
        if (lane == 0)
            *j.slots.count = (int32_t)before;
    }
    __syncthreads();
    for (uint32_t i = from + lane; i < from + share; i += 32) {
        const int32_t e = i < pairs ? j.choice[i] : -1;
        const uint32_t same = __match_any_sync(~0u, e), before = __popc(same & ((1u << lane) - 1));
        const uint32_t row = e >= 0 ? first[e] * each + own[e] + before : 0;
        __syncwarp();
        if (e >= 0) {
            j.row[i] = (int32_t)row;
            j.slots.token[row] = (int32_t)(i / j.k);
            if (before == 0)
                own[e] = (uint16_t)(own[e] + __popc(same));
        } else if (i < pairs) {
            j.row[i] = -1;
        }
        __syncwarp();
    }
}

/* A warp to a token.  One block, of up to 8 tokens, arranges them as well; and of one token it makes x as f16 meanwhile. */
template <int EACH> __global__ void __launch_bounds__(ROUTE_THREADS) route(const __grid_constant__ qm_routing j)
{
    extern __shared__ uint32_t shared_slots[];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, token = blockIdx.x * ROUTE_WARPS + warp;
    let_next_begin();
    wait_for_previous();
    if (token < j.tokens)
        choose_experts<EACH>(j, token);
    else if (j.tokens == 1 && j.half.half)
        for (uint32_t unit = warp - 1; unit < j.half.stride / QM_HALF_RUN; unit += ROUTE_WARPS - 1) {
            const uint32_t i = unit * QM_HALF_RUN + lane;
            store_half(j.half, 0, unit, i < j.cols ? j.x[i] : 0, i + 32 < j.cols ? j.x[i + 32] : 0);
        }
    if (gridDim.x > 1 || j.tokens == 1)
        return;
    __syncthreads();
    arrange_many(j, (uint16_t *)(shared_slots + j.experts), shared_slots);
}

__global__ void __launch_bounds__(ARRANGE_THREADS) arrange(const __grid_constant__ qm_routing j)
{
    extern __shared__ uint32_t shared_slots[];
    let_next_begin();
    wait_for_previous();
    arrange_many(j, (uint16_t *)(shared_slots + j.experts), shared_slots);
}

/* ---- rows of slots ------------------------------------------------------------------------------------ */

/* The token whose row it is, or -1. */
__device__ inline int32_t owner_of(const qm_slots &s, uint32_t row)
{
    return row < (uint32_t)*s.count * s.each ? s.token[row] : -1;
}

/* x as f16 for every row; a warp to 64 values. */
__global__ void gather_half(const __grid_constant__ qm_slots s, const float *x, uint32_t cols, const __grid_constant__ qm_half h)
{
    let_next_begin();
    wait_for_previous();
    const uint32_t units = h.stride / QM_HALF_RUN, lane = threadIdx.x % 32;
    const uint64_t i = (uint64_t)blockIdx.x * EACH_WARPS + threadIdx.x / 32;
    const uint32_t row = (uint32_t)(i / units), unit = (uint32_t)(i % units), col = unit * QM_HALF_RUN + lane;
    const int32_t token = owner_of(s, row);
    if (token < 0)
        return;
    const float *from = x + (uint64_t)token * cols;
    store_half(h, row, unit, col < cols ? from[col] : 0, col + 32 < cols ? from[col + 32] : 0);
}

/* y = silu(gate) * up, and as f16 where h is given. */
__global__ void gate_rows(const __grid_constant__ qm_slots s, const float *gate, const float *up, uint32_t cols, float *y,
                          const __grid_constant__ qm_half h)
{
    let_next_begin();
    wait_for_previous();
    const uint32_t units = (cols + 63) / 64, lane = threadIdx.x % 32;
    const uint64_t i = (uint64_t)blockIdx.x * EACH_WARPS + threadIdx.x / 32;
    const uint32_t row = (uint32_t)(i / units), unit = (uint32_t)(i % units);
    if (owner_of(s, row) < 0)
        return;
    float v[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const uint32_t col = unit * 64 + lane + 32 * k;
        const uint64_t at = (uint64_t)row * cols + col;
        v[k] = col < cols ? each<QM_EACH_SWIGLU>(gate[at], up[at], 0) : 0;
        if (col < cols)
            y[at] = v[k];
    }
    if (h.half)
        store_half(h, row, unit, v[0], v[1]);
}

/* y[token] = sum over its experts, in their order, of their share times what they gave. */
__global__ void add_experts(const __grid_constant__ qm_routing j, const float *from, uint32_t cols, float *y)
{
    let_next_begin();
    wait_for_previous();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    if (i >= cols)
        return;
    float sum = 0;
    for (uint32_t k = 0; k < j.k; k++) {
        const int32_t row = j.row[(uint64_t)token * j.k + k];
        if (row >= 0)
            sum = __fmaf_rn(j.part[(uint64_t)token * j.k + k], from[(uint64_t)row * cols + i], sum);
    }
    y[(uint64_t)token * cols + i] = sum;
}

/* ---- plain matrices ----------------------------------------------------------------------------------- */

struct plain_job {
    qm_slots slots;
    const qm_expert *experts;
    const float *x; /* a row for each token, or, when of_slots, for each row of the slots */
    bool of_slots;
    uint32_t rows, cols;
    float *y;
};

/* A warp to R rows of a slot's matrix and its up to M tokens; WIDE: 8 columns at a time, from 16 bytes on. */
template <qm_dtype D, int M, bool WIDE> __global__ void __launch_bounds__(PLAIN_THREADS) plain_experts(const __grid_constant__ plain_job j)
{
    constexpr int R = 2;
    const uint32_t lane = threadIdx.x % 32, n0 = (blockIdx.x * PLAIN_WARPS + threadIdx.x / 32) * R, slot = blockIdx.y;
    let_next_begin();
    wait_for_previous();
    if (slot >= (uint32_t)*j.slots.count || n0 >= j.rows)
        return;
    const void *w = j.experts[j.slots.expert[slot]].values;
    const float *x[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
        const uint32_t row = slot * M + m;
        const int32_t token = j.slots.token[row];
        x[m] = token < 0 ? NULL : j.x + (uint64_t)(j.of_slots ? row : (uint32_t)token) * j.cols;
    }
    float sum[R][M] = {};
    for (uint32_t k = lane * (WIDE ? 8 : 1); k < j.cols; k += WIDE ? 256 : 32) {
        float v[R][WIDE ? 8 : 1];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const uint64_t at = (uint64_t)(n0 + r < j.rows ? n0 + r : n0) * j.cols + k;
            if constexpr (WIDE) {
                eight_weights<D> eight;
                eight.load(w, at);
                eight.unpack(v[r]);
            } else {
                v[r][0] = plain_value(w, D, at);
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (!x[m])
                continue;
            alignas(16) float y[WIDE ? 8 : 1];
            if constexpr (WIDE) {
                *(float4 *)y = *(const float4 *)(x[m] + k), *(float4 *)(y + 4) = *(const float4 *)(x[m] + k + 4);
            } else {
                y[0] = x[m][k];
            }
#pragma unroll
            for (int i = 0; i < (WIDE ? 8 : 1); i++)
#pragma unroll
                for (int r = 0; r < R; r++)
                    sum[r][m] = __fmaf_rn(v[r][i], y[i], sum[r][m]);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float v = sum_in_warp(sum[r][m]);
            if (lane == 0 && x[m] && n0 + r < j.rows)
                j.y[((uint64_t)slot * M + m) * j.rows + n0 + r] = v;
        }
}

template <qm_dtype D, int M> static cudaError_t launch_plain(const plain_job &j, bool wide, cudaStream_t s)
{
    const dim3 grid((j.rows + 2 * PLAIN_WARPS - 1) / (2 * PLAIN_WARPS), j.slots.most);
    return launch(wide ? plain_experts<D, M, true> : plain_experts<D, M, false>, grid, PLAIN_THREADS, 0, s, j);
}

template <qm_dtype D> static cudaError_t plain_of_type(const plain_job &j, bool wide, cudaStream_t s)
{
    return j.slots.each == 2 ? launch_plain<D, 2>(j, wide, s) : j.slots.each == 4 ? launch_plain<D, 4>(j, wide, s) : launch_plain<D, 8>(j, wide, s);
}

/* ---- launching ---------------------------------------------------------------------------------------- */

cudaError_t qm_plain_experts(const qm_expert *experts, qm_dtype dtype, bool wide, const float *x, bool of_slots, uint32_t rows, uint32_t cols,
                             const qm_slots *slots, float *y, cudaStream_t s)
{
    const plain_job j = {*slots, experts, x, of_slots, rows, cols, y};
    wide = wide && cols % 8 == 0;
    switch (dtype) {
    case QM_F32: return plain_of_type<QM_F32>(j, wide, s);
    case QM_F16: return plain_of_type<QM_F16>(j, wide, s);
    default: return plain_of_type<QM_BF16>(j, wide, s);
    }
}

/* What arrange_many needs of shared memory. */
static size_t slots_memory(const qm_routing *j, uint32_t threads) { return j->experts * (sizeof(uint32_t) + threads / 32 * sizeof(uint16_t)); }

cudaError_t qm_route(const qm_routing *j, cudaStream_t s)
{
    const uint32_t blocks = (j->tokens + ROUTE_WARPS - 1) / ROUTE_WARPS;
    auto kernel = j->experts <= 64 ? route<2> : j->experts <= 128 ? route<4> : route<QM_MOST_EXPERTS / 32>;
    cudaError_t r = launch(kernel, dim3(blocks), ROUTE_THREADS, slots_memory(j, ROUTE_THREADS), s, *j);
    return r || blocks == 1 ? r : launch(arrange, dim3(1), ARRANGE_THREADS, slots_memory(j, ARRANGE_THREADS), s, *j);
}

static unsigned blocks_of_rows(const qm_slots *slots, uint32_t units)
{
    return (unsigned)(((uint64_t)slots->most * slots->each * units + EACH_WARPS - 1) / EACH_WARPS);
}

cudaError_t qm_gather_half(const qm_slots *slots, const float *x, uint32_t cols, const qm_half *h, cudaStream_t s)
{
    return launch(gather_half, dim3(blocks_of_rows(slots, h->stride / QM_HALF_RUN)), EACH_WARPS * 32, 0, s, *slots, x, cols, *h);
}

cudaError_t qm_gate_rows(const qm_slots *slots, const float *gate, const float *up, uint32_t cols, float *y, const qm_half *h, cudaStream_t s)
{
    return launch(gate_rows, dim3(blocks_of_rows(slots, (cols + 63) / 64)), EACH_WARPS * 32, 0, s, *slots, gate, up, cols, y, h ? *h : qm_half{});
}

cudaError_t qm_add_experts(const qm_routing *j, const float *from, uint32_t cols, float *y, cudaStream_t s)
{
    return launch(add_experts, dim3((cols + 255) / 256, j->tokens), 256, 0, s, *j, from, cols, y);
}

#endif
