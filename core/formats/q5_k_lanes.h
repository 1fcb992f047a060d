/* q5_k_lanes.h: q5_k with a sub-block to a lane; included after wide.h. */
#ifndef QM_Q5_K_LANES_H
#define QM_Q5_K_LANES_H

#include <stddef.h>

#include "k32_lanes.h"
#include "q5_k.h"

extern const qm_format qm_format_q5_k;

static inline void pack(const struct qm_k32 *head, const uint8_t *code, uint8_t *out)
{
    const __m256i nibble = _mm256_set1_epi8(15), sixteen = _mm256_set1_epi8(16);
    __m256i fifth = _mm256_setzero_si256();
    memcpy(out, head, sizeof *head);
    uint8_t *pair = out + offsetof(struct qm_q5_k, pair);
    for (int g = 0; g < 4; g++, code += 64, pair += 32) {
        __m256i a = qm_load32(code), b = qm_load32(code + 32);
        __m256i high = _mm256_slli_epi16(_mm256_and_si256(b, nibble), 4);
        qm_store32(pair, _mm256_or_si256(_mm256_and_si256(a, nibble), high));
        __m256i two = _mm256_or_si256(_mm256_srli_epi16(_mm256_and_si256(a, sixteen), 4),
                                      _mm256_srli_epi16(_mm256_and_si256(b, sixteen), 3));
        fifth = _mm256_or_si256(fifth, _mm256_sll_epi16(two, _mm_cvtsi32_si128(2 * g)));
    }
    qm_store32(out + offsetof(struct qm_q5_k, fifth), fifth);
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    (void)power;
    k32_encode_blocks(&qm_q5_k_search, pack, sizeof(struct qm_q5_k), x, importance, blocks, out);
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_q5_k, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q5_k, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
