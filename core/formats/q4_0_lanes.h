/* q4_0_lanes.h: q4_0 where columns differ in importance, a block to a lane; included after wide.h. */
#ifndef QM_Q4_0_LANES_H
#define QM_Q4_0_LANES_H

#include "important32.h"
#include "q4_0.h"

extern const qm_format qm_format_q4_0;

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    important_blocks b;
    important_symmetric(x, importance, blocks, power, 8, &b);
    for (size_t i = 0; i < blocks; i++, out += sizeof(struct qm_q4_0))
        qm_q4_0_pack(b.scale[i], b.code[i], out);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q4_0, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
