/* each.cuh: what is computed value by value or row by row; a warp takes 64 values of a row at a time, two a lane, so that
 * it can leave them as f16 with their power of two as well (qm_half). */
#ifndef QM_EACH_CUH
#define QM_EACH_CUH

enum { EACH_WARPS = 8, NORM_THREADS = 512 };

__device__ inline float most_in_warp(float v)
{
#pragma unroll
    for (int i = 16; i; i /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    return v;
}

template <class T> __device__ inline T sum_in_warp(T v)
{
#pragma unroll
    for (int i = 16; i; i /= 2)
        v += __shfl_xor_sync(~0u, v, i);
    return v;
}

/* Sum over a block of threads, for all of them; `shared` has 32 of them. */
template <class T> __device__ inline T sum_in_block(T v, T *shared)
{
    const uint32_t warps = blockDim.x / 32;
    v = sum_in_warp(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    return sum_in_warp(threadIdx.x % 32 < warps ? shared[threadIdx.x % 32] : (T)0);
}

__device__ inline float most_in_block(float v, float *shared)
{
    const uint32_t warps = blockDim.x / 32;
    v = most_in_warp(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    return most_in_warp(threadIdx.x % 32 < warps ? shared[threadIdx.x % 32] : -INFINITY);
}

/* Values lane and lane + 32 of 64; all lanes of a warp together.  What is beyond the columns is zero. */
__device__ inline void store_half(const qm_half &h, uint32_t token, uint32_t unit, float first, float second)
{
    const uint32_t lane = threadIdx.x % 32, units = h.stride / QM_HALF_RUN;
    float by = to_half_range(most_in_warp(fmaxf(fabsf(first), fabsf(second))));
    __half *to = (__half *)h.half + (uint64_t)token * h.stride + unit * QM_HALF_RUN + lane;
    to[0] = __float2half_rn(first * by);
    to[32] = __float2half_rn(second * by);
    if (lane == 0)
        h.scale[((uint64_t)(token / QM_HALF_TOKENS) * units + unit) * QM_HALF_TOKENS + token % QM_HALF_TOKENS] = 1 / by;
}

/* ---- values ------------------------------------------------------------------------------------------ */

template <qm_each_op F> __device__ inline float each(float x, float y, float by)
{
    switch (F) {
    case QM_EACH_ADD: return x + y;
    case QM_EACH_MUL: return x * y;
    case QM_EACH_SCALE: return x * by;
    case QM_EACH_SOFTCAP: return by * tanhf(x / by);
    case QM_EACH_SILU: return silu(x);
    case QM_EACH_GELU_TANH: return gelu_tanh(x);
    case QM_EACH_RELU: return x < 0 ? 0 : x;
    case QM_EACH_GELU: return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
    case QM_EACH_SWIGLU: return silu(x) * y;
    case QM_EACH_GEGLU: return gelu_tanh(x) * y;
    case QM_EACH_GATED: return x / (1 + expf(-y));
    }
    return 0;
}

template <qm_each_op F>
__global__ void each_value(const float *x, const float *y, float by, uint32_t rows, uint32_t cols, float *out, const __grid_constant__ qm_half h)
{
    constexpr bool TWO = F == QM_EACH_ADD || F == QM_EACH_MUL || F == QM_EACH_SWIGLU || F == QM_EACH_GEGLU;
    let_next_begin();
    wait_for_previous();
    const uint32_t units = (cols + 63) / 64, lane = threadIdx.x % 32;
    uint64_t i = (uint64_t)blockIdx.x * EACH_WARPS + threadIdx.x / 32;
    uint32_t row = (uint32_t)(i / units), unit = (uint32_t)(i % units);
    if (row >= rows)
        return;
    float v[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t col = unit * 64 + lane + 32 * k;
        uint64_t at = (uint64_t)row * cols + col;
        bool there = col < cols;
        v[k] = there ? each<F>(x[at], TWO ? y[at] : F == QM_EACH_GATED ? y[row] : 0, by) : 0;
        if (there)
            out[at] = v[k];
    }
    if (h.half)
        store_half(h, row, unit, v[0], v[1]);
}

__global__ void to_half(const float *x, uint32_t tokens, uint32_t cols, const __grid_constant__ qm_half h)
{
    let_next_begin();
    wait_for_previous();
    const uint32_t units = h.stride / 64, lane = threadIdx.x % 32;
    uint64_t i = (uint64_t)blockIdx.x * EACH_WARPS + threadIdx.x / 32;
    uint32_t token = (uint32_t)(i / units), unit = (uint32_t)(i % units), col = unit * 64 + lane;
    if (token >= tokens)
        return;
    const float *from = x + (uint64_t)token * cols;
    store_half(h, token, unit, col < cols ? from[col] : 0, col + 32 < cols ? from[col + 32] : 0);
}

/* ---- norm ------------------------------------------------------------------------------------------ */

__device__ inline void normalise_unit(uint32_t unit, const float x[2], const float w[2], float by, uint32_t d, float *y, const qm_half &h)
{
    float v[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t i = unit * 64 + threadIdx.x % 32 + 32 * k;
        v[k] = x[k] * by * w[k];
        if (i < d)
            y[i] = v[k];
    }
    if (h.half)
        store_half(h, blockIdx.x, unit, v[0], v[1]);
}

/* A warp has every so many units of 64; the first KEPT of them stay in registers between the sum and the product. */
__global__ void __launch_bounds__(NORM_THREADS)
    rmsnorm(const float *x, const float *__restrict__ w, float add, float eps, uint32_t d, float *y,
            const __grid_constant__ qm_half h)
{
    constexpr int KEPT = 8;
    __shared__ float shared[32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, units = (d + 63) / 64;
    let_next_begin();
    float weight[KEPT][2];
#pragma unroll
    for (int i = 0; i < KEPT; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t at = (warp + i * warps) * 64 + lane + 32 * k;
            weight[i][k] = at < d ? w[at] + add : 0; /* no kernel writes it: it need not be waited for */
        }
    wait_for_previous();
    x += (uint64_t)blockIdx.x * d, y += (uint64_t)blockIdx.x * d;
    float kept[KEPT][2], sum = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t at = (warp + i * warps) * 64 + lane + 32 * k;
            kept[i][k] = at < d ? x[at] : 0;
            sum = __fmaf_rn(kept[i][k], kept[i][k], sum);
        }
    for (uint32_t unit = warp + KEPT * warps; unit < units; unit += warps)
        for (int k = 0; k < 2; k++) {
            uint32_t at = unit * 64 + lane + 32 * k;
            float v = at < d ? x[at] : 0;
            sum = __fmaf_rn(v, v, sum);
        }
    const float by = 1 / sqrtf(sum_in_block(sum, shared) / (float)d + eps);
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (warp + i * warps < units)
            normalise_unit(warp + i * warps, kept[i], weight[i], by, d, y, h);
    for (uint32_t unit = warp + KEPT * warps; unit < units; unit += warps) {
        uint32_t at = unit * 64 + lane;
        const float v[2] = {at < d ? x[at] : 0, at + 32 < d ? x[at + 32] : 0};
        const float f[2] = {at < d ? w[at] + add : 0, at + 32 < d ? w[at + 32] + add : 0};
        normalise_unit(unit, v, f, by, d, y, h);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------ */

__device__ inline float plain_value(const void *p, qm_dtype d, uint64_t i)
{
    if (d == QM_F32)
        return ((const float *)p)[i];
    return d == QM_F16 ? __half2float(((const __half *)p)[i]) : __uint_as_float((uint32_t)((const uint16_t *)p)[i] << 16);
}

__global__ void rows_of(const void *table, qm_dtype dtype, const int32_t *ids, uint32_t cols, float *out)
{
    let_next_begin();
    wait_for_previous();
    uint64_t from = (uint64_t)__ldcg(ids + blockIdx.y) * cols, to = (uint64_t)blockIdx.y * cols;
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < cols)
        out[to + i] = plain_value(table, dtype, from + i);
}

__global__ void columns(const float *x, uint32_t cols, uint32_t from, uint32_t n, float *out)
{
    let_next_begin();
    wait_for_previous();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[(uint64_t)blockIdx.y * n + i] = x[(uint64_t)blockIdx.y * cols + from + i];
}

enum { ARGMAX_THREADS = 256, ARGMAX_BLOCKS = 128 };

__global__ void __launch_bounds__(ARGMAX_THREADS)
    argmax(const float *x, uint32_t cols, unsigned long long *best, uint32_t *count, int32_t *ids)
{
    __shared__ unsigned long long most[ARGMAX_THREADS / 32];
    let_next_begin();
    wait_for_previous();
    x += (uint64_t)blockIdx.y * cols;
    unsigned long long mine = 0;
    for (uint32_t i = blockIdx.x * ARGMAX_THREADS + threadIdx.x; i < cols; i += gridDim.x * ARGMAX_THREADS) {
        unsigned long long v = in_order_at(x[i], i);
        mine = v > mine ? v : mine;
    }
    mine = most_in_warp(mine);
    if (threadIdx.x % 32 == 0)
        most[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x)
        return;
    for (int i = 1; i < ARGMAX_THREADS / 32; i++)
        mine = most[i] > mine ? most[i] : mine;
    atomicMax(best + blockIdx.y, mine);
    __threadfence();
    if (atomicAdd(count + blockIdx.y, 1) + 1 < gridDim.x)
        return;
    mine = atomicExch(best + blockIdx.y, 0ull); /* all others are done */
    ids[blockIdx.y] = mine >> 32 == ORDER_OF_NAN ? -1 : (int32_t)~(uint32_t)mine;
    count[blockIdx.y] = 0;
}

/* probabilities, or, where ids is given, one logarithm of them a row. */
__global__ void __launch_bounds__(1024) softmax(const float *x, uint32_t cols, const int32_t *ids, float *out)
{
    __shared__ float shared[32];
    let_next_begin();
    wait_for_previous();
    x += (uint64_t)blockIdx.x * cols;
    float most = -INFINITY, sum = 0;
    for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x)
        most = fmaxf(most, x[i]);
    most = most_in_block(most, shared);
    for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x)
        sum += expf(x[i] - most);
    sum = sum_in_block(sum, shared);
    if (ids && threadIdx.x == 0)
        out[blockIdx.x] = x[ids[blockIdx.x]] - most - logf(sum);
    for (uint32_t i = threadIdx.x; !ids && i < cols; i += blockDim.x)
        out[(uint64_t)blockIdx.x * cols + i] = expf(x[i] - most) / sum;
}

/* KL divergence, as core/ops/kl.c; sums in double. */
__global__ void __launch_bounds__(1024) divergence(const float *r, const float *x, uint32_t cols, float *out)
{
    __shared__ float shared[32];
    __shared__ double sums[32];
    let_next_begin();
    wait_for_previous();
    r += (uint64_t)blockIdx.x * cols, x += (uint64_t)blockIdx.x * cols;
    float top_r = -INFINITY, top_x = -INFINITY;
    for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x)
        top_r = fmaxf(top_r, r[i]), top_x = fmaxf(top_x, x[i]);
    top_r = most_in_block(top_r, shared), top_x = most_in_block(top_x, shared);
    double sum_r = 0, sum_x = 0, sum = 0;
    for (uint32_t i = threadIdx.x; i < cols; i += blockDim.x) {
        float p = expf(r[i] - top_r);
        sum_r += p, sum_x += expf(x[i] - top_x);
        if (p > 0)
            sum += (double)p * ((double)(r[i] - top_r) - (double)(x[i] - top_x));
    }
    sum_r = sum_in_block(sum_r, sums), sum_x = sum_in_block(sum_x, sums), sum = sum_in_block(sum, sums);
    if (threadIdx.x == 0)
        out[blockIdx.x] = (float)(sum / sum_r - log(sum_r) + log(sum_x));
}

__global__ void step_done(int32_t *ids, int32_t *history, int32_t *passed)
{
    let_next_begin();
    wait_for_previous();
    int32_t n = *passed;
    history[n] = *ids;
    *passed = n + 1;
    if (*ids < 0) /* told when the history is read; until then steps need some row of the table */
        *ids = 0;
}

/* ---- for a library's matrix product ---------------------------------------------------------------- */

__global__ void largest_of(const float *x, uint64_t n, uint32_t *most)
{
    let_next_begin();
    wait_for_previous();
    float v = 0;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
        v = fmaxf(v, fabsf(x[i]));
    v = most_in_warp(v);
    if (threadIdx.x % 32 == 0)
        atomicMax(most, __float_as_uint(v));
}

__global__ void half_plain(const float *x, uint64_t n, __half *half, float *alpha, const uint32_t *most)
{
    let_next_begin();
    wait_for_previous();
    float by = to_half_range(__uint_as_float(__ldcg(most)));
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0)
        *alpha = 1 / by;
    for (; i < n; i += (uint64_t)gridDim.x * blockDim.x)
        half[i] = __float2half_rn(x[i] * by);
}

