/* q3_k_lanes.h: q3_k with a sub-block to a lane; included after wide.h.  Sixteen lanes are one block. */
#ifndef QM_Q3_K_LANES_H
#define QM_Q3_K_LANES_H

#include "importance_lanes.h"
#include "q3_k.h"
#include "symmetric_lanes.h"
#include "two_bits_lanes.h"

extern const qm_format qm_format_q3_k;

enum { PARTS = QM_Q3_K_SUBS / LANES };

/* The sub-blocks of a part, their codes so far, -4 … 3, and sums of w x l and w l l over them, w = x^2. */
typedef struct improving {
    lanes x[QM_Q3_K_SUB], w[QM_Q3_K_SUB], wx[QM_Q3_K_SUB], l[QM_Q3_K_SUB];
    lanes top, bottom;
} improving;

/* The obvious codes. */
static inline void begin(improving *s, lanes max)
{
    lanes inverse = lanes_of(-4) / max;
    s->top = s->bottom = lanes_of(0);
    for (int i = 0; i < QM_Q3_K_SUB; i++) {
        s->w[i] = s->x[i] * s->x[i];
        s->wx[i] = s->w[i] * s->x[i];
        s->l[i] = lanes_code(inverse * s->x[i], -4, 3);
        s->top += s->wx[i] * s->l[i];
        s->bottom += s->w[i] * s->l[i] * s->l[i];
    }
}

/* Code i of every sub-block moves where that leaves a smaller error.  Mostly none does: then nothing is
 * written, and the processor can go on with the next code before it knows.  True when any moved. */
static inline bool improve(improving *s, int i)
{
    const lanes zero = lanes_of(0);
    lanes wx = s->wx[i], w = s->w[i], l = s->l[i];
    lanes top = s->top - wx * l, bottom = s->bottom - w * l * l;
    lanes other = lanes_code(s->x[i] * bottom / top, -4, 3);
    lanes_mask may = lanes_both(lanes_above(top, zero), lanes_differ(other, l));
    top += wx * other;
    bottom += w * other * other;
    lanes_mask better = lanes_above(top * top * s->bottom, s->top * s->top * bottom);
    may = lanes_both(may, lanes_both(lanes_above(bottom, zero), better));
    if (!lanes_any(may))
        return false;
    s->l[i] = lanes_choose(may, other, l);
    s->top = lanes_choose(may, top, s->top);
    s->bottom = lanes_choose(may, bottom, s->bottom);
    return true;
}

/* Scales of the sub-blocks; codes are left in s->l.  A sub-block whose codes have settled stays as it is
 * while others go on. */
static inline lanes fit_part(improving *s)
{
    const lanes zero = lanes_of(0);
    lanes max = lanes_signed_max(s->x, QM_Q3_K_SUB);
    lanes_mask tiny = lanes_above(lanes_of(QM_Q3_K_TINY), lanes_abs(max));
    begin(s, max);
    bool moved = true;
    for (int sweep = 0; sweep < 5 && moved; sweep++) {
        moved = false;
        for (int i = 0; i < QM_Q3_K_SUB; i++)
            moved |= improve(s, i);
    }
    for (int i = 0; i < QM_Q3_K_SUB; i++)
        s->l[i] = lanes_choose(tiny, lanes_of(-4), s->l[i]);
    lanes scale = lanes_choose(lanes_above(s->bottom, zero), s->top / s->bottom, zero);
    return lanes_choose(tiny, zero, scale);
}

/* The upper bits: bit i / 32 of byte i % 32. */
static inline void pack_third(const uint8_t *code, uint8_t third[32])
{
    __m256i all = _mm256_setzero_si256();
    for (int i = 7; i >= 0; i--) {
        __m256i bit = _mm256_and_si256(_mm256_srli_epi16(qm_load32(code + 32 * i), 2), _mm256_set1_epi8(1));
        all = _mm256_or_si256(_mm256_add_epi8(all, all), bit);
    }
    qm_store32(third, all);
}

