/* q6_k_lanes.h: q6_k with a sub-block to a lane; included after wide.h.  Sixteen lanes are one block. */
#ifndef QM_Q6_K_LANES_H
#define QM_Q6_K_LANES_H

#include "q6_k.h"
#include "symmetric_lanes.h"

extern const qm_format qm_format_q6_k;

enum { PARTS = QM_Q6_K_SUBS / LANES };

/* qm_q6_k_pack.  Shifts are of 16 bits; what crosses into the neighbouring byte is masked away. */
static inline void pack(const uint8_t *code, struct qm_q6_k *b)
{
    const __m256i nibble = _mm256_set1_epi8(15), high = _mm256_set1_epi8((char)0xf0);
    const __m256i two = _mm256_set1_epi8(0x30);
    for (int h = 0; h < 2; h++) {
        __m256i q0 = qm_load32(code + 128 * h), q1 = qm_load32(code + 128 * h + 32);
        __m256i q2 = qm_load32(code + 128 * h + 64), q3 = qm_load32(code + 128 * h + 96);
        __m256i a = _mm256_or_si256(_mm256_and_si256(q0, nibble),
                                    _mm256_and_si256(_mm256_slli_epi16(q2, 4), high));
        __m256i c = _mm256_or_si256(_mm256_and_si256(q1, nibble),
                                    _mm256_and_si256(_mm256_slli_epi16(q3, 4), high));
        __m256i u0 = _mm256_srli_epi16(_mm256_and_si256(q0, two), 4);
        __m256i u1 = _mm256_srli_epi16(_mm256_and_si256(q1, two), 2);
        __m256i u2 = _mm256_and_si256(q2, two);
        __m256i u3 = _mm256_slli_epi16(_mm256_and_si256(q3, two), 2);
        __m256i u = _mm256_or_si256(_mm256_or_si256(u0, u1), _mm256_or_si256(u2, u3));
        qm_store32(b->low + 64 * h, a);
        qm_store32(b->low + 64 * h + 32, c);
        qm_store32(b->upper + 32 * h, u);
    }
}

/* What each weight counts: its square, or what its column does. */
static inline void weigh(const lanes *x, const float *importance, lanes *w)
{
    if (importance)
        lanes_turn(importance, LANES, QM_Q6_K_SUB, w);
    else
        lanes_squares(x, QM_Q6_K_SUB, w);
}

/* Codes as the reader's scales have them. */
static inline void requantize(const lanes *x, const symmetric_lanes *fit, const float *d, uint8_t *at)
{
    lanes step = lanes_load(d), code[QM_Q6_K_SUB];
    lanes_mask given = lanes_differ(step, lanes_of(0));
    for (int i = 0; i < QM_Q6_K_SUB; i++) {
        lanes q = lanes_code(x[i] / step, -32, 31) + lanes_of(32);
        code[i] = lanes_choose(given, q, symmetric_code(fit, x[i], 32));
    }
    lanes_turn_back(code, at, QM_Q6_K_SUB);
}

static inline void encode_block(const float *values, const float *importance, uint8_t *out)
{
    struct qm_q6_k b;
    lanes x[PARTS][QM_Q6_K_SUB], w[QM_Q6_K_SUB];
    symmetric_lanes fit[PARTS];
    float scale[QM_Q6_K_SUBS], d[QM_Q6_K_SUBS];
    uint8_t code[QM_Q6_K_BLOCK];
    for (int p = 0; p < PARTS; p++) {
        int at = p * LANES * QM_Q6_K_SUB;
        lanes_turn(values + at, LANES, QM_Q6_K_SUB, x[p]);
        weigh(x[p], importance ? importance + at : NULL, w);
        fit[p] = symmetric_fit(x[p], w, QM_Q6_K_SUB, 32);
        lanes_store(scale + p * LANES, fit[p].scale);
    }
    if (!qm_q6_k_round_scales(scale, &b, d)) {
        memset(out, 0, sizeof b);
        return;
    }
    for (int p = 0; p < PARTS; p++)
        requantize(x[p], &fit[p], d + p * LANES, code + p * LANES * QM_Q6_K_SUB);
    pack(code, &b);
    memcpy(out, &b, sizeof b);
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    (void)power;
    for (size_t i = 0; i < blocks; i++, x += QM_Q6_K_BLOCK, out += sizeof(struct qm_q6_k)) {
        encode_block(x, importance, out);
        importance += importance ? QM_Q6_K_BLOCK : 0;
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_q6_k, 1, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q6_k, 1, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
