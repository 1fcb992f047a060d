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
};

template <qm_dtype D> __global__ void append_kv(const __grid_constant__ qm_attention a)
{
    let_next_begin();
    wait_for_previous();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y, width = a.kv_heads * a.head_dim;
    if (i >= width)
        return;
    uint32_t at = (uint32_t)place_of(a.at) + token, head = i / a.head_dim;
    uint64_t to = ((uint64_t)head * a.context + at) * a.head_dim + i % a.head_dim;
    kv_part<D>(a, a.keys).store(to, a.k[(uint64_t)token * width + i]);
    kv_part<D>(a, a.values).store(to, a.v[(uint64_t)token * width + i]);
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

/* ---- attention of a prompt --------------------------------------------------------------------------
 *
 * On the tensor cores, with scores that are never stored (FlashAttention-2, arXiv 2307.08691): a block of threads has 64
 * tokens of one head, a warp 16 of them; keys and values come by 64 positions into shared memory, the next while these are
 * used.  Weights and values are f16 there, sums f32. */

enum { FLASH_THREADS = 128, FLASH_ROWS = 64, FLASH_KEYS = 64 };

/* Address of 16 bytes: rows of DIM f16, whose eighths are exchanged so that eight rows lie in different banks. */
template <int DIM> __device__ inline uint32_t flash_at(uint32_t base, uint32_t row, uint32_t eighth)
{
    return base + row * DIM * 2 + (eighth ^ (row & 7)) * 16;
}

template <int DIM> __device__ inline void flash_load(uint32_t to, const __half *from, int32_t first, int32_t end)
{
    for (uint32_t i = threadIdx.x; i < FLASH_KEYS * DIM / 8; i += FLASH_THREADS) {
        uint32_t row = i / (DIM / 8), eighth = i % (DIM / 8);
        int32_t at = first + (int32_t)row;
        copy_async(flash_at<DIM>(to, row, eighth), from + (int64_t)(at < end ? at : 0) * DIM + eighth * 8, at < end);
    }
}

/* The first `each` codes of every head as f16, keys and then values; the grid's y is the head, its z which of the two. */
__global__ void unpack_kv(const __grid_constant__ qm_attention a, __half *to, uint32_t each)
{
    let_next_begin();
    wait_for_previous();
    const kv_part<QM_I8> part(a, blockIdx.z ? a.values : a.keys);
    uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= each)
        return;
    float4 v = part.four((uint64_t)blockIdx.y * a.context * a.head_dim + i);
    __half2 two[2] = {__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w)};
    *(uint2 *)(to + ((uint64_t)blockIdx.z * a.kv_heads + blockIdx.y) * each + i) = *(uint2 *)two;
}

