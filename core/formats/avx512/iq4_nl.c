/* iq4_nl with AVX-512: sixteen blocks at a time; see iq4_nl_lanes.h. */
#include "wide.h"

#include "../iq4_nl_lanes.h"

const qm_fast qm_avx512_iq4_nl = {.encode = encode, .encode_important = encode_important};
