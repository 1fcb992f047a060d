/* generic.cuh: one kernel each way that serves every format, by the format's own encode and decode.
 *
 * A block of threads takes `together` groups: all its threads bring their values into the stage, as f32 and
 * in order, and then one thread encodes one group.  Decoding runs the other way.  The stage is shared memory,
 * or the GPU's memory for groups too large for that.
 *
 *     stage    | group 0: block values, padding | group 1 ... | ... together
 */
#ifndef QM_GENERIC_CUH
#define QM_GENERIC_CUH

typedef void encode_group(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[]);
typedef void encode_important_group(const float *x, uint32_t n, const float *importance, float power, uint8_t *const plane[]);
typedef void decode_group(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y);

__device__ inline float *stage_of(const qm_generic &g)
{
    extern __shared__ float shared_stage[];
    return g.stage ? g.stage + (uint64_t)blockIdx.x * g.together * g.stride : shared_stage;
}

__device__ inline uint32_t values_in(const qm_generic &g, uint64_t group)
{
    uint64_t left = g.n - group * g.block;
    return left < g.block ? (uint32_t)left : g.block;
}

__device__ inline void planes_at(const qm_generic &g, uint64_t group, uint8_t *plane[QM_MAX_PLANES])
{
    for (int i = 0; i < QM_MAX_PLANES; i++)
        plane[i] = g.plane[i] + group * g.bytes[i];
}

/* move(value of the tensor, place in the stage) for all values of the groups from `first` on, a warp to a
 * group at a time. */
template <class F> __device__ inline void each_staged(const qm_generic &g, uint64_t first, F move)
{
    for (uint32_t k = threadIdx.x / 32; k < g.together && first + k < g.groups; k += QM_GENERIC_THREADS / 32) {
        uint32_t n = values_in(g, first + k);
        for (uint32_t j = threadIdx.x % 32; j < n; j += 32)
            move((first + k) * g.block + j, (uint64_t)k * g.stride + j);
    }
}

/* How a group is encoded. */
template <encode_group *ENCODE> struct all_alike {
    __device__ static void encode(const qm_generic &g, uint64_t group, const float *x, uint8_t *const plane[])
    {
        ENCODE(x, values_in(g, group), &g.codec, plane);
    }
};
template <encode_important_group *ENCODE> struct by_importance {
    __device__ static void encode(const qm_generic &g, uint64_t group, const float *x, uint8_t *const plane[])
    {
        const uint64_t first = group * g.block, row = first / g.codec.cols;
        ENCODE(x, g.block, g.codec.importance + (first - row * g.codec.cols), g.power ? g.power[row] : 0, plane);
    }
};

template <class HOW>
__global__ void __launch_bounds__(QM_GENERIC_THREADS) generic_encode(const __grid_constant__ qm_generic g)
{
    float *stage = stage_of(g);
    for (uint64_t first = (uint64_t)blockIdx.x * g.together; first < g.groups; first += (uint64_t)gridDim.x * g.together) {
        each_staged(g, first, [&](uint64_t i, uint64_t at) { stage[at] = load_one(g.values, g.dtype, i); });
        __syncthreads();
        uint64_t group = first + threadIdx.x;
        if (threadIdx.x < g.together && group < g.groups) {
            uint8_t *plane[QM_MAX_PLANES];
            planes_at(g, group, plane);
            HOW::encode(g, group, stage + (uint64_t)threadIdx.x * g.stride, plane);
        }
        __syncthreads();
    }
}

template <decode_group *DECODE>
__global__ void __launch_bounds__(QM_GENERIC_THREADS) generic_decode(const __grid_constant__ qm_generic g)
{
    float *stage = stage_of(g);
    for (uint64_t first = (uint64_t)blockIdx.x * g.together; first < g.groups; first += (uint64_t)gridDim.x * g.together) {
        uint64_t group = first + threadIdx.x;
        if (threadIdx.x < g.together && group < g.groups) {
            uint8_t *plane[QM_MAX_PLANES];
            planes_at(g, group, plane);
            DECODE((const uint8_t *const *)plane, values_in(g, group), &g.codec,
                   stage + (uint64_t)threadIdx.x * g.stride);
        }
        __syncthreads();
        each_staged(g, first, [&](uint64_t i, uint64_t at) { store_one(g.values, g.dtype, i, stage[at]); });
        __syncthreads();
    }
}

