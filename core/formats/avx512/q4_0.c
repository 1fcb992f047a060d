/* q4_0 with AVX-512, where columns differ in importance; see q4_0_lanes.h. */
#include "wide.h"

#include "../q4_0_lanes.h"

const qm_fast qm_avx512_q4_0 = {.encode_important = encode_important};
