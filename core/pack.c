/* pack.c: see pack.h. */
#define _GNU_SOURCE
#include "pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "double_quant.h"
#include "formats/int8.h"
#include "formats/iq4_nl.h"
#include "formats/iq4_xs.h"
#include "formats/mxfp4.h"
#include "formats/q2_k.h"
#include "formats/q3_k.h"
#include "formats/q4_0.h"
#include "formats/q4_1.h"
#include "formats/q4_k.h"
#include "formats/q5_0.h"
#include "formats/q5_1.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"
#include "formats/two_bits.h"
#include "packed.h"
#include "weight.h"

/* A block of a file's format, taken apart: codes as the pack has them, and the scales, those that there are. */
typedef struct block {
    uint8_t code[256];
    uint16_t d, dmin;         /* halves, and what subs are multiplied with; dmin is taken off */
    uint8_t sub[16], min[16]; /* i8 */
    float scale;
} block;

/* ---- taking blocks apart --------------------------------------------------------------------------- */

static void nibbles(const uint8_t *pair, uint8_t *code)
{
    for (int i = 0; i < 16; i++) {
        code[i] = pair[i] & 15;
        code[i + 16] = pair[i] >> 4;
    }
}

#define TAKE(type) \
    struct type b; \
    memcpy(&b, bytes, sizeof b)

static void take_q4_0(const uint8_t *bytes, block *o)
{
    TAKE(qm_q4_0);
    o->d = b.d;
    nibbles(b.pair, o->code);
}

static void take_q4_1(const uint8_t *bytes, block *o)
{
    TAKE(qm_q4_1);
    o->d = b.d;
    o->dmin = b.least ^ 0x8000; /* least is added */
    nibbles(b.pair, o->code);
}

static void take_q5_0(const uint8_t *bytes, block *o)
{
    TAKE(qm_q5_0);
    o->d = b.d;
    qm_five_bits_unpack(b.fifth, b.pair, o->code);
}

static void take_q5_1(const uint8_t *bytes, block *o)
{
    TAKE(qm_q5_1);
    o->d = b.d;
    o->dmin = b.least ^ 0x8000;
    qm_five_bits_unpack(b.fifth, b.pair, o->code);
}

static void take_q8_0(const uint8_t *bytes, block *o)
{
    TAKE(qm_q8_0);
    o->d = b.d;
    for (int i = 0; i < 32; i++)
        o->code[i] = (uint8_t)(b.code[i] + 128);
}

static void take_iq4_nl(const uint8_t *bytes, block *o)
{
    TAKE(qm_iq4_nl);
    o->d = b.d;
    nibbles(b.pair, o->code);
}

static void take_mxfp4(const uint8_t *bytes, block *o)
{
    TAKE(qm_mxfp4);
    o->scale = qm_mxfp4_scale(b.exponent);
    nibbles(b.pair, o->code);
}

static void take_k32(const struct qm_k32 *head, block *o)
{
    o->d = head->d;
    o->dmin = head->dmin;
    qm_k32_unpack(head->packed, o->sub, o->min);
}

static void take_q4_k(const uint8_t *bytes, block *o)
{
    TAKE(qm_q4_k);
    take_k32(&b.head, o);
    qm_q4_k_unpack(b.pair, o->code);
}

static void take_q5_k(const uint8_t *bytes, block *o)
{
    TAKE(qm_q5_k);
    take_k32(&b.head, o);
    qm_q5_k_unpack(b.fifth, b.pair, o->code);
}

static void take_iq4_xs(const uint8_t *bytes, block *o)
{
    TAKE(qm_iq4_xs);
    o->d = b.d;
    for (int j = 0; j < QM_IQ4_XS_SUBS; j++) {
        o->sub[j] = (uint8_t)(qm_iq4_xs_scale(&b, j) - 32);
        nibbles(b.pair + 16 * j, o->code + 32 * j);
    }
}

