/* five_bits.h: the packing of ../five_bits.h with AVX2. */
#ifndef QM_AVX2_FIVE_BITS_H
#define QM_AVX2_FIVE_BITS_H

#include "codes.h"

/* The bits at `at`, the pairs after them. */
static inline void qm_fast_five_bits_pack(__m256i codes, uint8_t *at)
{
    int32_t bits = _mm256_movemask_epi8(_mm256_slli_epi16(codes, 3)); /* bit 4 to the sign */
    memcpy(at, &bits, sizeof bits);
    codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4);
    _mm_storeu_si128((__m128i *)(at + sizeof bits), _mm_or_si128(_mm256_castsi256_si128(codes), high));
}

static inline __m256i qm_fast_five_bits_unpack(const uint8_t *at)
{
    __m256i sixteen = _mm256_and_si256(qm_spread32(at), _mm256_set1_epi8(16));
    return _mm256_or_si256(qm_unpair32(at + 4), sixteen);
}

#endif
