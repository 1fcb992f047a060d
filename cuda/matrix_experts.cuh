/* matrix_experts.cuh: products with matrices that the GPU chose, as matrix_decode.cuh multiplies.
 *
 * The tiles of all slots are numbered through: slot, which of its matrices, tile of that.  How many there are is known when
 * the kernel runs, and its blocks share them evenly. */
#ifndef QM_MATRIX_EXPERTS_CUH
#define QM_MATRIX_EXPERTS_CUH

/* A lane's scales of its next item, in registers: by way of shared memory (item_scales) a layer of Mixtral took 72.8 us instead of
 * 69.9, as x is loaded to registers here. */
template <qm_scale_type S, int GROUP> struct kept_scales {
    using scales = lane_scales<S, GROUP>;
    static constexpr int PER_ROW = scales::PER_ROW, BYTES = scales::BYTES;
    uint32_t word[scales::WORDS];
    float super[2][2], offset; /* nested absmax of both rows' groups; QM_SCALE_NESTED */

    __device__ void load(const uint8_t *at) { load_words<BYTES>(word, at); }

    /* tile: of the part; cols: of the matrix */
    template <class P> __device__ void load_nested(const P &p, uint32_t cols, uint32_t tile, uint32_t slice, uint32_t g, uint32_t t)
    {
        if constexpr (S == QM_SCALE_NESTED) {
            offset = p.offset;
            load_super<PER_ROW>(super, p.nested, p.rows, tile * QM_TILE_ROWS + g, slice * (QM_ITEM_COLS / GROUP) + t * PER_ROW, cols / GROUP);
        }
    }

    __device__ void decode(float scale[scales::COUNT], const float *dynamic) const
    {
        if constexpr (S != QM_SCALE_NESTED)
            scales::decode(scale, word);
        else
#pragma unroll
            for (int i = 0; i < scales::COUNT; i++)
                scale[i] = __fadd_rn(__fmul_rn(dynamic[word[i / 4] >> 8 * (i % 4) & 255], super[i / PER_ROW][i % PER_ROW / ((PER_ROW + 1) / 2)]), offset);
    }
};

constexpr uint32_t EXPERTS_WARPS = DECODE_WARPS / 2, EXPERTS_THREADS = EXPERTS_WARPS * 32;

struct experts_job {
    const qm_expert *experts[2];
    float *y[2];
    uint32_t products;
    qm_slots slots;
    qm_half x;
    bool shared;
    const float *dynamic;
    float level[16], factor;
    uint32_t rows, cols, tiles, slices; /* of one matrix */
    uint32_t together;                  /* tiles whose sums fit into shared memory */
};

/* Where a tile of all is. */
struct experts_place {
    uint32_t slot, which, tile;

    __device__ experts_place(const experts_job &j, uint32_t tile_of_all)
        : slot(tile_of_all / (j.products * j.tiles)), which(tile_of_all / j.tiles % j.products), tile(tile_of_all % j.tiles)
    {
    }
    __device__ qm_expert expert(const experts_job &j) const
    {
        const qm_expert *e = (which ? j.experts[1] : j.experts[0]) + j.slots.expert[slot];
        return *e;
    }
};

template <int M> __device__ inline void finish_experts(const experts_job &j, const float *sums, uint32_t first, uint32_t tiles)
{
    for (uint32_t i = threadIdx.x; i < tiles * M * QM_TILE_ROWS; i += EXPERTS_THREADS) {
        uint32_t row = i % QM_TILE_ROWS, token = i / QM_TILE_ROWS % M, tile = i / (QM_TILE_ROWS * M);
        const experts_place p(j, first + tile);
        uint32_t n = p.tile * QM_TILE_ROWS + row;
        if (n >= j.rows || j.slots.token[p.slot * M + token] < 0)
            continue;
        const float *part = sums + (uint64_t)tile * j.slices * M * QM_TILE_ROWS + token * QM_TILE_ROWS + row;
        float sum = 0;
        for (uint32_t k = 0; k < j.slices; k++)
            sum += part[k * M * QM_TILE_ROWS];
        (p.which ? j.y[1] : j.y[0])[((uint64_t)p.slot * M + token) * j.rows + n] = sum * j.factor;
    }
}

