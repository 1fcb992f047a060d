/* nested.cuh: double quantisation of scales (core/double_quant.h), whose offset depends on all of them.
 *
 *     scales -> sums of 256 -> offset -> codes, nested absmax      one launch each, which begins while the one in
 *                                                                  front of it ends
 *
 * Very large tensors take one more level of sums. */
#ifndef QM_NESTED_CUH
#define QM_NESTED_CUH

enum { NESTED_THREADS = 256, NESTED_WARPS = NESTED_THREADS / 32, FOLDED = QM_DOUBLE_QUANT_BLOCK };
static_assert(FOLDED == 256, "a warp folds 8 values a lane");

/* The sum of values i * FOLDED ... (i + 1) * FOLDED - 1, as far as there are any, by a warp; lane 0 has it. */
template <class T> __device__ inline double fold_run(const T *x, uint64_t n, uint64_t i)
{
    double v[8];
    for (int k = 0; k < 8; k++) {
        uint64_t at = i * FOLDED + k * 32 + threadIdx.x % 32;
        v[k] = at < n ? (double)x[at] : 0;
    }
    for (int half = 4; half; half /= 2)
        for (int k = 0; k < half; k++)
            v[k] += v[k + half];
    for (int half = 16; half; half /= 2)
        v[0] += __shfl_down_sync(~0u, v[0], half);
    return v[0];
}

template <class T> __global__ void __launch_bounds__(NESTED_THREADS) fold(const T *x, uint64_t n, double *sum)
{
    uint64_t run = (uint64_t)blockIdx.x * NESTED_WARPS + threadIdx.x / 32;
    let_next_begin();
    wait_for_previous();
    double v = fold_run(x, n, run);
    if (threadIdx.x % 32 == 0 && run * FOLDED < n)
        sum[run] = v;
}

/* One block of threads: the last two levels, of FOLDED * FOLDED sums at most. */
enum { FINISH_THREADS = 1024 };

static __global__ void __launch_bounds__(FINISH_THREADS)
    finish_offset(const double *sum, uint64_t sums, uint64_t n, float *offset)
{
    __shared__ double level[FOLDED];
    let_next_begin();
    wait_for_previous();
    for (int i = threadIdx.x / 32; i < FOLDED; i += FINISH_THREADS / 32) {
        double v = i * FOLDED < sums ? fold_run(sum, sums, i) : 0;
        if (threadIdx.x % 32 == 0)
            level[i] = v;
    }
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    double all = fold_run(level, FOLDED, 0);
    if (threadIdx.x == 0)
        *offset = qm_bf16_to_f32(qm_f32_to_bf16((float)(all / (double)n)));
}

static uint64_t folds(uint64_t n) { return (n + FOLDED - 1) / FOLDED; }

static unsigned fold_grid(uint64_t n) { return (unsigned)((folds(n) + NESTED_WARPS - 1) / NESTED_WARPS); }

uint64_t qm_nested_scratch(uint64_t n) { return folds(n) + folds(folds(n)); }

cudaError_t qm_nested_offset(const float *absmax, uint64_t n, double *scratch, float *offset, cudaStream_t s)
{
    uint64_t sums = folds(n);
    cudaError_t r = launch(fold<float>, fold_grid(n), NESTED_THREADS, 0, s, absmax, n, scratch);
    if (!r && sums > FOLDED * FOLDED) {
        r = launch(fold<double>, fold_grid(sums), NESTED_THREADS, 0, s, scratch, sums, scratch + sums);
        scratch += sums;
        sums = folds(sums);
    }
    return r ? r : launch(finish_offset, 1, FINISH_THREADS, 0, s, scratch, sums, n, offset);
}

/* ---- codes ---------------------------------------------------------------------------------------
 *
 * The code of v is 127 + k or 127 - k, k being how many of the 128 thresholds between magnitudes |v|
 * exceeds.  The upper bits of |v|, down to the sixth of the mantissa, leave at most one threshold open: a
 * table says how many lie below.  Ties go to the even code, so a threshold that belongs to an even k is taken
 * one bit lower, to be exceeded by its own value. */

enum { NESTED_BINS = 23 * 64 + 1, NESTED_LOWEST = (127 - 22) << 6 }; /* 2^-22 ... 2, a bin being 2^17 bits */

struct nested_tables {
    uint32_t threshold[129]; /* bits of f32; the last is infinite */
    uint8_t below[NESTED_BINS + 3];
};
static_assert(sizeof(nested_tables) % 4 == 0, "copied by words");

