/* rcp.cuh: core/rcp.h's approximate reciprocal on the GPU.
 *
 * The table was measured on sm_90, where the instruction is the definition.  NVIDIA promises nothing across
 * generations, so opening a GPU compares all mantissas (at three exponents) with the table, which takes less
 * than a millisecond, and where one differs the table itself is used from then on. */
#ifndef QM_RCP_CUH
#define QM_RCP_CUH

static __device__ uint8_t rcp_deltas[1u << 21];
static __constant__ int rcp_looked_up; /* constants of the module, set by qm_kernels_prepare (kernels.cu) */

__device__ inline float rcp_instruction(float a)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}

static __device__ __noinline__ float rcp_look_up(float a) { return qm_rcp_by(rcp_deltas, a); }

QM_FN float qm_rcp(float a) { return rcp_looked_up ? rcp_look_up(a) : rcp_instruction(a); }

static __global__ void rcp_compare(int *differing)
{
    uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
    for (uint32_t exponent = 2; exponent < 252; exponent += 83) {
        float a = qm_bits_f32(exponent << 23 | mantissa);
        if (qm_f32_bits(rcp_instruction(a)) != qm_f32_bits(rcp_look_up(a)))
            atomicAdd(differing, 1);
    }
}

#endif
