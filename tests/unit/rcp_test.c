/* rcp_test.c: the emulated approximate reciprocal against what was published and measured of it. */
#include <math.h>
#include <stdlib.h>

#include "../../core/formats/int8.h"
#include "../../core/rcp.h"
#include "sha256.h"
#include "test.h"

/* In units in the last place, of mantissa m at some exponent. */
static int off_ieee(uint32_t exponent, uint32_t mantissa)
{
    float a = qm_bits_f32(exponent << 23 | mantissa);
    return (int)(qm_f32_bits(qm_rcp(a)) - qm_f32_bits(1.0f / a));
}

TEST(rcp_differs_from_ieee_as_often_as_measured)
{
    int count[3] = {0};
    for (uint32_t m = 0; m < 1u << 23; m++) {
        int d = off_ieee(127, m);
        if (d < -1 || d > 1) {
            CHECKF(false, "mantissa %u is %d off", m, d);
            return;
        }
        count[d + 1]++;
    }
    CHECKF(count[0] == 374723 && count[1] == 7280086 && count[2] == 733799, "%d %d %d", count[0], count[1],
           count[2]);
}

/* All seven-bit mantissas, that is all that a bf16 can have. */
TEST(rcp_of_bf16_values)
{
    static const int up[] = {6, 13, 37, 38, 51, 61, 65, 66, 81, 91, 109, 115, 116, 118, 121};
    static const int down[] = {4, 11, 20, 22, 127};
    int want[128] = {0};
    for (size_t i = 0; i < sizeof up / sizeof *up; i++)
        want[up[i]] = 1;
    for (size_t i = 0; i < sizeof down / sizeof *down; i++)
        want[down[i]] = -1;
    for (uint32_t m = 0; m < 128; m++)
        for (uint32_t exponent = 2; exponent <= 251; exponent++)
            CHECKF(off_ieee(exponent, m << 16) == want[m], "mantissa %u, exponent %u", m, exponent);
}

TEST(rcp_special_values)
{
    CHECK(qm_rcp(0.0f) == INFINITY && qm_rcp(-0.0f) == -INFINITY);
    CHECK(qm_rcp(0x1p-127f) == INFINITY && qm_rcp(-0x1p-149f) == -INFINITY); /* subnormals count as zero */
    CHECK(qm_rcp(INFINITY) == 0 && qm_rcp(-INFINITY) == 0 && signbit(qm_rcp(-INFINITY)));
    CHECK(isnan(qm_rcp(NAN)));
    CHECK(qm_rcp(1.0f) == 1.0f && qm_rcp(-2.0f) == -0.5f);
    CHECK(qm_rcp(0x1p126f) == 0x1p-126f);
    CHECK(qm_rcp(0x1.8p126f) == 0 && qm_rcp(0x1p127f) == 0); /* the result would be subnormal */
}

/* 127 * rcp(a) is CUDA's fast 127 / a: the digest of a table read off an H200, one f32 for each half. */
TEST(rcp_gives_the_int8_scales_of_cuda)
{
    enum { COUNT = 31744 };
    float *scale = malloc(sizeof *scale * COUNT);
    for (uint16_t h = 0; h < COUNT; h++)
        scale[h] = qm_int8_scale(qm_f16_to_f32(h), false);
    CHECK(!strcmp(sha256(scale, sizeof *scale * COUNT),
                  "508ca916b3f118dba593ad76b92a23e3029f6b75d8d9c0f605d12c39190ad194"));
    free(scale);
}

TEST(ftz_drops_subnormals_and_nothing_else)
{
    CHECK(qm_ftz(0x1p-126f) == 0x1p-126f && qm_ftz(-0x1p-126f) == -0x1p-126f);
    CHECK(qm_f32_bits(qm_ftz(0x1.fffffcp-127f)) == 0);
    CHECK(qm_f32_bits(qm_ftz(-0x1p-149f)) == 0x80000000u);
    CHECK(qm_f32_bits(qm_ftz(-0.0f)) == 0x80000000u);
    CHECK(qm_ftz(INFINITY) == INFINITY && isnan(qm_ftz(NAN)));
}
