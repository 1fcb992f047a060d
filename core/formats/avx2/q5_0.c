/* q5_0 with AVX2; where columns differ in importance, see q5_0_lanes.h. */
#include "five_bits.h"
#include "wide.h"

#include "../q5_0_lanes.h"

/* x * inverse lies in [-16.1, 16.1], so truncation gives 0 … 32. */
static inline __m256i codes8(const float *x, __m256 inverse)
{
    __m256 v = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(x), inverse), _mm256_set1_ps(16.5f));
    return _mm256_cvttps_epi32(v);
}

static inline void encode_block(const float *x, float max, uint8_t *out)
{
    float d = max / -16.0f;
    __m256 inverse = _mm256_set1_ps(1.0f / d);
    __m256i codes = qm_bytes32(codes8(x, inverse), codes8(x + 8, inverse), codes8(x + 16, inverse),
                               codes8(x + 24, inverse));
    codes = _mm256_min_epu8(qm_in_order32(codes), _mm256_set1_epi8(31));
    qm_store_half(out, d);
    qm_fast_five_bits_pack(codes, out + offsetof(struct qm_q5_0, fifth));
}

/* From here up, 1/d and the scaled values are ordinary numbers. */
static const float smallest = 0x1p-100f;

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q5_0_BLOCK, x += QM_Q5_0_BLOCK, at += sizeof(struct qm_q5_0)) {
        float absmax = qm_bits_f32(qm_largest_magnitude(x, QM_Q5_0_BLOCK));
        if (absmax >= smallest && absmax <= 0x1.fffffep127f)
            encode_block(x, qm_signed_max32(x, absmax), at);
        else
            qm_format_q5_0.encode(x, QM_Q5_0_BLOCK, c, &at);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q5_0_BLOCK, y += QM_Q5_0_BLOCK, at += sizeof(struct qm_q5_0)) {
        __m256i codes = qm_fast_five_bits_unpack(at + offsetof(struct qm_q5_0, fifth));
        __m256 d = _mm256_set1_ps(qm_load_half(at));
        qm_scale32(_mm256_sub_epi8(codes, _mm256_set1_epi8(16)), d, d, y);
    }
}

const qm_fast qm_avx2_q5_0 = {.encode = encode, .decode = decode, .encode_important = encode_important};
