/* dynamic8 with AVX2.  Entries are evenly spaced within each decade, so a weight's place is found by a
 * multiplication, up to one entry, and settled by one comparison with the middle of two. */
#include "../dynamic8.h"
#include "blocks.h"

extern const qm_format qm_format_dynamic8;

static inline __m256 magnitude8(__m256i k)
{
    return _mm256_castsi256_ps(_mm256_i32gather_epi32((const int *)qm_dynamic8_magnitude, k, sizeof(int)));
}

/* How many of 1e-6 … 1e-1 the magnitude reaches: 0 … 6. */
static inline __m256i decade8(__m256 a)
{
    static const float start[6] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f};
    __m256i d = _mm256_setzero_si256();
    for (int i = 0; i < 6; i++)
        d = _mm256_sub_epi32(d, _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(start[i]), _CMP_GE_OQ)));
    return d;
}

/* The nearest entry, or the one below it.  In decade i, entry 2^i + j sits at
 * (0.1 + 0.9 (j + 1/2) / 2^i) 10^(i-6); solved for j and less one half, this leaves room for rounding. */
static inline __m256i place8(__m256 a)
{
    const float n = 1 / 0.9f;
    const __m256 slope = _mm256_setr_ps(1e6f * n, 2e5f * n, 4e4f * n, 8e3f * n, 1.6e3f * n, 3.2e2f * n,
                                        64 * n, 0);
    const __m256 start = _mm256_setr_ps(1 - 0.1f * n - 0.5f, 2 - 0.2f * n - 0.5f, 4 - 0.4f * n - 0.5f,
                                        8 - 0.8f * n - 0.5f, 16 - 1.6f * n - 0.5f, 32 - 3.2f * n - 0.5f,
                                        64 - 6.4f * n - 0.5f, 0);
    __m256i i = decade8(a);
    __m256 at = _mm256_mul_ps(a, _mm256_permutevar8x32_ps(slope, i));
    return _mm256_cvttps_epi32(_mm256_add_ps(at, _mm256_permutevar8x32_ps(start, i)));
}

static inline __m256i code8(const float *x, __m256 scale)
{
    const __m256i one = _mm256_set1_epi32(1);
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), scale), a = _mm256_castsi256_ps(qm_magnitude8(v));
    __m256i k = place8(a), next = _mm256_add_epi32(k, one);
    __m256 middle = _mm256_mul_ps(_mm256_add_ps(magnitude8(k), magnitude8(next)), _mm256_set1_ps(0.5f));
    /* A tie goes to the even code, which is an odd k. */
    __m256i tie = _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps(a, middle, _CMP_EQ_OQ)),
                                   _mm256_cmpeq_epi32(_mm256_and_si256(k, one), _mm256_setzero_si256()));
    __m256i up = _mm256_or_si256(tie, _mm256_castps_si256(_mm256_cmp_ps(a, middle, _CMP_GT_OQ)));
    k = _mm256_sub_epi32(k, up);
    /* Below zero: 127 - k, which stops at 0. */
    __m256i below = _mm256_srai_epi32(_mm256_castps_si256(v), 31), most = _mm256_set1_epi32(127);
    k = _mm256_min_epi32(k, _mm256_sub_epi32(_mm256_set1_epi32(128), _mm256_and_si256(below, one)));
    return _mm256_add_epi32(most, _mm256_sub_epi32(_mm256_xor_si256(k, below), below));
}

static void encode_block(const float *x, uint32_t n, float scale, uint8_t *codes)
{
    __m256 s = _mm256_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += 32) {
        __m256i low = _mm256_packs_epi32(code8(x + i, s), code8(x + i + 8, s));
        __m256i high = _mm256_packs_epi32(code8(x + i + 16, s), code8(x + i + 24, s));
        _mm256_storeu_si256((__m256i *)(codes + i), qm_in_order32(_mm256_packus_epi16(low, high)));
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    qm_blocks_encode(&qm_format_dynamic8, encode_block, x, n, c, plane);
}

static void decode_block(const uint8_t *codes, uint32_t n, float absmax, float *y)
{
    const __m256i zero = _mm256_set1_epi32(127), sign_bit = _mm256_set1_epi32(INT32_MIN);
    __m256 scale = _mm256_set1_ps(absmax);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        __m256i k = _mm256_sub_epi32(code, zero);
        __m256 sign = _mm256_castsi256_ps(_mm256_and_si256(k, sign_bit));
        __m256 value = _mm256_or_ps(magnitude8(_mm256_abs_epi32(k)), sign);
        _mm256_storeu_ps(y + i, _mm256_mul_ps(value, scale));
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    const uint8_t *at[] = {plane[0], plane[1]};
    for (size_t m; n; n -= m, y += m, at[0] += m, at[1] += sizeof(float)) {
        m = n < c->block ? n : c->block;
        float absmax;
        memcpy(&absmax, at[1], sizeof absmax);
        if (m == c->block && qm_tame(absmax))
            decode_block(at[0], c->block, absmax, y);
        else
            qm_format_dynamic8.decode(at, (uint32_t)m, c, y);
    }
}

const qm_fast qm_avx2_dynamic8 = {.encode = encode, .decode = decode};
