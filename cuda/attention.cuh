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

/* A thread turns pairs, of one head after the other; the grid's y is the token, its z the tensor. */
__global__ void rope(const __grid_constant__ rope_job j)
{
    let_next_begin();
    wait_for_previous();
    const qm_rotation r = j.r[blockIdx.z];
    const uint32_t half = j.rotary_dim / 2, pairs = j.head_dim / 2, position = (uint32_t)place_of(j.at) + blockIdx.y;
    uint32_t known = UINT32_MAX; /* the pair that s and c are for */
    float s = 0, c = 0;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < r.cols / 2; i += gridDim.x * blockDim.x) {
        const uint32_t pair = i % pairs;
        const uint64_t head = (uint64_t)blockIdx.y * r.cols + i / pairs * j.head_dim;
        uint64_t a = head + 2 * pair, b = a + 1;
        if (pair >= half) { /* beyond what turns */
            r.y[a] = r.x[a], r.y[b] = r.x[b];
            continue;
        }
        if (j.neox)
            a = head + pair, b = a + half;
        const float x = r.x[a], y = r.x[b];
        if (pair != known) {
            sincosf((float)(int32_t)position * j.inverse[pair], &s, &c);
            s *= j.scale, c *= j.scale;
            known = pair;
        }
        r.y[a] = x * c - y * s;
        r.y[b] = x * s + y * c;
    }
}

cudaError_t qm_rope(const qm_rotation *r, int n, uint32_t tokens, uint32_t head_dim, uint32_t rotary_dim, bool neox,
                    const float *inverse, float scale, qm_position at, cudaStream_t s)
{
    rope_job j = {{r[0], r[n - 1]}, tokens, head_dim, rotary_dim, neox, inverse, scale, at};
    uint32_t most = r[0].cols > r[n - 1].cols ? r[0].cols : r[n - 1].cols, blocks = (most / 2 + 127) / 128;
    if (tokens > QM_HALF_TOKENS) /* enough of them: few blocks that do more */
        blocks = (blocks + 7) / 8;
    return launch(rope, dim3(blocks, tokens, n), 128, 0, s, j);
}

/* ---- attention to few tokens -----------------------------------------------------------------------
 *
 * A block of threads has one key head, the queries that share it, one token, and a part of the positions; how many parts
 * there are follows from the number of positions, up to SPLITS, for which there are blocks.  It finds scores (8 lanes to
 * a position), the largest, and the sum of values weighed by e^(score - largest), every warp its own.  The last of a
 * token's blocks to finish puts the parts together, in their order. */

enum { ATTEND_THREADS = 256, ATTEND_WARPS = ATTEND_THREADS / 32, ATTEND_GROUP = 8, ATTEND_CHUNK = 64, MOST_SPLITS = 32, LEAST_PART = 64 };

struct attend_job {
    qm_attention a;
    qm_half h;
    uint32_t splits, group; /* queries to a key head, */
    uint32_t rounds;        /* taken ATTEND_GROUP at a time */
};

