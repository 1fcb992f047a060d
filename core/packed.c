/* packed.c: see packed.h.  Compiled once for any machine, and once for each level with QM_LEVEL=avx2 and
 * QM_LEVEL=vnni. */
#include "packed.h"

#ifndef QM_LEVEL
#include <stdlib.h>

#include "cpu.h"

const qm_packed *qm_packed_get(void)
{
    const qm_simd level = qm_cpu_simd();
    return level == QM_AVX512 && qm_cpu_vnni() ? &qm_packed_vnni : level >= QM_AVX2 ? &qm_packed_avx2 : NULL;
}

bool qm_ints_new(qm_ints *q, const qm_packed *with, const qm_pack *p, int64_t tokens, qm_err *e)
{
    *q = (qm_ints){.cols = p->steps * p->span, .sub = p->group == 16 ? 16 : 32};
    size_t cols = (size_t)q->cols, blocks = cols / 32, subs = cols / (size_t)q->sub, t = (size_t)tokens;
    q->memory = aligned_alloc(64, (t * (2 * with->item * cols + 4 * blocks + 8 * subs) + 127) / 64 * 64);
    if (!q->memory)
        return qm_fail(e, QM_ENOFIT, "out of memory for the activations of %lld tokens", (long long)tokens);
    q->first = q->memory;
    q->second = q->first + t * cols * with->item;
    q->scale = (float *)(void *)(q->second + t * cols * with->item);
    q->start = (int32_t *)(void *)(q->scale + t * blocks);
    q->sum = (float *)(void *)(q->start + t * subs);
    return true;
}

void qm_ints_free(qm_ints *q) { free(q->memory); }

#else
#include <immintrin.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))

/* ---- sixteen rows ------------------------------------------------------------------------------------- */

ALWAYS __m128i load128(const void *at) { return _mm_loadu_si128((const __m128i *)at); }
ALWAYS __m256i load256(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }

#ifdef __AVX512VNNI__
typedef __m512 floats;
typedef __m512i ints;

ALWAYS floats f_set(float x) { return _mm512_set1_ps(x); }
ALWAYS floats f_add(floats a, floats b) { return _mm512_add_ps(a, b); }
ALWAYS floats f_mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
ALWAYS floats f_fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS floats f_fnma(floats a, floats b, floats c) { return _mm512_fnmadd_ps(a, b, c); }
ALWAYS floats f_ints(ints a) { return _mm512_cvtepi32_ps(a); }
ALWAYS void f_store(float *y, floats a) { _mm512_storeu_ps(y, a); }
ALWAYS floats f_f32(const uint8_t *at) { return _mm512_loadu_ps(at); }
ALWAYS floats f_f16(const uint8_t *at) { return _mm512_cvtph_ps(load256(at)); }
ALWAYS floats f_bf16(const uint8_t *at)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(at)), 16));
}
ALWAYS floats f_i8(const uint8_t *at) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(at))); }
#else
typedef struct {
    __m256 h[2];
} floats;
typedef struct {
    __m256i h[2];
} ints;

#define BOTH(type, a, b) \
    return (type)        \
    {                    \
        {                \
            a, b         \
        }                \
    }
