/* iq4_nl_lanes.h: iq4_nl with a block to a lane; included after wide.h. */
#ifndef QM_IQ4_NL_LANES_H
#define QM_IQ4_NL_LANES_H

#include "iq4_lanes.h"
#include "iq4_nl.h"

extern const qm_format qm_format_iq4_nl;

/* Up to LANES blocks. */
LANES_APART void encode_blocks(const float *values, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    const iq4_tables t = iq4_tables_of();
    lanes x[QM_IQ4_SUB], w[QM_IQ4_SUB];
    uint8_t pair[LANES][QM_IQ4_SUB / 2];
    float d[LANES];
    (void)power;
    lanes_turn(values, blocks, QM_IQ4_SUB, x);
    if (importance) {
        lanes_turn(importance, blocks, QM_IQ4_SUB, w);
        importance_of(x, lanes_sum_squares(x, QM_IQ4_SUB) * lanes_of(2.0f / QM_IQ4_SUB), QM_IQ4_SUB, w);
    } else {
        lanes_squares(x, QM_IQ4_SUB, w);
    }
    lanes scale = iq4_fit(&t, x, w);
    lanes_store(d, scale);
    iq4_pack(&t, x, scale, pair);
    for (size_t i = 0; i < blocks; i++, out += sizeof(struct qm_iq4_nl)) {
        struct qm_iq4_nl b = {.d = qm_f32_to_f16(d[i])};
        memcpy(b.pair, pair[i], sizeof b.pair);
        memcpy(out, &b, sizeof b);
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_iq4_nl, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_iq4_nl, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
