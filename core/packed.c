/* packed.c: see packed.h.  AVX-512 with VNNI: a register holds four columns of sixteen rows. */
#include "packed.h"

#include <stdlib.h>

bool qm_ints_new(qm_ints *q, const qm_pack *p, int64_t tokens, qm_err *e)
{
    *q = (qm_ints){.tokens = tokens, .cols = p->cols, .sub = p->group == 16 ? 16 : 32};
    size_t cols = (size_t)p->cols, blocks = cols / 32, subs = cols / (size_t)q->sub, t = (size_t)tokens;
    q->memory = aligned_alloc(64, (t * (2 * cols + 4 * blocks + 8 * subs) + 127) / 64 * 64);
    if (!q->memory)
        return qm_fail(e, QM_ENOFIT, "out of memory for the activations of %lld tokens", (long long)tokens);
    q->high = (int8_t *)q->memory;
    q->low = q->high + t * cols;
    q->scale = (float *)(void *)(q->low + t * cols);
    q->start = (int32_t *)(void *)(q->scale + t * blocks);
    q->sum = (float *)(void *)(q->start + t * subs);
    return true;
}

void qm_ints_free(qm_ints *q) { free(q->memory); }

#ifdef __AVX512VNNI__
#include <immintrin.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

/* ---- activations ------------------------------------------------------------------------------------ */

enum { STEPS = 127 * 128 }; /* of the largest */

/* Sixteen integers: their bytes and what is needed of their sums. */
ALWAYS void split16(__m512i v, bool twice, int8_t *high, int8_t *low, int32_t *sum, int32_t *low_sum)
{
    __m512i h = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(64)), 7);
    __m512i l = _mm512_sub_epi32(v, _mm512_slli_epi32(h, 7));
    _mm_storeu_si128((__m128i *)(void *)high, _mm512_cvtepi32_epi8(h));
    _mm_storeu_si128((__m128i *)(void *)low, _mm512_cvtepi32_epi8(twice ? _mm512_add_epi32(l, l) : l));
    *sum = _mm512_reduce_add_epi32(v);
    *low_sum = _mm512_reduce_add_epi32(l);
}

void qm_ints_set(qm_ints *q, const qm_pack *p, int64_t t, const float *x)
{
    const bool level16 = p->codes == QM_CODES_LEVEL16;
    const int64_t blocks = q->cols / 32, subs = q->cols / q->sub, each = 32 / q->sub;
    int8_t *high = q->high + t * q->cols, *low = q->low + t * q->cols;
    for (int64_t b = 0; b < blocks; b++, x += 32, high += 32, low += 32) {
        __m512 u = _mm512_loadu_ps(x), v = _mm512_loadu_ps(x + 16);
        __mmask16 bad = _mm512_fpclass_ps_mask(u, 0x99)
                        | _mm512_fpclass_ps_mask(v, 0x99); /* NaN, infinities */
        float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(u), _mm512_abs_ps(v)));
        float scale = bad ? __builtin_nanf("") : most / STEPS,
              inverse = most > 1e-30f && !bad ? STEPS / most : 0;
        __m512 by = _mm512_set1_ps(inverse);
        int32_t sum[2] = {0}, low_sum[2] = {0};
        split16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_mov_ps((__mmask16)~bad, u), by)), level16, high,
                low, &sum[0], &low_sum[0]);
        split16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_mov_ps((__mmask16)~bad, v), by)), level16,
                high + 16, low + 16, &sum[1], &low_sum[1]);
        if (each == 1) {
            sum[0] += sum[1];
            low_sum[0] += low_sum[1];
        }
        q->scale[t * blocks + b] = level16 ? scale * 128 * p->unit : scale;
        for (int64_t s = 0; s < each; s++) {
            q->start[t * subs + b * each + s] = level16 ? -256 * sum[s] + low_sum[s] : -p->zero * sum[s];
            q->sum[t * subs + b * each + s] = (float)sum[s] * scale;
        }
    }
}

/* ---- integers ---------------------------------------------------------------------------------------- */

/* What the compiler is to know: one function is made for every combination that formats have. */
typedef struct kind {
    qm_pack_codes codes;
    qm_pack_scales scales;
    bool mins;
    int subs; /* of 32 columns: 1 or 2 */
} kind;

ALWAYS __m512i four(const int8_t *x) /* four bytes, in every lane */
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm512_set1_epi32(v);
}

/* The 32 columns' codes, four columns to a register; of levels in two bytes the high ones, and the low ones
 * in `low`. */
