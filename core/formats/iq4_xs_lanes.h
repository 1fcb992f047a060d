/* iq4_xs_lanes.h: iq4_xs with a sub-block to a lane; included after wide.h.  Sixteen lanes are two blocks. */
#ifndef QM_IQ4_XS_LANES_H
#define QM_IQ4_XS_LANES_H

#include "iq4_lanes.h"
#include "iq4_xs.h"

extern const qm_format qm_format_iq4_xs;

enum { BLOCKS = LANES / QM_IQ4_XS_SUBS };

/* What each weight counts; squares are the sums of each block's. */
static inline void weigh(const lanes *x, const float *importance, size_t blocks, const float *squares,
                         lanes *w)
{
    float power[LANES];
    if (!importance) {
        lanes_squares(x, QM_IQ4_SUB, w);
        return;
    }
    for (size_t l = 0; l < LANES; l++)
        power[l] = squares[l / QM_IQ4_XS_SUBS < blocks ? l / QM_IQ4_XS_SUBS : blocks - 1]
                   * (2.0f / QM_IQ4_XS_BLOCK);
    lanes_turn(importance, blocks * QM_IQ4_XS_SUBS, QM_IQ4_SUB, w);
    importance_of(x, lanes_load(power), QM_IQ4_SUB, w);
}

/* Up to BLOCKS blocks. */
static inline void encode_few(const iq4_tables *t, const float *values, const float *importance,
                              size_t blocks, const float *squares, uint8_t *out)
{
    lanes x[QM_IQ4_SUB], w[QM_IQ4_SUB];
    float scale[LANES], d[LANES];
    uint8_t pair[LANES][QM_IQ4_SUB / 2];
    struct qm_iq4_xs b[BLOCKS];
    lanes_turn(values, blocks * QM_IQ4_XS_SUBS, QM_IQ4_SUB, x);
    weigh(x, importance, blocks, squares, w);
    lanes_store(scale, iq4_fit(t, x, w));
    for (size_t i = 0; i < BLOCKS; i++)
        qm_iq4_xs_round(scale + QM_IQ4_XS_SUBS * i, &b[i], d + QM_IQ4_XS_SUBS * i);
    iq4_pack(t, x, lanes_load(d), pair);
    for (size_t i = 0; i < blocks; i++, out += sizeof *b) {
        memcpy(b[i].pair, pair[QM_IQ4_XS_SUBS * i], sizeof b[i].pair);
        memcpy(out, &b[i], sizeof *b);
    }
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    const iq4_tables t = iq4_tables_of();
    float squares[LANES];
    (void)power;
    if (importance)
        block_squares(x, blocks, QM_IQ4_XS_BLOCK, squares);
    for (size_t i = 0; i < blocks; i += BLOCKS) {
        size_t few = blocks - i < BLOCKS ? blocks - i : BLOCKS, at = QM_IQ4_XS_BLOCK * i;
        encode_few(&t, x + at, importance ? importance + at : NULL, few, squares + i,
                   out + sizeof(struct qm_iq4_xs) * i);
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_iq4_xs, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_iq4_xs, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