ALWAYS floats f_set(float x) { BOTH(floats, _mm256_set1_ps(x), _mm256_set1_ps(x)); }
ALWAYS floats f_add(floats a, floats b)
{
    BOTH(floats, _mm256_add_ps(a.h[0], b.h[0]), _mm256_add_ps(a.h[1], b.h[1]));
}
ALWAYS floats f_mul(floats a, floats b)
{
    BOTH(floats, _mm256_mul_ps(a.h[0], b.h[0]), _mm256_mul_ps(a.h[1], b.h[1]));
}
ALWAYS floats f_fma(floats a, floats b, floats c)
{
    BOTH(floats, _mm256_fmadd_ps(a.h[0], b.h[0], c.h[0]), _mm256_fmadd_ps(a.h[1], b.h[1], c.h[1]));
}
ALWAYS floats f_fnma(floats a, floats b, floats c)
{
    BOTH(floats, _mm256_fnmadd_ps(a.h[0], b.h[0], c.h[0]), _mm256_fnmadd_ps(a.h[1], b.h[1], c.h[1]));
}
ALWAYS floats f_ints(ints a) { BOTH(floats, _mm256_cvtepi32_ps(a.h[0]), _mm256_cvtepi32_ps(a.h[1])); }
ALWAYS void f_store(float *y, floats a)
{
    _mm256_storeu_ps(y, a.h[0]);
    _mm256_storeu_ps(y + 8, a.h[1]);
}
ALWAYS floats f_f32(const uint8_t *at)
{
    BOTH(floats, _mm256_castsi256_ps(load256(at)), _mm256_castsi256_ps(load256(at + 32)));
}
ALWAYS floats f_f16(const uint8_t *at)
{
    BOTH(floats, _mm256_cvtph_ps(load128(at)), _mm256_cvtph_ps(load128(at + 16)));
}
ALWAYS __m256 bf16_half(const uint8_t *at)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(at)), 16));
}
ALWAYS floats f_bf16(const uint8_t *at) { BOTH(floats, bf16_half(at), bf16_half(at + 16)); }
ALWAYS __m256 i8_half(const uint8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at)));
}
ALWAYS floats f_i8(const uint8_t *at) { BOTH(floats, i8_half(at), i8_half(at + 8)); }
#endif

/* ---- activations ------------------------------------------------------------------------------------ */

enum { STEPS = 127 * 128 }; /* of the largest */

/* 32 integers of 16 bits, in order in four registers' dwords, as this level multiplies them. */
ALWAYS __m256i words(__m256i a, __m256i b) /* 0 … 7, 8 … 15 */
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}

ALWAYS void store256(void *to, __m256i v) { _mm256_storeu_si256((__m256i *)to, v); }

#ifdef __AVX512VNNI__
ALWAYS void put32(bool level16, const __m256i v[4], const __m256i high[4], uint8_t *first, uint8_t *second)
{
    __m256i low[4];
    for (int i = 0; i < 4; i++) {
        low[i] = _mm256_sub_epi32(v[i], _mm256_slli_epi32(high[i], 7));
        low[i] = level16 ? _mm256_add_epi32(low[i], low[i]) : low[i];
    }
    const __m256i h = _mm256_packs_epi16(words(high[0], high[1]), words(high[2], high[3])),
                  l = _mm256_packs_epi16(words(low[0], low[1]), words(low[2], low[3]));
    store256(first, _mm256_permute4x64_epi64(h, 0xd8));
    store256(second, _mm256_permute4x64_epi64(l, 0xd8));
}
#else
/* Of four columns the even ones in front. */
ALWAYS __m256i even_first(__m256i a) { return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(a, 0xd8), 0xd8); }

ALWAYS void put32(bool level16, const __m256i v[4], const __m256i high[4], uint8_t *first, uint8_t *second)
{
    for (int i = 0; i < 2; i++) {
        __m256i w = words(v[2 * i], v[2 * i + 1]), h = words(high[2 * i], high[2 * i + 1]);
        w = level16 ? _mm256_add_epi16(w, w) : w;
        store256(first + 32 * i, even_first(w));
        store256(second + 32 * i, even_first(h));
    }
}
#endif

/* A block beyond the columns there are. */
static void set_nothing(qm_ints *q, size_t item, int64_t block, int64_t col)
{
    const int64_t each = 32 / q->sub;
    memset(q->first + (size_t)col * item, 0, 32 * item);
    memset(q->second + (size_t)col * item, 0, 32 * item);
    q->scale[block] = 0;
    memset(q->start + block * each, 0, (size_t)each * sizeof *q->start);
    memset(q->sum + block * each, 0, (size_t)each * sizeof *q->sum);
}