/* Codes, 0 … 7, as the reader's scales have them; fitted are those that the search ended with, -4 … 3. */
static inline void requantize(const lanes *x, const lanes *fitted, const float *d, uint8_t *at)
{
    lanes step = lanes_load(d), code[QM_Q3_K_SUB];
    lanes_mask given = lanes_differ(step, lanes_of(0));
    for (int i = 0; i < QM_Q3_K_SUB; i++)
        code[i] = lanes_choose(given, lanes_code(x[i] / step, -4, 3), fitted[i]) + lanes_of(4);
    lanes_turn_back(code, at, QM_Q3_K_SUB);
}

static inline void finish(const improving *part, const uint8_t *six, float unit, uint8_t *out)
{
    struct qm_q3_k b = {.d = qm_f32_to_f16(unit)};
    float d[QM_Q3_K_SUBS];
    uint8_t code[QM_Q3_K_BLOCK];
    for (int j = 0; j < QM_Q3_K_SUBS; j++)
        d[j] = qm_f16_to_f32(b.d) * (float)(six[j] - 32);
    for (int p = 0; p < PARTS; p++)
        requantize(part[p].x, part[p].l, d + p * LANES, code + p * LANES * QM_Q3_K_SUB);
    qm_q3_k_pack_scales(six, b.packed);
    two_bits_pack(code, b.quad);
    pack_third(code, b.third);
    memcpy(out, &b, sizeof b);
}

static inline void encode_block(const float *values, uint8_t *out)
{
    improving part[PARTS];
    float scale[QM_Q3_K_SUBS];
    uint8_t six[QM_Q3_K_SUBS];
    for (int p = 0; p < PARTS; p++) {
        lanes_turn(values + p * LANES * QM_Q3_K_SUB, LANES, QM_Q3_K_SUB, part[p].x);
        lanes_store(scale + p * LANES, fit_part(&part[p]));
    }
    float unit = qm_q3_k_six_bits(scale, six);
    finish(part, six, unit, out);
}

static inline void encode_important_block(const float *values, const float *importance, float power,
                                          uint8_t *out)
{
    improving part[PARTS];
    float scale[QM_Q3_K_SUBS], sum_w[QM_Q3_K_SUBS];
    uint8_t six[QM_Q3_K_SUBS];
    for (int p = 0; p < PARTS; p++) {
        improving *s = &part[p];
        int at = p * LANES * QM_Q3_K_SUB;
        lanes_turn(values + at, LANES, QM_Q3_K_SUB, s->x);
        lanes_turn(importance + at, LANES, QM_Q3_K_SUB, s->w);
        importance_of(s->x, lanes_of(power), QM_Q3_K_SUB, s->w);
        symmetric_lanes fit = symmetric_fit(s->x, s->w, QM_Q3_K_SUB, 4);
        for (int i = 0; i < QM_Q3_K_SUB; i++)
            s->l[i] = symmetric_code(&fit, s->x[i], 4) - lanes_of(4);
        lanes_store(scale + p * LANES, fit.scale);
        lanes_store(sum_w + p * LANES, lanes_sum(s->w, QM_Q3_K_SUB));
    }
    float unit = qm_symmetric_fit(scale, sum_w, QM_Q3_K_SUBS, 32, six);
    finish(part, six, unit, out);
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    float squares[LANES];
    (void)power;
    if (importance)
        block_squares(x, blocks, QM_Q3_K_BLOCK, squares);
    for (size_t i = 0; i < blocks; i++, x += QM_Q3_K_BLOCK, out += sizeof(struct qm_q3_k)) {
        if (importance)
            encode_important_block(x, importance + QM_Q3_K_BLOCK * i, 2 * squares[i] / QM_Q3_K_BLOCK, out);
        else
            encode_block(x, out);
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_q3_k, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q3_k, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
