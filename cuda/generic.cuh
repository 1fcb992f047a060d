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

template <encode_group *ENCODE>
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
            ENCODE(stage + (uint64_t)threadIdx.x * g.stride, values_in(g, group), &g.codec, plane);
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
    {#name, generic_encode<format_##name::encode>, generic_decode<format_##name::decode>},

static const struct {
    const char *name;
    generic_kernel *encode, *decode;
} generic_kernels[] = {
    QM_EACH_FORMAT(QM_FORMAT_KERNELS){"codebook", generic_encode<qm_table_encode>,
                                      generic_decode<qm_table_decode>},
};

static cudaError_t generic_launch(bool encode, const char *name, const qm_generic *g, unsigned grid,
                                  cudaStream_t s)
{
    size_t shared = g->stage ? 0 : sizeof(float) * g->stride * g->together;
    for (size_t i = 0; i < sizeof generic_kernels / sizeof *generic_kernels; i++)
        if (strcmp(generic_kernels[i].name, name) == 0) {
            (encode ? generic_kernels[i].encode : generic_kernels[i].decode)<<<grid, QM_GENERIC_THREADS, shared, s>>>(*g);
            return cudaGetLastError();
        }
    return cudaErrorInvalidValue;
}

cudaError_t qm_generic_encode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    return generic_launch(true, name, g, grid, s);
}

cudaError_t qm_generic_decode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s)
{
    return generic_launch(false, name, g, grid, s);
}

#endif