/* A layer's keys or values; D as in core/kv.h, so that i8 are codes with a scale for every 32. */
template <qm_dtype D> struct kv_part {
    char *data;
    __half *scale;

    __device__ kv_part(const qm_attention &a, void *p) : data((char *)p), scale((__half *)((char *)p + a.scales_at)) {}
    __device__ float scale_at(uint64_t i) const { return __half2float(__ldcg(scale + i / QM_KV_RUN)); }

    /* Four values in a row, i a multiple of 4. */
    __device__ float4 four(uint64_t i) const
    {
        if constexpr (D == QM_F32) {
            return __ldcg((const float4 *)((const float *)data + i));
        } else if constexpr (D == QM_I8) {
            uint32_t w = __ldcg((const uint32_t *)(data + i));
            float by = scale_at(i);
            return make_float4(by * (float)(int8_t)w, by * (float)(int8_t)(w >> 8), by * (float)(int8_t)(w >> 16), by * (float)(int8_t)(w >> 24));
        } else {
            uint2 w = __ldcg((const uint2 *)((const __half *)data + i));
            if constexpr (D == QM_BF16)
                return make_float4(__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u), __uint_as_float(w.y << 16),
                                   __uint_as_float(w.y & 0xffff0000u));
            float2 a = __half22float2(*(__half2 *)&w.x), b = __half22float2(*(__half2 *)&w.y);
            return make_float4(a.x, a.y, b.x, b.y);
        }
    }

    /* Whole warps together: lane l has value i, which is l more than a multiple of 32. */
    __device__ void store(uint64_t i, float v) const
    {
        if constexpr (D == QM_F32) {
            ((float *)data)[i] = v;
        } else if constexpr (D == QM_F16) {
            ((__half *)data)[i] = __float2half_rn(v);
        } else if constexpr (D == QM_BF16) {
            ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn(v);
        } else { /* as core/formats/q8_0.c */
            const bool finite = !__any_sync(~0u, !(fabsf(v) < INFINITY));
            float d = __fdiv_rn(most_in_warp(fabsf(v)), 127), inverse = d != 0 ? __frcp_rn(d) : 0;
            ((int8_t *)data)[i] = finite ? (int8_t)roundf(__fmul_rn(v, inverse)) : 0;
            if (i % QM_KV_RUN == 0)
                scale[i / QM_KV_RUN] = finite ? __float2half_rn(d) : __ushort_as_half(0x7e00);
        }
    }

    /* i a multiple of 8; no codes. */
    __device__ void store_eight(uint64_t i, const float4 *v) const
    {
        const float4 a = v[0], b = v[1];
        if constexpr (D == QM_F32)
            ((float4 *)data)[i / 4] = a, ((float4 *)data)[i / 4 + 1] = b;
        else
            ((uint4 *)data)[i / 8] = make_uint4(pair(a.x, a.y), pair(a.z, a.w), pair(b.x, b.y), pair(b.z, b.w));
    }
    __device__ static uint32_t pair(float low, float high)
    {
        if constexpr (D == QM_BF16) {
            const __nv_bfloat162 p = __floats2bfloat162_rn(low, high);
            return *(const uint32_t *)&p;
        } else {
            const __half2 p = __floats2half2_rn(low, high);
            return *(const uint32_t *)&p;
        }
    }
};

/* Of codes a thread has one value, so that a warp has a run; of others eight. */
template <qm_dtype D> static constexpr uint32_t append_each = D == QM_I8 ? 1 : 8;

template <qm_dtype D> __global__ void append_kv(const __grid_constant__ qm_attention a)
{
    let_next_begin();
    wait_for_previous();
    const uint32_t width = a.kv_heads * a.head_dim, i = (blockIdx.x * blockDim.x + threadIdx.x) * append_each<D>, token = i / width, col = i % width;
    if (token >= a.tokens)
        return;
    const uint64_t to = ((uint64_t)(col / a.head_dim) * a.context + (uint32_t)place_of(a.at) + token) * a.head_dim + col % a.head_dim;
    const kv_part<D> keys(a, a.keys), values(a, a.values);
    if constexpr (D == QM_I8)
        keys.store(to, a.k[i]), values.store(to, a.v[i]);
    else
        keys.store_eight(to, (const float4 *)(a.k + i)), values.store_eight(to, (const float4 *)(a.v + i));
}

/* What one block leaves of one query: its largest score, the sum of weights, and head_dim weighed values. */
__device__ inline float *part_at(const attend_job &j, uint32_t token, uint32_t head, uint32_t split)
{
    return j.a.partial + (((uint64_t)token * j.a.heads + head) * j.splits + split) * (j.a.head_dim + 2);
}

/* Of one query: `parts` parts into the result.  A lane knows the weight of one of them. */
__device__ inline void join_parts(const attend_job &j, uint32_t token, uint32_t head, uint32_t parts)
{
    const uint32_t d = j.a.head_dim, lane = threadIdx.x % 32;
    const float sink = j.a.sinks ? j.a.sinks[head] : -INFINITY;
    const float *first = part_at(j, token, head, 0);
    float mine = lane < parts ? __ldcg(first + (uint64_t)lane * (d + 2)) : -INFINITY;
    float most = fmaxf(most_in_warp(mine), sink), weight = lane < parts ? expf(mine - most) : 0;
    float sum = sum_in_warp(lane < parts ? __ldcg(first + (uint64_t)lane * (d + 2) + 1) * weight : 0) + (j.a.sinks ? expf(sink - most) : 0);
    for (uint32_t at = 0; at < d; at += 64) {
        float v[2] = {0, 0};
#pragma unroll 8
        for (uint32_t i = 0; i < parts; i++) {
            const float *p = first + (uint64_t)i * (d + 2) + 2 + at + lane;
            float by = __shfl_sync(~0u, weight, i);
            v[0] += at + lane < d ? __ldcg(p) * by : 0;
            v[1] += at + lane + 32 < d ? __ldcg(p + 32) * by : 0;
        }
        for (int k = 0; k < 2; k++) {
            v[k] /= sum;
            if (at + lane + 32 * k < d)
                j.a.y[((uint64_t)token * j.a.heads + head) * d + at + lane + 32 * k] = v[k];
        }
        if (j.h.half)
            store_half(j.h, token, (head * d + at) / 64, v[0], v[1]);
    }
}