typedef void generic_kernel(qm_generic g);

/* The list of formats, from the folder: QM_FORMAT_KERNELS(name) for each. */
#define QM_FORMAT_KERNELS(name)                                                                              \
    {#name, generic_encode<all_alike<format_##name::encode>>, generic_decode<format_##name::decode>},

static const struct {
    const char *name;
    generic_kernel *encode, *decode;
} generic_kernels[] = {
    QM_EACH_FORMAT(QM_FORMAT_KERNELS){"codebook", generic_encode<all_alike<qm_table_encode>>,
                                      generic_decode<qm_table_decode>},
};

#define QM_IMPORTANT_KERNELS(name) {#name, generic_encode<by_importance<format_##name::encode_important>>},

static const struct {
    const char *name;
    generic_kernel *encode;
} important_kernels[] = {QM_EACH_IMPORTANT_FORMAT(QM_IMPORTANT_KERNELS)};

/* NULL: there is none of that name. */
static cudaError_t generic_launch(generic_kernel *kernel, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    if (!kernel)
        return cudaErrorInvalidValue;
    kernel<<<grid, QM_GENERIC_THREADS, g->stage ? 0 : sizeof(float) * g->stride * g->together, s>>>(*g);
    return cudaGetLastError();
}

template <class T, size_t N> static const T *kernel_named(const T (&of)[N], const char *name)
{
    for (const T &each : of)
        if (strcmp(each.name, name) == 0)
            return &each;
    return NULL;
}

cudaError_t qm_generic_encode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    const auto *k = kernel_named(generic_kernels, name);
    return generic_launch(k ? k->encode : NULL, g, grid, s);
}

cudaError_t qm_generic_decode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    const auto *k = kernel_named(generic_kernels, name);
    return generic_launch(k ? k->decode : NULL, g, grid, s);
}

cudaError_t qm_generic_encode_important(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    const auto *k = kernel_named(important_kernels, name);
    return generic_launch(k ? k->encode : NULL, g, grid, s);
}

/* Squares are added up from the first column to the last, as on the CPU, by one thread to a row; all bring them. */
enum { POWER_ROWS = 32, POWER_COLS = 128 };

static __global__ void __launch_bounds__(POWER_COLS)
    row_powers(const void *__restrict__ x, qm_dtype dtype, uint64_t rows, uint32_t cols, float *power)
{
    __shared__ float part[POWER_ROWS][POWER_COLS + 1];
    const uint64_t row = (uint64_t)blockIdx.x * POWER_ROWS;
    float sum = 0;
    for (uint32_t col = 0; col < cols; col += POWER_COLS) {
        for (uint32_t i = 0; i < POWER_ROWS; i++)
            part[i][threadIdx.x] = row + i < rows && col + threadIdx.x < cols
                                       ? load_one(x, dtype, (row + i) * cols + col + threadIdx.x)
                                       : 0;
        __syncthreads();
        for (uint32_t j = 0; threadIdx.x < POWER_ROWS && j < POWER_COLS && col + j < cols; j++)
            sum += part[threadIdx.x][j] * part[threadIdx.x][j];
        __syncthreads();
    }
    if (threadIdx.x < POWER_ROWS && row + threadIdx.x < rows)
        power[row + threadIdx.x] = sum / (float)cols;
}

cudaError_t qm_generic_power(const void *x, qm_dtype dtype, uint64_t rows, uint32_t cols, float *power, cudaStream_t s)
{
    row_powers<<<(unsigned)((rows + POWER_ROWS - 1) / POWER_ROWS), POWER_COLS, 0, s>>>(x, dtype, rows, cols, power);
    return cudaGetLastError();
}

#endif
