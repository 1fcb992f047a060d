/* format.c: the registry's look-ups, sizes, and whole runs by the fastest code at hand. */
#include <inttypes.h>
#include <string.h>

#include "registry.h"

const qm_format *qm_format_find(const char *name)
{
    for (const qm_format *const *f = qm_formats; *f; f++)
        if (strcmp((*f)->name, name) == 0)
            return *f;
    return NULL;
}

const qm_format *qm_format_of_gguf(int type)
{
    for (const qm_format *const *f = qm_formats; type >= 0 && *f; f++)
        if ((*f)->gguf_type == type)
            return *f;
    return NULL;
}

static bool block_allowed(const qm_format *f, uint32_t block)
{
    if (block == f->block)
        return true;
    return block >= f->block_min && block <= f->block_max && (f->any_block || (block & (block - 1)) == 0);
}

static bool fail_block(const qm_format *f, uint32_t block, const char *what, qm_err *e)
{
    if (block == QM_BLOCK_ROW)
        return qm_fail(e, QM_EUSAGE, "%s: %s does not take whole rows as blocks; leave it at %" PRIu32, what,
                       f->name, f->block);
    if (f->block == 0 && !f->any_block)
        return qm_fail(e, QM_EUSAGE, "%s: %s has one group a row and takes no block size; leave it out", what,
                       f->name);
    if (f->block_max == 0)
        return qm_fail(e, QM_EUSAGE, "%s: %s has blocks of %" PRIu32 " values, not %" PRIu32, what, f->name,
                       f->block, block);
    return qm_fail(e, QM_EUSAGE, "%s: %s takes blocks of %" PRIu32 " to %" PRIu32 " values%s, not %" PRIu32,
                   what, f->name, f->block_min, f->block_max, f->any_block ? "" : ", powers of two", block);
}

bool qm_codec_init(qm_codec *c, const qm_format *f, int64_t cols, uint32_t block, const char *what, qm_err *e)
{
    bool row_format = f->block == 0, row = block == QM_BLOCK_ROW || (row_format && block == 0);
    if (row ? !row_format && !f->any_block : block && !block_allowed(f, block))
        return fail_block(f, block, what, e);
    if (row && (cols < 1 || cols >= QM_BLOCK_ROW))
        return qm_fail(e, QM_EUNSUPPORTED, "%s: %s cannot take rows of %" PRId64 " values; choose f16", what,
                       f->name, cols);
    uint32_t group = row ? (uint32_t)cols : block ? block : f->block;
    if (!f->over_rows && cols % group)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "%s: %s needs rows of a multiple of %" PRIu32 " values, not %" PRId64 "; choose %s",
                       what, f->name, group, cols, group > 32 && cols % 32 == 0 ? "q8_0" : "f16");
    *c = (qm_codec){.block = group, .table = f->table};
    return true;
}

void qm_codec_measure(qm_codec *c, const qm_format *f, const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; f->tensor_range != 0 && i < n; i++) {
        float a = x[i] < 0 ? -x[i] : x[i];
        most = a > most ? a : most;
    }
    c->factor = qm_format_factor(f, most);
}

float qm_format_factor(const qm_format *f, float most)
{
    float factor = f->tensor_range
                   * (1 / most); /* torch's order, which compressed-tensors' bytes depend on */
    return factor > 0 && factor <= 0x1.fffffep127f ? factor : 0;
}

int qm_format_planes(const qm_format *f)
{
    int n = 0;
    while (n < QM_MAX_PLANES && f->plane[n].name)
        n++;
    return n;
}

/* Bytes of one group of n values; half a byte left over takes a whole one. */
static uint64_t group_size(const qm_plane *p, uint64_t n) { return (n * p->bits + 7) / 8 + p->bytes; }

uint64_t qm_plane_size(const qm_format *f, const qm_codec *c, int i, uint64_t n)
{
    const qm_plane *p = &f->plane[i];
    uint64_t tail = n % c->block;
    return n / c->block * group_size(p, c->block) + (tail ? group_size(p, tail) : 0);
}

