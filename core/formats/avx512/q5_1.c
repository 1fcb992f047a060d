/* q5_1 with AVX-512, where columns differ in importance; see q5_1_lanes.h. */
#include "wide.h"

#include "../q5_1_lanes.h"

const qm_fast qm_avx512_q5_1 = {.encode_important = encode_important};
