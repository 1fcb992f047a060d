/* q5_1 with AVX2; where columns differ in importance, see q5_1_lanes.h. */
#include "affine32.h"
#include "five_bits.h"
#include "wide.h"

#include "../q5_1_lanes.h"

static inline void encode_block(const float *x, qm_range r, uint8_t *out)
{
    float d = (r.high - r.low) / 31.0f;
    qm_store_half(out, d);
    qm_store_half(out + offsetof(struct qm_q5_1, least), r.low);
    qm_fast_five_bits_pack(qm_affine32(x, r.low, d), out + offsetof(struct qm_q5_1, fifth));
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at = plane[0];
    for (; n; n -= QM_Q5_1_BLOCK, x += QM_Q5_1_BLOCK, at += sizeof(struct qm_q5_1)) {
        qm_range r = qm_range32(x);
        if (qm_range_tame(x, r))
            encode_block(x, r, at);
        else
            qm_format_q5_1.encode(x, QM_Q5_1_BLOCK, c, &at);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    (void)c;
    const uint8_t *at = plane[0];
    for (; n; n -= QM_Q5_1_BLOCK, y += QM_Q5_1_BLOCK, at += sizeof(struct qm_q5_1)) {
        __m256i codes = qm_fast_five_bits_unpack(at + offsetof(struct qm_q5_1, fifth));
        qm_unaffine32(codes, qm_load_half(at), qm_load_half(at + offsetof(struct qm_q5_1, least)), y);
    }
}

const qm_fast qm_avx2_q5_1 = {.encode = encode, .decode = decode, .encode_important = encode_important};
