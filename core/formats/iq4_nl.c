/* iq4_nl: 32 weights to a block of 18 bytes.
 *
 *   | d: f16 | 16 x (code j in the low nibble, code j + 16 in the high) |      value = d * level[code]
 *
 * The levels are in iq4.h.  ggml, quantize_iq4_nl (its quantize_row_iq4_nl_ref, for caches, does not search).
 */
#include "../format.h"
#include "iq4_nl.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_iq4_nl b;
    float w[QM_IQ4_SUB];
    for (int i = 0; i < QM_IQ4_SUB; i++)
        w[i] = x[i] * x[i];
    float d = qm_iq4_fit(x, w);
    b.d = qm_f32_to_f16(d);
    qm_iq4_pack(x, d, b.pair); /* with d before it became an f16 */
    memcpy(plane[0], &b, sizeof b);
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
    .bound = 0.2,
    .encode = encode,
    .decode = decode,
};
