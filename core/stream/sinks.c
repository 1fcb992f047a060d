/* sinks.c: where a chunk's values go; see parts.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parts.h"

/* A sink that loses nothing; what it adds is no error. */
static bool is_exact(const qm_job *job, const qm_sink *k)
{
    const char *name = k->format->name;
    return k->add != 0 || strcmp(name, "f32") == 0 || (job->round == QM_ROUND_F16 && strcmp(name, "f16") == 0)
           || (job->round == QM_ROUND_BF16 && strcmp(name, "bf16") == 0);
}

/* A plane of absmax begins where the codes before it end, on any address. */
static uint64_t count_zero_groups(const uint8_t *absmax, uint64_t n)
{
    uint64_t zeros = 0;
    for (uint64_t i = 0; i < n; i++) {
        float value;
        memcpy(&value, absmax + i * sizeof value, sizeof value);
        zeros += value == 0;
    }
    return zeros;
}

/* The error of a double-quantised sink changes with the second level: per group, what is needed then. */
static void keep_groups(const sink_run *r, const qm_sink *k, const chunk *c, const void *absmax)
{
    uint64_t block = k->codec.block, g = c->first / block, n = (c->n + block - 1) / block;
    memcpy(r->absmax + g, absmax, n * sizeof *r->absmax);
    if (!c->far)
        qm_vec_get()->group_sums(c->b->x, c->b->y, c->n, block, r->sum + g);
    else
        memcpy(r->sum + g, c->far->group[k - c->job->sink], n * sizeof *r->sum);
}

void qm_sinks_measure_exact(const stream *st, chunk *c)
{
    for (int i = 0; i < st->job->nsink; i++) {
        if (!is_exact(st->job, &st->job->sink[i]))
            continue;
        if (c->same.n == 0)
            qm_vec_get()->errors(c->b->x, c->b->x, c->n, &c->same);
        qm_errsum_add(&st->sink[i].part_error[c->part], &c->same);
    }
}

/* Any sink's sums of the values themselves are those of an exact one. */
static void learn_same(chunk *c, const qm_errsum *e)
{
    if (c->same.n == 0)
        c->same = (qm_errsum){
            .sum_xx = e->sum_xx, .sum_yy = e->sum_xx, .sum_xy = e->sum_xx, .max_x = e->max_x, .n = e->n};
}

/* Rows of whole heads, halves interleaved, into b->rows. */
static const uint8_t *interleave(const chunk *c, const uint8_t *plane, uint64_t size, int64_t head_rows)
{
    uint64_t row = size / (uint64_t)c->rows;
    for (int64_t i = 0; i < c->rows; i++)
        memcpy(c->b->rows + (uint64_t)qm_interleaved_row(i, head_rows) * row, plane + (uint64_t)i * row, row);
    return c->b->rows;
}

/* With importances: in runs of rows of one matrix. */
static void encode(const qm_sink *k, const chunk *c, const float *x, int64_t cols, uint8_t *const plane[])
{
    if (!k->importance || !k->format->encode_important) {
        qm_encode(k->format, x, c->n, &k->codec, plane);
        return;
    }
    qm_codec codec = k->codec;
    codec.cols = (uint32_t)cols;
    uint8_t *at[QM_MAX_PLANES] = {0};
    memcpy(at, plane, sizeof at);
    for (int64_t row = c->row, last = c->row + c->rows, next; row < last; row = next) {
        int64_t matrix = row / k->importance_rows;
        next = (matrix + 1) * k->importance_rows < last ? (matrix + 1) * k->importance_rows : last;
        uint64_t n = (uint64_t)((next - row) * cols);
        codec.importance = k->importance + matrix * cols;
        qm_encode(k->format, x, n, &codec, at);
        x += n;
        for (int i = 0; i < qm_format_planes(k->format); i++)
            at[i] += qm_plane_size(k->format, &codec, i, n);
    }
}

/* A sink's planes, where they belong. */
static bool put(const stream *st, const chunk *c, int index, const uint8_t *const plane[], qm_err *e)
{
    const qm_sink *k = &st->job->sink[index];
    for (int i = 0; i < qm_format_planes(k->format); i++) {
        uint64_t before = qm_plane_size(k->format, &k->codec, i, c->first);
        uint64_t size = qm_plane_size(k->format, &k->codec, i, c->n);
        bool later = k->double_quant && i == 1;
        const uint8_t *bytes = plane[i];
        if (k->interleave_heads)
            bytes = interleave(c, bytes, size, st->job->source.rows / k->interleave_heads);
        if (!later && k->file && !qm_outfile_write(k->file, k->at[i] + before, bytes, size, e))
            return false;
        if (i == 1 && k->format->over_rows)
            st->sums[c->part].zero_groups[index] = count_zero_groups(plane[1], size / sizeof(float));
    }
    return true;
}

