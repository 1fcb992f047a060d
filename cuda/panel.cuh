/* panel.cuh: activations as matrix_wide.cu takes them (qm_panel in matrix.h), of values that are there or that are being
 * computed: a block of threads has a token, keeps its values in shared memory until their largest is known, and then writes
 * them as f16 in pieces of eight. */
#ifndef QM_PANEL_CUH
#define QM_PANEL_CUH

enum { PANEL_THREADS = 512 };

__device__ inline float largest_of_four(float4 v) { return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))); }

/* row: the token's values, in shared memory or not; most: the largest that this thread has seen.  x is finite, or else what
 * becomes of this token is not either. */
template <int GROUP> __device__ inline void store_panel(const qm_panel &p, const float *row, bool there, float most)
{
    __shared__ float shared[32];
    const uint32_t token = blockIdx.x, padded = qm_panel_tokens(p.tokens), pieces = qm_panel_chunks(p.cols) * 8;
    const float by = to_half_range(most_in_block(most, shared));
    if (threadIdx.x == 0)
        p.scale[token] = 1 / by;
    for (uint32_t i = threadIdx.x; i < pieces; i += PANEL_THREADS) {
        const uint32_t chunk = i / 8, piece = i % 8;
        uint32_t word[4];
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const uint32_t col = chunk * QM_UNIT_COLS + qm_panel_column(8 * piece + 2 * t, GROUP);
            const float2 v = there && col < p.cols ? *(const float2 *)(row + col) : make_float2(0, 0);
            const __half2 h = __floats2half2_rn(v.x * by, v.y * by);
            word[t] = *(const uint32_t *)&h;
        }
        ((uint4 *)p.half)[((uint64_t)chunk * padded + token) * 8 + (piece ^ token % 8)] = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

template <int GROUP> __global__ void __launch_bounds__(PANEL_THREADS) to_panel(const float *x, const __grid_constant__ qm_panel p)
{
    const bool there = blockIdx.x < p.tokens;
    const float *from = x + (uint64_t)blockIdx.x * p.cols;
    let_next_begin();
    wait_for_previous();
    float most = 0;
    for (uint32_t i = threadIdx.x; there && i < p.cols / 4; i += PANEL_THREADS)
        most = fmaxf(most, largest_of_four(((const float4 *)from)[i]));
    store_panel<GROUP>(p, from, there, most);
}

template <qm_each_op F>
__global__ void __launch_bounds__(PANEL_THREADS) each_panel(const float *x, const float *y, float *out, const __grid_constant__ qm_panel p)
{
    extern __shared__ float4 row[];
    const bool there = blockIdx.x < p.tokens;
    const uint64_t first = (uint64_t)blockIdx.x * p.cols / 4;
    let_next_begin();
    wait_for_previous();
    float most = 0;
    for (uint32_t i = threadIdx.x; there && i < p.cols / 4; i += PANEL_THREADS) {
        const float4 a = ((const float4 *)x)[first + i], b = ((const float4 *)y)[first + i];
        const float4 v = {each<F>(a.x, b.x, 0), each<F>(a.y, b.y, 0), each<F>(a.z, b.z, 0), each<F>(a.w, b.w, 0)};
        ((float4 *)out)[first + i] = row[i] = v;
        most = fmaxf(most, largest_of_four(v));
    }
    store_panel<64>(p, (const float *)row, there, most);
}

__global__ void __launch_bounds__(PANEL_THREADS)
    rmsnorm_panel(const float *x, const float *__restrict__ w, float add, float eps, float *y, const __grid_constant__ qm_panel p)
{
    extern __shared__ float4 row[];
    __shared__ float shared[32];
    const bool there = blockIdx.x < p.tokens;
    const uint64_t first = (uint64_t)blockIdx.x * p.cols / 4;
    let_next_begin();
    wait_for_previous();
    float sum = 0, most = 0;
    for (uint32_t i = threadIdx.x; there && i < p.cols / 4; i += PANEL_THREADS) {
        const float4 v = row[i] = ((const float4 *)x)[first + i];
        sum = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, __fmaf_rn(v.z, v.z, __fmaf_rn(v.w, v.w, sum))));
    }
    const float by = 1 / sqrtf(sum_in_block(sum, shared) / (float)p.cols + eps);
    for (uint32_t i = threadIdx.x; there && i < p.cols / 4; i += PANEL_THREADS) {
        const float4 f = {w[4 * i] + add, w[4 * i + 1] + add, w[4 * i + 2] + add, w[4 * i + 3] + add}, v = row[i];
        const float4 n = {v.x * by * f.x, v.y * by * f.y, v.z * by * f.z, v.w * by * f.w};
        ((float4 *)y)[first + i] = row[i] = n;
        most = fmaxf(most, largest_of_four(n));
    }
    store_panel<64>(p, (const float *)row, there, most);
}