static void take_q6_k(const uint8_t *bytes, block *o)
{
    TAKE(qm_q6_k);
    o->d = b.d;
    memcpy(o->sub, b.scale, sizeof b.scale);
    qm_q6_k_unpack(&b, o->code);
}

static void take_q3_k(const uint8_t *bytes, block *o)
{
    TAKE(qm_q3_k);
    o->d = b.d;
    qm_q3_k_unpack_scales(b.packed, o->sub);
    for (int j = 0; j < QM_Q3_K_SUBS; j++)
        o->sub[j] = (uint8_t)(o->sub[j] - 32);
    qm_two_bits_unpack(b.quad, o->code);
    for (int i = 0; i < QM_Q3_K_BLOCK; i++)
        o->code[i] = (uint8_t)(o->code[i] + (b.third[i % 32] >> i / 32 & 1) * 4);
}

static void take_q2_k(const uint8_t *bytes, block *o)
{
    TAKE(qm_q2_k);
    o->d = b.d;
    o->dmin = b.dmin;
    for (int j = 0; j < QM_Q2_K_SUBS; j++) {
        o->sub[j] = b.scales[j] & 15;
        o->min[j] = b.scales[j] >> 4;
    }
    qm_two_bits_unpack(b.quad, o->code);
}

static const struct kind {
    const char *format;
    qm_pack_codes codes;
    qm_pack_scales scales;
    bool mins;
    uint32_t bits, group;
    int32_t zero;
    void (*take)(const uint8_t *bytes, block *o);
    const int8_t *level;
} kinds[] = {
    {"q4_0", QM_CODES_INT, QM_SCALES_HALF, false, 4, 32, 8, take_q4_0, NULL},
    {"q4_1", QM_CODES_INT, QM_SCALES_HALF, true, 4, 32, 0, take_q4_1, NULL},
    {"q5_0", QM_CODES_INT, QM_SCALES_HALF, false, 5, 32, 16, take_q5_0, NULL},
    {"q5_1", QM_CODES_INT, QM_SCALES_HALF, true, 5, 32, 0, take_q5_1, NULL},
    {"q8_0", QM_CODES_INT, QM_SCALES_HALF, false, 8, 32, 128, take_q8_0, NULL},
    {"iq4_nl", QM_CODES_LEVEL8, QM_SCALES_HALF, false, 4, 32, 128, take_iq4_nl, qm_iq4_level},
    {"mxfp4", QM_CODES_LEVEL8, QM_SCALES_FLOAT, false, 4, 32, 128, take_mxfp4, qm_mxfp4_level},
    {"q4_k", QM_CODES_INT, QM_SCALES_SUB, true, 4, 32, 0, take_q4_k, NULL},
    {"q5_k", QM_CODES_INT, QM_SCALES_SUB, true, 5, 32, 0, take_q5_k, NULL},
    {"iq4_xs", QM_CODES_LEVEL8, QM_SCALES_SUB, false, 4, 32, 128, take_iq4_xs, qm_iq4_level},
    {"q6_k", QM_CODES_INT, QM_SCALES_SUB, false, 6, 16, 32, take_q6_k, NULL},
    {"q3_k", QM_CODES_INT, QM_SCALES_SUB, false, 3, 16, 4, take_q3_k, NULL},
    {"q2_k", QM_CODES_INT, QM_SCALES_SUB, true, 2, 16, 0, take_q2_k, NULL},
};

static const struct kind *kind_of(const qm_tensor *t)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].format, t->format->name) == 0)
            return &kinds[i];
    return NULL;
}

/* ---- putting panels together ---------------------------------------------------------------------- */

static uint8_t *panel_of(const qm_pack *p, int64_t row)
{
    return p->data + (size_t)(row / QM_PACK_ROWS) * p->panel;
}

/* The step that a column is in, of the row's panel. */
static uint8_t *step_of(const qm_pack *p, int64_t row, int64_t col)
{
    return panel_of(p, row) + (size_t)(col / p->span) * p->step;
}