bool qm_sink_drain(const stream *st, chunk *c, int index, qm_err *e)
{
    const qm_sink *k = &st->job->sink[index];
    sink_run *r = &st->sink[index];
    const qm_format *f = k->format;
    int planes = qm_format_planes(f);
    uint8_t *plane[QM_MAX_PLANES] = {0}, *p = c->b->plane;
    for (int i = 0; i < planes; i++) {
        plane[i] = p;
        p += qm_plane_size(f, &k->codec, i, c->n);
    }
    const float *x = c->b->x;
    if (k->add != 0) {
        for (uint64_t i = 0; i < c->n; i++)
            c->b->y[i] = x[i] + k->add;
        qm_round_values(k->round_added, c->b->y, c->n);
        x = c->b->y;
    }
    encode(k, c, x, st->job->source.cols, plane);
    if (!put(st, c, index, (const uint8_t *const *)plane, e))
        return false;
    if ((!st->job->want_errors && !k->double_quant) || is_exact(st->job, k))
        return true;
    qm_decode(f, (const uint8_t *const *)plane, c->n, &k->codec, c->b->y);
    if (k->double_quant)
        keep_groups(r, k, c, plane[1]);
    qm_vec_get()->errors(c->b->x, c->b->y, c->n, &r->part_error[c->part]);
    learn_same(c, &r->part_error[c->part]);
    return true;
}

bool qm_sink_deliver(const stream *st, const chunk *c, int index, qm_err *e)
{
    const qm_sink *k = &st->job->sink[index];
    const qm_parcel *l = c->far;
    size_t parts = (size_t)((c->rows + st->part_rows - 1) / st->part_rows);
    if (!put(st, c, index, l->plane[index], e))
        return false;
    if (k->double_quant)
        keep_groups(&st->sink[index], k, c, l->plane[index][1]);
    if (st->job->want_errors || k->double_quant)
        memcpy(&st->sink[index].part_error[c->part], l->error[index], parts * sizeof *l->error[index]);
    return true;
}

/* What a weight of an all-zero group decodes to, in units of the absmax that the group comes back with. */
static double level_of_zero(const qm_sink *k)
{
    const float x[2] = {0, 0};
    uint8_t codes[2] = {0}, scale[sizeof(float)];
    float y[2], one = 1;
    k->format->encode(x, 2, &k->codec, (uint8_t *[QM_MAX_PLANES]){codes, scale});
    memcpy(scale, &one, sizeof one);
    k->format->decode((const uint8_t *[QM_MAX_PLANES]){codes, scale}, 2, &k->codec, y);
    return (double)y[0];
}

/* What the second level does to the error of one group of `size` values: with absmax a become b, the decoded
 * y become (b/a) y, so the sum of squared errors moves by 2 p sum(y (y - x)) + p^2 sum(y y), p = (b - a) / a.
 */
static void nested_error(qm_errsum *error, double a, double b, const qm_groupsum *s, double size,
                         double zero_level)
{
    if (a == 0) {
        double y = zero_level * b;
        error->sum_dd += size * y * y;
        error->sum_yy += size * y * y;
        error->sum_d += size * y;
        return;
    }
    double p = (b - a) / a, yd = (double)s->yd, yy = (double)s->yy;
    error->sum_dd += 2 * p * yd + p * p * yy;
    error->sum_xy += p * (yy - yd);
    error->sum_yy += (2 * p + p * p) * yy;
    error->sum_d += p * (double)s->y;
}

/* Groups first … first + n - 1 of a double-quantised sink; *moved is the furthest that an absmax has moved,
 * and with it an error, at most. */
static bool finish_piece(qm_sink *k, const sink_run *r, nested_piece *p, uint64_t first, uint64_t n,
                         uint64_t total, double *moved, qm_err *e)
{
    const double zero_level = level_of_zero(k);
    uint64_t nested = (n + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK;
    qm_double_quant(r->absmax + first, n, k->offset, p->code, p->scale);
    if (k->file
        && (!qm_outfile_write(k->file, k->at[1] + first, p->code, n, e)
            || !qm_outfile_write(k->file, k->nested_at + first / QM_DOUBLE_QUANT_BLOCK * sizeof(float),
                                 p->scale, nested * sizeof(float), e)))
        return false;
    qm_double_dequant(p->code, p->scale, n, k->offset, p->absmax);
    for (uint64_t i = 0; i < n; i++) {
        double a = (double)r->absmax[first + i], b = (double)p->absmax[i];
        uint64_t left = total - (first + i) * k->codec.block;
        *moved = fmax(*moved, fabs(b - a));
        nested_error(&k->error, a, b, &r->sum[first + i],
                     (double)(left < k->codec.block ? left : k->codec.block), zero_level);
    }
    return true;
}

bool qm_sink_finish(qm_sink *k, const sink_run *r, uint64_t total, qm_err *e)
{
    nested_piece *piece = malloc(sizeof *piece);
    double moved = 0;
    if (!piece)
        return qm_fail(e, QM_ENOFIT, "%s: out of memory for double quantisation",
                       k->file ? k->file->path : "tensor");
    if (!k->offset_given)
        k->offset = qm_double_quant_offset(r->absmax, r->groups);
    bool ok = true;
    for (uint64_t g = 0; ok && g < r->groups; g += PIECE)
        ok = finish_piece(k, r, piece, g, r->groups - g < PIECE ? r->groups - g : PIECE, total, &moved, e);
    k->error.max_d += moved;
    free(piece);
    return ok;
}
