/* q4_k with AVX2: a block at a time; see q4_k_lanes.h. */
#include "k32.h"
#include "wide.h"

#include "../q4_k_lanes.h"

static inline void decode_block(const uint8_t *at, float *y)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const uint8_t *pair = at + offsetof(struct qm_q4_k, pair);
    qm_k32_steps s = qm_k32_steps_of(at);
    for (int g = 0; g < 4; g++, y += 64) {
        __m256i pairs = qm_load32(pair + 32 * g);
        qm_k32_sub(&s, 2 * g, _mm256_and_si256(pairs, nibble), y);
        qm_k32_sub(&s, 2 * g + 1, _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble), y + 32);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_K32_BLOCK, y += QM_K32_BLOCK, at += sizeof(struct qm_q4_k))
        decode_block(at, y);
}

const qm_fast qm_avx2_q4_k = {.encode = encode, .decode = decode, .encode_important = encode_important};
