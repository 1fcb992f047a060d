/* k32_lanes.h: k32.h with a sub-block to a lane; included after wide.h.  Sixteen lanes are two blocks. */
#ifndef QM_K32_LANES_H
#define QM_K32_LANES_H

#include "affine_lanes.h"
#include "importance_lanes.h"
#include "k32.h"

enum { BLOCKS = LANES / QM_K32_SUBS };

/* What becomes of up to BLOCKS blocks. */
typedef struct k32_blocks {
    struct qm_k32 head[BLOCKS];
    uint8_t code[LANES][QM_K32_SUB];
} k32_blocks;

static inline void k32_weigh(const lanes *x, lanes *w)
{
    lanes rms = lanes_sqrt(lanes_sum_squares(x, QM_K32_SUB) / lanes_of(QM_K32_SUB));
    for (int i = 0; i < QM_K32_SUB; i++)
        w[i] = rms + lanes_abs(x[i]);
}

/* Codes as the reader's scales and mins have them. */
static inline void k32_finish(const lanes *x, const affine_lanes *a, int most, k32_blocks *b)
{
    float d[LANES], min[LANES];
    for (int l = 0; l < LANES; l += QM_K32_SUBS) {
        const struct qm_k32 *head = &b->head[l / QM_K32_SUBS];
        uint8_t six_scale[QM_K32_SUBS], six_min[QM_K32_SUBS];
        qm_k32_unpack(head->packed, six_scale, six_min);
        for (int j = 0; j < QM_K32_SUBS; j++) {
            d[l + j] = qm_f16_to_f32(head->d) * six_scale[j];
            min[l + j] = qm_f16_to_f32(head->dmin) * six_min[j];
        }
    }
    lanes step = lanes_load(d), below = lanes_load(min);
    lanes_mask given = lanes_differ(step, lanes_of(0));
    lanes code[QM_K32_SUB];
    for (int i = 0; i < QM_K32_SUB; i++)
        code[i] = lanes_choose(given, lanes_code((x[i] + below) / step, 0, (float)most),
                               affine_code(a, x[i], most));
    for (int i = 0; i < QM_K32_SUB; i += 16)
        lanes_turn_back(code + i, b->code[0] + i, QM_K32_SUB);
}

/* Up to BLOCKS blocks. */
static inline void k32_encode(const qm_affine_search *s, const float *values, size_t blocks, k32_blocks *b)
{
    lanes x[QM_K32_SUB], w[QM_K32_SUB];
    float scale[LANES], min[LANES];
    lanes_turn(values, blocks * QM_K32_SUBS, QM_K32_SUB, x);
    k32_weigh(x, w);
    affine_lanes a = affine_fit(s, x, w, QM_K32_SUB);
    lanes_store(scale, a.scale);
    lanes_store(min, -a.least);
    for (int i = 0; i < BLOCKS; i++)
        qm_k32_round(scale + QM_K32_SUBS * i, min + QM_K32_SUBS * i, &b->head[i]);
    k32_finish(x, &a, s->most, b);
}

/* The same where columns differ in importance; squares are the sums of each block's. */
static inline void k32_encode_important(int most, const float *values, const float *importance, size_t blocks,
                                        const float *squares, k32_blocks *b)
{
    const qm_affine_search search = qm_affine_important(most);
    lanes x[QM_K32_SUB], w[QM_K32_SUB];
    float scale[LANES], min[LANES], power[LANES], sum_w[LANES];
    for (size_t l = 0; l < LANES; l++)
        power[l] = 2 * squares[l / QM_K32_SUBS < blocks ? l / QM_K32_SUBS : blocks - 1] / QM_K32_BLOCK;
    lanes_turn(values, blocks * QM_K32_SUBS, QM_K32_SUB, x);
    lanes_turn(importance, blocks * QM_K32_SUBS, QM_K32_SUB, w);
    importance_of(x, lanes_load(power), QM_K32_SUB, w);
    affine_lanes a = affine_fit(&search, x, w, QM_K32_SUB);
    lanes_store(sum_w, lanes_sum(w, QM_K32_SUB));
    lanes_store(scale, a.scale);
    lanes_store(min, -a.least);
    for (size_t i = 0; i < BLOCKS; i++)
        qm_k32_round_important(scale + QM_K32_SUBS * i, min + QM_K32_SUBS * i, sum_w + QM_K32_SUBS * i, most,
                               &b->head[i]);
    k32_finish(x, &a, most, b);
}

/* Writes one block: its head, and codes of a byte each. */
typedef void k32_pack(const struct qm_k32 *head, const uint8_t *code, uint8_t *out);

/* Whole blocks of `size` bytes each. */
static inline void k32_encode_blocks(const qm_affine_search *s, k32_pack *pack, size_t size, const float *x,
                                     const float *importance, size_t blocks, uint8_t *out)
{
    float squares[LANES];
    if (importance)
        block_squares(x, blocks, QM_K32_BLOCK, squares);
    for (size_t i = 0; i < blocks; i += BLOCKS) {
        k32_blocks b;
        size_t few = blocks - i < BLOCKS ? blocks - i : BLOCKS;
        if (importance)
            k32_encode_important(s->most, x + QM_K32_BLOCK * i, importance + QM_K32_BLOCK * i, few,
                                 squares + i, &b);
        else
            k32_encode(s, x + QM_K32_BLOCK * i, few, &b);
        for (size_t j = 0; j < few; j++)
            pack(&b.head[j], b.code[QM_K32_SUBS * j], out + size * (i + j));
    }
}

#endif