double qm_format_bits(const qm_format *f, const qm_codec *c)
{
    uint64_t bytes = 0;
    for (int i = 0; i < qm_format_planes(f); i++)
        bytes += group_size(&f->plane[i], c->block);
    return 8.0 * (double)bytes / c->block;
}

static const qm_fast *fast_of(const qm_format *f, qm_simd level)
{
    if (f->made)
        return f->fast ? f->fast[level] : NULL;
    size_t i = 0;
    while (qm_formats[i] && qm_formats[i] != f)
        i++;
    return qm_formats[i] ? qm_fasts[i][level] : NULL;
}

/* Formats of single values (block 1) have no groups: any run is one, and long ones are quicker. */
static uint32_t step_of(const qm_format *f, const qm_codec *c, size_t left)
{
    uint32_t step = f->block == 1 ? 1u << 30 : c->block;
    return left < step ? (uint32_t)left : step;
}

static void advance(const qm_format *f, uint32_t n, uint8_t *plane[])
{
    for (int i = 0; i < QM_MAX_PLANES && f->plane[i].name; i++)
        plane[i] += group_size(&f->plane[i], n);
}

/* One row. */
static void encode_important(const qm_format *f, const float *x, const qm_codec *c, float power,
                             uint8_t *const plane[])
{
    for (int level = (int)qm_cpu_simd(); level > QM_SCALAR; level--) {
        const qm_fast *fast = fast_of(f, (qm_simd)level);
        if (fast && fast->encode_important) {
            fast->encode_important(x, c->cols, c->importance, power, plane);
            return;
        }
    }
    uint8_t *at[QM_MAX_PLANES] = {0};
    memcpy(at, plane, sizeof at[0] * (size_t)qm_format_planes(f));
    for (uint32_t i = 0; i < c->cols; i += c->block) {
        f->encode_important(x + i, c->block, c->importance + i, power, at);
        advance(f, c->block, at);
    }
}

static float mean_square(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i]; /* in index order: ggml's bytes depend on it */
    return sum / (float)n;
}

static void encode_rows(const qm_format *f, const float *x, size_t n, const qm_codec *c,
                        uint8_t *const plane[])
{
    uint8_t *at[QM_MAX_PLANES] = {0};
    memcpy(at, plane, sizeof at[0] * (size_t)qm_format_planes(f));
    for (; n; x += c->cols, n -= c->cols) {
        encode_important(f, x, c, f->row_power ? mean_square(x, c->cols) : 0, at);
        for (int i = 0; i < qm_format_planes(f); i++)
            at[i] += qm_plane_size(f, c, i, c->cols);
    }
}

void qm_encode(const qm_format *f, const float *x, size_t n, const qm_codec *c, uint8_t *const plane[])
{
    if (c->importance && f->encode_important) {
        encode_rows(f, x, n, c, plane);
        return;
    }
    for (int level = (int)qm_cpu_simd(); level > QM_SCALAR; level--) {
        const qm_fast *fast = fast_of(f, (qm_simd)level);
        if (fast && fast->encode) {
            fast->encode(x, n, c, plane);
            return;
        }
    }
    uint8_t *at[QM_MAX_PLANES] = {0};
    memcpy(at, plane, sizeof at[0] * (size_t)qm_format_planes(f));
    for (uint32_t step; n; x += step, n -= step) {
        step = step_of(f, c, n);
        f->encode(x, step, c, at);
        advance(f, step, at);
    }
}

void qm_decode(const qm_format *f, const uint8_t *const plane[], size_t n, const qm_codec *c, float *y)
{
    for (int level = (int)qm_cpu_simd(); level > QM_SCALAR; level--) {
        const qm_fast *fast = fast_of(f, (qm_simd)level);
        if (fast && fast->decode) {
            fast->decode(plane, n, c, y);
            return;
        }
    }
    uint8_t *at[QM_MAX_PLANES] = {0};
    memcpy(at, plane, sizeof at[0] * (size_t)qm_format_planes(f));
    for (uint32_t step; n; y += step, n -= step) {
        step = step_of(f, c, n);
        f->decode((const uint8_t *const *)at, step, c, y);
        advance(f, step, at);
    }
}
