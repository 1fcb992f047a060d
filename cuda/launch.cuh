/* launch.cuh: launching a kernel so that it may begin before the one in front of it has ended. */
#ifndef QM_LAUNCH_CUH
#define QM_LAUNCH_CUH

static bool begins_early()
{
    int device = 0, generation = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, device);
    return generation >= 9;
}

/* Blocks in clusters of so many, which divides the grid's x; more than one needs Hopper. */
template <class... P, class... A>
static cudaError_t launch_clusters(void (*kernel)(P...), unsigned cluster, dim3 grid, unsigned threads, size_t shared, cudaStream_t s, A &&...args)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return cudaSuccess;
    cudaLaunchAttribute a[2] = {};
    unsigned n = 0;
    if (begins_early()) {
        a[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        a[n++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        a[n].id = cudaLaunchAttributeClusterDimension;
        a[n].val.clusterDim.x = cluster, a[n].val.clusterDim.y = a[n].val.clusterDim.z = 1;
        n++;
    }
    cudaLaunchConfig_t c = {};
    c.gridDim = grid, c.blockDim = dim3(threads), c.dynamicSmemBytes = shared, c.stream = s;
    c.attrs = a, c.numAttrs = n;
    return cudaLaunchKernelEx(&c, kernel, P(args)...);
}

template <class... P, class... A>
static cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned threads, size_t shared, cudaStream_t s, A &&...args)
{
    return launch_clusters(kernel, 1, grid, threads, shared, s, args...);
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