static void put_plane(uint8_t *lines, const uint8_t code[QM_PACK_COLS], uint32_t bits, uint32_t shift)
{
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
    uint32_t line[8] = {0};
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t four;
        memcpy(&four, code + 4 * i, 4);
        line[i * bits / 8] |= (four >> shift & mask) << i * bits % 8;
    }
    for (uint32_t l = 0; l < bits; l++)
        memcpy(lines + (size_t)64 * l, &line[l], 4);
}

/* 32 columns of a row. */
static void put_codes(const qm_pack *p, int64_t row, int64_t col, const uint8_t code[QM_PACK_COLS])
{
    const uint32_t low = qm_pack_low_bits(p->bits);
    uint8_t *lines = step_of(p, row, col) + p->head + (size_t)(col % p->span) / 32 * p->bits * 64
                     + 4 * (row % QM_PACK_ROWS);
    put_plane(lines, code, low, 0);
    if (p->bits > low)
        put_plane(lines + (size_t)64 * low, code, p->bits - low, low);
}

static uint32_t subs_of(const qm_pack *p) { return 256 / p->group; }

static void put_scales(const qm_pack *p, int64_t row, int64_t col, const block *b)
{
    uint8_t *head = step_of(p, row, col);
    const size_t r = (size_t)row % QM_PACK_ROWS;
    if (p->scales == QM_SCALES_FLOAT) {
        memcpy(head + 4 * r, &b->scale, 4);
        return;
    }
    if (p->scales == QM_SCALES_HALF) {
        uint8_t *at = head + (col % p->span ? 32 : 0) + 2 * r;
        memcpy(at, &b->d, 2);
        if (p->mins)
            memcpy(at + 64, &b->dmin, 2);
        return;
    }
    uint8_t *sub = head + 64 + r;
    const uint32_t n = subs_of(p);
    memcpy(head + 2 * r, &b->d, 2);
    memcpy(head + 32 + 2 * r, &b->dmin, 2);
    for (uint32_t j = 0; j < n; j++) {
        sub[j * QM_PACK_ROWS] = b->sub[j];
        if (p->mins)
            sub[(n + j) * QM_PACK_ROWS] = b->min[j];
    }
}

static void pack_blocks(const qm_pack *p, const qm_tensor *t, const struct kind *kind, int64_t r)
{
    const int64_t block_cols = t->codec.block;
    const uint64_t bytes = qm_plane_size(t->format, &t->codec, 0, (uint64_t)block_cols);
    const uint8_t *at = t->plane[0].data + (uint64_t)(r * p->cols / block_cols) * bytes;
    block b = {.d = 0};
    for (int64_t k = 0; k < p->cols; k += block_cols, at += bytes) {
        kind->take(at, &b);
        for (int64_t i = 0; i < block_cols; i += QM_PACK_COLS)
            put_codes(p, r, k + i, b.code + i);
        put_scales(p, r, k, &b);
    }
}

/* ---- codes of up to four bits with an f32 scale a group ------------------------------------------- */

static uint32_t code_at(const uint8_t *codes, uint64_t i, unsigned bits)
{
    uint64_t bit = i * bits;
    uint32_t two = (uint32_t)codes[bit / 8] << 8;
    if (bit % 8 + bits > 8)
        two |= codes[bit / 8 + 1];
    return two >> (16 - bits - bit % 8) & ((1u << bits) - 1);
}

/* What each code decodes to with a scale of 1. */
static void levels_of(const qm_tensor *t, float level[16])
{
    unsigned bits = t->format->plane[0].bits;
    qm_codec c = t->codec;
    float scale = 1;
    uint8_t code[16] = {0};
    const uint8_t *plane[QM_MAX_PLANES] = {code, (const uint8_t *)&scale};
    c.block = 1;
    for (uint32_t i = 0; i < 16; i++) {
        code[0] = (uint8_t)(i << (8 - bits));
        t->format->decode(plane, 1, &c, &level[i]);
        level[i] = i >> bits ? 0 : level[i];
    }
}

