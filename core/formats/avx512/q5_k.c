/* q5_k with AVX-512: two blocks at a time; see q5_k_lanes.h. */
#include "wide.h"

#include "../q5_k_lanes.h"

const qm_fast qm_avx512_q5_k = {.encode = encode, .encode_important = encode_important};
