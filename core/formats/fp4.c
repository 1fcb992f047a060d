/* fp4: four bits a weight: a sign and eight magnitudes, one f32 scale a block.
 *
 *   codes    one byte a pair        | code of x[2i] << 4 | code of x[2i+1] |
 *   absmax   one f32 a block        value = level[code] * absmax
 *
 * Not the E2M1 of other tools.  Blocks run over row ends; the last may be short, and when it is odd
 * its last low nibble is 0.  bitsandbytes, kQuantizeBlockwise, data type FP4.
 */
#include "../format.h"
#include "bnb.h"
#include "fp4.h"

/* NaN exceeds no threshold and is not below zero: code 0. */
QM_FN uint32_t code_of(float v)
{
    const float *t = qm_fp4_threshold;
    float a = qm_abs(v);
    uint32_t rank = a > t[3] ? 4 : 0;
    rank += a > t[rank + 1] ? 2 : 0;
    rank += a > t[rank] ? 1 : 0;
    return qm_fp4_code[rank] | (v < 0 ? 8u : 0u);
}

/* Of the nearest level; halfway between two, of the smaller.  There is no -0. */
QM_FN uint32_t nearest(float v)
{
    uint32_t rank = 0;
    for (uint32_t i = 0; i < 7; i++)
        rank += qm_abs(v) > (qm_fp4_value[qm_fp4_code[i]] + qm_fp4_value[qm_fp4_code[i + 1]]) * 0.5f;
    return qm_fp4_code[rank] | (v < 0 && rank > 0 ? 8u : 0u);
}

QM_FN void encode_nearest(const float *x, uint32_t n, uint8_t *const plane[])
{
    float absmax = qm_bnb_plain_absmax(x, n);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t high = nearest(qm_bnb_quotient(x[i], absmax));
        uint32_t low = i + 1 < n ? nearest(qm_bnb_quotient(x[i + 1], absmax)) : 0;
        plane[0][i / 2] = (uint8_t)(high << 4 | low);
    }
}

/* An all-zero block is all codes 0, which is exact. */
QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    if (c->nearest) {
        encode_nearest(x, n, plane);
        return;
    }
    float absmax = qm_bnb_absmax(x, n), scale = qm_rcp(absmax);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t high = code_of(qm_bnb_times(x[i], scale));
        uint32_t low = i + 1 < n ? code_of(qm_bnb_times(x[i + 1], scale)) : 0;
        plane[0][i / 2] = (uint8_t)(high << 4 | low);
    }
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    float absmax;
    memcpy(&absmax, plane[1], sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        y[i] = qm_bnb_times(qm_fp4_value[plane[0][i / 2] >> (i % 2 ? 0 : 4) & 15], absmax);
}

const qm_format qm_format_fp4 = {
    .name = "fp4",
    .doc = "4-bit float: a sign and eight magnitudes times the block's largest magnitude",
    .source = "bitsandbytes, CUDA",
    .block = 64,
    .block_min = 32,
    .block_max = 4096,
    .over_rows = true,
    .gguf_type = -1,
    .plane = {{"codes", QM_U8, 4, 0}, {"absmax", QM_F32, 0, 4}},
    .bound = 0.16668, /* half of the widest gap, 2/3 to 1 */
    .encode = encode,
    .decode = decode,
};
