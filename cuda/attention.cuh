/* attention.cuh: turning queries and keys by their position, and attention over a cache of keys and values. */
#ifndef QM_ATTENTION_CUH
#define QM_ATTENTION_CUH

__device__ inline int32_t place_of(const qm_position &p) { return p.first + (p.passed ? __ldcg(p.passed) : 0); }

/* ---- rope ---------------------------------------------------------------------------------------- */

struct rope_job {
    qm_rotation r[2];
    uint32_t tokens, head_dim, rotary_dim;
    bool neox;
    const float *inverse;
    float scale;
    qm_position at;
};

/* A thread turns a pair; the grid's y is the token, its z the tensor. */
__global__ void rope(const __grid_constant__ rope_job j)
{
    let_next_begin();
    wait_for_previous();
    const qm_rotation r = j.r[blockIdx.z];
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, half = j.rotary_dim / 2, pairs = j.head_dim / 2;
    if (i >= r.cols / 2)
        return;
    uint32_t pair = i % pairs;
    uint64_t head = (uint64_t)blockIdx.y * r.cols + i / pairs * j.head_dim;
    uint64_t a = head + 2 * pair, b = a + 1;
    if (pair >= half) { /* beyond what turns */
        r.y[a] = r.x[a], r.y[b] = r.x[b];
        return;
    }
    if (j.neox)
        a = head + pair, b = a + half;
    float angle = (float)(place_of(j.at) + (int32_t)blockIdx.y) * j.inverse[pair], s, c;
    sincosf(angle, &s, &c);
    s *= j.scale, c *= j.scale;
    float x = r.x[a], y = r.x[b];
    r.y[a] = x * c - y * s;
    r.y[b] = x * s + y * c;
}

cudaError_t qm_rope(const qm_rotation *r, int n, uint32_t tokens, uint32_t head_dim, uint32_t rotary_dim, bool neox,
                    const float *inverse, float scale, qm_position at, cudaStream_t s)
{
    rope_job j = {{r[0], r[n - 1]}, tokens, head_dim, rotary_dim, neox, inverse, scale, at};
    uint32_t most = r[0].cols > r[n - 1].cols ? r[0].cols : r[n - 1].cols;
    return launch(rope, dim3((most / 2 + 127) / 128, tokens, n), 128, 0, s, j);
}

/* ---- attention ------------------------------------------------------------------------------------
 *
 * A block of threads has one key head, all queries that share it, one token, and a part of the positions: SPLITS parts
 * for the few tokens of decoding, one for the many of a prompt.  It finds scores (8 lanes to a position), the largest,
 * and the sum of values weighed by e^(score - largest).  The last of a token's blocks to finish puts the parts together,
 * in their order. */

enum { ATTEND_THREADS = 256, ATTEND_WARPS = ATTEND_THREADS / 32, ATTEND_GROUP = 8, ATTEND_CHUNK = 256, MOST_SPLITS = 32 };

struct attend_job {
    qm_attention a;
    qm_half h;
    uint32_t splits, group; /* queries to a key head, */
    uint32_t rounds;        /* taken ATTEND_GROUP at a time */
};

template <qm_dtype D> __device__ inline float kv_value(const void *p, uint64_t i) { return plain_value(p, D, i); }