static bool is_table(const qm_tensor *t)
{
    const qm_format *f = t->format;
    return f->decode && f->over_rows && f->plane[0].bits >= 1 && f->plane[0].bits <= 4
           && f->plane[0].bytes == 0 && f->plane[1].name && f->plane[1].dtype == QM_F32
           && f->plane[1].bits == 0 && f->plane[1].bytes == 4 && !f->plane[2].name;
}

static void levels_to_bytes(qm_pack *p, const float level[16])
{
    float most = 0;
    for (int i = 0; i < 16; i++)
        most = fabsf(level[i]) > most ? fabsf(level[i]) : most;
    p->unit = most > 0 ? most / 32512 : 1;
    for (int i = 0; i < 16; i++) {
        uint32_t u = (uint32_t)((int32_t)rintf(level[i] / p->unit) + 32768);
        p->low[i] = (uint8_t)u;
        p->high[i] = (uint8_t)(u >> 8);
    }
}

static void pack_table(const qm_pack *p, const qm_tensor *t, const uint8_t *scale, int64_t r)
{
    const unsigned bits = t->format->plane[0].bits;
    const uint64_t group = t->codec.block, bytes = qm_plane_size(t->format, &t->codec, 0, group);
    uint8_t code[QM_PACK_COLS];
    block b = {.d = 0};
    for (int64_t k = 0; k < p->cols; k += QM_PACK_COLS) {
        uint64_t first = (uint64_t)(r * p->cols + k), g = first / group, in = first % group;
        const uint8_t *codes = t->plane[0].data + g * bytes;
        if (bits == 4)
            for (uint64_t i = 0; i < QM_PACK_COLS; i++)
                code[i] = (uint8_t)(codes[(in + i) / 2] >> (i % 2 ? 0 : 4) & 15);
        else
            for (uint64_t i = 0; i < QM_PACK_COLS; i++)
                code[i] = (uint8_t)code_at(codes, in + i, bits);
        put_codes(p, r, k, code);
        memcpy(&b.scale, scale + g * 4, 4);
        if (in == 0)
            put_scales(p, r, k, &b);
    }
}

static void pack_int8(const qm_pack *p, const qm_tensor *t, int64_t r)
{
    uint8_t code[QM_PACK_COLS];
    block b = {.d = 0};
    for (int64_t k = 0; k < p->cols; k += QM_PACK_COLS) {
        for (int i = 0; i < QM_PACK_COLS; i++)
            code[i] = t->plane[0].data[r * p->cols + k + i] ^ 0x80;
        put_codes(p, r, k, code);
    }
    memcpy(&b.scale, t->plane[1].data + 4 * r, 4);
    b.scale *= QM_INT8_STEP;
    put_scales(p, r, 0, &b);
}

static void pack_floats(const qm_pack *p, const qm_tensor *t, int64_t r)
{
    const size_t item = p->codes == QM_CODES_F32 ? 4 : 2;
    const uint8_t *from = t->plane[0].data + (size_t)(r * p->cols) * item;
    uint8_t *to = panel_of(p, r) + (size_t)(r % QM_PACK_ROWS) * item;
    if (item == 2)
        for (int64_t k = 0; k < p->cols; k++)
            memcpy(to + 32 * k, from + 2 * k, 2);
    else
        for (int64_t k = 0; k < p->cols; k++)
            memcpy(to + 64 * k, from + 4 * k, 4);
}

typedef struct job {
    const qm_pack *pack;
    const qm_tensor *tensor;
    const struct kind *kind;
    const uint8_t *scale; /* of codes with an f32 scale a group */
} job;

