/* q4_k: 256 weights to a block of 144 bytes: eight sub-blocks of 32, each with a scale and a least value.
 *
 *   | d: f16 | dmin: f16 | 12 bytes: scale and min of each sub-block, 6 bits (k32.h) | 128 x pair |
 *   value = d * scale * code - dmin * min
 *
 * Byte 32g + l of the pairs (g < 4, l < 32) holds code 64g + l low and code 64g + l + 32 high.
 * ggml, quantize_row_q4_K_ref.
 */
#include "../format.h"
#include "q4_k.h"

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q4_k b;
    uint8_t code[QM_K32_BLOCK];
    qm_k32_encode(&qm_q4_k_search, x, &b.head, code);
    qm_q4_k_pack(code, b.pair);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    struct qm_q4_k b;
    uint8_t code[QM_K32_BLOCK];
    qm_k32_encode_important(15, x, importance, &b.head, code);
    qm_q4_k_pack(code, b.pair);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q4_k b;
    uint8_t code[QM_K32_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_q4_k_unpack(b.pair, code);
    qm_k32_decode(&b.head, code, y);
}

const qm_format qm_format_q4_k = {
    .name = "q4_k",
    .doc = "4-bit integers, a 6-bit scale and least value for every 32, two f16 for every 256",
    .source = "ggml (llama-quantize Q4_K)",
    .block = QM_K32_BLOCK,
    .gguf_type = 12,
    .gguf_name = "Q4_K",
    .plane = {{"blocks", QM_U8, 4, 16}},
    .bound = 0.15, /* half a step of 2/15, scales of six bits, what the search gives up; seen: 0.135 */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
