/* two_bits_lanes.h: the packing of two_bits.h, 32 bytes at a time; codes may have more bits. */
#ifndef QM_TWO_BITS_LANES_H
#define QM_TWO_BITS_LANES_H

static inline void two_bits_pack(const uint8_t *code, uint8_t packed[64])
{
    const __m256i three = _mm256_set1_epi8(3);
    for (int h = 0; h < 2; h++, code += 128, packed += 32) {
        __m256i a = _mm256_and_si256(qm_load32(code), three),
                b = _mm256_and_si256(qm_load32(code + 32), three);
        __m256i c = _mm256_and_si256(qm_load32(code + 64), three),
                d = _mm256_and_si256(qm_load32(code + 96), three);
        __m256i low = _mm256_or_si256(a, _mm256_slli_epi16(b, 2));
        __m256i high = _mm256_or_si256(_mm256_slli_epi16(c, 4), _mm256_slli_epi16(d, 6));
        qm_store32(packed, _mm256_or_si256(low, high));
    }
}

#endif
