/* q4_k with AVX-512: two blocks at a time; see q4_k_lanes.h. */
#include "wide.h"

#include "../q4_k_lanes.h"

const qm_fast qm_avx512_q4_k = {.encode = encode, .encode_important = encode_important};
