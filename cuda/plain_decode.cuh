/* plain_decode.cuh: f32, f16 and bf16 matrices times up to eight tokens.
 *
 * A warp has R rows at a time and reads 8 of each one's weights a lane, the next while it multiplies these; x, f32, comes
 * through the first-level cache, once for all R rows. */
#ifndef QM_PLAIN_DECODE_CUH
#define QM_PLAIN_DECODE_CUH

enum { PLAIN_THREADS = 256, PLAIN_WARPS = PLAIN_THREADS / 32 };

template <qm_dtype D> struct eight_weights {
    uint4 part[D == QM_F32 ? 2 : 1];

    __device__ void load(const void *w, uint64_t i)
    {
        const char *p = (const char *)w + i * (D == QM_F32 ? 4 : 2);
        part[0] = load_once(p);
        if constexpr (D == QM_F32)
            part[1] = load_once(p + 16);
    }
    __device__ void unpack(float v[8]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t word = (&part[0].x)[i];
            if constexpr (D == QM_F32) {
                v[i] = __uint_as_float(word), v[4 + i] = __uint_as_float((&part[1].x)[i]);
            } else if constexpr (D == QM_F16) {
                float2 two = __half22float2(*(__half2 *)&word);
                v[2 * i] = two.x, v[2 * i + 1] = two.y;
            } else {
                v[2 * i] = __uint_as_float(word << 16), v[2 * i + 1] = __uint_as_float(word & 0xffff0000u);
            }
        }
    }
};

template <qm_dtype D, int M, int R>
__global__ void __launch_bounds__(PLAIN_THREADS)
    plain_decode(const void *__restrict__ w, uint32_t rows, uint32_t cols, const float *x, uint32_t tokens, const __grid_constant__ qm_product p)
{
    const uint32_t lane = threadIdx.x % 32, warp = blockIdx.x * PLAIN_WARPS + threadIdx.x / 32, row0 = warp * R;
    let_next_begin();
    if (row0 >= rows)
        return;
    eight_weights<D> now[R];
#pragma unroll
    for (int r = 0; r < R; r++)
        if (row0 + r < rows && lane * 8 < cols)
            now[r].load(w, (uint64_t)(row0 + r) * cols + lane * 8);
    wait_for_previous();
    float sum[R][M] = {};
    for (uint32_t k = lane * 8; k < cols; k += 256) {
        eight_weights<D> next[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            if (row0 + r < rows && k + 256 < cols)
                next[r].load(w, (uint64_t)(row0 + r) * cols + k + 256);
        float v[R][8];
#pragma unroll
        for (int r = 0; r < R; r++)
            now[r].unpack(v[r]);
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (m >= (int)tokens)
                break;
            uint4 a = load_fresh(x + (uint64_t)m * cols + k), b = load_fresh(x + (uint64_t)m * cols + k + 4);
            const float y[8] = {__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w),
                                __uint_as_float(b.x), __uint_as_float(b.y), __uint_as_float(b.z), __uint_as_float(b.w)};
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sum[r][m] = __fmaf_rn(v[r][i], y[i], sum[r][m]);
        }
#pragma unroll
        for (int r = 0; r < R; r++)
            now[r] = next[r];
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            float v = sum_in_warp(sum[r][m]);
            uint32_t n = row0 + r;
            if (lane || n >= rows || m >= (int)tokens)
                continue;
            uint64_t at = (uint64_t)m * p.y_stride + n;
            v += p.bias ? p.bias[n] : 0;
            p.y[at] = v;
            if (p.add)
                p.sum[at] = v + p.add[at];
        }
}

/* Any shape: a warp to a row and token. */
template <qm_dtype D>
__global__ void plain_any(const void *w, uint32_t rows, uint32_t cols, const float *x, const __grid_constant__ qm_product p)
{
    const uint32_t lane = threadIdx.x % 32, n = blockIdx.x * PLAIN_WARPS + threadIdx.x / 32, m = blockIdx.y;
    let_next_begin();
    wait_for_previous();
    if (n >= rows)
        return;
    float sum = 0;
    for (uint32_t k = lane; k < cols; k += 32)
        sum = __fmaf_rn(plain_value(w, D, (uint64_t)n * cols + k), x[(uint64_t)m * cols + k], sum);
    sum = sum_in_warp(sum);
    uint64_t at = (uint64_t)m * p.y_stride + n;
    if (lane)
        return;
    sum += p.bias ? p.bias[n] : 0;
    p.y[at] = sum;
    if (p.add)
        p.sum[at] = sum + p.add[at];
}

template <qm_dtype D>
static cudaError_t plain_tokens(const void *w, uint32_t rows, uint32_t cols, const float *x, uint32_t tokens, const qm_product *p, cudaStream_t s)
{
    constexpr int R = 4;
    if (cols % 8 || ((uintptr_t)w | (uintptr_t)x) % 16)
        return launch(plain_any<D>, dim3((rows + PLAIN_WARPS - 1) / PLAIN_WARPS, tokens), PLAIN_THREADS, 0, s, w, rows, cols, x, *p);
    dim3 grid((rows + R * PLAIN_WARPS - 1) / (R * PLAIN_WARPS));
    auto kernel = tokens == 1 ? plain_decode<D, 1, R> : tokens == 2 ? plain_decode<D, 2, R> : tokens <= 4 ? plain_decode<D, 4, R> : plain_decode<D, 8, R>;
    return launch(kernel, grid, PLAIN_THREADS, 0, s, w, rows, cols, x, tokens, *p);
}

cudaError_t qm_plain_decode(const void *w, qm_dtype dtype, uint32_t rows, uint32_t cols, const float *x, uint32_t tokens,
                            const qm_product *p, cudaStream_t s)
{
    switch (dtype) {
    case QM_F32: return plain_tokens<QM_F32>(w, rows, cols, x, tokens, p, s);
    case QM_F16: return plain_tokens<QM_F16>(w, rows, cols, x, tokens, p, s);
    default: return plain_tokens<QM_BF16>(w, rows, cols, x, tokens, p, s);
    }
}

#endif
