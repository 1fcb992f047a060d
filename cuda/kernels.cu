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
#include "rcp.cuh"

#include "generic.cuh"

#include "nibbles.cuh"

#include "nested.cuh"

#include "blocks32.cuh"
#include "rows.cuh"
#include "sums.cuh"
