/* program.cu: the kernel of program.h. */
#include <cuda_fp16.h>
#include <string.h>

#include "program.h"

#include "launch.cuh"
#include "mma.cuh"
#include "matrix_item.cuh"
#include "functions.cuh"

#include "walk.cuh"
