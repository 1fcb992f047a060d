/* iq4_nl with AVX2: eight blocks at a time; see iq4_nl_lanes.h. */
#include "iq4.h"
#include "wide.h"

#include "../iq4_nl_lanes.h"

static inline void decode_block(const uint8_t *at, float *y)
{
    qm_iq4_unpair(at + offsetof(struct qm_iq4_nl, pair), qm_load_half(at), y);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_IQ4_SUB, y += QM_IQ4_SUB, at += sizeof(struct qm_iq4_nl))
        decode_block(at, y);
}

const qm_fast qm_avx2_iq4_nl = {.encode = encode, .decode = decode, .encode_important = encode_important};
