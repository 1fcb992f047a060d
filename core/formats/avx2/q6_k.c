/* q6_k with AVX2: half a block at a time; see q6_k_lanes.h. */
#include "wide.h"

#include "../q6_k_lanes.h"

/* 32 codes, four lots of eight, with the scales of two sub-blocks. */
static inline void decode32(__m256i code, const float *d, float *y)
{
    int8_t q[32];
    _mm256_storeu_si256((__m256i *)q, _mm256_sub_epi8(code, _mm256_set1_epi8(32)));
    for (int i = 0; i < 32; i += 8) {
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(q + i))));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_set1_ps(d[i / QM_Q6_K_SUB]), v));
    }
}

static void decode_block(const struct qm_q6_k *b, float *y)
{
    const __m256i nibble = _mm256_set1_epi8(15), two = _mm256_set1_epi8(0x30);
    float d[QM_Q6_K_SUBS], whole_d = qm_f16_to_f32(b->d);
    for (int s = 0; s < QM_Q6_K_SUBS; s++)
        d[s] = whole_d * (float)b->scale[s];
    for (int h = 0; h < 2; h++) {
        __m256i a = qm_load32(b->low + 64 * h), c = qm_load32(b->low + 64 * h + 32),
                u = qm_load32(b->upper + 32 * h);
        __m256i low[4] = {a, c, _mm256_srli_epi16(a, 4), _mm256_srli_epi16(c, 4)};
        __m256i high[4] = {_mm256_slli_epi16(u, 4), _mm256_slli_epi16(u, 2), u, _mm256_srli_epi16(u, 2)};
        for (int q = 0; q < 4; q++) {
            __m256i code = _mm256_or_si256(_mm256_and_si256(low[q], nibble), _mm256_and_si256(high[q], two));
            decode32(code, d + 8 * h + 2 * q, y + 128 * h + 32 * q);
        }
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q6_K_BLOCK, y += QM_Q6_K_BLOCK, at += sizeof(struct qm_q6_k)) {
        struct qm_q6_k b;
        memcpy(&b, at, sizeof b);
        decode_block(&b, y);
    }
}

const qm_fast qm_avx2_q6_k = {.encode = encode, .decode = decode, .encode_important = encode_important};
