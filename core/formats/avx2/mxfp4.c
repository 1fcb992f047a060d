/* mxfp4 with AVX2. */
#include "codes.h"

#include "../mxfp4.h"

extern const qm_format qm_format_mxfp4;

/* Eight codes: sizes by counting the middles that they are above, then signs. */
static inline __m256i codes8(const float *x, __m256 inverse)
{
    static const float middle[] = {1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    __m256 v = _mm256_loadu_ps(x);
    __m256 size = _mm256_mul_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v), inverse);
    __m256i some = _mm256_castps_si256(_mm256_cmp_ps(size, _mm256_set1_ps(0.5f), _CMP_GT_OQ)), minus = some;
    for (int i = 0; i < 6; i++) {
        __m256 above = _mm256_cmp_ps(size, _mm256_set1_ps(middle[i]), _CMP_GT_OQ);
        minus = _mm256_add_epi32(minus, _mm256_castps_si256(above));
    }
    __m256i sign = _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(v), 28), _mm256_set1_epi32(8));
    return _mm256_sub_epi32(_mm256_and_si256(sign, some), minus);
}

static inline void encode_block(const float *x, uint8_t exponent, uint8_t *out)
{
    __m256 inverse = _mm256_set1_ps(qm_bits_f32((255u - exponent) << 23)); /* 2^(128 - exponent) */
    __m256i codes = qm_in_order32(qm_bytes32(codes8(x, inverse), codes8(x + 8, inverse),
                                             codes8(x + 16, inverse), codes8(x + 24, inverse)));
    __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4);
    *out = exponent;
    _mm_storeu_si128((__m128i *)(out + 1), _mm_or_si128(_mm256_castsi256_si128(codes), high));
}

/* Exponents of ordinary numbers: neither a scale nor its reciprocal is subnormal. */
static inline bool tame(float absmax) { return absmax >= 0x1p-100f && absmax <= 0x1p100f; }

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_MXFP4_BLOCK, x += QM_MXFP4_BLOCK, at += sizeof(struct qm_mxfp4)) {
        float absmax = qm_bits_f32(qm_largest_magnitude(x, QM_MXFP4_BLOCK));
        if (tame(absmax))
            encode_block(x, (uint8_t)(qm_mxfp4_floor_log2(absmax) - 2 + 127), at);
        else
            qm_format_mxfp4.encode(x, QM_MXFP4_BLOCK, c, &at);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const __m256i level = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)qm_mxfp4_level));
    const uint8_t *at = plane[0];
    for (; n; n -= QM_MXFP4_BLOCK, y += QM_MXFP4_BLOCK, at += sizeof(struct qm_mxfp4)) {
        __m256 d = _mm256_set1_ps(qm_mxfp4_scale(at[0]));
        qm_scale32(_mm256_shuffle_epi8(level, qm_unpair32(at + 1)), d, d, y);
    }
}

const qm_fast qm_avx2_mxfp4 = {.encode = encode, .decode = decode};
