/* ops.cu: the kernels of ops.h.  Activations have tolerances, not bytes, so the compiler may contract here. */
#include <cuda_fp16.h>
#include <stdint.h>

#include "ops.h"

#include "launch.cuh"
#include "mma.cuh"

#include "each.cuh"

/* Counters of finished blocks come first in the scratch memory of attention. */
QM_BOTH uint64_t qm_attention_counters_of(uint32_t tokens, uint32_t kv_heads)
{
    return ((uint64_t)tokens * kv_heads * 4 + 255) / 256 * 256;
}

#include "attention.cuh"
#include "plain_decode.cuh"
