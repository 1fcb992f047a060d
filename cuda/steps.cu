/* steps.cu: what happens to a job's values between decoding and encoding (core/stream.h), with the CPU's roundings.
 *
 * Compiled with --fmad=false; a fused multiply-add is where the source says so. */
#include <math.h>
#include <stdint.h>

#include "../core/half.h"
#include "steps.h"

template <qm_round R> __device__ inline float rounded(float x)
{
    return R == QM_ROUND_F16 ? qm_f16_to_f32(qm_f32_to_f16(x)) : R == QM_ROUND_BF16 ? qm_bf16_to_f32(qm_f32_to_bf16(x)) : x;
}

__device__ inline float rounded(qm_round r, float x)
{
    return r == QM_ROUND_F16 ? rounded<QM_ROUND_F16>(x) : r == QM_ROUND_BF16 ? rounded<QM_ROUND_BF16>(x) : x;
}

__device__ inline float value_at(const void *x, qm_dtype t, uint64_t i)
{
    if (t == QM_F32)
        return ((const float *)x)[i];
    uint16_t h = ((const uint16_t *)x)[i];
    return t == QM_F16 ? qm_f16_to_f32(h) : qm_bf16_to_f32(h);
}

enum { THREADS = 256, MOST_BLOCKS = 4096 };

static unsigned grid_for(uint64_t n)
{
    uint64_t blocks = (n + THREADS - 1) / THREADS;
    return (unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS);
}

/* ---- rounding ------------------------------------------------------------------------------------ */

static __global__ void __launch_bounds__(THREADS) round_values(qm_round how, float *x, uint64_t n)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS)
        x[i] = rounded(how, x[i]);
}

cudaError_t qm_steps_round(qm_round how, float *x, uint64_t n, cudaStream_t s)
{
    if (how == QM_ROUND_NONE || n == 0)
        return cudaSuccess;
    round_values<<<grid_for(n), THREADS, 0, s>>>(how, x, n);
    return cudaGetLastError();
}

/* ---- x += scale * left . right ------------------------------------------------------------------- */

/* A block of threads makes a tile of 64 x 64, a thread 4 x 4 of it; the sum over the rank runs upwards, one fused
 * multiply-add after another, as on the CPU. */
enum { TILE = 64, DEPTH = 16, EACH = 4 };

static __global__ void __launch_bounds__(THREADS)
    low_rank(const float *__restrict__ left, const float *__restrict__ right, uint32_t rank, float scale, qm_round delta,
             qm_round after, float *__restrict__ x, uint64_t rows, uint64_t cols)
{
    __shared__ float l[DEPTH][TILE + 1], r[DEPTH][TILE];
    const uint64_t row = (uint64_t)blockIdx.y * TILE, col = (uint64_t)blockIdx.x * TILE;
    const uint32_t down = threadIdx.x / 16 * EACH, across = threadIdx.x % 16;
    float sum[EACH][EACH] = {};
    for (uint32_t k = 0; k < rank; k += DEPTH) {
        for (uint32_t i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
            uint32_t a = i / DEPTH, b = i % DEPTH, c = i / TILE, d = i % TILE;
            l[b][a] = row + a < rows && k + b < rank ? left[(row + a) * rank + k + b] : 0;
            r[c][d] = col + d < cols && k + c < rank ? right[(uint64_t)(k + c) * cols + col + d] : 0;
        }
        __syncthreads();
        for (uint32_t b = 0; b < DEPTH && k + b < rank; b++)
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    sum[i][j] = __fmaf_rn(l[b][down + i], r[b][across + 16 * j], sum[i][j]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            uint64_t at_row = row + down + i, at_col = col + across + 16 * j;
            if (at_row < rows && at_col < cols) {
                float *to = x + at_row * cols + at_col;
                *to = rounded(after, *to + rounded(delta, scale * sum[i][j]));
            }
        }
}

cudaError_t qm_steps_low_rank(const float *left, const float *right, uint32_t rank, float scale, qm_round delta, qm_round after,
                              float *x, uint64_t rows, uint64_t cols, cudaStream_t s)
{
    dim3 grid((unsigned)((cols + TILE - 1) / TILE), (unsigned)((rows + TILE - 1) / TILE));
    low_rank<<<grid, THREADS, 0, s>>>(left, right, rank, scale, delta, after, x, rows, cols);
    return cudaGetLastError();
}

/* ---- DoRA ------------------------------------------------------------------------------------------ */

/* What a row is multiplied by.  Squares are exact in double, and added up from the first column to the last by one
 * thread, as on the CPU; the others of the block bring them. */
enum { NORM_ROWS = 32, NORM_COLS = 128 };

static __global__ void __launch_bounds__(NORM_COLS)
    row_factors(const float *__restrict__ x, uint64_t rows, uint64_t cols, const float *__restrict__ magnitude, float *factor)
{
    __shared__ float part[NORM_ROWS][NORM_COLS + 1];
    const uint64_t row = (uint64_t)blockIdx.x * NORM_ROWS;
    double sum = 0;
    for (uint64_t col = 0; col < cols; col += NORM_COLS) {
        for (uint32_t i = 0; i < NORM_ROWS; i++)
            part[i][threadIdx.x] = row + i < rows && col + threadIdx.x < cols ? x[(row + i) * cols + col + threadIdx.x] : 0;
        __syncthreads();
        for (uint32_t j = 0; threadIdx.x < NORM_ROWS && j < NORM_COLS && col + j < cols; j++) {
            double v = part[threadIdx.x][j];
            sum += v * v;
        }
        __syncthreads();
    }
    if (threadIdx.x < NORM_ROWS && row + threadIdx.x < rows)
        factor[row + threadIdx.x] = magnitude[row + threadIdx.x] / (float)sqrt(sum);
}

static __global__ void __launch_bounds__(THREADS)
    scale_rows(const float *__restrict__ factor, qm_round after, float *x, uint64_t n, uint64_t cols)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS)
        x[i] = rounded(after, x[i] * factor[i / cols]);
}

