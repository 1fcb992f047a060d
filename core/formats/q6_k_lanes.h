/* q6_k_lanes.h: q6_k with one sub-block to a lane; included by the AVX2 and the AVX-512 codec, which
 * define the vector type `lanes` and the few operations on it.
 *
 * A sub-block's sums must run in index order, so they cannot be spread over lanes.  The block is
 * turned instead: x[i] holds weight i of LANES sub-blocks, and every step of q6_k.c is done to all of
 * them at once.  What was drawn there is not explained again. */
#ifndef QM_Q6_K_LANES_H
#define QM_Q6_K_LANES_H

#include "avx2/lanes.h"
#include "q6_k.h"

extern const qm_format qm_format_q6_k;

typedef struct turned {
    lanes x[QM_Q6_K_SUB];  /* the weights */
    lanes w[QM_Q6_K_SUB];  /* x x: each one's say in the error */
    lanes wx[QM_Q6_K_SUB]; /* w x */
} turned;

typedef struct fits {
    lanes top, bottom;
} fits;

/* The nearest integer, as a float; |x| is known to be small. */
static inline lanes whole(lanes x)
{
    return lanes_sub(lanes_add(x, lanes_of(12582912.0f)), lanes_of(12582912.0f));
}

static inline lanes six_bits(lanes x) { return lanes_min(lanes_max(x, lanes_of(-32.0f)), lanes_of(31.0f)); }

static inline fits fit_of(const turned *t, lanes inverse)
{
    fits f = {lanes_of(0), lanes_of(0)};
    for (int i = 0; i < QM_Q6_K_SUB; i++) {
        lanes l = six_bits(whole(lanes_mul(inverse, t->x[i])));
        f.top = lanes_add(f.top, lanes_mul(t->wx[i], l));
        f.bottom = lanes_add(f.bottom, lanes_mul(lanes_mul(t->w[i], l), l));
    }
    return f;
}

/* Of each sub-block, the first weight of the largest magnitude. */
static inline lanes signed_max(const turned *t)
{
    lanes max = lanes_of(0), most = lanes_of(0);
    for (int i = 0; i < QM_Q6_K_SUB; i++) {
        lanes_mask larger = lanes_above(lanes_abs(t->x[i]), most);
        max = lanes_choose(larger, t->x[i], max);
        most = lanes_choose(larger, lanes_abs(t->x[i]), most);
    }
    return max;
}

/* The best scale of each sub-block, and in *inverse what it rounded with.  For sub-blocks taken for
 * zero both are 0. */
static inline lanes fit_scales(const turned *t, lanes *inverse)
{
    lanes max = signed_max(t), zero = lanes_of(0);
    *inverse = lanes_div(lanes_of(-32.0f), max);
    fits f = fit_of(t, *inverse);
    lanes scale = lanes_choose(lanes_differ(f.bottom, zero), lanes_div(f.top, f.bottom), zero);
    lanes best = lanes_mul(scale, f.top);
    for (int k = -9; k <= 9; k++) {
        if (k == 0)
            continue;
        lanes other = lanes_div(lanes_of(-(32.0f + 0.1f * (float)k)), max);
        f = fit_of(t, other);
        lanes_mask better = lanes_both(lanes_above(f.bottom, zero),
                                       lanes_above(lanes_mul(f.top, f.top), lanes_mul(best, f.bottom)));
        *inverse = lanes_choose(better, other, *inverse);
        scale = lanes_choose(better, lanes_div(f.top, f.bottom), scale);
        best = lanes_choose(better, lanes_mul(scale, f.top), best);
    }
    lanes_mask tiny = lanes_above(lanes_of(QM_Q6_K_TINY), lanes_abs(max));
    *inverse = lanes_choose(tiny, zero, *inverse);
    return lanes_choose(tiny, zero, scale);
}

/* 0 … 63. Where d is 0, what the fit gave; all codes 0 in a sub-block taken for zero. */
static inline lanes_int final_code(lanes x, lanes d, lanes inverse)
{
    lanes zero = lanes_of(0);
    lanes_int fitted = lanes_if(lanes_differ(inverse, zero), lanes_code(lanes_mul(inverse, x)));
    return lanes_choose_int(lanes_differ(d, zero), lanes_code(lanes_div(x, d)), fitted);
}