static void set_block(qm_ints *q, size_t item, const qm_pack *p, int64_t block, int64_t col, const float *x)
{
    const bool level16 = p->codes == QM_CODES_LEVEL16;
    __m256i v[4], high[4], magnitude = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        v[i] = load256(x + 8 * i);
        magnitude = _mm256_max_epu32(magnitude, _mm256_and_si256(v[i], _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(magnitude), _mm256_extracti128_si256(magnitude, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    const float most = _mm_cvtss_f32(_mm_castsi128_ps(m));
    const bool bad = (uint32_t)_mm_cvtsi128_si32(m)
                     >= 0x7f800000; /* an infinity or a NaN is larger than all */
    const float scale = bad ? __builtin_nanf("") : most / STEPS;
    const __m256 inverse = _mm256_set1_ps(most > 1e-30f ? STEPS / most : 0);
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(v[i]), inverse));
        v[i] = bad ? _mm256_setzero_si256() : v[i];
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(v[i], _mm256_set1_epi32(64)), 7);
    }
    put32(level16, v, high, q->first + (size_t)col * item, q->second + (size_t)col * item);
    q->scale[block] = level16 ? scale * 128 * p->unit : scale;

    /* sums of v and of high, each of both halves */
    __m256i sums = _mm256_hadd_epi32(
        _mm256_hadd_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3])),
        _mm256_hadd_epi32(_mm256_add_epi32(high[0], high[1]), _mm256_add_epi32(high[2], high[3])));
    __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    int32_t sum[2] = {_mm_extract_epi32(both, 0), _mm_extract_epi32(both, 1)};
    int32_t high_sum[2] = {_mm_extract_epi32(both, 2), _mm_extract_epi32(both, 3)};
    const int each = (int)(32 / q->sub);
    if (each == 1) {
        sum[0] += sum[1];
        high_sum[0] += high_sum[1];
    }
    for (int s = 0; s < each; s++) {
        q->start[block * each + s] = level16 ? -256 * sum[s] + (sum[s] - 128 * high_sum[s])
                                             : -p->zero * sum[s];
        q->sum[block * each + s] = (float)sum[s] * scale;
    }
}

/* ---- integers ---------------------------------------------------------------------------------------- */

/* What the compiler is to know: one function is made for every combination that formats have. */
typedef struct kind {
    qm_pack_codes codes;
    uint32_t bits;
    qm_pack_scales scales;
    bool mins;
    int subs; /* of 32 columns: 1 or 2 */
} kind;

ALWAYS int32_t four_bytes(const uint8_t *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return v;
}

#ifdef __AVX512VNNI__
enum { ITEM = 1, PARTS = 8 }; /* registers of codes for 32 columns: four columns each */

/* Field number i of a plane of codes, one to a byte, at bit `to` of it, with its neighbours. */
ALWAYS __m512i shifted(const uint8_t *plane, uint32_t bits, uint32_t i, uint32_t to)
{
    const uint32_t at = i * bits % 8;
    __m512i v = _mm512_loadu_si512(plane + (size_t)64 * (i * bits / 8));
    return at > to ? _mm512_srli_epi16(v, at - to) : at < to ? _mm512_slli_epi16(v, to - at) : v;
}

/* … without them. */
ALWAYS __m512i field(const uint8_t *plane, uint32_t bits, uint32_t i, uint32_t to)
{
    __m512i v = shifted(plane, bits, i, to);
    return bits == 8 ? v : _mm512_and_si512(v, _mm512_set1_epi8((char)(((1u << bits) - 1) << to)));
}

/* Of each byte the low 4 bits count: the table is there four times. */
ALWAYS __m512i look_up(const uint8_t table[16], __m512i code)
{
    return _mm512_permutexvar_epi8(code, _mm512_broadcast_i32x4(load128(table)));
}

