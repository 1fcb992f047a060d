/* int8 with AVX2. */
#include "../int8.h"
#include "lanes.h"

extern const qm_format qm_format_int8;

enum { RUN = 32 };

static inline __m256 to_half(__m256 x)
{
    return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* Bits of the largest magnitude, after rounding to f16: rounding keeps order, so once is enough. */
static uint32_t largest_half(const float *x, size_t n)
{
    size_t whole = n - n % RUN;
    uint32_t most = qm_largest_magnitude(x, whole);
    for (size_t i = whole; i < n; i++) {
        uint32_t a = qm_f32_bits(x[i]) & 0x7fffffffu;
        most = a > most ? a : most;
    }
    return qm_f32_bits(qm_f16_to_f32(qm_f32_to_f16(qm_bits_f32(most))));
}

/* The machine rounds halves to even, as the format does. */
static inline __m256i round8(const float *x, __m256 scale)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(to_half(_mm256_loadu_ps(x)), scale));
}

static inline void encode32(const float *x, __m256 s, uint8_t *codes)
{
    __m256i b = qm_bytes32(round8(x, s), round8(x + 8, s), round8(x + 16, s), round8(x + 24, s));
    _mm256_storeu_si256((__m256i *)codes, qm_in_order32(b));
}

static void encode_row(const float *x, size_t n, float scale, uint8_t *codes)
{
    __m256 s = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + RUN <= n; i += RUN)
        encode32(x + i, s, codes + i);
    if (i < n) {
        float rest[RUN] = {0};
        uint8_t out[RUN];
        memcpy(rest, x + i, sizeof *x * (n - i));
        encode32(rest, s, out);
        memcpy(codes + i, out, n - i);
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    uint8_t *at[] = {plane[0], plane[1]};
    for (size_t m; n; n -= m, x += m, at[0] += m, at[1] += sizeof(float)) {
        m = n < c->block ? n : c->block;
        float absmax = qm_bits_f32(largest_half(x, m));
        if (absmax > 0 && absmax <= 65504.0f) {
            memcpy(at[1], &absmax, sizeof absmax);
            encode_row(x, m, qm_int8_scale(absmax, c->nearest), at[0]);
        } else {
            qm_format_int8.encode(x, (uint32_t)m, c, at);
        }
    }
}

static void decode_row(const uint8_t *codes, size_t n, float absmax, float *y)
{
    __m256 s = _mm256_set1_ps(absmax), step = _mm256_set1_ps(QM_INT8_STEP);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i code = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(codes + i)));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(code), s), step));
    }
    for (; i < n; i++)
        y[i] = qm_int8_value((int8_t)codes[i], absmax);
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    const uint8_t *at[] = {plane[0], plane[1]};
    for (size_t m; n; n -= m, y += m, at[0] += m, at[1] += sizeof(float)) {
        m = n < c->block ? n : c->block;
        float absmax;
        memcpy(&absmax, at[1], sizeof absmax);
        decode_row(at[0], m, absmax, y);
    }
}

const qm_fast qm_avx2_int8 = {.encode = encode, .decode = decode};