static bool pack_panel(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const job *j = arg;
    const qm_pack *p = j->pack;
    int64_t end = (index + 1) * QM_PACK_ROWS < p->rows ? (index + 1) * QM_PACK_ROWS : p->rows;
    for (int64_t r = index * QM_PACK_ROWS; r < end; r++)
        if (p->scales == QM_SCALES_NONE)
            pack_floats(p, j->tensor, r);
        else if (j->kind)
            pack_blocks(p, j->tensor, j->kind, r);
        else if (p->bits == 8)
            pack_int8(p, j->tensor, r);
        else
            pack_table(p, j->tensor, j->scale, r);
    return true;
}

/* ---- preparing ------------------------------------------------------------------------------------ */

static bool describe(qm_pack *p, const qm_tensor *t)
{
    const char *name = t->format->name;
    const struct kind *kind = kind_of(t);
    const bool ints = p->cols % QM_PACK_COLS == 0; /* whole blocks of them */
    p->unit = 1;
    p->bits = 4;
    if (strcmp(name, "f16") == 0 || strcmp(name, "bf16") == 0 || strcmp(name, "f32") == 0) {
        p->codes = name[0] == 'b' ? QM_CODES_BF16 : name[1] == '1' ? QM_CODES_F16 : QM_CODES_F32;
        p->bits = p->codes == QM_CODES_F32 ? 32 : 16;
    } else if (ints && kind) {
        p->codes = kind->codes;
        p->scales = kind->scales;
        p->mins = kind->mins;
        p->bits = kind->bits;
        p->group = kind->group;
        p->zero = kind->zero;
        for (int i = 0; kind->level && i < 16; i++)
            p->low[i] = (uint8_t)(kind->level[i] + 128);
    } else if (ints && strcmp(name, "int8") == 0) {
        p->codes = QM_CODES_INT;
        p->scales = QM_SCALES_FLOAT;
        p->bits = 8;
        p->group = (uint32_t)p->cols;
        p->zero = 128;
    } else if (ints && is_table(t) && t->codec.block % QM_PACK_COLS == 0 && p->cols % t->codec.block == 0) {
        float level[16];
        p->codes = QM_CODES_LEVEL16;
        p->scales = QM_SCALES_FLOAT;
        p->group = t->codec.block;
        levels_of(t, level);
        levels_to_bytes(p, level);
    } else {
        return false;
    }
    return true;
}

static void measure(qm_pack *p)
{
    p->span = 1;
    if (p->scales == QM_SCALES_HALF) {
        p->span = 64;
        p->head = p->mins ? 128 : 64;
    } else if (p->scales == QM_SCALES_FLOAT) {
        p->span = p->group;
        p->head = 64;
    } else if (p->scales == QM_SCALES_SUB) {
        p->span = 256;
        p->head = 64 + (size_t)(p->mins ? 2 : 1) * subs_of(p) * QM_PACK_ROWS;
    }
    p->steps = (p->cols + p->span - 1) / p->span;
    p->step = p->head + (size_t)p->span * QM_PACK_ROWS * p->bits / 8;
    p->panel = ((size_t)p->steps * p->step + 63) / 64 * 64; /* an odd number of columns of 16 bits */
}

enum { PAGE = 2 << 20 };

/* Large pages: reading a weight front to back then misses the address cache 512 times less often. */
static size_t in_pages(size_t size) { return size < PAGE ? size : (size + PAGE - 1) / PAGE * PAGE; }

static uint8_t *allocate(size_t size)
{
    uint8_t *data = aligned_alloc(size < PAGE ? 64 : PAGE, in_pages(size));
#ifdef MADV_HUGEPAGE
    if (data && size >= PAGE)
        madvise(data, in_pages(size), MADV_HUGEPAGE); /* as good as can be had */
#endif
    return data;
}

static size_t data_size(const qm_pack *p)
{
    return (size_t)((p->rows + QM_PACK_ROWS - 1) / QM_PACK_ROWS) * p->panel;
}