ALWAYS void load_codes(kind k, const qm_pack *p, const uint8_t *at, __m512i code[8], __m512i low[8])
{
    const __m512i mask = _mm512_set1_epi8(15);
    if (k.codes == QM_CODES_BYTE) {
        for (int i = 0; i < 8; i++)
            code[i] = _mm512_load_si512(at + 64 * i);
        return;
    }
    for (int i = 0; i < 4; i++) {
        __m512i pair = _mm512_load_si512(at + 64 * i);
        code[2 * i] = _mm512_and_si512(pair, mask);
        code[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), mask);
    }
    if (k.codes == QM_CODES_NIBBLE)
        return;
    __m512i lows = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p->low));
    __m512i highs = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p->high));
    for (int i = 0; i < 8; i++) {
        __m512i c = code[i];
        low[i] = _mm512_shuffle_epi8(lows, c);
        code[i] = k.codes == QM_CODES_LEVEL16 ? _mm512_shuffle_epi8(highs, c) : low[i];
    }
}

/* Sum over columns 4 from … 4 to - 1 of code * x, in steps of the activations. */
ALWAYS __m512i products(kind k, const __m512i *code, const __m512i *low, const int8_t *xh, const int8_t *xl,
                        int32_t start, int from, int to)
{
    __m512i a = _mm512_setzero_si512(), b = _mm512_set1_epi32(start);
    for (int i = from; i < to; i++) {
        __m512i h = four(xh + 4 * i);
        a = _mm512_dpbusd_epi32(a, code[i], h);
        b = _mm512_dpbusd_epi32(b, code[i], four(xl + 4 * i));
        if (k.codes == QM_CODES_LEVEL16)
            b = _mm512_dpbusd_epi32(b, low[i], h);
    }
    return _mm512_add_epi32(_mm512_slli_epi32(a, k.codes == QM_CODES_LEVEL16 ? 8 : 7), b);
}

ALWAYS __m512 halves16(const uint8_t *at)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

ALWAYS __m512 bytes16(const uint8_t *at)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at)));
}

/* A panel's scales are a stream of their own, too short for the CPU to see it coming: those of the next panel
 * are asked for now. */
ALWAYS void next_panel(const qm_pack *p, const uint8_t *at, bool ahead)
{
    if (ahead)
        _mm_prefetch((const char *)(at + p->panel), _MM_HINT_T1);
}

/* Scales, and least values, of sub s of block b. */
ALWAYS __m512 load_scale(kind k, const qm_pack *p, const uint8_t *scales, int64_t b, int s, bool ahead,
                         __m512 *least)
{
    if (k.scales == QM_SCALES_FLOAT) {
        const uint8_t *at = scales + 32 * b / p->group * 64;
        next_panel(p, at, ahead);
        return _mm512_load_ps(at);
    }
    if (k.scales == QM_SCALES_HALF) {
        next_panel(p, scales + 32 * b, ahead && b % 2 == 0);
        if (k.mins) {
            next_panel(p, scales + p->cols + 32 * b, ahead && b % 2 == 0);
            *least = halves16(scales + p->cols + 32 * b);
        }
        return halves16(scales + 32 * b);
    }
    const int n = 8 * k.subs, sub = (int)(b % 8) * k.subs + s;
    const uint8_t *super = scales + b / 8 * ((k.mins ? 2 : 1) * (32 + 16 * n)),
                  *at = super + (k.mins ? 64 : 32);
    next_panel(p, super + 64 * (b % 8), ahead && s == 0);
    if (k.mins)
        *least = _mm512_mul_ps(halves16(super + 32), bytes16(at + 16 * (n + sub)));
    return _mm512_mul_ps(halves16(super), bytes16(at + 16 * sub));
}

