/* q4_1 with AVX2; where columns differ in importance, see q4_1_lanes.h. */
#include "affine32.h"
#include "wide.h"

#include "../q4_1_lanes.h"

static inline void encode_block(const float *x, qm_range r, uint8_t *out)
{
    float d = (r.high - r.low) / 15.0f;
    __m256i codes = _mm256_min_epu8(qm_affine32(x, r.low, d), _mm256_set1_epi8(15));
    __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4);
    __m128i pairs = _mm_or_si128(_mm256_castsi256_si128(codes), high);
    qm_store_half(out, d);
    qm_store_half(out + offsetof(struct qm_q4_1, least), r.low);
    _mm_storeu_si128((__m128i *)(out + offsetof(struct qm_q4_1, pair)), pairs);
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q4_1_BLOCK, x += QM_Q4_1_BLOCK, at += sizeof(struct qm_q4_1)) {
        qm_range r = qm_range32(x);
        if (qm_range_tame(x, r))
            encode_block(x, r, at);
        else
            qm_format_q4_1.encode(x, QM_Q4_1_BLOCK, c, &at);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q4_1_BLOCK, y += QM_Q4_1_BLOCK, at += sizeof(struct qm_q4_1)) {
        const uint8_t *pair = at + offsetof(struct qm_q4_1, pair);
        qm_unaffine32(qm_unpair32(pair), qm_load_half(at), qm_load_half(at + offsetof(struct qm_q4_1, least)),
                      y);
    }
}

const qm_fast qm_avx2_q4_1 = {.encode = encode, .decode = decode, .encode_important = encode_important};
