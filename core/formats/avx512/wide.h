/* wide.h: sixteen floats side by side, one of each of sixteen groups of weights; ../avx2/wide.h explains. */
#ifndef QM_AVX512_WIDE_H
#define QM_AVX512_WIDE_H

#include "../avx2/lanes.h"

enum { LANES = 16 };
typedef __m512 lanes, lanes_table;
typedef __mmask16 lanes_mask;
typedef __m512i lanes_int;

static inline lanes lanes_of(float x) { return _mm512_set1_ps(x); }
static inline lanes lanes_load(const float *at) { return _mm512_loadu_ps(at); }
static inline void lanes_store(float *at, lanes x) { _mm512_storeu_ps(at, x); }

static inline lanes lanes_min(lanes a, lanes b) { return _mm512_min_ps(a, b); }
static inline lanes lanes_max(lanes a, lanes b) { return _mm512_max_ps(a, b); }
static inline lanes lanes_abs(lanes a) { return _mm512_abs_ps(a); }
static inline lanes lanes_sqrt(lanes a) { return _mm512_sqrt_ps(a); }

static inline lanes_mask lanes_above(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline lanes_mask lanes_not_below(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
static inline lanes_mask lanes_same(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline lanes_mask lanes_differ(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline lanes_mask lanes_both(lanes_mask a, lanes_mask b) { return a & b; }
static inline lanes_mask lanes_either(lanes_mask a, lanes_mask b) { return a | b; }
static inline bool lanes_any(lanes_mask a) { return a != 0; }
static inline lanes lanes_choose(lanes_mask m, lanes yes, lanes no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}

static inline lanes lanes_code(lanes x, float low, float high)
{
    const float zero = 12582912.0f;
    __m512i bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(zero)));
    bits = _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(0x7fffff), _mm512_set1_epi32(0x4b000000),
                                     0xea); /* (a & b) | c */
    __m512 code = _mm512_max_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(zero + low));
    return _mm512_sub_ps(_mm512_min_ps(code, _mm512_set1_ps(zero + high)), _mm512_set1_ps(zero));
}

static inline lanes lanes_small_code(lanes x, float low, float high)
{
    const __m512 zero = _mm512_set1_ps(12582912.0f);
    __m512 code = _mm512_max_ps(_mm512_sub_ps(_mm512_add_ps(x, zero), zero), _mm512_set1_ps(low));
    return _mm512_min_ps(code, _mm512_set1_ps(high));
}

static inline lanes_int lanes_truncate(lanes x) { return _mm512_cvttps_epi32(x); }
static inline lanes lanes_float(lanes_int x) { return _mm512_cvtepi32_ps(x); }
static inline lanes_table lanes_table_of(const float t[16]) { return _mm512_loadu_ps(t); }
static inline lanes lanes_look_up(lanes_table t, lanes_int i) { return _mm512_permutexvar_ps(i, t); }

static inline lanes_int lanes_one_more(lanes_int x, lanes_mask where)
{
    return _mm512_mask_add_epi32(x, where, x, _mm512_set1_epi32(1));
}

static inline __m128i lanes_bytes(lanes codes) { return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(codes)); }

static inline __m512 lanes_four_rows(const float *const row[LANES], int r, size_t i)
{
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(row[r] + i));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row[r + 4] + i), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row[r + 8] + i), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(row[r + 12] + i), 3);
}

static inline void lanes_turn4(const float *const row[LANES], size_t i, lanes *column)
{
    __m512 a = lanes_four_rows(row, 0, i), b = lanes_four_rows(row, 1, i), c = lanes_four_rows(row, 2, i),
           d = lanes_four_rows(row, 3, i);
    __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    column[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    column[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b)), cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    column[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    column[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
}

#include "../turned.h"

#endif