/* A panel times `count` tokens from token t. */
ALWAYS void tokens_of(kind k, int count, const qm_packed_job *j, const uint8_t *panel, int64_t t, __m512 *acc)
{
    const qm_pack *p = j->pack;
    const qm_ints *q = j->q;
    const int64_t cols = q->cols, blocks = cols / 32, subs = blocks * k.subs;
    const int8_t *xh = q->high + t * cols, *xl = q->low + t * cols;
    const float *xs = q->scale + t * blocks, *xsum = q->sum + t * subs;
    const int32_t *start = q->start + t * subs;
    const uint8_t *scales = panel + p->codes_size;
    const int size = k.codes == QM_CODES_BYTE ? 512 : 256;
    for (int i = 0; i < count; i++)
        acc[i] = _mm512_setzero_ps();
    for (int64_t b = 0; b < blocks; b++) {
        __m512i code[8], low[8];
        __m512 least[2], scale[2];
        if (count == 1)
            for (int i = 0; i < size; i += 64)
                _mm_prefetch((const char *)(panel + b * size + i + 3072), _MM_HINT_T0);
        load_codes(k, p, panel + b * size, code, low);
        for (int s = 0; s < k.subs; s++)
            scale[s] = load_scale(k, p, scales, b, s, count == 1, &least[s]);
        for (int i = 0; i < count; i++) {
            __m512 by = _mm512_set1_ps(xs[i * blocks + b]);
            for (int s = 0; s < k.subs; s++) {
                int64_t sub = i * subs + b * k.subs + s;
                __m512i sum = products(k, code, low, xh + i * cols + 32 * b, xl + i * cols + 32 * b,
                                       start[sub], 8 / k.subs * s, 8 / k.subs * (s + 1));
                acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale[s], by), acc[i]);
                if (k.mins)
                    acc[i] = _mm512_fnmadd_ps(least[s], _mm512_set1_ps(xsum[sub]), acc[i]);
            }
        }
    }
}

/* ---- floats ------------------------------------------------------------------------------------------- */

ALWAYS __m512 load_floats(qm_pack_codes codes, const uint8_t *panel, int64_t k)
{
    if (codes == QM_CODES_F32)
        return _mm512_load_ps(panel + 64 * k);
    __m256i half = _mm256_load_si256((const __m256i *)(const void *)(panel + 32 * k));
    return codes == QM_CODES_F16 ? _mm512_cvtph_ps(half)
                                 : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Columns in order for every token; one token's sum is kept in four parts, because additions to one would
 * wait for each other. */
ALWAYS void floats_of(qm_pack_codes codes, int count, const qm_packed_job *j, const uint8_t *panel, int64_t t,
                      __m512 *acc)
{
    const int64_t cols = j->pack->cols;
    const float *x = j->x + t * cols;
    enum { PARTS = 4 };
    const int parts = count == 1 ? PARTS : 1;
    for (int i = 0; i < count * parts; i++)
        acc[i] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + PARTS <= cols; k += PARTS) {
        if (count == 1)
            for (int i = 0; i < (codes == QM_CODES_F32 ? 4 : 2); i++)
                _mm_prefetch((const char *)(panel + (codes == QM_CODES_F32 ? 64 : 32) * k + 64 * i + 4096),
                             _MM_HINT_T0);
        for (int c = 0; c < PARTS; c++) {
            __m512 w = load_floats(codes, panel, k + c);
            for (int i = 0; i < count; i++)
                acc[i + c % parts] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[i * cols + k + c]),
                                                     acc[i + c % parts]);
        }
    }
    for (; k < cols; k++) {
        __m512 w = load_floats(codes, panel, k);
        for (int i = 0; i < count; i++)
            acc[i] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[i * cols + k]), acc[i]);
    }
    if (parts > 1)
        acc[0] = _mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3]));
}

/* ---- one function for every kind ---------------------------------------------------------------------- */

static void store(const qm_packed_job *j, int64_t t, int count, int n, const float *bias, const __m512 *acc,
                  float *y)
{
    __mmask16 rows = (__mmask16)((1u << n) - 1);
    __m512 b = bias ? _mm512_maskz_loadu_ps(rows, bias) : _mm512_setzero_ps();
    for (int i = 0; i < count; i++)
        _mm512_mask_storeu_ps(y + (t + i) * j->stride, rows, _mm512_add_ps(acc[i], b));
}

#define TILES(many, CALL)                      \
    __m512 acc[16];                            \
    int64_t t = j->from;                       \
    for (; t + (many) <= j->to; t += (many)) { \
        CALL(many);                            \
        store(j, t, many, n, bias, acc, y);    \
    }                                          \
    for (; t + 4 <= j->to; t += 4) {           \
        CALL(4);                               \
        store(j, t, 4, n, bias, acc, y);       \
    }                                          \
    for (; t < j->to; t++) {                   \
        CALL(1);                               \
        store(j, t, 1, n, bias, acc, y);       \
    }

typedef void panel_fn(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y);

#define INTEGERS(name, codes, scales, mins, subs, many)                                                \
    static void name(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y) \
    {                                                                                                  \
        const kind k = {codes, scales, mins, subs};                                                    \
        TILES(many, INTEGERS_CALL)                                                                     \
    }
#define INTEGERS_CALL(count) tokens_of(k, count, j, panel, t, acc)

#define FLOATS(name, codes)                                                                            \
    static void name(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y) \
    {                                                                                                  \
        const qm_pack_codes kind_of_codes = codes;                                                     \
        TILES(16, FLOATS_CALL)                                                                         \
    }