cudaError_t qm_steps_dora_rows(const float *magnitude, float *factor, qm_round after, float *x, uint64_t rows, uint64_t cols,
                               cudaStream_t s)
{
    row_factors<<<(unsigned)((rows + NORM_ROWS - 1) / NORM_ROWS), NORM_COLS, 0, s>>>(x, rows, cols, magnitude, factor);
    scale_rows<<<grid_for(rows * cols), THREADS, 0, s>>>(factor, after, x, rows * cols, cols);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    scale_columns(const float *__restrict__ magnitude, const float *__restrict__ norm, qm_round after, float *x, uint64_t n,
                  uint64_t cols)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS)
        x[i] = rounded(after, magnitude[i % cols] / norm[i % cols] * x[i]);
}

cudaError_t qm_steps_dora_columns(const float *magnitude, const float *norm, qm_round after, float *x, uint64_t rows, uint64_t cols,
                                  cudaStream_t s)
{
    scale_columns<<<grid_for(rows * cols), THREADS, 0, s>>>(magnitude, norm, after, x, rows * cols, cols);
    return cudaGetLastError();
}

/* ---- rows ------------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    put_rows(const float *__restrict__ values, const uint32_t *__restrict__ row, uint64_t n, float *x, uint64_t cols)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n * cols; i += (uint64_t)gridDim.x * THREADS)
        if (row[i / cols] != QM_NO_ROW)
            x[row[i / cols] * cols + i % cols] = values[i];
}

cudaError_t qm_steps_rows(const float *values, const uint32_t *row, uint64_t n, float *x, uint64_t cols, cudaStream_t s)
{
    if (n * cols == 0)
        return cudaSuccess;
    put_rows<<<grid_for(n * cols), THREADS, 0, s>>>(values, row, n, x, cols);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    part_heads(const float *__restrict__ x, float *__restrict__ y, uint64_t n, uint64_t cols, uint64_t head)
{
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS) {
        const uint64_t row = i / cols, j = row % head, half = head / 2;
        const uint64_t from = row - j + (j < half ? 2 * j : 2 * (j - half) + 1);
        y[i] = x[from * cols + i % cols];
    }
}

cudaError_t qm_steps_part_heads(const float *x, float *y, uint64_t rows, uint64_t cols, uint64_t head, cudaStream_t s)
{
    if (rows * cols == 0)
        return cudaSuccess;
    part_heads<<<grid_for(rows * cols), THREADS, 0, s>>>(x, y, rows * cols, cols, head);
    return cudaGetLastError();
}

/* ---- looking ----------------------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    find_nonfinite(const void *__restrict__ x, qm_dtype t, uint64_t n, unsigned long long *first)
{
    const uint32_t all = t == QM_F16 ? 0x7c00u : t == QM_BF16 ? 0x7f80u : 0x7f800000u;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (uint64_t)gridDim.x * THREADS) {
        uint32_t bits = t == QM_F32 ? ((const uint32_t *)x)[i] : ((const uint16_t *)x)[i];
        if ((bits & all) == all)
            atomicMin(first, (unsigned long long)i);
    }
}

cudaError_t qm_steps_nonfinite(const void *x, qm_dtype t, uint64_t n, uint64_t *first, cudaStream_t s)
{
    find_nonfinite<<<grid_for(n), THREADS, 0, s>>>(x, t, n, (unsigned long long *)first);
    return cudaGetLastError();
}

/* ---- sums, to the bit those of core/vec.c ---------------------------------------------------------- */

