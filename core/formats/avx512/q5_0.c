/* q5_0 with AVX-512, where columns differ in importance; see q5_0_lanes.h. */
#include "wide.h"

#include "../q5_0_lanes.h"

const qm_fast qm_avx512_q5_0 = {.encode_important = encode_important};