/* Four values in a row. */
template <qm_dtype D> __device__ inline float4 kv_four(const void *p, uint64_t i)
{
    if constexpr (D == QM_F32)
        return __ldcg((const float4 *)((const float *)p + i));
    uint2 w = __ldcg((const uint2 *)((const __half *)p + i));
    float2 a = __half22float2(*(__half2 *)&w.x), b = __half22float2(*(__half2 *)&w.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

template <qm_dtype D> __device__ inline void kv_store(void *p, uint64_t i, float v)
{
    if constexpr (D == QM_F32)
        ((float *)p)[i] = v;
    else
        ((__half *)p)[i] = __float2half_rn(v);
}

template <qm_dtype D> __global__ void append_kv(const __grid_constant__ qm_attention a)
{
    let_next_begin();
    wait_for_previous();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y, width = a.kv_heads * a.head_dim;
    if (i >= width)
        return;
    uint32_t at = (uint32_t)place_of(a.at) + token, head = i / a.head_dim;
    uint64_t to = ((uint64_t)head * a.context + at) * a.head_dim + i % a.head_dim;
    kv_store<D>(a.keys, to, a.k[(uint64_t)token * width + i]);
    kv_store<D>(a.values, to, a.v[(uint64_t)token * width + i]);
}

/* What one block leaves of one query: its largest score, the sum of weights, and head_dim weighed values. */
__device__ inline float *part_at(const attend_job &j, uint32_t token, uint32_t head, uint32_t split)
{
    return j.a.partial + (((uint64_t)token * j.a.heads + head) * j.splits + split) * (j.a.head_dim + 2);
}

/* Of one query: parts into the result. */
__device__ inline void join_parts(const attend_job &j, uint32_t token, uint32_t head, uint32_t lane)
{
    const uint32_t d = j.a.head_dim;
    float most = j.a.sinks ? j.a.sinks[head] : -INFINITY, sum = 0;
    for (uint32_t i = 0; i < j.splits; i++)
        most = fmaxf(most, __ldcg(part_at(j, token, head, i)));
    if (j.a.sinks)
        sum = expf(j.a.sinks[head] - most);
    for (uint32_t i = 0; i < j.splits; i++) {
        const float *p = part_at(j, token, head, i);
        sum += __ldcg(p + 1) * expf(__ldcg(p) - most);
    }
    for (uint32_t at = 0; at < d; at += 64) {
        float v[2];
        for (int k = 0; k < 2; k++) {
            uint32_t c = at + lane + 32 * k;
            v[k] = 0;
            for (uint32_t i = 0; c < d && i < j.splits; i++) {
                const float *p = part_at(j, token, head, i);
                v[k] += __ldcg(p + 2 + c) * expf(__ldcg(p) - most);
            }
            v[k] /= sum;
            if (c < d)
                j.a.y[((uint64_t)token * j.a.heads + head) * d + c] = v[k];
        }
        if (j.h.half)
            store_half(j.h, token, (head * d + at) / 64, v[0], v[1]);
    }
}

template <qm_dtype D> __global__ void __launch_bounds__(ATTEND_THREADS) attend(const __grid_constant__ attend_job j)
{
    extern __shared__ float4 shared4[];
    const qm_attention &a = j.a;
    const uint32_t d = a.head_dim, kv = blockIdx.x, split = blockIdx.y, token = blockIdx.z;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *queries = (float *)shared4;                        /* [GROUP][d] */
    float *scores = queries + ATTEND_GROUP * d;               /* [GROUP][CHUNK] */
    float *sums = scores + ATTEND_GROUP * ATTEND_CHUNK;       /* [WARPS][GROUP][d] */
    float *most = sums + ATTEND_WARPS * ATTEND_GROUP * d;     /* [GROUP], then the sums of weights [GROUP] */
    __shared__ bool last;
    let_next_begin();
    wait_for_previous();

    const int32_t position = place_of(a.at) + (int32_t)token;
    const int32_t seen = position + 1, from = a.window && seen > (int32_t)a.window ? seen - (int32_t)a.window : 0;
    const int32_t each = (seen - from + (int32_t)j.splits - 1) / (int32_t)j.splits;
    const int32_t begin = from + (int32_t)split * each, end = begin + each < seen ? begin + each : seen;
    if (a.tokens == 1 && begin <= position && position < end) { /* nobody else reads it */
        uint64_t to = ((uint64_t)kv * a.context + position) * d;
        for (uint32_t i = threadIdx.x; i < d; i += ATTEND_THREADS) {
            kv_store<D>(a.keys, to + i, a.k[kv * d + i]);
            kv_store<D>(a.values, to + i, a.v[kv * d + i]);
        }
    }
    const uint64_t base = (uint64_t)kv * a.context * d;
    for (uint32_t round = 0; round < j.rounds; round++) {
        const uint32_t q0 = round * ATTEND_GROUP, here = j.group - q0 < ATTEND_GROUP ? j.group - q0 : ATTEND_GROUP;
        for (uint32_t i = threadIdx.x; i < ATTEND_GROUP * d; i += ATTEND_THREADS) {
            uint32_t q = i / d;
            queries[i] = q < here ? a.q[((uint64_t)token * a.heads + kv * j.group + q0 + q) * d + i % d] * a.scale : 0;
        }
        if (threadIdx.x < ATTEND_GROUP)
            most[threadIdx.x] = -INFINITY, most[ATTEND_GROUP + threadIdx.x] = 0;
        for (uint32_t i = threadIdx.x; i < ATTEND_WARPS * ATTEND_GROUP * d; i += ATTEND_THREADS)
            sums[i] = 0;
        __syncthreads();
        for (int32_t first = begin; first < end; first += ATTEND_CHUNK) {
            const int32_t n = end - first < ATTEND_CHUNK ? end - first : ATTEND_CHUNK;
            for (int32_t p = (int32_t)(warp * 4 + lane / 8); p < (n + 3) / 4 * 4; p += ATTEND_WARPS * 4) {
                float dot[ATTEND_GROUP] = {};
                for (uint32_t c = lane % 8 * 4; p < n && c < d; c += 32) {
                    float4 k = kv_four<D>(a.keys, base + (uint64_t)(first + p) * d + c);
#pragma unroll
                    for (int q = 0; q < ATTEND_GROUP; q++) {
                        float4 x = *(const float4 *)(queries + q * d + c);
                        dot[q] = __fmaf_rn(x.x, k.x, __fmaf_rn(x.y, k.y, __fmaf_rn(x.z, k.z, __fmaf_rn(x.w, k.w, dot[q]))));
                    }
                }
#pragma unroll
                for (int q = 0; q < ATTEND_GROUP; q++) {
                    dot[q] += __shfl_xor_sync(~0u, dot[q], 1);
                    dot[q] += __shfl_xor_sync(~0u, dot[q], 2);
                    dot[q] += __shfl_xor_sync(~0u, dot[q], 4);
                    if (a.softcap != 0)
                        dot[q] = a.softcap * tanhf(dot[q] / a.softcap);
                    if (lane % 8 == q && p < n)
                        scores[q * ATTEND_CHUNK + p] = dot[q];
                }
            }
            __syncthreads();
            float shrink = 1;
            if (warp < here) { /* a warp to a query: weights, and their sum */
                float *mine = scores + warp * ATTEND_CHUNK, old = most[warp], now = old, sum = 0;
                for (int32_t p = (int32_t)lane; p < n; p += 32)
                    now = fmaxf(now, mine[p]);
                now = most_in_warp(now);
                for (int32_t p = (int32_t)lane; p < n; p += 32) {
                    mine[p] = expf(mine[p] - now);
                    sum += mine[p];
                }
                sum = sum_in_warp(sum);
                shrink = old == -INFINITY ? 0 : expf(old - now);
                if (lane == 0) {
                    most[warp] = now;
                    most[ATTEND_GROUP + warp] = most[ATTEND_GROUP + warp] * shrink + sum;
                    most[2 * ATTEND_GROUP + warp] = shrink;
                }
            }
            __syncthreads();
            for (uint32_t c = lane * 4; c < d; c += 128) { /* a warp to every eighth position */
                float4 sum[ATTEND_GROUP];
                float *mine = sums + warp * ATTEND_GROUP * d + c;
#pragma unroll
                for (int q = 0; q < ATTEND_GROUP; q++) {
                    float by = q < (int)here ? most[2 * ATTEND_GROUP + q] : 0;
                    float4 old = *(const float4 *)(mine + q * d);
                    sum[q] = make_float4(old.x * by, old.y * by, old.z * by, old.w * by);
                }
#pragma unroll 4
                for (int32_t p = (int32_t)warp; p < n; p += ATTEND_WARPS) {
                    float4 v = kv_four<D>(a.values, base + (uint64_t)(first + p) * d + c);
#pragma unroll
                    for (int q = 0; q < ATTEND_GROUP; q++) {
                        float by = q < (int)here ? scores[q * ATTEND_CHUNK + p] : 0;
                        sum[q].x = __fmaf_rn(by, v.x, sum[q].x), sum[q].y = __fmaf_rn(by, v.y, sum[q].y);
                        sum[q].z = __fmaf_rn(by, v.z, sum[q].z), sum[q].w = __fmaf_rn(by, v.w, sum[q].w);
                    }
                }
#pragma unroll
                for (int q = 0; q < ATTEND_GROUP; q++)
                    *(float4 *)(mine + q * d) = sum[q];
            }
            __syncthreads();
        }
        for (uint32_t i = threadIdx.x; i < here * d; i += ATTEND_THREADS) {
            float sum = 0;
            for (uint32_t w = 0; w < ATTEND_WARPS; w++)
                sum += sums[w * ATTEND_GROUP * d + i];
            float *part = part_at(j, token, kv * j.group + q0 + i / d, split);
            part[2 + i % d] = sum;
            if (i % d == 0)
                part[0] = most[i / d], part[1] = most[ATTEND_GROUP + i / d];
        }
        __syncthreads();
    }

    __threadfence();
    __syncthreads();
    uint32_t *counter = a.counters + token * a.kv_heads + kv;
    if (threadIdx.x == 0)
        last = atomicAdd(counter, 1) + 1 == j.splits;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    for (uint32_t q = warp; q < j.group; q += ATTEND_WARPS)
        join_parts(j, token, kv * j.group + q, lane);
    if (threadIdx.x == 0)
        *counter = 0;
}

/* ---- launching ----------------------------------------------------------------------------------- */

static uint32_t splits_for(uint32_t tokens, uint32_t kv_heads)
{
    uint32_t n = 128 / (tokens * kv_heads);
    return n < 1 ? 1 : n > MOST_SPLITS ? MOST_SPLITS : n;
}

uint64_t qm_attention_scratch(uint32_t tokens, uint32_t heads, uint32_t kv_heads, uint32_t head_dim)
{
    return (uint64_t)tokens * heads * splits_for(tokens, kv_heads) * (head_dim + 2) * 4;
}

template <qm_dtype D> static cudaError_t launch_attend(const qm_attention *a, cudaStream_t s)
{
    attend_job j = {};
    j.a = *a;
    j.h = a->h ? *a->h : qm_half{};
    j.splits = splits_for(a->tokens, a->kv_heads);
    j.group = a->heads / a->kv_heads;
    j.rounds = (j.group + ATTEND_GROUP - 1) / ATTEND_GROUP;
    size_t shared = (ATTEND_GROUP * a->head_dim + ATTEND_GROUP * ATTEND_CHUNK + ATTEND_WARPS * ATTEND_GROUP * a->head_dim + 3 * ATTEND_GROUP) * 4;
    cudaError_t r = cudaFuncSetAttribute(attend<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (!r && a->tokens > 1)
        r = launch(append_kv<D>, dim3((a->kv_heads * a->head_dim + 255) / 256, a->tokens), 256, 0, s, *a);
    return r ? r : launch(attend<D>, dim3(a->kv_heads, j.splits, a->tokens), ATTEND_THREADS, shared, s, j);
}

cudaError_t qm_attend(const qm_attention *a, cudaStream_t s)
{
    return a->dtype == QM_F32 ? launch_attend<QM_F32>(a, s) : launch_attend<QM_F16>(a, s);
}

#endif