/* Numbers of a key that a lane reads at once: 16 bytes of f32, f16 or bf16, 8 of codes. */
template <qm_dtype D> struct kv_bytes {
    static constexpr int N = D == QM_F32 ? 4 : 8;
    uint4 v;

    __device__ void load(const kv_part<D> &p, uint64_t i)
    {
        if constexpr (D == QM_I8) {
            uint2 w = __ldcg((const uint2 *)(p.data + i));
            v = make_uint4(w.x, w.y, __float_as_uint(p.scale_at(i)), 0);
        } else {
            v = __ldcg((const uint4 *)(p.data + i * (16 / N)));
        }
    }
    __device__ float dot(const float *q, float sum) const /* q on 16 bytes */
    {
        if constexpr (D == QM_I8) {
            float part = 0;
#pragma unroll
            for (int k = 0; k < N / 4; k++) {
                float4 x = *(const float4 *)(q + 4 * k);
                uint32_t w = k ? v.y : v.x;
                part = __fmaf_rn(x.x, (float)(int8_t)w, __fmaf_rn(x.y, (float)(int8_t)(w >> 8), part));
                part = __fmaf_rn(x.z, (float)(int8_t)(w >> 16), __fmaf_rn(x.w, (float)(int8_t)(w >> 24), part));
            }
            return __fmaf_rn(part, __uint_as_float(v.z), sum);
        } else {
#pragma unroll
            for (int k = 0; k < N / 4; k++) {
                float4 x = *(const float4 *)(q + 4 * k);
                if constexpr (D == QM_F32) {
                    sum = __fmaf_rn(x.x, __uint_as_float(v.x), __fmaf_rn(x.y, __uint_as_float(v.y), sum));
                    sum = __fmaf_rn(x.z, __uint_as_float(v.z), __fmaf_rn(x.w, __uint_as_float(v.w), sum));
                } else if constexpr (D == QM_BF16) {
                    uint32_t a = k ? v.z : v.x, b = k ? v.w : v.y;
                    sum = __fmaf_rn(x.x, __uint_as_float(a << 16), __fmaf_rn(x.y, __uint_as_float(a & 0xffff0000u), sum));
                    sum = __fmaf_rn(x.z, __uint_as_float(b << 16), __fmaf_rn(x.w, __uint_as_float(b & 0xffff0000u), sum));
                } else {
                    float2 a = __half22float2(((const __half2 *)&v)[2 * k]), b = __half22float2(((const __half2 *)&v)[2 * k + 1]);
                    sum = __fmaf_rn(x.x, a.x, __fmaf_rn(x.y, a.y, sum));
                    sum = __fmaf_rn(x.z, b.x, __fmaf_rn(x.w, b.y, sum));
                }
            }
            return sum;
        }
    }
};

/* The one token of a call goes into the cache: by the block whose part it is in, which alone reads it. */
template <qm_dtype D>
__device__ inline void append_own(const qm_attention &a, uint32_t kv, int32_t position, int32_t begin, int32_t end)
{
    if (position < begin || position >= end)
        return;
    const uint64_t to = ((uint64_t)kv * a.context + position) * a.head_dim;
    for (uint32_t i = threadIdx.x; i < a.head_dim; i += ATTEND_THREADS) {
        kv_part<D>(a, a.keys).store(to + i, a.k[kv * a.head_dim + i]);
        kv_part<D>(a, a.values).store(to + i, a.v[kv * a.head_dim + i]);
    }
    __syncthreads();
}

/* DIMS: how many times 128 values a head has, at most.  All that a chunk of positions needs is under way before any of it
 * is used: what decoding waits for is memory. */
