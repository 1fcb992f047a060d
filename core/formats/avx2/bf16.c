/* bf16 with AVX2: core/vec.c has it. */
#include "../../format.h"
#include "../../vec.h"

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    (void)c;
    qm_vec_avx2.f32_to_bf16(x, plane[0], n);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    qm_vec_avx2.bf16_to_f32(plane[0], y, n);
}

const qm_fast qm_avx2_bf16 = {.encode = encode, .decode = decode};