__global__ void split_bf16(const float *x, uint64_t n, __nv_bfloat16 *high, __nv_bfloat16 *low)
{
    let_next_begin();
    wait_for_previous();
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        high[i] = __float2bfloat16_rn(x[i]);
        low[i] = __float2bfloat16_rn(x[i] - __bfloat162float(high[i]));
    }
}

__global__ void finish_product(float *y, uint32_t rows, uint64_t n, const __grid_constant__ qm_product p)
{
    let_next_begin();
    wait_for_previous();
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    float v = y[i] + (p.bias ? p.bias[i % rows] : 0);
    y[i] = v;
    if (p.add)
        p.sum[i] = v + p.add[i];
}

/* ---- launching ----------------------------------------------------------------------------------- */

cudaError_t qm_to_half(const float *x, uint32_t tokens, uint32_t cols, const qm_half *h, cudaStream_t s)
{
    uint64_t warps = (uint64_t)tokens * (h->stride / 64);
    return launch(to_half, dim3((unsigned)((warps + EACH_WARPS - 1) / EACH_WARPS)), EACH_WARPS * 32, 0, s, x, tokens, cols, *h);
}

cudaError_t qm_rmsnorm(const float *x, const float *w, float add, float eps, uint64_t runs, uint32_t d, float *y,
                       const qm_half *h, cudaStream_t s)
{
    unsigned threads = d <= 128 ? 64 : d <= 1024 ? 256 : NORM_THREADS;
    return launch(rmsnorm, dim3((unsigned)runs), threads, 0, s, x, w, add, eps, d, y, h ? *h : qm_half{});
}

