/* q5_k with AVX2: a block at a time; see q5_k_lanes.h. */
#include "k32.h"
#include "wide.h"

#include "../q5_k_lanes.h"

/* Bit 4 of 32 codes, from bit i of the bytes that hold it. */
static inline __m256i bit4(__m256i fifth, int i)
{
    __m256i moved = i < 4 ? _mm256_sll_epi16(fifth, _mm_cvtsi32_si128(4 - i))
                          : _mm256_srl_epi16(fifth, _mm_cvtsi32_si128(i - 4));
    return _mm256_and_si256(moved, _mm256_set1_epi8(16));
}

static inline void decode_block(const uint8_t *at, float *y)
{
    const __m256i nibble = _mm256_set1_epi8(15), fifth = qm_load32(at + offsetof(struct qm_q5_k, fifth));
    const uint8_t *pair = at + offsetof(struct qm_q5_k, pair);
    qm_k32_steps s = qm_k32_steps_of(at);
    for (int g = 0; g < 4; g++, y += 64) {
        __m256i pairs = qm_load32(pair + 32 * g);
        __m256i low = _mm256_and_si256(pairs, nibble);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
        qm_k32_sub(&s, 2 * g, _mm256_or_si256(low, bit4(fifth, 2 * g)), y);
        qm_k32_sub(&s, 2 * g + 1, _mm256_or_si256(high, bit4(fifth, 2 * g + 1)), y + 32);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_K32_BLOCK, y += QM_K32_BLOCK, at += sizeof(struct qm_q5_k))
        decode_block(at, y);
}

const qm_fast qm_avx2_q5_k = {.encode = encode, .decode = decode, .encode_important = encode_important};
