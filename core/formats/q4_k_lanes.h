/* q4_k_lanes.h: q4_k with a sub-block to a lane; included after wide.h. */
#ifndef QM_Q4_K_LANES_H
#define QM_Q4_K_LANES_H

#include "k32_lanes.h"
#include "q4_k.h"

extern const qm_format qm_format_q4_k;

static inline void pack(const struct qm_k32 *head, const uint8_t *code, uint8_t *out)
{
    memcpy(out, head, sizeof *head);
    out += sizeof *head;
    for (int g = 0; g < 4; g++, code += 64, out += 32)
        qm_store32(out, _mm256_or_si256(qm_load32(code), _mm256_slli_epi16(qm_load32(code + 32), 4)));
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    (void)power;
    k32_encode_blocks(&qm_q4_k_search, pack, sizeof(struct qm_q4_k), x, importance, blocks, out);
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_q4_k, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q4_k, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
