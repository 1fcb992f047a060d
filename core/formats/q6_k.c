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
 * ggml, quantize_row_q6_K_ref without an importance matrix.  Each sum runs in index order.
 */
#include "../format.h"
#include "q6_k.h"

/* What the least-squares fit of one sub-block has found. */
struct fit {
    float top, bottom; /* sum of w x l and of w l l, with w = x^2 */
};

QM_FN struct fit fit_of(const float *x, float inverse)
{
    struct fit f = {0, 0};
    for (int i = 0; i < QM_Q6_K_SUB; i++) {
        float l = (float)qm_clamp(qm_nearest_int(inverse * x[i]), -32, 31), w = x[i] * x[i];
        f.top += w * x[i] * l;
        f.bottom += w * l * l;
    }
    return f;
}

/* The scale that fits a sub-block best, and its codes, 0 … 63.  Nineteen roundings are tried, from
 * the obvious one outwards in tenths of a step; each is judged by the error its best scale leaves. */
QM_FN float fit_scale(const float *x, uint8_t *code)
{
    float most = 0, max = 0;
    for (int i = 0; i < QM_Q6_K_SUB; i++)
        if (qm_abs(x[i]) > most) {
            most = qm_abs(x[i]);
            max = x[i];
        }
    if (most < QM_Q6_K_TINY) {
        memset(code, 0, QM_Q6_K_SUB);
        return 0;
    }
    float inverse = -32.0f / max;
    struct fit f = fit_of(x, inverse);
    float scale = f.bottom != 0 ? f.top / f.bottom : 0.0f, best = scale * f.top;
    for (int k = -9; k <= 9; k++) {
        if (k == 0)
            continue;
        float other = -(32.0f + 0.1f * (float)k) / max;
        f = fit_of(x, other);
        if (f.bottom > 0 && f.top * f.top > best * f.bottom) {
            inverse = other;
            scale = f.top / f.bottom;
            best = scale * f.top;
        }
    }
    for (int i = 0; i < QM_Q6_K_SUB; i++)
        code[i] = (uint8_t)(qm_clamp(qm_nearest_int(inverse * x[i]), -32, 31) + 32);
    return scale;
}

QM_FN void requantize(const float *x, float d, uint8_t *code)
{
    for (int i = 0; i < QM_Q6_K_SUB; i++)
        code[i] = (uint8_t)(qm_clamp(qm_nearest_int(x[i] / d), -32, 31) + 32);
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)n, (void)c;
    struct qm_q6_k b;
    uint8_t code[QM_Q6_K_BLOCK];
    float scale[QM_Q6_K_SUBS], d[QM_Q6_K_SUBS];
    for (int s = 0; s < QM_Q6_K_SUBS; s++)
        scale[s] = fit_scale(x + QM_Q6_K_SUB * s, code + QM_Q6_K_SUB * s);
    if (!qm_q6_k_round_scales(scale, &b, d)) {
        memset(plane[0], 0, sizeof b);
        return;
    }
    for (int s = 0; s < QM_Q6_K_SUBS; s++)
        if (d[s] != 0)
            requantize(x + QM_Q6_K_SUB * s, d[s], code + QM_Q6_K_SUB * s);
    qm_q6_k_pack(code, &b);
    memcpy(plane[0], &b, sizeof b);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)n, (void)c;
    struct qm_q6_k b;
    uint8_t code[QM_Q6_K_BLOCK];
    memcpy(&b, plane[0], sizeof b);
    qm_q6_k_unpack(&b, code);
    float d = qm_f16_to_f32(b.d);
    for (int i = 0; i < QM_Q6_K_BLOCK; i++)
        y[i] = d * (float)b.scale[i / QM_Q6_K_SUB] * (float)(code[i] - 32);
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
};
