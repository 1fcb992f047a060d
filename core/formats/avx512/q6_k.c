/* q6_k with AVX-512: sixteen sub-blocks, one whole block, at a time; see q6_k_lanes.h. */
#include <immintrin.h>

#include "../q6_k.h"

enum { LANES = 16 };
typedef __m512 lanes;
typedef __mmask16 lanes_mask;
typedef __m512i lanes_int;

static inline lanes lanes_of(float x) { return _mm512_set1_ps(x); }
static inline lanes lanes_load(const float *at) { return _mm512_loadu_ps(at); }
static inline void lanes_store(float *at, lanes x) { _mm512_storeu_ps(at, x); }
static inline lanes lanes_add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
static inline lanes lanes_sub(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
static inline lanes lanes_mul(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
static inline lanes lanes_div(lanes a, lanes b) { return _mm512_div_ps(a, b); }
static inline lanes lanes_min(lanes a, lanes b) { return _mm512_min_ps(a, b); }
static inline lanes lanes_max(lanes a, lanes b) { return _mm512_max_ps(a, b); }
static inline lanes lanes_abs(lanes a) { return _mm512_abs_ps(a); }
static inline lanes_mask lanes_above(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline lanes_mask lanes_differ(lanes a, lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline lanes_mask lanes_both(lanes_mask a, lanes_mask b) { return a & b; }
static inline lanes lanes_choose(lanes_mask m, lanes yes, lanes no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}

static inline lanes_int lanes_choose_int(lanes_mask m, lanes_int yes, lanes_int no)
{
    return _mm512_mask_blend_epi32(m, no, yes);
}

static inline lanes_int lanes_if(lanes_mask m, lanes_int yes) { return _mm512_maskz_mov_epi32(m, yes); }

/* qm_nearest_int, clamped to six bits, plus 32. */
static inline lanes_int lanes_code(lanes x)
{
    __m512i bits = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(12582912.0f)));
    bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffff));
    bits = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x400000 - 32));
    return _mm512_min_epi32(_mm512_max_epi32(bits, _mm512_setzero_si512()), _mm512_set1_epi32(63));
}

static inline void lanes_store_bytes(uint8_t *at, lanes_int x)
{
    _mm_storeu_si128((__m128i *)at, _mm512_cvtepi32_epi8(x));
}

/* Row s holds weights 16 s … 16 s + 15; rows j, j + 4, j + 8 and j + 12 of four columns. */
static inline __m512 four_rows(const float *x, int j)
{
    __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(x + QM_Q6_K_SUB * j));
    r = _mm512_insertf32x4(r, _mm_loadu_ps(x + QM_Q6_K_SUB * (j + 4)), 1);
    r = _mm512_insertf32x4(r, _mm_loadu_ps(x + QM_Q6_K_SUB * (j + 8)), 2);
    return _mm512_insertf32x4(r, _mm_loadu_ps(x + QM_Q6_K_SUB * (j + 12)), 3);
}

/* 16 rows of 16 become 16 columns of 16, four columns at a time. */
static inline void lanes_turn(const float *x, lanes *column)
{
    for (int i = 0; i < QM_Q6_K_SUB; i += 4) {
        __m512 a = four_rows(x + i, 0), b = four_rows(x + i, 1), c = four_rows(x + i, 2),
               d = four_rows(x + i, 3);
        __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
        column[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        column[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b)), cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
        column[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        column[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    }
}

#include "../q6_k_lanes.h"

const qm_fast qm_avx512_q6_k = {.encode = encode};
