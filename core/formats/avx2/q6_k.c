/* q6_k with AVX2: eight sub-blocks, half a block, at a time; see q6_k_lanes.h. */
#include <immintrin.h>

#include "../q6_k.h"

enum { LANES = 8 };
typedef __m256 lanes, lanes_mask;
typedef __m256i lanes_int;

static inline lanes lanes_of(float x) { return _mm256_set1_ps(x); }
static inline lanes lanes_load(const float *at) { return _mm256_loadu_ps(at); }
static inline void lanes_store(float *at, lanes x) { _mm256_storeu_ps(at, x); }
static inline lanes lanes_add(lanes a, lanes b) { return _mm256_add_ps(a, b); }
static inline lanes lanes_sub(lanes a, lanes b) { return _mm256_sub_ps(a, b); }
static inline lanes lanes_mul(lanes a, lanes b) { return _mm256_mul_ps(a, b); }
static inline lanes lanes_div(lanes a, lanes b) { return _mm256_div_ps(a, b); }
static inline lanes lanes_min(lanes a, lanes b) { return _mm256_min_ps(a, b); }
static inline lanes lanes_max(lanes a, lanes b) { return _mm256_max_ps(a, b); }
static inline lanes lanes_abs(lanes a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline lanes_mask lanes_above(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline lanes_mask lanes_differ(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
static inline lanes_mask lanes_both(lanes_mask a, lanes_mask b) { return _mm256_and_ps(a, b); }
static inline lanes lanes_choose(lanes_mask m, lanes yes, lanes no) { return _mm256_blendv_ps(no, yes, m); }

static inline lanes_int lanes_choose_int(lanes_mask m, lanes_int yes, lanes_int no)
{
    return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m));
}

static inline lanes_int lanes_if(lanes_mask m, lanes_int yes)
{
    return _mm256_and_si256(_mm256_castps_si256(m), yes);
}

/* qm_nearest_int, clamped to six bits, plus 32. */
static inline lanes_int lanes_code(lanes x)
{
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(12582912.0f)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff));
    bits = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x400000 - 32));
    return _mm256_min_epi32(_mm256_max_epi32(bits, _mm256_setzero_si256()), _mm256_set1_epi32(63));
}

static inline void lanes_store_bytes(uint8_t *at, lanes_int x)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)at, _mm_packus_epi16(words, words));
}

/* Row s holds weights 16 s … 16 s + 15; row j and row j + 4 of four columns. */
static inline __m256 two_rows(const float *x, int j)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + QM_Q6_K_SUB * j)),
                                _mm_loadu_ps(x + QM_Q6_K_SUB * (j + 4)), 1);
}

/* 8 rows of 16 become 16 columns of 8, four columns at a time. */
static inline void lanes_turn(const float *x, lanes *column)
{
    for (int i = 0; i < QM_Q6_K_SUB; i += 4) {
        __m256 a = two_rows(x + i, 0), b = two_rows(x + i, 1), c = two_rows(x + i, 2), d = two_rows(x + i, 3);
        __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)),
                cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
        column[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        column[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        ab = _mm256_castps_pd(_mm256_unpackhi_ps(a, b)), cd = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
        column[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        column[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    }
}

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
        __m256i a = load32(b->low + 64 * h), c = load32(b->low + 64 * h + 32), u = load32(b->upper + 32 * h);
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

const qm_fast qm_avx2_q6_k = {.encode = encode, .decode = decode};
