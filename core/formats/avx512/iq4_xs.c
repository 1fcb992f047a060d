/* iq4_xs with AVX-512: two blocks at a time; see iq4_xs_lanes.h. */
#include "wide.h"

#include "../iq4_xs_lanes.h"

const qm_fast qm_avx512_iq4_xs = {.encode = encode, .encode_important = encode_important};