template <int M, int GROUP, qm_scale_type S>
__global__ void __launch_bounds__(EXPERTS_THREADS, DECODE_WARPS / EXPERTS_WARPS) matrix_experts(const __grid_constant__ experts_job j)
{
    using scales = lane_scales<S, GROUP>;
    constexpr uint32_t SCALES = QM_ITEM_UNITS * QM_UNIT_BYTES, ITEM = SCALES + 32 * scales::BYTES;
    using layout = decode_layout<0, 0, S>;
    extern __shared__ uint4 shared[];
    uint8_t *memory = (uint8_t *)shared;
    float *dynamic = (float *)(memory + layout::dynamic(EXPERTS_WARPS)), *sums = (float *)(memory + layout::sums(EXPERTS_WARPS));
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    let_next_begin();
    fill_pairs((uint32_t *)memory, j.level, EXPERTS_THREADS);
    if (S == QM_SCALE_NESTED)
        for (uint32_t i = threadIdx.x; i < 256; i += EXPERTS_THREADS)
            dynamic[i] = __ldg(j.dynamic + i);
    __syncthreads();
    const uint32_t pairs = (uint32_t)__cvta_generic_to_shared(memory) + 4 * lane;
    wait_for_previous();

    const uint64_t all = (uint64_t)*j.slots.count * j.products * j.tiles;
    const uint32_t tile0 = (uint32_t)(blockIdx.x * all / gridDim.x), tiles = (uint32_t)((blockIdx.x + 1) * all / gridDim.x) - tile0;
    const uint32_t items = tiles * j.slices, units = j.x.stride / QM_UNIT_COLS;
    uint4 w[QM_ITEM_UNITS];
    kept_scales<S, GROUP> raw;
    auto begin = [&](uint32_t item, bool codes) { /* loads an item's scales; gives where its codes are */
        const experts_place p(j, tile0 + item / j.slices);
        const qm_expert e = p.expert(j);
        const uint32_t slice = item % j.slices;
        const uint8_t *at = (const uint8_t *)e.values + ((uint64_t)p.tile * j.slices + slice) * ITEM;
        decode_part part = {};
        part.nested = e.nested, part.offset = e.offset, part.rows = j.rows;
        raw.load(at + SCALES + lane * scales::BYTES);
        raw.load_nested(part, j.cols, p.tile, slice, g, t);
        if (codes)
#pragma unroll
            for (int u = 0; u < QM_ITEM_UNITS; u++)
                w[u] = load_once(at + u * QM_UNIT_BYTES + lane * 16);
        return at;
    };
    uint32_t item = warp;
    if (item < items)
        begin(item, true);
    for (uint32_t done = 0; done < tiles; done += j.together) {
        const uint32_t now = tiles - done < j.together ? tiles - done : j.together;
        for (uint32_t end = (done + now) * j.slices; item < end; item += EXPERTS_WARPS) {
            float scale[scales::COUNT], sum[2][2] = {{0, 0}, {0, 0}};
            raw.decode(scale, dynamic);
            const uint32_t unit0 = item % j.slices * QM_ITEM_UNITS;
            const uint32_t row0 = j.shared ? 0 : experts_place(j, tile0 + item / j.slices).slot * M;
            const __half *x = !j.shared || g % M == 0 ? (const __half *)j.x.half + (uint64_t)(row0 + g % M) * j.x.stride : NULL;
            x_scales<M, M> of_x;
            of_x.load(j.x.scale + (uint64_t)(row0 / QM_HALF_TOKENS) * units * QM_HALF_TOKENS + row0 % QM_HALF_TOKENS, unit0, 0, units, t);
            const bool more = item + EXPERTS_WARPS < items;
            const uint8_t *next = more ? begin(item + EXPERTS_WARPS, false) : NULL;
#pragma unroll
            for (int q = 0; q < M; q++) {
                operand_b<GROUP> b;
                b.load(x, (unit0 + g / M * M + q) * QM_UNIT_COLS, j.x.stride, t);
#pragma unroll
                for (int p = 0; p < 8 / M; p++) {
                    constexpr int IN_UNIT = GROUP < 64 ? 64 / GROUP : 1;
                    const int u = p * M + q;
                    add_unit<M, GROUP>(sum, w[u], b.word, pairs, (int)(2 * t) / M == p, u % 2, of_x.by[q], [&](int r, int i) {
                        int own = GROUP < 128 ? r * scales::PER_ROW + u % 2 * IN_UNIT + i : r;
                        return M == 2 ? scale[own] : __shfl_sync(~0u, scale[own], u / 2, 4);
                    });
                    if (more)
                        w[u] = load_once(next + u * QM_UNIT_BYTES + lane * 16);
                }
            }
            store_item<M>(sums + (uint64_t)(item - done * j.slices) * M * QM_TILE_ROWS, sum, g, t);
        }
        __syncthreads();
        finish_experts<M>(j, sums, tile0 + done, now);
        __syncthreads();
    }
}