/* The 32 columns' codes, or levels; of levels in two bytes the high ones, and the low ones in `low`. */
ALWAYS void load_codes(kind k, const qm_pack *p, const uint8_t *at, ints code[PARTS], ints low[PARTS])
{
    const uint32_t bits = qm_pack_low_bits(k.bits), more = k.bits - bits;
    for (uint32_t i = 0; i < PARTS; i++) {
        code[i] = k.codes == QM_CODES_INT ? field(at, bits, i, 0) : shifted(at, bits, i, 0);
        if (more)
            code[i] = _mm512_or_si512(code[i], field(at + (size_t)64 * bits, more, i, bits));
        if (k.codes != QM_CODES_INT)
            low[i] = look_up(p->low, code[i]);
        if (k.codes == QM_CODES_LEVEL8)
            code[i] = low[i];
        if (k.codes == QM_CODES_LEVEL16)
            code[i] = look_up(p->high, code[i]);
    }
}

/* Sum over sub s of the 32 columns of code * v; of levels in two bytes in units of 128. */
ALWAYS ints products(kind k, const ints *code, const ints *low, const uint8_t *first, const uint8_t *second,
                     int32_t start, int s)
{
    __m512i a = _mm512_setzero_si512(), b = _mm512_set1_epi32(start), c = _mm512_setzero_si512();
    for (int i = PARTS / k.subs * s; i < PARTS / k.subs * (s + 1); i++) {
        __m512i h = _mm512_set1_epi32(four_bytes(first + 4 * i));
        a = _mm512_dpbusd_epi32(a, code[i], h);
        b = _mm512_dpbusd_epi32(b, code[i], _mm512_set1_epi32(four_bytes(second + 4 * i)));
        if (k.codes == QM_CODES_LEVEL16)
            c = _mm512_dpbusd_epi32(c, low[i], h);
    }
    b = k.codes == QM_CODES_LEVEL16 ? _mm512_add_epi32(b, c) : b;
    return _mm512_add_epi32(_mm512_slli_epi32(a, k.codes == QM_CODES_LEVEL16 ? 8 : 7), b);
}
#else
enum { ITEM = 2, PARTS = 16 }; /* two columns each, as words */

ALWAYS __m256i field(const uint8_t *plane, uint32_t bits, uint32_t i, uint32_t to)
{
    const uint32_t at = i * bits % 8;
    __m256i v = load256(plane + (size_t)64 * (i * bits / 8));
    v = at > to ? _mm256_srli_epi16(v, (int)(at - to)) : at < to ? _mm256_slli_epi16(v, (int)(to - at)) : v;
    return bits == 8 ? v : _mm256_and_si256(v, _mm256_set1_epi8((char)(((1u << bits) - 1) << to)));
}

ALWAYS __m256i look_up(const uint8_t table[16], __m256i code)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), code);
}

/* Bytes of columns 0 to 3 become words of 0 and 2, and of 1 and 3. */
ALWAYS void put_words(ints *two, int half, __m256i bytes)
{
    two[0].h[half] = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
    two[1].h[half] = _mm256_srli_epi16(bytes, 8);
}

ALWAYS void load_codes(kind k, const qm_pack *p, const uint8_t *at, ints code[PARTS], ints low[PARTS])
{
    const uint32_t bits = qm_pack_low_bits(k.bits), more = k.bits - bits;
    for (uint32_t i = 0; i < PARTS / 2; i++)
        for (int half = 0; half < 2; half++) {
            const uint8_t *from = at + 32 * half;
            __m256i c = field(from, bits, i, 0);
            if (more)
                c = _mm256_or_si256(c, field(from + (size_t)64 * bits, more, i, bits));
            if (k.codes == QM_CODES_LEVEL16)
                put_words(low + 2 * i, half, look_up(p->low, c));
            c = k.codes == QM_CODES_LEVEL16  ? look_up(p->high, c)
                : k.codes == QM_CODES_LEVEL8 ? look_up(p->low, c)
                                             : c;
            put_words(code + 2 * i, half, c);
        }
}

