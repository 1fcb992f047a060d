/* q4_1 with AVX-512, where columns differ in importance; see q4_1_lanes.h. */
#include "wide.h"

#include "../q4_1_lanes.h"

const qm_fast qm_avx512_q4_1 = {.encode_important = encode_important};
