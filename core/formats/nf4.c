/* nf4: four bits a weight, sixteen levels that fit a normal distribution, one f32 scale a block.
 *
 *   codes    one byte a pair        | code of x[2i] << 4 | code of x[2i+1] |
 *   absmax   one f32 a block        value = level[code] * absmax
 *
 * Blocks run over row ends; the last may be short, and when it is odd its last low nibble is the
 * code of 0 * scale.  bitsandbytes, kQuantizeBlockwise, data type NF4.
 */
#include "../format.h"
#include "bnb.h"
#include "nf4.h"

/* How many thresholds v exceeds.  NaN exceeds none. */
QM_FN uint32_t code_of(float v)
{
    const float *t = qm_nf4_threshold;
    uint32_t code = v > t[7] ? 8 : 0;
    code += v > t[code + 3] ? 4 : 0;
    code += v > t[code + 1] ? 2 : 0;
    code += v > t[code] ? 1 : 0;
    return code;
}

/* Of the nearest level; halfway between two, of the lower. */
QM_FN uint32_t nearest(float v)
{
    uint32_t code = 0;
    for (uint32_t i = 0; i < 15; i++)
        code += v > (qm_nf4_value[i] + qm_nf4_value[i + 1]) * 0.5f;
    return code;
}

QM_FN void encode_nearest(const float *x, uint32_t n, uint8_t *const plane[])
{
    float absmax = qm_bnb_plain_absmax(x, n);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t high = nearest(qm_bnb_quotient(x[i], absmax));
        uint32_t low = nearest(i + 1 < n ? qm_bnb_quotient(x[i + 1], absmax) : 0.0f);
        plane[0][i / 2] = (uint8_t)(high << 4 | low);
    }
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    if (c->nearest) {
        encode_nearest(x, n, plane);
        return;
    }
    float absmax = qm_bnb_absmax(x, n), scale = qm_rcp(absmax);
    memcpy(plane[1], &absmax, sizeof absmax);
    if (absmax == 0 && c->exact_zero) { /* 0 * infinity is NaN, so bitsandbytes writes code 0, level -1 */
        memset(plane[0], 0x77, (n + 1) / 2);
        return;
    }
    for (uint32_t i = 0; i < n; i += 2) {
        uint32_t high = code_of(qm_bnb_times(x[i], scale));
        uint32_t low = code_of(qm_bnb_times(i + 1 < n ? x[i + 1] : 0.0f, scale));
        plane[0][i / 2] = (uint8_t)(high << 4 | low);
    }
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    float absmax;
    memcpy(&absmax, plane[1], sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        y[i] = qm_bnb_times(qm_nf4_value[plane[0][i / 2] >> (i % 2 ? 0 : 4) & 15], absmax);
}

const qm_format qm_format_nf4 = {
    .name = "nf4",
    .doc = "4-bit normal float: sixteen normal quantiles times the block's largest magnitude",
    .source = "bitsandbytes, CUDA",
    .block = 64,
    .block_min = 32,
    .block_max = 4096,
    .over_rows = true,
    .gguf_type = -1,
    .plane = {{"codes", QM_U8, 4, 0}, {"absmax", QM_F32, 0, 4}},
    .bound = 0.15191, /* half of the widest gap, -1 to -0.696 */
    .encode = encode,
    .decode = decode,
};