ALWAYS ints products(kind k, const ints *code, const ints *low, const uint8_t *first, const uint8_t *second,
                     int32_t start, int s)
{
    ints sum = {{_mm256_set1_epi32(start), _mm256_set1_epi32(start)}};
    for (int i = PARTS / k.subs * s; i < PARTS / k.subs * (s + 1); i++)
        for (int half = 0; half < 2; half++) {
            __m256i x = _mm256_set1_epi32(four_bytes(first + 4 * i));
            sum.h[half] = _mm256_add_epi32(sum.h[half], _mm256_madd_epi16(code[i].h[half], x));
            if (k.codes == QM_CODES_LEVEL16) {
                x = _mm256_set1_epi32(four_bytes(second + 4 * i));
                sum.h[half] = _mm256_add_epi32(sum.h[half], _mm256_madd_epi16(low[i].h[half], x));
            }
        }
    return sum;
}
#endif

/* Scales, and least values, of a step's sub. */
typedef struct step_scales {
    floats d, dmin;
} step_scales;

ALWAYS step_scales load_scales(kind k, const uint8_t *head)
{
    step_scales s = {f_set(0), f_set(0)};
    if (k.scales == QM_SCALES_FLOAT)
        s.d = f_f32(head);
    if (k.scales == QM_SCALES_SUB)
        s.d = f_f16(head);
    if (k.scales == QM_SCALES_SUB && k.mins)
        s.dmin = f_f16(head + 32);
    return s;
}

ALWAYS floats scale_of(kind k, const step_scales *s, const uint8_t *head, int64_t sub, floats *least)
{
    if (k.scales == QM_SCALES_FLOAT)
        return s->d;
    if (k.scales == QM_SCALES_HALF) {
        if (k.mins)
            *least = f_f16(head + 64 + 32 * sub);
        return f_f16(head + 32 * sub);
    }
    if (k.mins)
        *least = f_mul(s->dmin, f_i8(head + 64 + 16 * (8 * k.subs + sub)));
    return f_mul(s->d, f_i8(head + 64 + 16 * sub));
}

/* A panel times `count` tokens from token t. */
ALWAYS void tokens_of(kind k, int count, const qm_packed_job *j, const uint8_t *panel, int64_t t, floats *acc)
{
    const qm_pack *p = j->pack;
    const qm_ints *q = j->q;
    const int64_t cols = q->cols, blocks = cols / 32, subs = blocks * k.subs;
    const int64_t each = k.scales == QM_SCALES_HALF ? 2 : k.scales == QM_SCALES_SUB ? 8 : p->span / 32;
    const uint8_t *first = q->first + t * cols * ITEM, *second = q->second + t * cols * ITEM;
    const float *xs = q->scale + t * blocks, *xsum = q->sum + t * subs;
    const int32_t *start = q->start + t * subs;
    for (int i = 0; i < count; i++)
        acc[i] = f_set(0);
    for (int64_t b = 0; b < blocks; panel += p->step) {
        const step_scales all = load_scales(k, panel);
        const uint8_t *at = panel + p->head;
        for (int64_t in = 0; in < each; in++, b++, at += (size_t)64 * k.bits) {
            ints code[PARTS], low[PARTS];
            floats least[2], scale[2];
            for (int s = 0; s < k.subs; s++)
                scale[s] = scale_of(k, &all, panel, in * k.subs + s, &least[s]);
            load_codes(k, p, at, code, low);
            for (int i = 0; i < count; i++) {
                const int64_t x = (i * cols + 32 * b) * ITEM;
                floats by = f_set(xs[i * blocks + b]);
                for (int s = 0; s < k.subs; s++) {
                    int64_t sub = i * subs + b * k.subs + s;
                    ints sum = products(k, code, low, first + x, second + x, start[sub], s);
                    acc[i] = f_fma(f_ints(sum), f_mul(scale[s], by), acc[i]);
                    if (k.mins)
                        acc[i] = f_fnma(least[s], f_set(xsum[sub]), acc[i]);
                }
            }
        }
    }
}

/* ---- floats ------------------------------------------------------------------------------------------- */

ALWAYS floats load_floats(qm_pack_codes codes, const uint8_t *panel, int64_t k)
{
    return codes == QM_CODES_F32   ? f_f32(panel + 64 * k)
           : codes == QM_CODES_F16 ? f_f16(panel + 32 * k)
                                   : f_bf16(panel + 32 * k);
}