static bool fill(qm_pack *p, const qm_tensor *t, qm_pool *pool, qm_err *e)
{
    const int64_t panels = (p->rows + QM_PACK_ROWS - 1) / QM_PACK_ROWS;
    const size_t size = data_size(p), last = (size_t)(p->rows / QM_PACK_ROWS) * p->panel;
    job j = {p, t, kind_of(t), t->plane[1].data};
    float *own = NULL;
    if (!(p->data = allocate(size)))
        return qm_fail(e, QM_ENOFIT, "out of memory for %zu bytes of a weight laid out for speed", size);
    if (p->steps * p->span > p->cols)
        memset(p->data, 0, size);
    memset(p->data + last, 0, size - last);
    if (t->double_quant) {
        size_t groups = (size_t)t->plane[1].size;
        if (!(own = malloc(groups * sizeof *own + 1)))
            return qm_fail(e, QM_ENOFIT, "out of memory for %zu scales", groups);
        qm_double_dequant(t->plane[1].data, (const float *)(const void *)t->plane[2].data, groups, t->offset,
                          own);
        j.scale = (const uint8_t *)own;
    }
    bool ok = !pool || qm_pool_run(pool, panels, pack_panel, NULL, &j, e);
    for (int64_t i = 0; !pool && ok && i < panels; i++)
        ok = pack_panel(&j, i, 0, e);
    free(own);
    return ok;
}

void qm_pack_unref(qm_pack *p)
{
    if (!p || --p->refs > 0)
        return;
    free(p->data);
    free(p);
}

static bool of_use(const qm_tensor *t)
{
    return qm_packed_get() && t->format && t->format->decode && t->shape.ndim >= 2 && qm_tensor_count(t) > 0;
}

/* All of a pack but its data; false where none is of use. */
static bool shape_of(qm_pack *p, const qm_tensor *t)
{
    if (!of_use(t))
        return false;
    qm_weight w = qm_weight_of(t);
    *p = (qm_pack){.refs = 1, .rows = w.rows, .cols = w.cols};
    if (!describe(p, t))
        return false;
    measure(p);
    return true;
}

uint64_t qm_pack_bytes(const qm_tensor *t)
{
    qm_pack p;
    return shape_of(&p, t) ? in_pages(data_size(&p)) : 0;
}

bool qm_tensor_lay_out(qm_tensor *t, qm_pool *pool, qm_err *e)
{
    qm_pack shape;
    if (t->pack || qm_tensor_device(t) || !shape_of(&shape, t))
        return true;
    qm_pack *p = malloc(sizeof *p);
    if (p)
        *p = shape;
    if ((p || qm_fail(e, QM_ENOFIT, "out of memory")) && fill(p, t, pool, e)) {
        t->pack = p;
        return true;
    }
    if (p)
        free(p->data);
    free(p);
    return false;
}

qm_tensor *qm_tensor_prepare(const qm_tensor *t, qm_pool *pool, qm_err *e)
{
    qm_tensor *out = qm_tensor_again(t, e);
    if (!out || qm_tensor_lay_out(out, pool, e))
        return out;
    qm_tensor_free(out);
    return NULL;
}

bool qm_tensor_give_back(qm_tensor *t, const qm_tensor *origin, qm_err *e)
{
    qm_slice *stands = &t->plane[QM_MAX_PLANES];
    const bool planned = qm_tensor_device(t) && stands->buf;
    if (!origin->plane[0].buf || !origin->plane[0].buf->file || !(t->pack || planned))
        return true;
    if (!planned && !(t->origin = qm_tensor_again(origin, e)))
        return false;
    for (int i = 0; i < QM_MAX_PLANES; i++) {
        uint64_t size = t->plane[i].size;
        qm_tensor_drop_plane(t, i);
        t->plane[i].size = planned ? 0 : size;
    }
    if (planned) {
        t->plane[0] = *stands;
        *stands = (qm_slice){0};
    }
    return true;
}
