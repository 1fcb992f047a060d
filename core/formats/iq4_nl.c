/* iq4_nl: 32 weights to a block of 18 bytes.
 *
 *   | d: f16 | 16 x (code j in the low nibble, code j + 16 in the high) |      value = d * level[code]
 *
 * The levels are in iq4.h.  ggml, quantize_iq4_nl (its quantize_row_iq4_nl_ref, for caches, does not search).
 */
#include "../format.h"
#include "importance.h"
#include "iq4_nl.h"

QM_FN void encode_with(const float *x, const float *w, uint8_t *out)
{
    struct qm_iq4_nl b;
    float d = qm_iq4_fit(x, w);
    b.d = qm_f32_to_f16(d);
    qm_iq4_pack(x, d, b.pair); /* with d before it became an f16 */
    memcpy(out, &b, sizeof b);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    float w[QM_IQ4_SUB];
    for (int i = 0; i < QM_IQ4_SUB; i++)
        w[i] = x[i] * x[i];
    encode_with(x, w, plane[0]);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    float w[QM_IQ4_SUB], mean = qm_sum_squares(x, QM_IQ4_SUB) * (2.0f / QM_IQ4_SUB);
    qm_importance(x, importance, mean, QM_IQ4_SUB, w);
    encode_with(x, w, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_iq4_nl b;
    memcpy(&b, plane[0], sizeof b);
    qm_iq4_unpack(b.pair, qm_f16_to_f32(b.d), y);
}

const qm_format qm_format_iq4_nl = {
    .name = "iq4_nl",
    .doc = "sixteen uneven levels, a scale for every 32",
    .source = "ggml (llama-quantize IQ4_NL)",
    .block = QM_IQ4_SUB,
    .gguf_type = 20,
    .gguf_name = "IQ4_NL",
    .plane = {{"blocks", QM_U8, 4, 2}},
    .bound = 0.17, /* levels end at 113 of 127 on one side, and the search may shift by 7 more */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