/* Columns in order for every token; one token's sum is kept in four parts, because additions to one would
 * wait for each other. */
ALWAYS void floats_of(qm_pack_codes codes, int count, const qm_packed_job *j, const uint8_t *panel, int64_t t,
                      floats *acc)
{
    enum { SUMS = 4 };
    const int64_t cols = j->pack->cols;
    const float *x = j->x + t * cols;
    const int sums = count == 1 ? SUMS : 1;
    for (int i = 0; i < count * sums; i++)
        acc[i] = f_set(0);
    int64_t k = 0;
    for (; k + SUMS <= cols; k += SUMS)
        for (int c = 0; c < SUMS; c++) {
            floats w = load_floats(codes, panel, k + c);
            for (int i = 0; i < count; i++)
                acc[i + c % sums] = f_fma(w, f_set(x[i * cols + k + c]), acc[i + c % sums]);
        }
    for (; k < cols; k++) {
        floats w = load_floats(codes, panel, k);
        for (int i = 0; i < count; i++)
            acc[i] = f_fma(w, f_set(x[i * cols + k]), acc[i]);
    }
    if (sums > 1)
        acc[0] = f_add(f_add(acc[0], acc[1]), f_add(acc[2], acc[3]));
}

/* ---- one function for every kind ---------------------------------------------------------------------- */

static void store(const qm_packed_job *j, int64_t t, int count, int n, const float *bias, const floats *acc,
                  float *y)
{
    float add[QM_PACK_ROWS] = {0}, row[QM_PACK_ROWS];
    for (int r = 0; bias && r < n; r++)
        add[r] = bias[r];
    for (int i = 0; i < count; i++) {
        float *to = y + (t + i) * j->stride;
        f_store(n == QM_PACK_ROWS ? to : row, f_add(acc[i], f_f32((const uint8_t *)add)));
        for (int r = 0; n < QM_PACK_ROWS && r < n; r++)
            to[r] = row[r];
    }
}

/* As many tokens at once as there are registers for. */
#ifdef __AVX512VNNI__
#define MOST(tokens) (tokens)
#else
#define MOST(tokens) 4
#endif

#define TILES(many, CALL)                      \
    floats acc[16];                            \
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

#define INTEGERS(name, codes, bits, scales, mins, subs, many)                                          \
    static void name(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y) \
    {                                                                                                  \
        const kind k = {codes, bits, scales, mins, subs};                                              \
        TILES(MOST(many), INTEGERS_CALL)                                                               \
    }
#define INTEGERS_CALL(count) tokens_of(k, count, j, panel, t, acc)

#define FLOATS(name, codes)                                                                            \
    static void name(const qm_packed_job *j, const uint8_t *panel, int n, const float *bias, float *y) \
    {                                                                                                  \
        const qm_pack_codes kind_of_codes = codes;                                                     \
        TILES(MOST(16), FLOATS_CALL)                                                                   \
    }
#define FLOATS_CALL(count) floats_of(kind_of_codes, count, j, panel, t, acc)

