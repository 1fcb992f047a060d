/* iq4_xs: 256 weights to a block of 136 bytes: eight sub-blocks of 32, each with a scale.
 *
 *   | d: f16 | upper: u16 | lower: 4 bytes | 8 sub-blocks x 16 x (code j low, code j + 16 high) |
 *   value = d * (scale - 32) * level[code]
 *
 * Scales have six bits: the low four of sub-block j are in byte j / 2 of `lower`, low nibble first; the upper
 * two are bits 2j and 2j + 1 of `upper`.  The levels are in iq4.h.  ggml, quantize_iq4_xs.
 */
#include "../format.h"
#include "importance.h"
#include "iq4_xs.h"

/* The second half of encoding: scales are known, and codes follow them. */
QM_FN void finish(const float *x, const float scale[QM_IQ4_XS_SUBS], uint8_t *out)
{
    struct qm_iq4_xs b;
    float d[QM_IQ4_XS_SUBS];
    qm_iq4_xs_round(scale, &b, d);
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++)
        qm_iq4_pack(x + QM_IQ4_SUB * j, d[j], b.pair + QM_IQ4_SUB / 2 * j);
    memcpy(out, &b, sizeof b);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    float scale[QM_IQ4_XS_SUBS], w[QM_IQ4_SUB];
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        const float *sub = x + QM_IQ4_SUB * j;
        for (int i = 0; i < QM_IQ4_SUB; i++)
            w[i] = sub[i] * sub[i];
        scale[j] = qm_iq4_fit(sub, w);
    }
    finish(x, scale, plane[0]);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    float scale[QM_IQ4_XS_SUBS], w[QM_IQ4_SUB];
    float mean = qm_sum_squares(x, QM_IQ4_XS_BLOCK) * (2.0f / QM_IQ4_XS_BLOCK);
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        qm_importance(x + QM_IQ4_SUB * j, importance + QM_IQ4_SUB * j, mean, QM_IQ4_SUB, w);
        scale[j] = qm_iq4_fit(x + QM_IQ4_SUB * j, w);
    }
    finish(x, scale, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_iq4_xs b;
    memcpy(&b, plane[0], sizeof b);
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        float d = qm_f16_to_f32(b.d) * (float)((int)qm_iq4_xs_scale(&b, j) - 32);
        qm_iq4_unpack(b.pair + QM_IQ4_SUB / 2 * j, d, y + QM_IQ4_SUB * j);
    }
}

const qm_format qm_format_iq4_xs = {
    .name = "iq4_xs",
    .doc = "sixteen uneven levels, a 6-bit scale for every 32, an f16 scale for every 256",
    .source = "ggml (llama-quantize IQ4_XS)",
    .block = QM_IQ4_XS_BLOCK,
    .gguf_type = 23,
    .gguf_name = "IQ4_XS",
    .plane = {{"blocks", QM_U8, 4, 8}},
    .bound = 0.18, /* as iq4_nl's, and the scale of six bits */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
