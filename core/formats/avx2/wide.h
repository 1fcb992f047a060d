/* wide.h: eight floats side by side, one of each of eight groups of weights, and what the searches do with
 * them.  ../avx512/wide.h has the same names for sixteen.  Sums, products and quotients are the compiler's
 * own: a + b adds lane by lane. */
#ifndef QM_AVX2_WIDE_H
#define QM_AVX2_WIDE_H

#include "lanes.h"

enum { LANES = 8 };
typedef __m256 lanes, lanes_mask;
typedef __m256i lanes_int;
typedef struct lanes_table {
    __m256 low, high;
} lanes_table;

static inline lanes lanes_of(float x) { return _mm256_set1_ps(x); }
static inline lanes lanes_load(const float *at) { return _mm256_loadu_ps(at); }
static inline void lanes_store(float *at, lanes x) { _mm256_storeu_ps(at, x); }

/* a < b ? a : b and a > b ? a : b; with NaN, or zeros of either sign, b. */
static inline lanes lanes_min(lanes a, lanes b) { return _mm256_min_ps(a, b); }
static inline lanes lanes_max(lanes a, lanes b) { return _mm256_max_ps(a, b); }
static inline lanes lanes_abs(lanes a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline lanes lanes_sqrt(lanes a) { return _mm256_sqrt_ps(a); }

static inline lanes_mask lanes_above(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline lanes_mask lanes_not_below(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
static inline lanes_mask lanes_same(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline lanes_mask lanes_differ(lanes a, lanes b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
static inline lanes_mask lanes_both(lanes_mask a, lanes_mask b) { return _mm256_and_ps(a, b); }
static inline lanes_mask lanes_either(lanes_mask a, lanes_mask b) { return _mm256_or_ps(a, b); }
static inline bool lanes_any(lanes_mask a) { return _mm256_movemask_ps(a) != 0; }
static inline lanes lanes_choose(lanes_mask m, lanes yes, lanes no) { return _mm256_blendv_ps(no, yes, m); }

/* qm_nearest_int, clamped, as a float.  The lower 23 bits of the sum are made into a float of [2^23, 2^24)
 * again, whatever x was, and clamped there. */
static inline lanes lanes_code(lanes x, float low, float high)
{
    const float zero = 12582912.0f;
    __m256i bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(zero)));
    bits = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)),
                           _mm256_set1_epi32(0x4b000000));
    __m256 code = _mm256_max_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(zero + low));
    return _mm256_sub_ps(_mm256_min_ps(code, _mm256_set1_ps(zero + high)), _mm256_set1_ps(zero));
}

/* The same, sooner, for |x| < 2^22. */
static inline lanes lanes_small_code(lanes x, float low, float high)
{
    const __m256 zero = _mm256_set1_ps(12582912.0f);
    __m256 code = _mm256_max_ps(_mm256_sub_ps(_mm256_add_ps(x, zero), zero), _mm256_set1_ps(low));
    return _mm256_min_ps(code, _mm256_set1_ps(high));
}

static inline lanes_int lanes_truncate(lanes x) { return _mm256_cvttps_epi32(x); }

static inline lanes lanes_float(lanes_int x) { return _mm256_cvtepi32_ps(x); }

static inline lanes_table lanes_table_of(const float t[16])
{
    return (lanes_table){_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8)};
}

/* Of indices 0 … 15. */
static inline lanes lanes_look_up(lanes_table t, lanes_int i)
{
    __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)); /* to the sign, which blendv reads */
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, i), _mm256_permutevar8x32_ps(t.high, i), bit3);
}

static inline lanes_int lanes_one_more(lanes_int x, lanes_mask where)
{
    return _mm256_sub_epi32(x, _mm256_castps_si256(where));
}

/* Codes 0 … 255 as LANES bytes. */
static inline __m128i lanes_bytes(lanes codes)
{
    __m256i x = _mm256_cvtps_epi32(codes);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    return _mm_packus_epi16(words, words);
}

static inline __m256 lanes_two_rows(const float *const row[LANES], int r, size_t i)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[r] + i)),
                                _mm_loadu_ps(row[r + 4] + i), 1);
}

/* Columns i … i + 3 of eight rows. */
static inline void lanes_turn4(const float *const row[LANES], size_t i, lanes *column)
{
    __m256 a = lanes_two_rows(row, 0, i), b = lanes_two_rows(row, 1, i), c = lanes_two_rows(row, 2, i),
           d = lanes_two_rows(row, 3, i);
    __m256d ab = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)), cd = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
    column[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    column[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    ab = _mm256_castps_pd(_mm256_unpackhi_ps(a, b)), cd = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
    column[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    column[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
}

#include "../turned.h"

#endif