__device__ inline uint32_t nested_bin(uint32_t magnitude)
{
    int bin = (int)(magnitude >> 17) - NESTED_LOWEST;
    return min(max(bin, 0), NESTED_BINS - 1);
}

static __device__ nested_tables nested_made; /* constants of the module, made by qm_kernels_prepare, */
static __device__ float nested_value[256];   /* as are the values of codes */

static __global__ void make_nested_tables()
{
    nested_tables &t = nested_made;
    for (uint32_t code = threadIdx.x; code < 256; code += blockDim.x)
        nested_value[code] = qm_dynamic8_value(code);
    for (uint32_t k = threadIdx.x; k < 129; k += blockDim.x)
        t.threshold[k] = k == 128 ? 0x7f800000u : qm_f32_bits(qm_dynamic8_middle(127 + k)) - (k % 2 == 0);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < NESTED_BINS; i += blockDim.x) {
        uint32_t k = 0;
        while (k < 128 && nested_bin(t.threshold[k]) < i)
            k++;
        t.below[i] = (uint8_t)k;
    }
}

__device__ inline void fill_nested_tables(nested_tables &t)
{
    for (uint32_t i = threadIdx.x; i < sizeof t / 4; i += blockDim.x)
        ((uint32_t *)&t)[i] = ((const uint32_t *)&nested_made)[i];
    __syncthreads();
}

__device__ inline uint32_t nested_code(const nested_tables &t, float v)
{
    uint32_t u = __float_as_uint(v), magnitude = u & 0x7fffffffu, k = t.below[nested_bin(magnitude)];
    k += magnitude > t.threshold[k];
    if (magnitude > 0x7f800000u) /* NaN */
        return 0;
    return u >> 31 ? 127 - min(k, 127) : 127 + k;
}

/* A warp to a block of 256 scales. */
static __global__ void __launch_bounds__(NESTED_THREADS)
    nested_encode(const float *absmax, uint64_t n, const float *offset, /* which the kernel in front writes: no __restrict__ */
                  uint8_t *__restrict__ codes, float *__restrict__ nested)
{
    __shared__ nested_tables t;
    fill_nested_tables(t);
    wait_for_previous();
    const float moved_by = *offset;
    const uint64_t blocks = (n + FOLDED - 1) / FOLDED, step = (uint64_t)gridDim.x * NESTED_WARPS;
    for (uint64_t b = (uint64_t)blockIdx.x * NESTED_WARPS + threadIdx.x / 32; b < blocks; b += step) {
        float v[8], most = -0x1.fffffep127f;
        uint64_t at = b * FOLDED + threadIdx.x % 32;
        for (int k = 0; k < 8; k++) {
            bool there = at + k * 32 < n;
            v[k] = there ? absmax[at + k * 32] - moved_by : 0;
            if (there)
                most = fmaxf(most, qm_ftz(fabsf(v[k]))); /* NaN is passed over */
        }
        for (int mask = 16; mask; mask /= 2)
            most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
        float scale = qm_rcp(most);
        for (int k = 0; k < 8; k++)
            if (at + k * 32 < n)
                codes[at + k * 32] = (uint8_t)nested_code(t, times_ftz(v[k], scale));
        if (threadIdx.x % 32 == 0)
            nested[b] = most;
    }
}

cudaError_t qm_nested_encode(const float *absmax, uint64_t n, const float *offset, uint8_t *codes,
                             float *nested, cudaStream_t s)
{
    uint64_t blocks = (n + FOLDED - 1) / FOLDED, grid = (blocks + NESTED_WARPS - 1) / NESTED_WARPS;
    return launch(nested_encode, (unsigned)(grid < 4096 ? grid : 4096), NESTED_THREADS, 0, s, absmax, n, offset, codes, nested);
}

static __global__ void nested_decode(const uint8_t *codes, const float *nested, uint64_t n, float offset,
                                     float *absmax)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
        absmax[i] = times_ftz(qm_dynamic8_value(codes[i]), nested[i / FOLDED]) + offset;
}

cudaError_t qm_nested_decode(const uint8_t *codes, const float *nested, uint64_t n, float offset,
                             float *absmax, cudaStream_t s)
{
    uint64_t grid = (n + 255) / 256;
    nested_decode<<<(unsigned)(grid < 4096 ? grid : 4096), 256, 0, s>>>(codes, nested, n, offset, absmax);
    return cudaGetLastError();
}

#endif
