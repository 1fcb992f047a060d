/* q3_k with AVX-512: a block at a time; see q3_k_lanes.h. */
#include "wide.h"

#include "../q3_k_lanes.h"

const qm_fast qm_avx512_q3_k = {.encode = encode, .encode_important = encode_important};