/* Sixteen rows of sixteen bytes become columns: four perfect shuffles. */
static inline void turn_bytes(__m128i row[16])
{
    for (int round = 0; round < 4; round++) {
        __m128i next[16];
        for (int i = 0; i < 8; i++) {
            next[2 * i] = _mm_unpacklo_epi8(row[i], row[i + 8]);
            next[2 * i + 1] = _mm_unpackhi_epi8(row[i], row[i + 8]);
        }
        memcpy(row, next, sizeof next);
    }
}

static inline __m256i load32(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

/* qm_q6_k_pack.  Shifts are of 16 bits; what crosses into the neighbouring byte is masked away. */
static inline void pack(const uint8_t *code, struct qm_q6_k *b)
{
    const __m256i nibble = _mm256_set1_epi8(15), high = _mm256_set1_epi8((char)0xf0);
    const __m256i two = _mm256_set1_epi8(0x30);
    for (int h = 0; h < 2; h++) {
        __m256i q0 = load32(code + 128 * h), q1 = load32(code + 128 * h + 32);
        __m256i q2 = load32(code + 128 * h + 64), q3 = load32(code + 128 * h + 96);
        __m256i a = _mm256_or_si256(_mm256_and_si256(q0, nibble),
                                    _mm256_and_si256(_mm256_slli_epi16(q2, 4), high));
        __m256i c = _mm256_or_si256(_mm256_and_si256(q1, nibble),
                                    _mm256_and_si256(_mm256_slli_epi16(q3, 4), high));
        __m256i u0 = _mm256_srli_epi16(_mm256_and_si256(q0, two), 4);
        __m256i u1 = _mm256_srli_epi16(_mm256_and_si256(q1, two), 2);
        __m256i u2 = _mm256_and_si256(q2, two);
        __m256i u3 = _mm256_slli_epi16(_mm256_and_si256(q3, two), 2);
        __m256i u = _mm256_or_si256(_mm256_or_si256(u0, u1), _mm256_or_si256(u2, u3));
        _mm256_storeu_si256((__m256i *)(b->low + 64 * h), a);
        _mm256_storeu_si256((__m256i *)(b->low + 64 * h + 32), c);
        _mm256_storeu_si256((__m256i *)(b->upper + 32 * h), u);
    }
}

/* 256 finite weights. */
static void encode_block(const float *x, uint8_t *out)
{
    enum { PARTS = QM_Q6_K_SUBS / LANES };
    struct qm_q6_k b;
    turned part[PARTS];
    float scale[QM_Q6_K_SUBS], inverse[QM_Q6_K_SUBS], d[QM_Q6_K_SUBS];
    for (int p = 0; p < PARTS; p++) {
        lanes_turn(x + p * LANES * QM_Q6_K_SUB, part[p].x);
        for (int i = 0; i < QM_Q6_K_SUB; i++) {
            part[p].w[i] = lanes_mul(part[p].x[i], part[p].x[i]);
            part[p].wx[i] = lanes_mul(part[p].w[i], part[p].x[i]);
        }
        lanes rounded_with;
        lanes_store(scale + p * LANES, fit_scales(&part[p], &rounded_with));
        lanes_store(inverse + p * LANES, rounded_with);
    }
    if (!qm_q6_k_round_scales(scale, &b, d)) {
        memset(out, 0, sizeof b);
        return;
    }
    __m128i code[QM_Q6_K_SUBS];
    for (int p = 0; p < PARTS; p++) {
        lanes step = lanes_load(d + p * LANES), kept = lanes_load(inverse + p * LANES);
        for (int i = 0; i < QM_Q6_K_SUB; i++)
            lanes_store_bytes((uint8_t *)&code[i] + p * LANES, final_code(part[p].x[i], step, kept));
    }
    turn_bytes(code);
    pack((const uint8_t *)code, &b);
    memcpy(out, &b, sizeof b);
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q6_K_BLOCK, x += QM_Q6_K_BLOCK, at += sizeof(struct qm_q6_k)) {
        if (qm_largest_magnitude(x, QM_Q6_K_BLOCK) < 0x7f800000u)
            encode_block(x, at);
        else
            qm_format_q6_k.encode(x, QM_Q6_K_BLOCK, c, &at);
    }
}

#endif
