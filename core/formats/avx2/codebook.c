/* Codebooks with AVX2: the tree of table.h, eight weights at a time.  Layers 1 to 3 lie in one register,
 * layer 4 in another, the rest is fetched.  Belongs to no file of the folder above: see codebook.c of the
 * core. */
#include "../table.h"
#include "lanes.h"
#include "nibbles.h"

extern const qm_fast qm_avx2_codebook;

/* Everything below is compiled once for each number of bits. */
#define ALWAYS static inline __attribute__((always_inline))

/* ---- encoding ----------------------------------------------------------------------------------- */

typedef struct tree8 {
    __m256 root, low, high; /* node 1; nodes 0 ... 7; nodes 8 ... 15 */
    const float *node;
} tree8;

static inline tree8 tree8_of(const qm_table *t)
{
    return (tree8){_mm256_set1_ps(t->tree[1]), _mm256_loadu_ps(t->tree), _mm256_loadu_ps(t->tree + 8),
                   t->tree};
}

/* The threshold at node j of layer k, 0 being the root's.  A permutation reads the low three bits of j. */
ALWAYS __m256 node8(tree8 t, __m256i j, uint32_t layer)
{
    switch (layer) {
    case 0:
        return t.root;
    case 1:
    case 2:
        return _mm256_permutevar8x32_ps(t.low, j);
    case 3:
        return _mm256_permutevar8x32_ps(t.high, j);
    default:
        return _mm256_i32gather_ps(t.node, j, sizeof(float));
    }
}

/* 2^bits + rank.  Comparing gives -1 for yes. */
ALWAYS __m256i leaf8(tree8 t, const float *x, __m256 scale, uint32_t bits)
{
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), scale);
    __m256i j = _mm256_set1_epi32(1);
    for (uint32_t layer = 0; layer < bits; layer++) {
        __m256 above = _mm256_cmp_ps(v, node8(t, j, layer), _CMP_GT_OQ);
        j = _mm256_sub_epi32(_mm256_add_epi32(j, j), _mm256_castps_si256(above));
    }
    return j;
}

/* 32 ranks to bytes, in the order of qm_bytes32. */
ALWAYS __m256i ranks32(tree8 t, const float *x, __m256 scale, uint32_t bits)
{
    const __m256i mask = _mm256_set1_epi16((short)((1 << bits) - 1));
    __m256i a = _mm256_packs_epi32(leaf8(t, x, scale, bits), leaf8(t, x + 8, scale, bits));
    __m256i b = _mm256_packs_epi32(leaf8(t, x + 16, scale, bits), leaf8(t, x + 24, scale, bits));
    return _mm256_packus_epi16(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
}

ALWAYS __m256i codes_of_ranks(const qm_table *t, __m256i rank, uint32_t bits)
{
    if (t->ascending)
        return rank;
    if (bits <= 4)
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t->code)),
                                   rank);
    uint8_t byte[32];
    _mm256_storeu_si256((__m256i *)byte, rank);
    for (int i = 0; i < 32; i++)
        byte[i] = t->code[byte[i]];
    return _mm256_loadu_si256((const __m256i *)byte);
}

/* Eight codes, one a byte, to `bits` bytes. */
ALWAYS void pack8(uint64_t codes, uint32_t bits, uint8_t *out)
{
    uint64_t each = 0x0101010101010101u * ((1u << bits) - 1);
    uint64_t packed = __builtin_bswap64(_pext_u64(__builtin_bswap64(codes), each) << (64 - 8 * bits));
    memcpy(out, &packed, bits);
}

ALWAYS void pack32(__m256i codes, uint32_t bits, uint8_t *out)
{
    if (bits == 4) {
        _mm_storeu_si128((__m128i *)out, qm_pair_nibbles32(codes));
        return;
    }
    codes = qm_in_order32(codes);
    if (bits == 8) {
        _mm256_storeu_si256((__m256i *)out, codes);
        return;
    }
    pack8((uint64_t)_mm256_extract_epi64(codes, 0), bits, out);
    pack8((uint64_t)_mm256_extract_epi64(codes, 1), bits, out + bits);
    pack8((uint64_t)_mm256_extract_epi64(codes, 2), bits, out + 2 * bits);
    pack8((uint64_t)_mm256_extract_epi64(codes, 3), bits, out + 3 * bits);
}

ALWAYS void encode_block(const qm_table *t, tree8 tree, const float *x, uint32_t n, float scale,
                         uint32_t bits, uint8_t *codes)
{
    __m256 s = _mm256_set1_ps(scale);
    for (uint32_t i = 0; i < n; i += 32)
        pack32(codes_of_ranks(t, ranks32(tree, x + i, s, bits), bits), bits, codes + i / 8 * bits);
}

