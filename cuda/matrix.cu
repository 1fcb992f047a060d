/* matrix.cu: multiplying by 4-bit matrices; see matrix.h. */
#include <cuda_fp16.h>
#include <stddef.h>
#include <string.h>

#include "matrix.h"

#include "launch.cuh"
#include "mma.cuh"
#include "matrix_item.cuh"

#include "matrix_decode.cuh"
#include "matrix_experts.cuh"
#include "matrix_pack.cuh"
