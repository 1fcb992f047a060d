/* q2_k with AVX-512: a block at a time; see q2_k_lanes.h. */
#include "wide.h"

#include "../q2_k_lanes.h"

const qm_fast qm_avx512_q2_k = {.encode = encode, .encode_important = encode_important};
