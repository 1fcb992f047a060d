/* wide_results.cuh: how matrix_wide.cu makes results of sums: scales, bias, what is added. */
#ifndef QM_WIDE_RESULTS_CUH
#define QM_WIDE_RESULTS_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A lane's sums of a tile: rows n and 8 on, and for HALVES 2 those 64 on; tokens `token` and the next, of every eight.  Loads are
 * under way together, sixteen at a time: each takes as long as a thousand products. */
template <int TOKENS, int HALVES>
__device__ inline void store_tile(const wide_part &part, const qm_panel &x, const float sum[HALVES][TOKENS / 2], uint32_t n, uint32_t token, float factor)
{
    constexpr int ROWS = 2 * HALVES, EIGHTS = TOKENS / 8;
    const qm_product &p = part.p;
    float bias[ROWS], scale[EIGHTS][2];
    bool row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row[r] = n + r / 2 * 64 + r % 2 * 8 < part.rows;
        bias[r] = p.bias && row[r] ? p.bias[n + r / 2 * 64 + r % 2 * 8] : 0;
    }
#pragma unroll
    for (int i = 0; i < EIGHTS * 2; i++)
        scale[i / 2][i % 2] = token + i / 2 * 8 + i % 2 < x.tokens ? __ldcg(x.scale + token + i / 2 * 8 + i % 2) * factor : 0;
#pragma unroll
    for (int e = 0; e < EIGHTS; e += 2) {
        float add[2][2][ROWS];
        if (p.add)
#pragma unroll
            for (int i = 0; i < 4 * ROWS; i++) {
                const uint32_t at = token + (e + i / 2 % 2) * 8 + i % 2, r = i / 4;
                add[i / 2 % 2][i % 2][r] = at < x.tokens && row[r] ? __ldcg(p.add + (uint64_t)at * p.y_stride + n + r / 2 * 64 + r % 2 * 8) : 0;
            }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t at = token + (e + i / 2) * 8 + i % 2;
            if (at >= x.tokens)
                continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const uint64_t to = (uint64_t)at * p.y_stride + n + r / 2 * 64 + r % 2 * 8;
                const float v = sum[r / 2][(e + i / 2) * 4 + r % 2 * 2 + i % 2] * scale[e + i / 2][i % 2] + bias[r];
                if (!row[r])
                    continue;
                p.y[to] = v;
                if (p.add)
                    p.sum[to] = v + add[i / 2][i % 2][r];
            }
        }
    }
}

/* This block's share of a tile whose columns are dealt to `splits` blocks, up to MOST: four rows of a token a thread,
 * TOGETHER of them at once. */
template <int TOKENS, int MOST, int TOGETHER>
__device__ inline void join_blocks(const wide_part &part, const qm_panel &x, uint32_t sums, uint32_t rank, uint32_t splits, uint32_t tile_row,
                                   uint32_t token0, float factor)
{
    using shape = wide<TOKENS>;
    constexpr int FOURS = TOKENS * shape::ROWS / 4;
    const qm_product &p = part.p;
    const uint32_t step = splits * WIDE_CONSUMERS;
    for (uint32_t first = rank * WIDE_CONSUMERS + threadIdx.x; first < FOURS; first += TOGETHER * step) {
        float4 total[TOGETHER];
        float scale[TOGETHER], bias[TOGETHER][4], add[TOGETHER][4];
        uint32_t row[TOGETHER], token[TOGETHER];
        bool there[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const uint32_t at = first + i * step;
            row[i] = at % (shape::ROWS / 4) * 4, token[i] = at / (shape::ROWS / 4);
            there[i] = at < FOURS && token0 + token[i] < x.tokens && tile_row + row[i] < part.rows;
            scale[i] = there[i] ? __ldcg(x.scale + token0 + token[i]) * factor : 0;
            total[i] = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const uint32_t n = tile_row + row[i] + r;
                bias[i][r] = p.bias && there[i] && n < part.rows ? p.bias[n] : 0;
                add[i][r] = p.add && there[i] && n < part.rows ? __ldcg(p.add + (uint64_t)(token0 + token[i]) * p.y_stride + n) : 0;
            }
        }
        float4 v[MOST][TOGETHER];
#pragma unroll
        for (uint32_t k = 0; k < MOST; k++)
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                v[k][i] = there[i] && k < splits ? of_block(sums + (token[i] * shape::SUMS + row[i]) * 4, k) : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < MOST; k++)
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                total[i].x += v[k][i].x, total[i].y += v[k][i].y, total[i].z += v[k][i].z, total[i].w += v[k][i].w;
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const float of[4] = {total[i].x, total[i].y, total[i].z, total[i].w};
            const uint32_t n = tile_row + row[i];
            const uint64_t to = (uint64_t)(token0 + token[i]) * p.y_stride + n;
#pragma unroll
            for (int r = 0; r < 4; r++) {
                if (!there[i] || n + r >= part.rows)
                    continue;
                const float v = of[r] * scale[i] + bias[i][r];
                p.y[to + r] = v;
                if (p.add)
                    p.sum[to + r] = v + add[i][r];
            }
        }
    }
}

#endif
#endif