/* Blocks of a multiple of 32 finite values whose reciprocal is finite; others go to the plain code. */
ALWAYS void encode_run(const float *x, size_t n, const qm_codec *c, uint32_t bits, uint8_t *const plane[])
{
    uint8_t *at[] = {plane[0], plane[1]};
    const uint32_t block = c->block, size = (uint32_t)(((uint64_t)block * bits + 7) / 8);
    const tree8 tree = tree8_of(c->table);
    for (size_t m; n; n -= m, x += m, at[0] += size, at[1] += sizeof(float)) {
        m = n < block ? n : block;
        float absmax = m % 32 == 0 ? qm_bits_f32(qm_largest_magnitude(x, m)) : 0;
        if (absmax >= QM_TABLE_LEAST_ABSMAX && absmax <= 0x1.fffffep127f) {
            memcpy(at[1], &absmax, sizeof absmax);
            encode_block(c->table, tree, x, (uint32_t)m, 1 / absmax, bits, at[0]);
        } else {
            qm_table_encode(x, (uint32_t)m, c, at);
        }
    }
}

static void encode(const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    switch (c->table->bits) {
    case 1:
        encode_run(x, n, c, 1, plane);
        break;
    case 2:
        encode_run(x, n, c, 2, plane);
        break;
    case 3:
        encode_run(x, n, c, 3, plane);
        break;
    case 4:
        encode_run(x, n, c, 4, plane);
        break;
    case 5:
        encode_run(x, n, c, 5, plane);
        break;
    case 6:
        encode_run(x, n, c, 6, plane);
        break;
    case 7:
        encode_run(x, n, c, 7, plane);
        break;
    case 8:
        encode_run(x, n, c, 8, plane);
        break;
    }
}

/* ---- decoding ----------------------------------------------------------------------------------- */

/* Byte `at` of `size` bytes and those behind it, eight codes in all, as one number. */
ALWAYS uint64_t packed8(const uint8_t *codes, size_t at, size_t size, uint32_t bits)
{
    uint64_t packed = 0;
    if (at + 8 <= size) {
        memcpy(&packed, codes + at, 8);
        return __builtin_bswap64(packed) >> (64 - 8 * bits);
    }
    for (uint32_t i = 0; i < bits; i++)
        packed = packed << 8 | codes[at + i];
    return packed;
}

/* Eight codes from byte `at`, each in the low bits of its lane. */
ALWAYS __m256i codes8(const uint8_t *codes, size_t at, size_t size, uint32_t bits)
{
    if (bits == 4)
        return _mm256_and_si256(qm_nibbles8(codes + at), _mm256_set1_epi32(15));
    if (bits == 8)
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + at)));
    uint64_t each = 0x0101010101010101u * ((1u << bits) - 1);
    uint64_t bytes = __builtin_bswap64(_pdep_u64(packed8(codes, at, size, bits), each));
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
}

/* Up to sixteen levels are scaled once a block; of more, each weight's. */
ALWAYS void decode_block(const qm_table *t, const uint8_t *codes, uint32_t n, float absmax, uint32_t bits,
                         float *y)
{
    __m256 s = _mm256_set1_ps(absmax);
    qm_levels8 scaled = {_mm256_mul_ps(_mm256_loadu_ps(t->level), s),
                         _mm256_mul_ps(_mm256_loadu_ps(t->level + 8), s)};
    for (uint32_t i = 0; i < n; i += 8) {
        __m256i code = codes8(codes, (size_t)(i / 8) * bits, (size_t)(n / 8) * bits, bits);
        __m256 v = bits <= 3   ? _mm256_permutevar8x32_ps(scaled.low, code)
                   : bits == 4 ? qm_look_up8(scaled, code)
                               : _mm256_mul_ps(_mm256_i32gather_ps(t->level, code, sizeof(float)), s);
        _mm256_storeu_ps(y + i, v);
    }
}

ALWAYS void decode_run(const uint8_t *const plane[], size_t n, const qm_codec *c, uint32_t bits, float *y)
{
    const uint8_t *at[] = {plane[0], plane[1]};
    const uint32_t block = c->block, size = (uint32_t)(((uint64_t)block * bits + 7) / 8);
    for (size_t m; n; n -= m, y += m, at[0] += size, at[1] += sizeof(float)) {
        m = n < block ? n : block;
        float absmax;
        memcpy(&absmax, at[1], sizeof absmax);
        if (m % 8 == 0)
            decode_block(c->table, at[0], (uint32_t)m, absmax, bits, y);
        else
            qm_table_decode(at, (uint32_t)m, c, y);
    }
}

static void decode(const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    switch (c->table->bits) {
    case 1:
        decode_run(plane, n, c, 1, y);
        break;
    case 2:
        decode_run(plane, n, c, 2, y);
        break;
    case 3:
        decode_run(plane, n, c, 3, y);
        break;
    case 4:
        decode_run(plane, n, c, 4, y);
        break;
    case 5:
        decode_run(plane, n, c, 5, y);
        break;
    case 6:
        decode_run(plane, n, c, 6, y);
        break;
    case 7:
        decode_run(plane, n, c, 7, y);
        break;
    case 8:
        decode_run(plane, n, c, 8, y);
        break;
    }
}

const qm_fast qm_avx2_codebook = {.encode = encode, .decode = decode};
