/* int8.cu: LLM.int8() on a GPU: core/ops/linear_int8.c with the same bits.
 *
 * Sums of products are whole numbers, so their order is free; everything else is rounded where it is there.  Compiled without
 * fused multiply-adds but the one that is asked for. */
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>

#include "ops.h"

#include "launch.cuh"
#include "mma.cuh"

#define STEP  6.200012e-05f         /* 1 / 127², */
#define SHARE 7.874015718698502e-3f /* and 1 / 127: as bitsandbytes writes them */

enum { ROW_THREADS = 256, FEW_THREADS = 256, FEW_WARPS = FEW_THREADS / 32, FEW_ROWS = 2 };

__device__ inline float to_half(float x) { return __half2float(__float2half_rn(x)); }
__device__ inline bool is_outlier(const qm_int8 &j, float x) { return j.threshold > 0 && fabsf(x) >= j.threshold; }

/* ---- activations --------------------------------------------------------------------------------------- */

/* A thread has a column. */
__global__ void __launch_bounds__(ROW_THREADS) find_outliers(const __grid_constant__ qm_int8 j)
{
    let_next_begin();
    wait_for_previous();
    uint32_t k = blockIdx.x * ROW_THREADS + threadIdx.x;
    bool hit = false;
    for (uint32_t t = 0; t < j.tokens && k < j.cols; t++)
        hit |= is_outlier(j, to_half(j.x[(uint64_t)t * j.cols + k]));
    if (k < j.cols)
        j.hit[k] = hit;
}

