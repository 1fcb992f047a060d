/* launch.cuh: launching a kernel so that it may begin before the one in front of it has ended. */
#ifndef QM_LAUNCH_CUH
#define QM_LAUNCH_CUH

/* What the GPU that is in use has. */
static inline int of_device(cudaDeviceAttr what)
{
    int device = 0, value = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, what, device);
    return value;
}
static inline uint32_t multiprocessors() { return (uint32_t)of_device(cudaDevAttrMultiProcessorCount); }

static inline bool begins_early() { return of_device(cudaDevAttrComputeCapabilityMajor) >= 9; }

template <class... P, class... A>
static cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, cudaStream_t s, A &&...args)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return cudaSuccess;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = grid, c.blockDim = dim3(threads), c.dynamicSmemBytes = shared, c.stream = s;
    c.attrs = &early, c.numAttrs = begins_early() ? 1 : 0;
    return cudaLaunchKernelEx(&c, kernel, P(args)...);
}

/* Programmatic dependent launch: the next kernel may begin; and what came before this one is done. */
__device__ inline void let_next_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