/* A block has eight tokens. */
__global__ void __launch_bounds__(PANEL_THREADS) settle_panel(const __grid_constant__ qm_panel p, const float *by)
{
    constexpr uint32_t TOKENS = 8, ROWS = PANEL_THREADS / TOKENS;
    __shared__ float least[ROWS][TOKENS], most[ROWS][TOKENS];
    const uint32_t padded = qm_panel_tokens(p.tokens), chunks = (p.cols + QM_UNIT_COLS - 1) / QM_UNIT_COLS, all = qm_panel_chunks(p.cols);
    const uint32_t first = blockIdx.x * TOKENS, own = threadIdx.x % TOKENS, row = threadIdx.x / TOKENS;
    let_next_begin();
    wait_for_previous();
    float low = INFINITY, high = 0;
    for (uint32_t c = row; c < chunks; c += ROWS) {
        const float v = by[(uint64_t)c * padded + first + own];
        low = fminf(low, v), high = fmaxf(high, v);
    }
    least[row][own] = low, most[row][own] = high;
    __syncthreads();
    for (uint32_t i = 0; i < ROWS; i++)
        low = fminf(low, least[i][own]), high = fmaxf(high, most[i][own]);
    if (row == 0)
        p.scale[first + own] = 1 / low;
    uint4 *half = (uint4 *)p.half + first * 8; /* the eight tokens' pieces of a chunk lie next to each other */
    for (uint32_t i = chunks * 64 + threadIdx.x; i < all * 64; i += PANEL_THREADS)
        half[(uint64_t)(i / 64) * padded * 8 + i % 64] = make_uint4(0, 0, 0, 0);
    if (!__syncthreads_or(low != high))
        return;
    if (row == 0)
        least[0][own] = low;
    __syncthreads();
    const uint32_t token = threadIdx.x / 8 % TOKENS;
    low = least[0][token];
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < chunks * 64; i += PANEL_THREADS) {
        const float factor = low / by[(uint64_t)(i / 64) * padded + first + token];
        uint4 v = half[(uint64_t)(i / 64) * padded * 8 + i % 64];
        __half2 *h = (__half2 *)&v;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float2 f = __half22float2(h[k]);
            h[k] = __floats2half2_rn(f.x * factor, f.y * factor);
        }
        half[(uint64_t)(i / 64) * padded * 8 + i % 64] = v;
    }
}

/* ---- launching ----------------------------------------------------------------------------------- */

cudaError_t qm_to_panel(const float *x, const qm_panel *p, cudaStream_t s)
{
    auto kernel = p->group == 16 ? to_panel<16> : p->group == 32 ? to_panel<32> : to_panel<64>;
    return launch(kernel, dim3(qm_panel_tokens(p->tokens)), PANEL_THREADS, 0, s, x, *p);
}

cudaError_t qm_settle_panel(const qm_panel *p, const float *by, cudaStream_t s)
{
    return launch(settle_panel, dim3(qm_panel_tokens(p->tokens) / 8), PANEL_THREADS, 0, s, *p, by);
}

cudaError_t qm_each_panel(qm_each_op f, const float *x, const float *y, float *out, const qm_panel *p, cudaStream_t s)
{
    auto kernel = f == QM_EACH_SWIGLU ? each_panel<QM_EACH_SWIGLU> : f == QM_EACH_GEGLU ? each_panel<QM_EACH_GEGLU> : each_panel<QM_EACH_MUL>;
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, QM_PANEL_COLS * 4);
    return r ? r : launch(kernel, dim3(qm_panel_tokens(p->tokens)), PANEL_THREADS, p->cols * 4, s, x, y, out, *p);
}

cudaError_t qm_rmsnorm_panel(const float *x, const float *w, float add, float eps, float *y, const qm_panel *p, cudaStream_t s)
{
    cudaError_t r = cudaFuncSetAttribute(rmsnorm_panel, cudaFuncAttributeMaxDynamicSharedMemorySize, QM_PANEL_COLS * 4);
    return r ? r : launch(rmsnorm_panel, dim3(qm_panel_tokens(p->tokens)), PANEL_THREADS, p->cols * 4, s, x, w, add, eps, y, *p);
}

#endif
