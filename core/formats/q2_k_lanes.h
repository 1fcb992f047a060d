/* q2_k_lanes.h: q2_k with a sub-block to a lane; included after wide.h.  Sixteen lanes are one block. */
#ifndef QM_Q2_K_LANES_H
#define QM_Q2_K_LANES_H

#include "affine_lanes.h"
#include "importance_lanes.h"
#include "positive.h"
#include "q2_k.h"
#include "two_bits_lanes.h"

extern const qm_format qm_format_q2_k;

enum { PARTS = QM_Q2_K_SUBS / LANES };

/* What the searches find in one block. */
typedef struct q2_k_fits {
    lanes x[PARTS][QM_Q2_K_SUB];
    affine_lanes part[PARTS];
    float scale[QM_Q2_K_SUBS], min[QM_Q2_K_SUBS], sum_w[QM_Q2_K_SUBS];
} q2_k_fits;

static inline void fit_block(const qm_affine_search *s, const float *values, const float *importance,
                             float power, q2_k_fits *f)
{
    for (int p = 0; p < PARTS; p++) {
        lanes *x = f->x[p], w[QM_Q2_K_SUB];
        int at = p * LANES * QM_Q2_K_SUB;
        lanes_turn(values + at, LANES, QM_Q2_K_SUB, x);
        if (importance) {
            lanes_turn(importance + at, LANES, QM_Q2_K_SUB, w);
            importance_of(x, lanes_of(power), QM_Q2_K_SUB, w);
        }
        for (int i = 0; i < QM_Q2_K_SUB && !importance; i++)
            w[i] = lanes_abs(x[i]);
        f->part[p] = affine_fit(s, x, w, QM_Q2_K_SUB);
        lanes_store(f->scale + p * LANES, f->part[p].scale);
        lanes_store(f->min + p * LANES, -f->part[p].least);
        lanes_store(f->sum_w + p * LANES, lanes_sum(w, QM_Q2_K_SUB));
    }
}

/* Codes as the reader's scales and mins have them. */
static inline void finish(const q2_k_fits *f, struct qm_q2_k *b)
{
    float d[QM_Q2_K_SUBS], min[QM_Q2_K_SUBS];
    uint8_t code[QM_Q2_K_BLOCK];
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        d[j] = qm_f16_to_f32(b->d) * (float)(b->scales[j] & 15);
        min[j] = qm_f16_to_f32(b->dmin) * (float)(b->scales[j] >> 4);
    }
    for (int p = 0; p < PARTS; p++) {
        const lanes *x = f->x[p];
        lanes step = lanes_load(d + p * LANES), below = lanes_load(min + p * LANES), q[QM_Q2_K_SUB];
        lanes_mask given = lanes_differ(step, lanes_of(0));
        for (int i = 0; i < QM_Q2_K_SUB; i++)
            q[i] = lanes_choose(given, lanes_code((x[i] + below) / step, 0, 3),
                                affine_code(&f->part[p], x[i], 3));
        lanes_turn_back(q, code + p * LANES * QM_Q2_K_SUB, QM_Q2_K_SUB);
    }
    two_bits_pack(code, b->quad);
}

static inline void encode_block(const float *values, const float *importance, float power, uint8_t *out)
{
    struct qm_q2_k b;
    q2_k_fits f;
    uint8_t low[QM_Q2_K_SUBS], high[QM_Q2_K_SUBS];
    const qm_affine_search important = qm_affine_important(qm_q2_k_search.most);
    fit_block(importance ? &important : &qm_q2_k_search, values, importance, power, &f);
    if (importance) {
        b.d = qm_f32_to_f16(qm_positive_fit(f.scale, f.sum_w, QM_Q2_K_SUBS, 15, low));
        b.dmin = qm_f32_to_f16(qm_positive_fit(f.min, f.sum_w, QM_Q2_K_SUBS, 15, high));
    } else {
        b.d = qm_f32_to_f16(qm_q2_k_four_bits(f.scale, low));
        b.dmin = qm_f32_to_f16(qm_q2_k_four_bits(f.min, high));
    }
    for (int j = 0; j < QM_Q2_K_SUBS; j++)
        b.scales[j] = (uint8_t)(low[j] | high[j] << 4);
    finish(&f, &b);
    memcpy(out, &b, sizeof b);
}

LANES_APART void encode_blocks(const float *x, const float *importance, size_t blocks, float power,
                               uint8_t *out)
{
    float squares[LANES] = {0};
    (void)power;
    if (importance)
        block_squares(x, blocks, QM_Q2_K_BLOCK, squares);
    for (size_t i = 0; i < blocks; i++, x += QM_Q2_K_BLOCK, out += sizeof(struct qm_q2_k)) {
        encode_block(x, importance, squares[i] / QM_Q2_K_BLOCK, out);
        importance += importance ? QM_Q2_K_BLOCK : 0;
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    lanes_run(&qm_format_q2_k, LANES, encode_blocks, x, n, NULL, 0, plane[0]);
}

static void encode_important(const float *x, size_t n, const float *importance, float power,
                             uint8_t *const plane[])
{
    lanes_run(&qm_format_q2_k, LANES, encode_blocks, x, n, importance, power, plane[0]);
}

#endif
