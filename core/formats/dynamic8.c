/* dynamic8: eight bits a weight, 256 levels that crowd around zero, one f32 scale a block.
 *
 *   codes    one byte a weight      value = level[code] * absmax
 *   absmax   one f32 a block
 *
 * Also the second level of double quantisation, over absmax - offset in blocks of 256.
 * bitsandbytes, kQuantizeBlockwise, data type General8bit with the signed dynamic map.
 */
#include "../format.h"
#include "bnb.h"
#include "dynamic8.h"

/* The nearest level.  The bisection ends on an even entry; from there v moves to a neighbour when it
 * is strictly nearer, so a tie stays on the even entry.  NaN ends at 0. */
QM_FN uint32_t code_of(float v)
{
    uint32_t p = 127;
    for (uint32_t step = 64; step; step /= 2)
        p = v > qm_dynamic8_value(p) ? p + step : p - step;
    if (v > qm_dynamic8_value(p))
        return p + (v > qm_dynamic8_middle(p));
    return p ? p - (v < qm_dynamic8_middle(p - 1)) : 0;
}

/* By IEEE arithmetic, and halfway between two levels the lower. */
QM_FN uint32_t nearest(float v)
{
    uint32_t low = 0, high = 255; /* the code is among low … high */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (v > qm_dynamic8_middle(middle))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

QM_FN void encode_nearest(const float *x, uint32_t n, uint8_t *const plane[])
{
    float absmax = qm_bnb_plain_absmax(x, n);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        plane[0][i] = (uint8_t)nearest(qm_bnb_quotient(x[i], absmax));
}

QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    if (c->nearest) {
        encode_nearest(x, n, plane);
        return;
    }
    float absmax = qm_bnb_absmax(x, n), scale = qm_rcp(absmax);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        plane[0][i] = (uint8_t)code_of(qm_bnb_times(x[i], scale));
}

QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    (void)c;
    float absmax;
    memcpy(&absmax, plane[1], sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        y[i] = qm_bnb_times(qm_dynamic8_value(plane[0][i]), absmax);
}

const qm_format qm_format_dynamic8 = {
    .name = "dynamic8",
    .doc = "8-bit dynamic map: 256 levels over seven decades times the block's largest magnitude",
    .source = "bitsandbytes, CUDA",
    .block = 4096,
    .block_min = 64,
    .block_max = 4096,
    .over_rows = true,
    .gguf_type = -1,
    .plane = {{"codes", QM_U8, 8, 0}, {"absmax", QM_F32, 0, 4}},
    .bound = 0.00704, /* half of the widest gap, 0.9 / 64 */
    .encode = encode,
    .decode = decode,
};