/* The columns that were hit, in their order. */
__device__ inline void list_outliers(const qm_int8 &j)
{
    __shared__ uint32_t of_warp[ROW_THREADS / 32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t listed = 0;
    for (uint32_t first = 0; first < j.cols; first += ROW_THREADS) {
        uint32_t k = first + threadIdx.x;
        bool hit = k < j.cols && j.hit[k];
        uint32_t all = __ballot_sync(~0u, hit), at = listed;
        if (lane == 0)
            of_warp[warp] = __popc(all);
        __syncthreads();
        for (uint32_t i = 0; i < ROW_THREADS / 32; i++) {
            at += i < warp ? of_warp[i] : 0;
            listed += of_warp[i];
        }
        if (hit)
            j.column[at + __popc(all & ((1u << lane) - 1))] = (int32_t)k;
        __syncthreads();
    }
    if (threadIdx.x == 0)
        *j.outliers = (int32_t)listed;
}

/* A block has a row of x; the last one lists the outliers. */
__global__ void __launch_bounds__(ROW_THREADS) quantize_rows(const __grid_constant__ qm_int8 j)
{
    __shared__ float of_warp[ROW_THREADS / 32];
    const uint32_t t = blockIdx.x;
    let_next_begin();
    wait_for_previous();
    if (t == j.tokens) {
        list_outliers(j);
        return;
    }
    const float *x = j.x + (uint64_t)t * j.cols;
    float s = 0;
    for (uint32_t k = threadIdx.x; k < j.cols; k += ROW_THREADS) {
        float v = to_half(x[k]);
        s = fabsf(v) > s && !is_outlier(j, v) ? fabsf(v) : s;
    }
#pragma unroll
    for (int i = 16; i; i /= 2)
        s = fmaxf(s, __shfl_xor_sync(~0u, s, i));
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = s;
    __syncthreads();
    for (uint32_t i = 0; i < ROW_THREADS / 32; i++)
        s = fmaxf(s, of_warp[i]);
    if (threadIdx.x == 0)
        j.s[t] = s;
    const float scale = __fdiv_rn(127, s);
    int8_t *a = j.a + (uint64_t)t * j.stride;
    for (uint32_t k = threadIdx.x; k < j.stride; k += ROW_THREADS) {
        float v = k < j.cols && !j.hit[k] ? __fmul_rn(to_half(x[k]), scale) : 0;
        a[k] = fabsf(v) <= 127.5f ? (int8_t)__float2int_rn(v) : 0; /* outliers, and the NaN of a row of zeros */
    }
}

/* ---- products --------------------------------------------------------------------------------------------- */

/* What a sum of products becomes. */
__device__ inline void finish(const qm_int8 &j, uint32_t t, uint32_t n, int32_t sum)
{
    const float absmax = j.absmax[n];
    float y = to_half(__fmaf_rn(__fmul_rn(__fmul_rn((float)sum, j.s[t]), absmax), STEP, j.bias ? j.bias[n] : 0));
    const int32_t outliers = *j.outliers;
    if (outliers) {
        float more = 0;
        for (int32_t i = 0; i < outliers; i++) {
            uint32_t k = (uint32_t)j.column[i];
            float w = to_half(__fmul_rn(__fmul_rn((float)j.code[(uint64_t)n * j.cols + k], absmax), SHARE));
            more = __fadd_rn(more, __fmul_rn(to_half(j.x[(uint64_t)t * j.cols + k]), w));
        }
        y = to_half(__fadd_rn(y, more));
    }
    j.y[(uint64_t)t * j.rows + n] = y;
}

__device__ inline int32_t sum_in_warp(int32_t v)
{
#pragma unroll
    for (int i = 16; i; i /= 2)
        v += __shfl_xor_sync(~0u, v, i);
    return v;
}

/* Up to M tokens; a warp has some rows of the weight, whose columns are a multiple of 16. */
template <int M> __global__ void __launch_bounds__(FEW_THREADS) multiply_few(const __grid_constant__ qm_int8 j)
{
    const uint32_t lane = threadIdx.x % 32, n0 = (blockIdx.x * FEW_WARPS + threadIdx.x / 32) * FEW_ROWS;
    let_next_begin();
    wait_for_previous();
    int32_t sum[FEW_ROWS][M] = {};
#pragma unroll 2
    for (uint32_t k = lane * 16; k < j.cols; k += 512) {
        uint4 w[FEW_ROWS];
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++)
            w[r] = n0 + r < j.rows ? load_once(j.code + (uint64_t)(n0 + r) * j.cols + k) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (m >= (int)j.tokens)
                break;
            uint4 a = load_fresh(j.a + (uint64_t)m * j.stride + k);
#pragma unroll
            for (int r = 0; r < FEW_ROWS; r++) {
                sum[r][m] = __dp4a((int)w[r].x, (int)a.x, sum[r][m]);
                sum[r][m] = __dp4a((int)w[r].y, (int)a.y, sum[r][m]);
                sum[r][m] = __dp4a((int)w[r].z, (int)a.z, sum[r][m]);
                sum[r][m] = __dp4a((int)w[r].w, (int)a.w, sum[r][m]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < FEW_ROWS; r++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            int32_t v = sum_in_warp(sum[r][m]);
            if (lane == r * M + m && n0 + r < j.rows && m < (int)j.tokens)
                finish(j, m, n0 + r, v);
        }
}

/* Any columns: a warp to a row and token. */
__global__ void __launch_bounds__(FEW_THREADS) multiply_any(const __grid_constant__ qm_int8 j)
{
    const uint32_t lane = threadIdx.x % 32, n = blockIdx.x * FEW_WARPS + threadIdx.x / 32, t = blockIdx.y;
    let_next_begin();
    wait_for_previous();
    if (n >= j.rows)
        return;
    int32_t sum = 0;
    for (uint32_t k = lane; k < j.cols; k += 32)
        sum += j.code[(uint64_t)n * j.cols + k] * j.a[(uint64_t)t * j.stride + k];
    sum = sum_in_warp(sum);
    if (lane == 0)
        finish(j, t, n, sum);
}

/* ---- many tokens -------------------------------------------------------------------------------------------
 *
 * 64 rows by 64 tokens for four warps, each with 16 of the rows; both come 64 columns at a time, the next while these are
 * multiplied. */

enum { MANY_THREADS = 128, MANY = 64, MANY_COLS = 64, MANY_TILE = MANY * MANY_COLS };

/* c += a b: a 16 x 32, b 32 x 8, as mma of mma.cuh with bytes: four in a register where there two f16 are in one. */
__device__ inline void mma_bytes(int32_t c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
    for (int i = 0; i < 4; i++)
        asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
            : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
            : "r"(a[i]), "r"(i < 2 ? b0 : b1));
#endif
}

/* Address of 16 columns of a row of a tile; exchanged so that eight rows lie in different banks. */
__device__ inline uint32_t tile_at(uint32_t base, uint32_t row, uint32_t sixteen)
{
    return base + row * MANY_COLS + (sixteen ^ (row / 2 & 3)) * 16;
}

__device__ inline void load_tile(uint32_t to, const int8_t *from, uint64_t stride, uint32_t rows, uint32_t k, uint32_t cols)
{
    for (uint32_t i = threadIdx.x; i < MANY_TILE / 16; i += MANY_THREADS) {
        uint32_t row = i / (MANY_COLS / 16), sixteen = i % (MANY_COLS / 16), at = k + sixteen * 16;
        bool there = row < rows && at < cols;
        copy_async(tile_at(to, row, sixteen), from + (there ? row * stride + at : 0), there);
    }
}

__global__ void __launch_bounds__(MANY_THREADS) multiply_many(const __grid_constant__ qm_int8 j)
{
    __shared__ uint4 shared[4 * MANY_TILE / 16];
    const uint32_t memory = (uint32_t)__cvta_generic_to_shared(shared);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, n0 = blockIdx.x * MANY, t0 = blockIdx.y * MANY;
    const uint32_t rows = j.rows - n0, tokens = j.tokens - t0;
    const int8_t *code = j.code + (uint64_t)n0 * j.cols, *a = j.a + (uint64_t)t0 * j.stride;
    let_next_begin();
    wait_for_previous();
    int32_t c[MANY / 8][4] = {};
    load_tile(memory, code, j.cols, rows, 0, j.cols);
    load_tile(memory + MANY_TILE, a, j.stride, tokens, 0, j.cols);
    copies_begun();
    for (uint32_t k = 0, turn = 0; k < j.cols; k += MANY_COLS, turn ^= 1) {
        if (k + MANY_COLS < j.cols) {
            load_tile(memory + (turn ^ 1) * 2 * MANY_TILE, code, j.cols, rows, k + MANY_COLS, j.cols);
            load_tile(memory + (turn ^ 1) * 2 * MANY_TILE + MANY_TILE, a, j.stride, tokens, k + MANY_COLS, j.cols);
            copies_begun();
            copies_done<1>();
        } else {
            copies_done<0>();
        }
        __syncthreads();
        const uint32_t w0 = memory + turn * 2 * MANY_TILE, x0 = w0 + MANY_TILE;
#pragma unroll
        for (uint32_t half = 0; half < MANY_COLS / 32; half++) {
            uint32_t w[4];
            load_matrices(w, tile_at(w0, warp * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (uint32_t i = 0; i < MANY / 16; i++) {
                uint32_t x[4];
                load_matrices(x, tile_at(x0, i * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
                mma_bytes(c[2 * i], w, x[0], x[1]);
                mma_bytes(c[2 * i + 1], w, x[2], x[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (uint32_t i = 0; i < MANY / 8; i++)
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t n = warp * 16 + lane / 4 + k / 2 * 8, t = i * 8 + lane % 4 * 2 + k % 2;
            if (n < rows && t < tokens)
                finish(j, t0 + t, n0 + n, c[i][k]);
        }
}

/* ---- launching -------------------------------------------------------------------------------------------- */

static cudaError_t multiply(const qm_int8 *j, cudaStream_t s)
{
    if (j->cols % 16 || (uintptr_t)j->code % 16)
        return launch(multiply_any, dim3((j->rows + FEW_WARPS - 1) / FEW_WARPS, j->tokens), FEW_THREADS, 0, s, *j);
    if (j->tokens > QM_HALF_TOKENS)
        return launch(multiply_many, dim3((j->rows + MANY - 1) / MANY, (j->tokens + MANY - 1) / MANY), MANY_THREADS, 0, s, *j);
    auto kernel = j->tokens == 1 ? multiply_few<1> : j->tokens == 2 ? multiply_few<2> : j->tokens <= 4 ? multiply_few<4> : multiply_few<8>;
    return launch(kernel, dim3((j->rows + FEW_WARPS * FEW_ROWS - 1) / (FEW_WARPS * FEW_ROWS)), FEW_THREADS, 0, s, *j);
}

cudaError_t qm_linear_int8(const qm_int8 *j, cudaStream_t s)
{
    cudaError_t r = launch(find_outliers, dim3((j->cols + ROW_THREADS - 1) / ROW_THREADS), ROW_THREADS, 0, s, *j);
    if (!r)
        r = launch(quantize_rows, dim3(j->tokens + 1), ROW_THREADS, 0, s, *j);
    return r ? r : multiply(j, s);
}
