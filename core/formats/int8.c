/* int8: eight bits a weight, one f32 scale a row.  LLM.int8().
 *
 *   codes    one int8 a weight      value = code * absmax / 127
 *   absmax   one f32 a row          bitsandbytes calls it SCB; it holds the row's max |x| itself
 *
 * Weights are rounded to f16 first.  The outlier threshold of LLM.int8() plays no part: it concerns
 * activations.  bitsandbytes, kInt8VectorQuant.
 */
#include "../format.h"
#include "int8.h"

QM_FN float to_half(float x) { return qm_f16_to_f32(qm_f32_to_f16(x)); }

/* |x * scale| stays below 127.5. */
QM_FN int8_t code_of(float x, float scale)
{
    float v = x * scale;
    return v == v ? (int8_t)qm_nearest_int(v) : 0; /* NaN: 0 * infinity of an all-zero row */
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    float absmax = 0;
    for (uint32_t i = 0; i < n; i++) {
        float a = qm_abs(to_half(x[i]));
        absmax = a > absmax ? a : absmax;
    }
    float scale = qm_int8_scale(absmax, c->nearest);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        plane[0][i] = (uint8_t)code_of(to_half(x[i]), scale);
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    float absmax;
    memcpy(&absmax, plane[1], sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        y[i] = qm_int8_value((int8_t)plane[0][i], absmax);
}

const qm_format qm_format_int8 = {
    .name = "int8",
    .doc = "8-bit integers times the row's largest magnitude over 127",
    .source = "bitsandbytes LLM.int8(), CUDA",
    .over_rows = false,
    .float16 = true,
    .gguf_type = -1,
    .plane = {{"codes", QM_I8, 8, 0}, {"absmax", QM_F32, 0, 4}},
    .bound = 0.00394, /* half a step, 1/254 */
    .bound_rel = 0x1p-11,
    .encode = encode,
    .decode = decode,
};