template <int M, int GROUP, qm_scale_type S> static cudaError_t launch_experts(const experts_job &job, cudaStream_t s)
{
    static constexpr auto kernel = matrix_experts<M, GROUP, S>;
    experts_job j = job;
    constexpr uint32_t TAKEN = decode_layout<0, 0, S>::sums(EXPERTS_WARPS);
    const uint64_t all = (uint64_t)j.slots.most * j.products * j.tiles, slots = multiprocessors() * (DECODE_WARPS / EXPERTS_WARPS);
    const uint64_t grid = all < slots ? all : slots, most = grid ? (all + grid - 1) / grid : 1;
    const uint32_t each = j.slices * M * QM_TILE_ROWS; /* sums of a tile */
    const uint32_t room = sets_together(TAKEN, each, EXPERTS_WARPS);
    j.together = room < most ? room : (uint32_t)most;
    if (most && !room)
        return cudaErrorInvalidValue;
    const size_t shared = TAKEN + (size_t)j.together * each * sizeof(float);
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return r ? r : launch(kernel, dim3((unsigned)grid), EXPERTS_THREADS, shared, s, j);
}

template <int GROUP, qm_scale_type S> static cudaError_t experts_tokens(const experts_job &j, cudaStream_t s)
{
    return j.slots.each == 2   ? launch_experts<2, GROUP, S>(j, s)
           : j.slots.each == 4 ? launch_experts<4, GROUP, S>(j, s)
           : j.slots.each == 8 ? launch_experts<8, GROUP, S>(j, s)
                               : cudaErrorInvalidValue;
}

cudaError_t qm_matrix_experts(const qm_matrix *kind, const qm_expert *const *experts, float *const *y, int n, const qm_slots *slots,
                              const qm_half *x, bool shared, cudaStream_t s)
{
    experts_job j = {};
    for (int i = 0; i < n; i++)
        j.experts[i] = experts[i], j.y[i] = y[i];
    j.products = (uint32_t)n, j.slots = *slots, j.x = *x, j.shared = shared;
    j.dynamic = kind->dynamic, j.factor = kind->factor;
    memcpy(j.level, kind->level, sizeof j.level);
    j.rows = kind->rows, j.cols = kind->cols, j.tiles = qm_matrix_tiles(kind->rows), j.slices = qm_matrix_slices(kind->cols);
#define KIND(group_size, type)                                                                               \
    if (kind->group == group_size && kind->scale == type)                                                    \
        return experts_tokens<group_size, type>(j, s);
    MATRIX_KINDS
#undef KIND
    return cudaErrorInvalidValue;
}

#endif