/* Sixteen threads have the sixteen lanes of the CPU.  A run of up to 256 values is summed in f32, lane by lane; where
 * its values are too large or too small for that, it is left to the second kernel, which adds up the lanes of all runs
 * of a chunk in double, one run after another. */
enum { LANES = 16, RUN = 256 };

struct run_part {
    float xx, xd, dd, d;
};

struct chunk_runs {
    uint64_t n, each;   /* values in all, and of one chunk, of which the last may have fewer */
    uint32_t runs;      /* places for the runs of one chunk */

    __device__ uint64_t values_in(uint64_t chunk) const { return n - chunk * each < each ? n - chunk * each : each; }
    /* Where run r begins in its chunk, and how many values it has: whole runs, then a multiple of 16, then the rest. */
    __device__ uint64_t begin(uint32_t r, uint64_t values) const
    {
        uint64_t whole = values / RUN;
        return r <= whole ? (uint64_t)r * RUN : values / LANES * LANES;
    }
    __device__ uint32_t length(uint32_t r, uint64_t values) const
    {
        uint64_t whole = values / RUN;
        return r < whole ? RUN : r == whole ? (uint32_t)(values % RUN / LANES * LANES) : r == whole + 1 ? (uint32_t)(values % LANES) : 0;
    }
};

__device__ inline bool is_wild(uint32_t magnitude)
{
    return magnitude > 0x5d800000u || (magnitude < 0x26800000u && magnitude != 0);
}

__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ inline float other_value(const void *x, qm_dtype t, const float *y, uint64_t i) { return y ? y[i] : value_at(x, t, i); }

/* Magnitudes go where they are found: the largest of all does not depend on the order.  care: bit for bit, runs that
 * must be added carefully. */
static __global__ void __launch_bounds__(THREADS)
    sum_runs(const void *__restrict__ x, qm_dtype t, const float *__restrict__ y, const chunk_runs c, uint64_t chunks,
             run_part *part, uint8_t *care, uint32_t *most)
{
    const uint64_t run = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / LANES, chunk = run / c.runs;
    const uint32_t lane = threadIdx.x % LANES, r = (uint32_t)(run % c.runs);
    const bool there = chunk < chunks;
    const uint64_t values = there ? c.values_in(chunk) : 0, first = chunk * c.each + c.begin(r, values);
    const uint32_t n = there ? c.length(r, values) : 0;
    run_part p = {0, 0, 0, 0};
    uint32_t most_x = 0, most_d = 0;
    for (uint32_t i = lane; i < n; i += LANES) {
        float a = value_at(x, t, first + i), b = other_value(x, t, y, first + i) - a;
        p.xx += a * a;
        p.xd += a * b;
        p.dd += b * b;
        p.d += b;
        most_x = max(most_x, magnitude(a));
        most_d = max(most_d, magnitude(b));
    }
    bool mine = is_wild(most_x) || is_wild(most_d) || n % LANES != 0;
    uint32_t wild = __ballot_sync(~0u, mine) >> (threadIdx.x & 16) & 0xffffu;
    if (there && n) {
        part[run * LANES + lane] = p;
        if (lane == 0)
            care[run] = wild != 0;
    }
    for (int half = 8; half; half /= 2) {
        most_x = max(most_x, __shfl_xor_sync(~0u, most_x, half));
        most_d = max(most_d, __shfl_xor_sync(~0u, most_d, half));
    }
    if (there && n && lane == 0) {
        atomicMax(&most[2 * chunk], most_x);
        atomicMax(&most[2 * chunk + 1], most_d);
    }
}

struct lane_sums {
    double xx, xd, dd, d;

    __device__ void add(run_part p) { xx += p.xx, xd += p.xd, dd += p.dd, d += p.d; }
    __device__ void add(float x, float y)
    {
        double a = x, b = (double)y - a;
        xx += a * a, xd += a * b, dd += b * b, d += b;
    }
};

/* The sum over lanes, from the first to the last. */
__device__ inline double fold(double part)
{
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += __shfl_sync(~0u, part, i, LANES);
    return sum;
}