cudaError_t qm_each_value(qm_each_op f, const float *x, const float *y, float by, uint32_t rows, uint32_t cols, float *out,
                          const qm_half *h, cudaStream_t s)
{
    static void (*const kernels[])(const float *, const float *, float, uint32_t, uint32_t, float *, qm_half) = {
        each_value<QM_EACH_ADD>,       each_value<QM_EACH_MUL>,  each_value<QM_EACH_SCALE>,
        each_value<QM_EACH_SOFTCAP>,   each_value<QM_EACH_SILU>, each_value<QM_EACH_GELU_TANH>,
        each_value<QM_EACH_GELU>,      each_value<QM_EACH_RELU>, each_value<QM_EACH_SWIGLU>, each_value<QM_EACH_GEGLU>,
        each_value<QM_EACH_GATED>,
    };
    uint64_t warps = (uint64_t)rows * ((cols + 63) / 64);
    return launch(kernels[f], dim3((unsigned)((warps + EACH_WARPS - 1) / EACH_WARPS)), EACH_WARPS * 32, 0, s, x, y, by, rows, cols, out,
                  h ? *h : qm_half{});
}

cudaError_t qm_columns(const float *x, uint32_t rows, uint32_t cols, uint32_t from, uint32_t n, float *out, cudaStream_t s)
{
    return launch(columns, dim3((n + 255) / 256, rows), 256, 0, s, x, cols, from, n, out);
}