INTEGERS(int4_half, QM_CODES_INT, 4, QM_SCALES_HALF, false, 1, 16)
INTEGERS(int4_half_min, QM_CODES_INT, 4, QM_SCALES_HALF, true, 1, 12)
INTEGERS(int4_sub32_min, QM_CODES_INT, 4, QM_SCALES_SUB, true, 1, 12)
INTEGERS(int3_sub16, QM_CODES_INT, 3, QM_SCALES_SUB, false, 2, 12)
INTEGERS(int2_sub16_min, QM_CODES_INT, 2, QM_SCALES_SUB, true, 2, 12)
INTEGERS(int5_half, QM_CODES_INT, 5, QM_SCALES_HALF, false, 1, 16)
INTEGERS(int5_half_min, QM_CODES_INT, 5, QM_SCALES_HALF, true, 1, 12)
INTEGERS(int5_sub32_min, QM_CODES_INT, 5, QM_SCALES_SUB, true, 1, 12)
INTEGERS(int6_sub16, QM_CODES_INT, 6, QM_SCALES_SUB, false, 2, 12)
INTEGERS(int8_half, QM_CODES_INT, 8, QM_SCALES_HALF, false, 1, 16)
INTEGERS(int8_float, QM_CODES_INT, 8, QM_SCALES_FLOAT, false, 1, 16)
INTEGERS(level8_half, QM_CODES_LEVEL8, 4, QM_SCALES_HALF, false, 1, 16)
INTEGERS(level8_float, QM_CODES_LEVEL8, 4, QM_SCALES_FLOAT, false, 1, 16)
INTEGERS(level8_sub32, QM_CODES_LEVEL8, 4, QM_SCALES_SUB, false, 1, 16)
INTEGERS(level16_float, QM_CODES_LEVEL16, 4, QM_SCALES_FLOAT, false, 1, 8)
FLOATS(floats_f16, QM_CODES_F16)
FLOATS(floats_bf16, QM_CODES_BF16)
FLOATS(floats_f32, QM_CODES_F32)

static const struct {
    qm_pack_codes codes;
    uint32_t bits;
    qm_pack_scales scales;
    bool mins, sub16;
    qm_panel_fn *fn;
} kinds[] = {
    {QM_CODES_INT, 4, QM_SCALES_HALF, false, false, int4_half},
    {QM_CODES_INT, 4, QM_SCALES_HALF, true, false, int4_half_min},
    {QM_CODES_INT, 4, QM_SCALES_SUB, true, false, int4_sub32_min},
    {QM_CODES_INT, 3, QM_SCALES_SUB, false, true, int3_sub16},
    {QM_CODES_INT, 2, QM_SCALES_SUB, true, true, int2_sub16_min},
    {QM_CODES_INT, 5, QM_SCALES_HALF, false, false, int5_half},
    {QM_CODES_INT, 5, QM_SCALES_HALF, true, false, int5_half_min},
    {QM_CODES_INT, 5, QM_SCALES_SUB, true, false, int5_sub32_min},
    {QM_CODES_INT, 6, QM_SCALES_SUB, false, true, int6_sub16},
    {QM_CODES_INT, 8, QM_SCALES_HALF, false, false, int8_half},
    {QM_CODES_INT, 8, QM_SCALES_FLOAT, false, false, int8_float},
    {QM_CODES_LEVEL8, 4, QM_SCALES_HALF, false, false, level8_half},
    {QM_CODES_LEVEL8, 4, QM_SCALES_FLOAT, false, false, level8_float},
    {QM_CODES_LEVEL8, 4, QM_SCALES_SUB, false, false, level8_sub32},
    {QM_CODES_LEVEL16, 4, QM_SCALES_FLOAT, false, false, level16_float},
    {QM_CODES_F16, 16, QM_SCALES_NONE, false, false, floats_f16},
    {QM_CODES_BF16, 16, QM_SCALES_NONE, false, false, floats_bf16},
    {QM_CODES_F32, 32, QM_SCALES_NONE, false, false, floats_f32},
};

static qm_panel_fn *find(const qm_pack *p)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].codes == p->codes && kinds[i].bits == p->bits && kinds[i].scales == p->scales
            && kinds[i].mins == p->mins && kinds[i].sub16 == (p->scales == QM_SCALES_SUB && p->group == 16))
            return kinds[i].fn;
    return NULL;
}

static void set(qm_ints *q, const qm_pack *p, int64_t t, const float *x)
{
    const int64_t blocks = q->cols / 32;
    for (int64_t b = 0; b < blocks; b++)
        if (32 * b < p->cols)
            set_block(q, ITEM, p, t * blocks + b, t * q->cols + 32 * b, x + 32 * b);
        else
            set_nothing(q, ITEM, t * blocks + b, t * q->cols + 32 * b);
}

#define PASTE(a, b)  a##b
#define NAMED(level) PASTE(qm_packed_, level)
const qm_packed NAMED(QM_LEVEL) = {.item = ITEM, .set = set, .find = find};
#endif
