/* ops.cu: the kernels of ops.h.  Activations have tolerances, not bytes, so the compiler may contract here. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "ops.h"

#include "launch.cuh"
#include "mma.cuh"
#include "order.cuh"
#include "functions.cuh"

#include "each.cuh"
#include "panel.cuh"

#include "attention.cuh"
#include "attention_prompt.cuh"
#include "plain_decode.cuh"

#include "experts.cuh"