#define FLOATS_CALL(count) floats_of(kind_of_codes, count, j, panel, t, acc)

INTEGERS(nibble_half, QM_CODES_NIBBLE, QM_SCALES_HALF, false, 1, 16)
INTEGERS(nibble_half_min, QM_CODES_NIBBLE, QM_SCALES_HALF, true, 1, 12)
INTEGERS(nibble_sub32_min, QM_CODES_NIBBLE, QM_SCALES_SUB, true, 1, 12)
INTEGERS(nibble_sub16, QM_CODES_NIBBLE, QM_SCALES_SUB, false, 2, 12)
INTEGERS(nibble_sub16_min, QM_CODES_NIBBLE, QM_SCALES_SUB, true, 2, 12)
INTEGERS(byte_half, QM_CODES_BYTE, QM_SCALES_HALF, false, 1, 16)
INTEGERS(byte_half_min, QM_CODES_BYTE, QM_SCALES_HALF, true, 1, 12)
INTEGERS(byte_float, QM_CODES_BYTE, QM_SCALES_FLOAT, false, 1, 16)
INTEGERS(byte_sub32_min, QM_CODES_BYTE, QM_SCALES_SUB, true, 1, 12)
INTEGERS(byte_sub16, QM_CODES_BYTE, QM_SCALES_SUB, false, 2, 12)
INTEGERS(level8_half, QM_CODES_LEVEL8, QM_SCALES_HALF, false, 1, 16)
INTEGERS(level8_float, QM_CODES_LEVEL8, QM_SCALES_FLOAT, false, 1, 16)
INTEGERS(level8_sub32, QM_CODES_LEVEL8, QM_SCALES_SUB, false, 1, 16)
INTEGERS(level16_float, QM_CODES_LEVEL16, QM_SCALES_FLOAT, false, 1, 8)
FLOATS(floats_f16, QM_CODES_F16)
FLOATS(floats_bf16, QM_CODES_BF16)
FLOATS(floats_f32, QM_CODES_F32)

static const struct {
    qm_pack_codes codes;
    qm_pack_scales scales;
    bool mins, sub16;
    panel_fn *fn;
} kinds[] = {
    {QM_CODES_NIBBLE, QM_SCALES_HALF, false, false, nibble_half},
    {QM_CODES_NIBBLE, QM_SCALES_HALF, true, false, nibble_half_min},
    {QM_CODES_NIBBLE, QM_SCALES_SUB, true, false, nibble_sub32_min},
    {QM_CODES_NIBBLE, QM_SCALES_SUB, false, true, nibble_sub16},
    {QM_CODES_NIBBLE, QM_SCALES_SUB, true, true, nibble_sub16_min},
    {QM_CODES_BYTE, QM_SCALES_HALF, false, false, byte_half},
    {QM_CODES_BYTE, QM_SCALES_HALF, true, false, byte_half_min},
    {QM_CODES_BYTE, QM_SCALES_FLOAT, false, false, byte_float},
    {QM_CODES_BYTE, QM_SCALES_SUB, true, false, byte_sub32_min},
    {QM_CODES_BYTE, QM_SCALES_SUB, false, true, byte_sub16},
    {QM_CODES_LEVEL8, QM_SCALES_HALF, false, false, level8_half},
    {QM_CODES_LEVEL8, QM_SCALES_FLOAT, false, false, level8_float},
    {QM_CODES_LEVEL8, QM_SCALES_SUB, false, false, level8_sub32},
    {QM_CODES_LEVEL16, QM_SCALES_FLOAT, false, false, level16_float},
    {QM_CODES_F16, QM_SCALES_NONE, false, false, floats_f16},
    {QM_CODES_BF16, QM_SCALES_NONE, false, false, floats_bf16},
    {QM_CODES_F32, QM_SCALES_NONE, false, false, floats_f32},
};

void qm_packed_panel(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y)
{
    const qm_pack *p = j->pack;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].codes == p->codes && kinds[i].scales == p->scales && kinds[i].mins == p->mins
            && kinds[i].sub16 == (p->scales == QM_SCALES_SUB && p->group == 16)) {
            kinds[i].fn(j, panel, n, bias, y);
            return;
        }
}

#else /* compiled for another machine; qm_tensor_prepare makes no packs there */
void qm_ints_set(qm_ints *q, const qm_pack *p, int64_t t, const float *x)
{
    (void)q, (void)p, (void)t, (void)x;
}
void qm_packed_panel(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y)
{
    (void)j, (void)panel, (void)n, (void)bias, (void)y;
}
#endif