static __global__ void __launch_bounds__(32)
    sum_chunks(const void *__restrict__ x, qm_dtype t, const float *__restrict__ y, const chunk_runs c, uint64_t chunks,
               const run_part *__restrict__ part, const uint8_t *__restrict__ care, const uint32_t *__restrict__ most, qm_errsum *sum)
{
    const uint64_t chunk = (uint64_t)blockIdx.x * 2 + threadIdx.x / LANES;
    const uint32_t lane = threadIdx.x % LANES;
    const bool there = chunk < chunks;
    const uint64_t values = there ? c.values_in(chunk) : 0;
    const run_part *mine = part + chunk * c.runs * LANES + lane;
    lane_sums s = {0, 0, 0, 0};
    for (uint32_t r = 0; there && r < c.runs; r += 8) {
        run_part ahead[8];
#pragma unroll
        for (uint32_t k = 0; k < 8; k++)
            if (r + k < c.runs)
                ahead[k] = mine[(uint64_t)(r + k) * LANES];
#pragma unroll
        for (uint32_t k = 0; k < 8; k++) {
            uint32_t n = r + k < c.runs ? c.length(r + k, values) : 0;
            if (n && !care[chunk * c.runs + r + k])
                s.add(ahead[k]);
            else
                for (uint64_t i = chunk * c.each + c.begin(r + k, values) + lane, end = i - lane + n; i < end; i += LANES)
                    s.add(value_at(x, t, i), other_value(x, t, y, i));
        }
    }
    double xx = fold(s.xx), xd = fold(s.xd), dd = fold(s.dd), d = fold(s.d);
    if (there && lane == 0)
        sum[chunk] = {xx, xx + 2 * xd + dd, xx + xd, dd, d, __uint_as_float(most[2 * chunk + 1]), __uint_as_float(most[2 * chunk]), values};
}

struct error_scratch {
    uint64_t chunks, runs, part, care, most, total;

    error_scratch(uint64_t n, uint64_t each)
    {
        uint64_t in_chunk = each < n ? each : n;
        chunks = (n + each - 1) / each;
        runs = in_chunk / RUN + 2;
        part = 0;
        care = part + chunks * runs * LANES * sizeof(run_part);
        most = care + (chunks * runs + 15) / 16 * 16;
        total = most + chunks * 2 * sizeof(uint32_t);
    }
};

uint64_t qm_steps_errors_scratch(uint64_t n, uint64_t each) { return n ? error_scratch(n, each).total : 0; }

cudaError_t qm_steps_errors(const void *x, qm_dtype t, const float *y, uint64_t n, uint64_t each, void *scratch, qm_errsum *sum,
                            cudaStream_t s)
{
    if (n == 0)
        return cudaSuccess;
    error_scratch z(n, each);
    chunk_runs c = {n, each, (uint32_t)z.runs};
    run_part *part = (run_part *)((char *)scratch + z.part);
    uint8_t *care = (uint8_t *)scratch + z.care;
    uint32_t *most = (uint32_t *)((char *)scratch + z.most);
    cudaError_t r = cudaMemsetAsync(most, 0, z.chunks * 2 * sizeof *most, s);
    if (r)
        return r;
    sum_runs<<<(unsigned)((z.chunks * z.runs * LANES + THREADS - 1) / THREADS), THREADS, 0, s>>>(x, t, y, c, z.chunks, part, care, most);
    sum_chunks<<<(unsigned)((z.chunks + 1) / 2), 32, 0, s>>>(x, t, y, c, z.chunks, part, care, most, sum);
    return cudaGetLastError();
}

/* Lane i and lane i + 8, then i and i + 4, i + 2, i + 1. */
__device__ inline float tree(float part)
{
    for (int half = 8; half; half /= 2)
        part += __shfl_xor_sync(~0u, part, half);
    return part;
}

static __global__ void __launch_bounds__(THREADS)
    group_sums(const void *__restrict__ x, qm_dtype t, const float *__restrict__ y, uint64_t n, uint32_t block, qm_groupsum *group)
{
    const uint64_t g = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / LANES, groups = (n + block - 1) / block;
    float yd = 0, yy = 0, sum = 0;
    uint64_t end = g >= groups ? 0 : (g + 1) * block < n ? (g + 1) * block : n;
    for (uint64_t i = g * block + threadIdx.x % LANES; i < end; i += LANES) {
        float v = y[i];
        yd += v * (v - value_at(x, t, i));
        yy += v * v;
        sum += v;
    }
    yd = tree(yd), yy = tree(yy), sum = tree(sum);
    if (threadIdx.x % LANES == 0 && g < groups)
        group[g] = {yd, yy, sum};
}

cudaError_t qm_steps_group_sums(const void *x, qm_dtype t, const float *y, uint64_t n, uint32_t block, qm_groupsum *group,
                                cudaStream_t s)
{
    uint64_t groups = (n + block - 1) / block;
    if (n == 0)
        return cudaSuccess;
    group_sums<<<(unsigned)((groups * LANES + THREADS - 1) / THREADS), THREADS, 0, s>>>(x, t, y, n, block, group);
    return cudaGetLastError();
}
