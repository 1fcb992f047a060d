/* q4_0 with AVX2; where columns differ in importance, see q4_0_lanes.h. */
#include "wide.h"

#include "../q4_0_lanes.h"

/* x * inverse lies in [-8.1, 8.1], so truncation gives 0 … 16. */
static inline __m256i codes8(const float *x, __m256 inverse)
{
    __m256 v = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(x), inverse), _mm256_set1_ps(8.5f));
    return _mm256_min_epi32(_mm256_cvttps_epi32(v), _mm256_set1_epi32(15));
}

static inline __m256i pairs8(const float *x, __m256 inverse)
{
    return _mm256_or_si256(codes8(x, inverse), _mm256_slli_epi32(codes8(x + QM_Q4_0_BLOCK / 2, inverse), 4));
}

static inline void encode_block(const float *x, float max, uint8_t *out)
{
    float d = max / -8.0f;
    __m256 inverse = _mm256_set1_ps(1.0f / d);
    uint16_t half = (uint16_t)_cvtss_sh(d, _MM_FROUND_TO_NEAREST_INT);
    __m256i words = _mm256_packus_epi32(pairs8(x, inverse), pairs8(x + 8, inverse));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    memcpy(out, &half, sizeof half);
    _mm_storeu_si128((__m128i *)(out + sizeof half), bytes);
}

/* From here up, 1/d and the scaled values are ordinary numbers. */
static const float smallest = 0x1p-100f;

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q4_0_BLOCK, x += QM_Q4_0_BLOCK, at += sizeof(struct qm_q4_0)) {
        float absmax = qm_bits_f32(qm_largest_magnitude(x, QM_Q4_0_BLOCK));
        if (absmax >= smallest && absmax <= 0x1.fffffep127f)
            encode_block(x, qm_signed_max32(x, absmax), at);
        else
            qm_format_q4_0.encode(x, QM_Q4_0_BLOCK, c, &at);
    }
}

static inline void decode8(__m128i codes, __m256 d, float *y)
{
    _mm256_storeu_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), d));
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    for (; n; n -= QM_Q4_0_BLOCK, y += QM_Q4_0_BLOCK, at += sizeof(struct qm_q4_0)) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        __m256 d = _mm256_set1_ps(qm_f16_to_f32(half));
        __m128i pairs = _mm_loadu_si128((const __m128i *)(at + sizeof half));
        __m128i first = _mm_sub_epi8(_mm_and_si128(pairs, low), eight);
        __m128i second = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(pairs, 4), low), eight);
        decode8(first, d, y);
        decode8(_mm_srli_si128(first, 8), d, y + 8);
        decode8(second, d, y + 16);
        decode8(_mm_srli_si128(second, 8), d, y + 24);
    }
}

const qm_fast qm_avx2_q4_0 = {.encode = encode, .decode = decode, .encode_important = encode_important};