cudaError_t qm_rows_of(const void *table, qm_dtype dtype, const int32_t *ids, uint32_t n, uint32_t cols, float *out, cudaStream_t s)
{
    return launch(rows_of, dim3((cols + 255) / 256, n), 256, 0, s, table, dtype, ids, cols, out);
}

cudaError_t qm_argmax_rows(const float *x, uint32_t rows, uint32_t cols, uint64_t *best, uint32_t *count, int32_t *ids, cudaStream_t s)
{
    return launch(argmax, dim3(ARGMAX_BLOCKS, rows), ARGMAX_THREADS, 0, s, x, cols, (unsigned long long *)best, count, ids);
}

cudaError_t qm_softmax_rows(const float *x, uint32_t rows, uint32_t cols, float *out, cudaStream_t s)
{
    return launch(softmax, dim3(rows), 1024, 0, s, x, cols, (const int32_t *)NULL, out);
}

cudaError_t qm_logprob_rows(const float *x, uint32_t rows, uint32_t cols, const int32_t *ids, float *out, cudaStream_t s)
{
    return launch(softmax, dim3(rows), 1024, 0, s, x, cols, ids, out);
}

cudaError_t qm_divergence_rows(const float *reference, const float *x, uint32_t rows, uint32_t cols, float *out, cudaStream_t s)
{
    return launch(divergence, dim3(rows), 1024, 0, s, reference, x, cols, out);
}

cudaError_t qm_step_done(int32_t *ids, int32_t *history, int32_t *passed, cudaStream_t s)
{
    return launch(step_done, dim3(1), 1, 0, s, ids, history, passed);
}

cudaError_t qm_to_half_plain(const float *x, uint64_t n, void *half, float *alpha, uint32_t *most, cudaStream_t s)
{
    cudaError_t r = cudaMemsetAsync(most, 0, sizeof *most, s);
    unsigned blocks = (unsigned)(n / 1024 + 1 < 1024 ? n / 1024 + 1 : 1024);
    if (!r)
        r = launch(largest_of, dim3(blocks), 256, 0, s, x, n, most);
    return r ? r : launch(half_plain, dim3(blocks), 256, 0, s, x, n, (__half *)half, alpha, (const uint32_t *)most);
}

cudaError_t qm_split_bf16(const float *x, uint64_t n, void *high, void *low, cudaStream_t s)
{
    unsigned blocks = (unsigned)(n / 1024 + 1 < 1024 ? n / 1024 + 1 : 1024);
    return launch(split_bf16, dim3(blocks), 256, 0, s, x, n, (__nv_bfloat16 *)high, (__nv_bfloat16 *)low);
}

cudaError_t qm_finish_product(float *y, uint32_t tokens, uint32_t rows, const qm_product *p, cudaStream_t s)
{
    uint64_t n = (uint64_t)tokens * rows;
    return launch(finish_product, dim3((unsigned)((n + 255) / 256)), 256, 0, s, y, rows, n, *p);
}

#endif
