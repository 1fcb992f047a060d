/* turned.h: groups of weights turned so that each has a lane of its own; included by avx2/wide.h and
 * avx512/wide.h.
 *
 * The reference's sums run in index order, so one group's cannot be spread over lanes.  Instead LANES groups
 * are worked on side by side: x[i] holds weight i of each, and every step of the plain codec is done to all
 * of them at once. */
#ifndef QM_TURNED_H
#define QM_TURNED_H

/* Where LANES groups begin, `stride` apart.  When there are fewer, the last stands in for those missing. */
static inline void lanes_rows(const float *x, size_t groups, size_t stride, const float *row[LANES])
{
    for (size_t l = 0; l < LANES; l++)
        row[l] = x + stride * (l < groups ? l : groups - 1);
}

/* n weights of each, n a multiple of 4; groups follow one another. */
static inline void lanes_turn(const float *x, size_t groups, size_t n, lanes *column)
{
    const float *row[LANES];
    lanes_rows(x, groups, n, row);
    for (size_t i = 0; i < n; i += 4)
        lanes_turn4(row, i, column + i);
}

/* Of each group, the first weight of the largest magnitude. */
static inline lanes lanes_signed_max(const lanes *x, int n)
{
    lanes max = lanes_of(0), most = lanes_of(0);
    for (int i = 0; i < n; i++) {
        lanes_mask larger = lanes_above(lanes_abs(x[i]), most);
        max = lanes_choose(larger, x[i], max);
        most = lanes_choose(larger, lanes_abs(x[i]), most);
    }
    return max;
}

static inline lanes lanes_sum(const lanes *x, int n)
{
    lanes sum = lanes_of(0);
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

static inline lanes lanes_sum_squares(const lanes *x, int n)
{
    lanes sum = lanes_of(0);
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

static inline void lanes_squares(const lanes *x, int n, lanes *square)
{
    for (int i = 0; i < n; i++)
        square[i] = x[i] * x[i];
}

/* Sixteen rows of sixteen bytes become columns: four perfect shuffles. */
static inline void turn_bytes(__m128i row[16])
{
    for (int round = 0; round < 4; round++) {
        __m128i next[16];
        for (int i = 0; i < 8; i++) {
            next[2 * i] = _mm_unpacklo_epi8(row[i], row[i + 8]);
            next[2 * i + 1] = _mm_unpackhi_epi8(row[i], row[i + 8]);
        }
        memcpy(row, next, sizeof next);
    }
}

/* The way back, for codes 0 … 255: sixteen of each group become bytes at, at + stride … */
static inline void lanes_turn_back(const lanes *code, uint8_t *at, size_t stride)
{
    __m128i row[16];
    for (int i = 0; i < 16; i++)
        row[i] = lanes_bytes(code[i]);
    turn_bytes(row);
    for (size_t l = 0; l < LANES; l++)
        _mm_storeu_si128((__m128i *)(at + stride * l), row[l]);
}

/* ---- runs of blocks ------------------------------------------------------------------------------ */

/* gcc 12.2 takes a function for one without effects, and drops calls of it, when its loops come to address
 * memory as an offset from 0 (it mistakes that for reading at a null pointer; q4_1 with AVX-512 was such a
 * case). This keeps it from drawing conclusions. */
#ifdef __clang__
#define LANES_APART static
#else
#define LANES_APART static __attribute__((noipa))
#endif

/* Encodes up to as many blocks at once as lanes_run was told.  importance, one for each value, may be NULL. */
typedef void lanes_encode(const float *x, const float *importance, size_t blocks, float power, uint8_t *out);

static inline void one_by_one(const qm_format *f, size_t size, const float *x, const float *importance,
                              size_t blocks, float power, uint8_t *out)
{
    for (size_t i = 0; i < blocks; i++, x += f->block, out += size)
        if (importance)
            f->encode_important(x, f->block, importance + i * f->block, power, &out);
        else
            f->encode(x, f->block, &(qm_codec){.block = f->block}, &out);
}

/* n values, `most` blocks at a time.  A lot with an infinity or NaN in it is left to the plain code. */
static inline void lanes_run(const qm_format *f, size_t most, lanes_encode *encode, const float *x, size_t n,
                             const float *importance, float power, uint8_t *out)
{
    const size_t size = f->block * f->plane[0].bits / 8 + f->plane[0].bytes;
    const uint32_t infinite = 0x7f800000;
    for (size_t left = n / f->block, blocks; left; left -= blocks) {
        blocks = left < most ? left : most;
        if (qm_largest_magnitude(x, blocks * f->block) < infinite)
            encode(x, importance, blocks, power, out);
        else
            one_by_one(f, size, x, importance, blocks, power, out);
        x += blocks * f->block;
        importance += importance ? blocks * f->block : 0;
        out += blocks * size;
    }
}

#endif
