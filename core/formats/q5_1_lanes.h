/* q5_1_lanes.h: q5_1 where columns differ in importance, a block to a lane; included after wide.h. */
#ifndef QM_Q5_1_LANES_H
#define QM_Q5_1_LANES_H

#include "important32.h"
#include "q5_1.h"

extern const qm_format qm_format_q5_1;

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    important_blocks b;
    important_affine(x, importance, blocks, power, 31, &b);
    for (size_t i = 0; i < blocks; i++, out += sizeof(struct qm_q5_1))
        qm_q5_1_pack(b.scale[i], b.least[i], b.code[i], out);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q5_1, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
