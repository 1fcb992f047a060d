/* q8_0 with AVX2. */
#include "../q8_0.h"
#include "lanes.h"

extern const qm_format qm_format_q8_0;

/* qm_round_away, eight at a time. */
static inline __m256i round8(const float *x, __m256 inverse)
{
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
    __m256 sign = _mm256_and_ps(v, _mm256_set1_ps(-0.0f));
    return _mm256_cvttps_epi32(_mm256_add_ps(v, _mm256_or_ps(sign, _mm256_set1_ps(0x1.fffffep-2f))));
}

static inline void encode_block(const float *x, float absmax, uint8_t *out)
{
    float d = absmax / 127.0f;
    __m256 inverse = _mm256_set1_ps(1.0f / d);
    uint16_t half = (uint16_t)_cvtss_sh(d, _MM_FROUND_TO_NEAREST_INT);
    __m256i codes = qm_bytes32(round8(x, inverse), round8(x + 8, inverse), round8(x + 16, inverse),
                               round8(x + 24, inverse));
    memcpy(out, &half, sizeof half);
    _mm256_storeu_si256((__m256i *)(out + sizeof half), qm_in_order32(codes));
}

/* From here up, 1/d and the scaled values are ordinary numbers. */
static const float smallest = 0x1p-100f;

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q8_0_BLOCK, x += QM_Q8_0_BLOCK, at += sizeof(struct qm_q8_0)) {
        float absmax = qm_bits_f32(qm_largest_magnitude(x, QM_Q8_0_BLOCK));
        if (absmax >= smallest && absmax <= 0x1.fffffep127f)
            encode_block(x, absmax, at);
        else
            qm_format_q8_0.encode(x, QM_Q8_0_BLOCK, c, &at);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q8_0_BLOCK, y += QM_Q8_0_BLOCK, at += sizeof(struct qm_q8_0)) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        __m256 d = _mm256_set1_ps(qm_f16_to_f32(half));
        for (int i = 0; i < QM_Q8_0_BLOCK; i += 8) {
            __m256i code = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(at + sizeof half + i)));
            _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_cvtepi32_ps(code), d));
        }
    }
}

const qm_fast qm_avx2_q8_0 = {.encode = encode, .decode = decode};
