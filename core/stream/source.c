/* source.c: a chunk as it lies in files, and its values; see parts.h. */
#include <inttypes.h>
#include <string.h>

#include "parts.h"

raw_layout qm_source_layout(const qm_source *s, uint64_t n)
{
    raw_layout r = {.total = 0};
    uint64_t groups = (n + s->codec.block - 1) / s->codec.block;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        r.at[i] = qm_courier_place(
            &r.total, s->double_quant && i == 1 ? groups : qm_plane_size(s->format, &s->codec, i, n));
    if (s->double_quant) {
        r.absmax = qm_courier_place(&r.total, groups * sizeof(float));
        r.nested = qm_courier_place(&r.total, (groups + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK
                                                  * sizeof(float));
    }
    return r;
}

static const qm_infile *plane_file(const qm_source *s, int i)
{
    return s->plane_file[i] ? s->plane_file[i] : s->file;
}

/* First-level scales of a double-quantised chunk, which begins with a nested group. */
static bool load_absmax(const qm_source *s, const chunk *c, const raw_layout *r, qm_err *e)
{
    uint64_t first = c->first / s->codec.block, n = (c->n + s->codec.block - 1) / s->codec.block;
    uint64_t nested = (n + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK;
    uint8_t *codes = c->b->raw + r->at[1];
    float *scales = (float *)(void *)(c->b->raw + r->nested);
    const qm_infile *nested_file = s->nested_file ? s->nested_file : s->file;
    if (!qm_infile_read(plane_file(s, 1), s->at[1] + first, codes, n, e)
        || !qm_infile_read(nested_file, s->nested_at + first / QM_DOUBLE_QUANT_BLOCK * sizeof *scales, scales,
                           nested * sizeof *scales, e))
        return false;
    qm_double_dequant(codes, scales, n, s->offset, (float *)(void *)(c->b->raw + r->absmax));
    return true;
}

/* Where the chunk's source planes lie in memory once they are read. */
static void raw_planes(const qm_source *s, const chunk *c, const uint8_t *plane[QM_MAX_PLANES])
{
    raw_layout r = qm_source_layout(s, c->n);
    for (int i = 0; i < qm_format_planes(s->format); i++)
        plane[i] = c->b->raw + (s->double_quant && i == 1 ? r.absmax : r.at[i]);
}

int64_t qm_interleaved_row(int64_t i, int64_t head_rows)
{
    int64_t half = head_rows / 2, j = i % head_rows;
    return i - j + (j < half ? 2 * j : 2 * (j - half) + 1);
}

void qm_source_decode(const qm_source *s, const chunk *c, float *values)
{
    const uint8_t *plane[QM_MAX_PLANES] = {0};
    raw_planes(s, c, plane);
    if (!s->interleaved_heads) {
        qm_decode(s->format, plane, c->n, &s->codec, values);
        qm_round_values(s->round, values, c->n);
        return;
    }
    float *rows = (float *)(void *)c->b->rows;
    qm_decode(s->format, plane, c->n, &s->codec, rows);
    qm_round_values(s->round, rows, c->n);
    for (int64_t i = 0; i < c->rows; i++)
        memcpy(values + i * s->cols, rows + qm_interleaved_row(i, s->rows / s->interleaved_heads) * s->cols,
               (size_t)s->cols * sizeof *values);
}

bool qm_source_read(const qm_source *s, const chunk *c, qm_err *e)
{
    if (s->strided.shape.ndim)
        return qm_strided_read(&s->strided, s->file, s->at[0], s->format->plane[0].bits / 8, c->first, c->n,
                               c->b->raw, e);
    raw_layout r = qm_source_layout(s, c->n);
    for (int i = 0; i < qm_format_planes(s->format); i++) {
        uint64_t before = qm_plane_size(s->format, &s->codec, i, c->first);
        uint64_t size = qm_plane_size(s->format, &s->codec, i, c->n);
        if (s->double_quant && i == 1
                ? !load_absmax(s, c, &r, e)
                : !qm_infile_read(plane_file(s, i), s->at[i] + before, c->b->raw + r.at[i], size, e))
            return false;
    }
    return true;
}

bool qm_source_load(const qm_source *s, const chunk *c, float *values, qm_err *e)
{
    if (!qm_source_read(s, c, e))
        return false;
    qm_source_decode(s, c, values);
    return true;
}

uint64_t qm_source_bytes(const qm_source *s)
{
    uint64_t bytes = 0;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        bytes += qm_plane_size(s->format, &s->codec, i, (uint64_t)(s->rows * s->cols));
    return bytes;
}

static bool lies_in(const qm_source *s, const qm_infile *f, uint64_t at, uint64_t size, qm_err *e)
{
    return (at <= f->size && size <= f->size - at)
           || qm_fail(e, QM_ECORRUPT,
                      "%s: tensor '%s' [%" PRId64 " x %" PRId64 " %s] takes %" PRIu64
                      " bytes from byte %" PRIu64 ", but the file ends at %" PRIu64,
                      f->path, s->name, s->rows, s->cols, s->format->name, size, at, f->size);
}

bool qm_source_check(const qm_source *s, qm_err *e)
{
    uint64_t n = (uint64_t)(s->rows * s->cols), groups = (n + s->codec.block - 1) / s->codec.block;
    if (s->strided.shape.ndim)
        return lies_in(s, s->file, s->at[0],
                       (uint64_t)qm_strided_span(&s->strided) * s->format->plane[0].bits / 8, e);
    for (int i = 0; i < qm_format_planes(s->format); i++) {
        uint64_t size = s->double_quant && i == 1 ? groups : qm_plane_size(s->format, &s->codec, i, n);
        if (!lies_in(s, plane_file(s, i), s->at[i], size, e))
            return false;
    }
    uint64_t nested = (groups + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK * sizeof(float);
    return !s->double_quant || lies_in(s, s->nested_file ? s->nested_file : s->file, s->nested_at, nested, e);
}