template <qm_dtype D, int DIMS> __global__ void __launch_bounds__(ATTEND_THREADS) attend(const __grid_constant__ attend_job j)
{
    constexpr int N = kv_bytes<D>::N, PIECES = DIMS * 128 / (8 * N); /* of a position's keys that a lane reads */
    constexpr int TURNS = ATTEND_CHUNK / (4 * ATTEND_WARPS), MINE = ATTEND_CHUNK / ATTEND_WARPS;
    extern __shared__ float4 shared4[];
    const qm_attention &a = j.a;
    const uint32_t d = a.head_dim, kv = blockIdx.x, split = blockIdx.y, token = blockIdx.z;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *queries = (float *)shared4;                    /* [GROUP][d] */
    float *scores = queries + ATTEND_GROUP * d;           /* [GROUP][CHUNK] */
    float *sums = scores + ATTEND_GROUP * ATTEND_CHUNK;   /* [WARPS][GROUP][d] */
    float *most = sums + ATTEND_WARPS * ATTEND_GROUP * d; /* [GROUP]; then the sums of weights; then what sums shrink by */
    __shared__ bool last;
    let_next_begin();
    /* In a captured step, the cache was written by steps before, and is not waited for: only the token itself is new. */
    const bool early = a.at.passed && a.tokens == 1;
    if (!early)
        wait_for_previous();

    const int32_t position = place_of(a.at) + (int32_t)token, seen = position + 1;
    const int32_t from = a.window && seen > (int32_t)a.window ? seen - (int32_t)a.window : 0, count = seen - from;
    const uint32_t wanted = (uint32_t)(count + LEAST_PART - 1) / LEAST_PART, parts = wanted < j.splits ? wanted : j.splits;
    if (split >= parts)
        return;
    const int32_t each = (count + (int32_t)parts - 1) / (int32_t)parts;
    const int32_t begin = from + (int32_t)split * each, end = begin + each < seen ? begin + each : seen;
    const uint64_t base = (uint64_t)kv * a.context * d;
    const kv_part<D> cached_keys(a, a.keys), cached_values(a, a.values);
    if (a.tokens == 1 && !early)
        append_own<D>(a, kv, position, begin, end);
    for (uint32_t round = 0; round < j.rounds; round++) {
        const uint32_t q0 = round * ATTEND_GROUP, here = j.group - q0 < ATTEND_GROUP ? j.group - q0 : ATTEND_GROUP;
        float4 sum[DIMS][ATTEND_GROUP] = {};
        for (int32_t first = begin; first < end; first += ATTEND_CHUNK) {
            const int32_t n = end - first < ATTEND_CHUNK ? end - first : ATTEND_CHUNK;
            kv_bytes<D> keys[TURNS][PIECES];
            float4 values[MINE][DIMS];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++) {
                    int32_t p = (int32_t)(turn * ATTEND_WARPS + warp) * 4 + (int32_t)lane / 8;
                    uint32_t c = (piece * 8 + lane % 8) * N;
                    if (p < n && c < d)
                        keys[turn][piece].load(cached_keys, base + (uint64_t)(first + p) * d + c);
                }
            if (DIMS == 1)
#pragma unroll
                for (int i = 0; i < MINE; i++)
                    if ((int32_t)(i * ATTEND_WARPS + warp) < n && lane * 4 < d)
                        values[i][0] = cached_values.four(base + (uint64_t)(first + i * ATTEND_WARPS + warp) * d + lane * 4);
            if (early && first == begin && round == 0) {
                wait_for_previous();
                append_own<D>(a, kv, position, begin, end);
            }
            if (early && first <= position && position < first + n) { /* what was read of the token itself was too early */
#pragma unroll
                for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
                    for (int piece = 0; piece < PIECES; piece++) {
                        int32_t p = (int32_t)(turn * ATTEND_WARPS + warp) * 4 + (int32_t)lane / 8;
                        uint32_t c = (piece * 8 + lane % 8) * N;
                        if (first + p == position && c < d)
                            keys[turn][piece].load(cached_keys, base + (uint64_t)position * d + c);
                    }
                if (DIMS == 1)
#pragma unroll
                    for (int i = 0; i < MINE; i++)
                        if (first + (int32_t)(i * ATTEND_WARPS + warp) == position && lane * 4 < d)
                            values[i][0] = cached_values.four(base + (uint64_t)position * d + lane * 4);
            }
            if (first == begin) {
                for (uint32_t i = threadIdx.x; i < ATTEND_GROUP * d; i += ATTEND_THREADS) {
                    uint32_t q = i / d;
                    queries[i] = q < here ? a.q[((uint64_t)token * a.heads + kv * j.group + q0 + q) * d + i % d] * a.scale : 0;
                }
                if (threadIdx.x < ATTEND_GROUP)
                    most[threadIdx.x] = -INFINITY, most[ATTEND_GROUP + threadIdx.x] = 0, most[2 * ATTEND_GROUP + threadIdx.x] = 0;
                __syncthreads();
            }
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                int32_t p = (int32_t)(turn * ATTEND_WARPS + warp) * 4 + (int32_t)lane / 8;
                float dot[ATTEND_GROUP] = {};
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++) {
                    uint32_t c = (piece * 8 + lane % 8) * N;
                    if (p < n && c < d)
#pragma unroll
                        for (int q = 0; q < ATTEND_GROUP; q++)
                            dot[q] = keys[turn][piece].dot(queries + q * d + c, dot[q]);
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
            if (warp < here) { /* a warp to a query: weights, and their sum */
                float *mine = scores + warp * ATTEND_CHUNK, old = most[warp], now = old, total = 0;
                for (int32_t p = (int32_t)lane; p < n; p += 32)
                    now = fmaxf(now, mine[p]);
                now = most_in_warp(now);
                for (int32_t p = (int32_t)lane; p < n; p += 32) {
                    mine[p] = expf(mine[p] - now);
                    total += mine[p];
                }
                total = sum_in_warp(total);
                __syncwarp(); /* every lane has read what lane 0 writes now */
                if (lane == 0) {
                    float shrink = old == -INFINITY ? 0 : expf(old - now);
                    most[warp] = now;
                    most[ATTEND_GROUP + warp] = most[ATTEND_GROUP + warp] * shrink + total;
                    most[2 * ATTEND_GROUP + warp] = shrink;
                }
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < DIMS; i++) { /* a warp to every eighth position */
                const uint32_t c = lane * 4 + 128 * i;
                if (c >= d)
                    break;
                for (int q = 0; first > begin && q < ATTEND_GROUP; q++) {
                    float by = most[2 * ATTEND_GROUP + q];
                    sum[i][q] = make_float4(sum[i][q].x * by, sum[i][q].y * by, sum[i][q].z * by, sum[i][q].w * by);
                }
#pragma unroll
                for (int k = 0; k < MINE; k++) {
                    int32_t p = k * ATTEND_WARPS + (int32_t)warp;
                    if (p >= n)
                        break;
                    float4 v = DIMS == 1 ? values[k][0] : cached_values.four(base + (uint64_t)(first + p) * d + c);
#pragma unroll
                    for (int q = 0; q < ATTEND_GROUP; q++) {
                        float by = scores[q * ATTEND_CHUNK + p];
                        sum[i][q].x = __fmaf_rn(by, v.x, sum[i][q].x), sum[i][q].y = __fmaf_rn(by, v.y, sum[i][q].y);
                        sum[i][q].z = __fmaf_rn(by, v.z, sum[i][q].z), sum[i][q].w = __fmaf_rn(by, v.w, sum[i][q].w);
                    }
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < DIMS; i++)
#pragma unroll
            for (int q = 0; q < ATTEND_GROUP; q++)
                if (lane * 4 + 128 * i < d)
                    *(float4 *)(sums + (warp * ATTEND_GROUP + q) * d + lane * 4 + 128 * i) = sum[i][q];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < here * d; i += ATTEND_THREADS) {
            float total = 0;
#pragma unroll
            for (uint32_t w = 0; w < ATTEND_WARPS; w++)
                total += sums[w * ATTEND_GROUP * d + i];
            float *part = part_at(j, token, kv * j.group + q0 + i / d, split);
            part[2 + i % d] = total;
            if (i % d == 0)
                part[0] = most[i / d], part[1] = most[ATTEND_GROUP + i / d];
        }
        __syncthreads();
    }

    __threadfence();
    __syncthreads();
    uint32_t *counter = a.counters + token * a.kv_heads + kv;
    if (threadIdx.x == 0)
        last = atomicAdd(counter, 1) + 1 == parts;
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    for (uint32_t q = warp; q < j.group; q += ATTEND_WARPS)
        join_parts(j, token, kv * j.group + q, parts);
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

template <qm_dtype D> static cudaError_t append(const qm_attention *a, cudaStream_t s)
{
    const uint32_t threads = a->tokens * a->kv_heads * a->head_dim / append_each<D>;
    return launch(append_kv<D>, dim3((threads + 255) / 256), 256, 0, s, *a);
}

template <qm_dtype D> static cudaError_t launch_attend(const qm_attention *a, cudaStream_t s)
{
    attend_job j = {};
    j.a = *a;
    j.h = a->h ? *a->h : qm_half{};
    j.splits = splits_for(a->tokens, a->kv_heads);
    j.group = a->heads / a->kv_heads;
    j.rounds = (j.group + ATTEND_GROUP - 1) / ATTEND_GROUP;
    auto kernel = a->head_dim <= 128 ? attend<D, 1> : a->head_dim <= 256 ? attend<D, 2> : attend<D, 4>;
    size_t shared = (ATTEND_GROUP * a->head_dim + ATTEND_GROUP * ATTEND_CHUNK + ATTEND_WARPS * ATTEND_GROUP * a->head_dim + 3 * ATTEND_GROUP) * 4;
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (!r && a->tokens > 1)
        r = append<D>(a, s);
    return r ? r : launch(kernel, dim3(a->kv_heads, j.splits, a->tokens), ATTEND_THREADS, shared, s, j);
}

#endif
