/* kernels.cu: all code for the GPU, in one piece, so that its parts share qm_rcp's table and the formats.
 *
 * Compiled with --fmad=false and never with fast-math: what a format's own code computes is the product. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cuda_formats.cuh" /* written by formats.sh into the build folder */

#include "../core/double_quant.h"
#include "kernels.h"

#include "elements.cuh"
#include "launch.cuh"
#include "rcp.cuh"

#include "generic.cuh"

#include "nibbles.cuh"
#include "nibbles_decode.cuh"

#include "nested.cuh"

#include "blocks32.cuh"
#include "rows.cuh"
#include "values.cuh"
#include "sums.cuh"
#include "largest.cuh"
#include "plain.cuh"

cudaError_t qm_kernels_prepare(const uint8_t *deltas, bool *own_rcp, cudaStream_t s)
{
    int differing = 0, *count = NULL;
    cudaError_t r = cudaMemcpyToSymbolAsync(rcp_deltas, deltas, sizeof rcp_deltas, 0, cudaMemcpyHostToDevice, s);
    if (r == cudaSuccess)
        r = cudaMallocAsync(&count, sizeof *count, s);
    if (r != cudaSuccess)
        return r;
    cudaMemsetAsync(count, 0, sizeof *count, s);
    rcp_compare<<<(1u << 23) / 256, 256, 0, s>>>(count);
    make_nested_tables<<<1, 256, 0, s>>>();
    cudaMemcpyAsync(&differing, count, sizeof differing, cudaMemcpyDeviceToHost, s);
    cudaFreeAsync(count, s);
    r = cudaStreamSynchronize(s);
    if (r != cudaSuccess)
        return r;
    *own_rcp = differing == 0;
    int looked_up = differing != 0;
    r = cudaMemcpyToSymbolAsync(rcp_looked_up, &looked_up, sizeof looked_up, 0, cudaMemcpyHostToDevice, s);
    return r == cudaSuccess ? cudaStreamSynchronize(s) : r;
}
