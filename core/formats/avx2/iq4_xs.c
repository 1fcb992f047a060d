/* iq4_xs with AVX2: a block at a time; see iq4_xs_lanes.h. */
#include "iq4.h"
#include "wide.h"

#include "../iq4_xs_lanes.h"

static inline void decode_block(const uint8_t *at, float *y)
{
    struct qm_iq4_xs head;
    memcpy(&head, at, offsetof(struct qm_iq4_xs, pair));
    const uint8_t *pair = at + offsetof(struct qm_iq4_xs, pair);
    float unit = qm_f16_to_f32(head.d);
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        float d = unit * (float)((int)qm_iq4_xs_scale(&head, j) - 32);
        qm_iq4_unpair(pair + QM_IQ4_SUB / 2 * j, d, y + QM_IQ4_SUB * j);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_IQ4_XS_BLOCK, y += QM_IQ4_XS_BLOCK, at += sizeof(struct qm_iq4_xs))
        decode_block(at, y);
}

const qm_fast qm_avx2_iq4_xs = {.encode = encode, .decode = decode, .encode_important = encode_important};