template <int DIM> __global__ void __launch_bounds__(FLASH_THREADS) flash(const __grid_constant__ qm_attention a)
{
    extern __shared__ uint4 shared16[];
    constexpr uint32_t TILE = FLASH_KEYS * DIM * 2;
    const uint32_t memory = (uint32_t)__cvta_generic_to_shared(shared16);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t block = gridDim.x - 1 - blockIdx.x; /* those that see most begin first */
    const uint32_t head = blockIdx.y, kv = head / (a.heads / a.kv_heads), row0 = block * FLASH_ROWS + warp * 16;
    constexpr float LOG2E = 1.4426950408889634f; /* weights are powers of two here */
    let_next_begin();
    wait_for_previous();

    const __half *keys = (const __half *)a.keys + (uint64_t)kv * a.context * DIM, *values = (const __half *)a.values + (uint64_t)kv * a.context * DIM;
    const int32_t block0 = a.at.first + (int32_t)(block * FLASH_ROWS);
    const int32_t rows = (int32_t)a.tokens - (int32_t)(block * FLASH_ROWS), end = block0 + (rows < FLASH_ROWS ? rows : FLASH_ROWS);
    const int32_t from = a.window && block0 + 1 > (int32_t)a.window ? (block0 + 1 - (int32_t)a.window) / FLASH_KEYS * FLASH_KEYS : 0;
    const int32_t mine[2] = {a.at.first + (int32_t)(row0 + g), a.at.first + (int32_t)(row0 + g) + 8}; /* positions of my rows */

    const float scale = a.softcap != 0 ? a.scale : a.scale * LOG2E;
    uint32_t q[DIM / 16][4];
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t row = row0 + g + i % 2 * 8, col = k * 16 + i / 2 * 8 + 2 * t;
            float2 v = row < a.tokens ? *(const float2 *)(a.q + ((uint64_t)row * a.heads + head) * DIM + col) : make_float2(0, 0);
            __half2 h = __floats2half2_rn(v.x * scale, v.y * scale);
            q[k][i] = *(uint32_t *)&h;
        }

    float out[DIM / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    flash_load<DIM>(memory, keys, from, end);
    flash_load<DIM>(memory + TILE, values, from, end);
    copies_begun();
    for (int32_t at = from, turn = 0; at < end; at += FLASH_KEYS, turn ^= 1) {
        if (at + FLASH_KEYS < end) {
            flash_load<DIM>(memory + (turn ^ 1) * 2 * TILE, keys, at + FLASH_KEYS, end);
            flash_load<DIM>(memory + (turn ^ 1) * 2 * TILE + TILE, values, at + FLASH_KEYS, end);
            copies_begun();
            copies_done<1>();
        } else {
            copies_done<0>();
        }
        __syncthreads();
        const uint32_t k0 = memory + turn * 2 * TILE, v0 = k0 + TILE;
        float s[FLASH_KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < DIM / 16; k++)
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 16; n++) {
                uint32_t b[4];
                load_matrices(b, flash_at<DIM>(k0, n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
                mma(s[2 * n], q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
                mma(s[2 * n + 1], q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
            }
        if (a.softcap != 0)
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[n][i] = a.softcap * LOG2E * tanhf(s[n][i] / a.softcap);
        if (at + FLASH_KEYS > a.at.first + (int32_t)row0 || a.window) /* not all of them are seen by all rows */
#pragma unroll
            for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int32_t p = at + n * 8 + (int32_t)(2 * t) + i % 2, row = mine[i / 2];
                    if (p > row || (a.window && p + (int32_t)a.window <= row))
                        s[n][i] = -INFINITY;
                }
        float now[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                now[i / 2] = fmaxf(now[i / 2], s[n][i]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 1));
            now[r] = fmaxf(now[r], __shfl_xor_sync(~0u, now[r], 2));
            float base = now[r] == -INFINITY ? 0 : now[r], shrink = power_of_two(most[r] - base);
            most[r] = now[r];
            now[r] = base;
            sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
                out[n][2 * r] *= shrink, out[n][2 * r + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < FLASH_KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = power_of_two(s[n][i] - now[i / 2]);
                sum[i / 2] += s[n][i];
            }
#pragma unroll
        for (int k = 0; k < FLASH_KEYS / 16; k++) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                __half2 h = __floats2half2_rn(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
                w[i] = *(uint32_t *)&h;
            }
#pragma unroll
            for (int n = 0; n < DIM / 16; n++) {
                uint32_t b[4];
                load_matrices_turned(b, flash_at<DIM>(v0, k * 16 + lane % 16, n * 2 + lane / 16));
                mma(out[2 * n], w[0], w[1], w[2], w[3], b[0], b[1]);
                mma(out[2 * n + 1], w[0], w[1], w[2], w[3], b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        uint32_t row = row0 + g + 8 * r;
#pragma unroll
        for (int n = 0; n < DIM / 8 && row < a.tokens; n++)
            *(float2 *)(a.y + ((uint64_t)row * a.heads + head) * DIM + n * 8 + 2 * t) = make_float2(out[n][2 * r] / sum[r], out[n][2 * r + 1] / sum[r]);
    }
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
    return launch(append_kv<D>, dim3((a->kv_heads * a->head_dim + 255) / 256, a->tokens), 256, 0, s, *a);
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

template <int DIM> static cudaError_t launch_flash(const qm_attention *a, cudaStream_t s)
{
    const size_t shared = 4 * FLASH_KEYS * DIM * 2;
    cudaError_t r = cudaFuncSetAttribute(flash<DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return r ? r : launch(flash<DIM>, dim3((a->tokens + FLASH_ROWS - 1) / FLASH_ROWS, a->heads), FLASH_THREADS, shared, s, *a);
}

/* Whether the tensor cores do it: they take f16, and codes that are brought to it first.  A bf16 may be beyond f16. */
static bool is_prompt(const qm_attention *a)
{
    return a->tokens > QM_HALF_TOKENS && (a->dtype == QM_F16 || a->dtype == QM_I8) && !a->sinks && !a->at.passed
           && (a->head_dim == 64 || a->head_dim == 128);
}

uint64_t qm_attention_unpacked(const qm_attention *a)
{
    uint64_t seen = (uint64_t)a->at.first + a->tokens;
    return is_prompt(a) && a->dtype == QM_I8 ? 2 * a->kv_heads * seen * a->head_dim * sizeof(__half) : 0;
}

static cudaError_t attend_prompt(const qm_attention *a, cudaStream_t s)
{
    qm_attention b = *a;
    cudaError_t r = a->dtype == QM_F16 ? append<QM_F16>(a, s) : append<QM_I8>(a, s);
    if (a->dtype == QM_I8) {
        b.context = (uint32_t)a->at.first + a->tokens;
        uint32_t each = b.context * a->head_dim;
        __half *to = (__half *)a->unpacked;
        b.keys = to, b.values = to + (uint64_t)a->kv_heads * each;
        if (!r)
            r = launch(unpack_kv, dim3((each / 4 + 255) / 256, a->kv_heads, 2), 256, 0, s, *a, to, each);
    }
    if (r || qm_matrix_takes_wide())
        return r ? r : qm_attend_wide(&b, s);
    return a->head_dim == 64 ? launch_flash<64>(&b, s) : launch_flash<128>(&b, s);
}

cudaError_t qm_attend(const qm_attention *a, cudaStream_t s)
{
    if (is_prompt(a))
        return attend_prompt(a, s);
    switch (a->dtype) {
    case QM_F32: return launch_attend<QM_F32>(a, s);
    case QM_F16: return launch_attend<QM_F16>(a, s);
    case QM_BF16: return launch_attend<QM_BF16>(a, s);
    default: return launch_attend<QM_I8>(a, s);
    }
}

#endif
