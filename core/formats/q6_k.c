/* q6_k: 256 weights to a block of 210 bytes: sixteen sub-blocks of 16 with a scale each.
 *
 *   | 128 x low nibbles | 64 x upper bits | 16 x scale: int8 | d: f16 |      value = d * scale * (code - 32)
 *
 * Codes have six bits.  For each half h of 128 weights and l = 0 … 31, with q[i] its code i:
 *
 *   low[64h + l]       q[l]      & 15 | (q[l + 64] & 15) << 4
 *   low[64h + 32 + l]  q[l + 32] & 15 | (q[l + 96] & 15) << 4
 *   upper[32h + l]     q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6
 *
 * ggml, quantize_row_q6_K_ref and _impl.  How a sub-block gets its scale: symmetric.h.
 */
#include "../format.h"
#include "q6_k.h"
#include "symmetric.h"

QM_FN void requantize(const float *x, float d, uint8_t *code)
{
    for (int i = 0; i < QM_Q6_K_SUB; i++)
        code[i] = (uint8_t)(qm_clamp(qm_nearest_int(x[i] / d), -32, 31) + 32);
}

/* The second half of encoding: a scale for each sub-block is known, and the codes that came with it. */
QM_FN void finish(const float *x, const float *scale, uint8_t *code, uint8_t *out)
{
    struct qm_q6_k b;
    float d[QM_Q6_K_SUBS];
    if (!qm_q6_k_round_scales(scale, &b, d)) {
        memset(out, 0, sizeof b);
        return;
    }
    for (int s = 0; s < QM_Q6_K_SUBS; s++)
        if (d[s] != 0)
            requantize(x + QM_Q6_K_SUB * s, d[s], code + QM_Q6_K_SUB * s);
    qm_q6_k_pack(code, &b);
    memcpy(out, &b, sizeof b);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    uint8_t code[QM_Q6_K_BLOCK];
    float scale[QM_Q6_K_SUBS], w[QM_Q6_K_SUB];
    for (int s = 0; s < QM_Q6_K_SUBS; s++) {
        const float *sub = x + QM_Q6_K_SUB * s;
        for (int i = 0; i < QM_Q6_K_SUB; i++)
            w[i] = sub[i] * sub[i];
        scale[s] = qm_symmetric_fit(sub, w, QM_Q6_K_SUB, 32, code + QM_Q6_K_SUB * s);
    }
    finish(x, scale, code, plane[0]);
}

QM_FN void encode_important(const float *x, uint32_t n, const float *importance, float power,
                            uint8_t *const plane[])
{
    (void)n, (void)power;
    uint8_t code[QM_Q6_K_BLOCK];
    float scale[QM_Q6_K_SUBS];
    for (int i = 0; i < QM_Q6_K_BLOCK; i += QM_Q6_K_SUB)
        scale[i / QM_Q6_K_SUB] = qm_symmetric_fit(x + i, importance + i, QM_Q6_K_SUB, 32, code + i);
    finish(x, scale, code, plane[0]);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q6_k b;
    uint8_t code[QM_Q6_K_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_q6_k_unpack(&b, code);
    float d = qm_f16_to_f32(b.d);
    for (int s = 0; s < QM_Q6_K_SUBS; s++) {
        float step = d * (float)b.scale[s];
        for (int i = QM_Q6_K_SUB * s; i < QM_Q6_K_SUB * (s + 1); i++)
            y[i] = step * (float)(code[i] - 32);
    }
}

const qm_format qm_format_q6_k = {
    .name = "q6_k",
    .doc = "6-bit integers, an 8-bit scale for every 16, an f16 scale for every 256",
    .source = "ggml (llama-quantize Q6_K)",
    .block = QM_Q6_K_BLOCK,
    .gguf_type = 14,
    .gguf_name = "Q6_K",
    .plane = {{"blocks", QM_U8, 6, 18}},
    .bound = 0.035, /* a whole step at the end that has 31 of them, 1/32, and the rounded scales */
    .encode = encode,
    .decode = decode,
    .encode_important = encode_important,
};
