/* weight.c: see weight.h. */
#include "weight.h"

#include <stdlib.h>

#include "double_quant.h"

qm_weight qm_weight_of(const qm_tensor *t)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < t->shape.ndim; i++)
        rows *= t->shape.dim[i];
    return (qm_weight){t, 0, rows, qm_tensor_cols(t)};
}

qm_weight qm_weight_part(const qm_tensor *t, int64_t i)
{
    qm_weight w = qm_weight_of(t);
    w.rows /= t->shape.dim[0] ? t->shape.dim[0] : 1;
    w.first = i * w.rows;
    return w;
}

void qm_scratch_free(qm_scratch *s)
{
    free(s->values);
    free(s->absmax);
    *s = (qm_scratch){0};
}

static bool room_for(float **at, size_t *room, size_t n, qm_err *e)
{
    if (*at && *room >= n)
        return true;
    free(*at);
    *room = n;
    *at = aligned_alloc(64, (n * sizeof **at + 64) / 64 * 64);
    return *at || qm_fail(e, QM_ENOFIT, "out of memory for %zu decoded values", n);
}

/* The scales of groups from … to - 1, which begin with 256 of their own. */
static bool absmax_of(const qm_tensor *t, size_t from, size_t to, qm_scratch *s, const float **absmax,
                      qm_err *e)
{
    size_t first = from / QM_DOUBLE_QUANT_BLOCK * QM_DOUBLE_QUANT_BLOCK;
    if (!room_for(&s->absmax, &s->absmax_room, to - first, e))
        return false;
    const float *nested = (const float *)(const void *)t->plane[2].data + first / QM_DOUBLE_QUANT_BLOCK;
    qm_double_dequant(t->plane[1].data + first, nested, to - first, t->offset, s->absmax);
    *absmax = s->absmax + (from - first);
    return true;
}

/* Values first … first + n - 1 of the flat tensor.  Groups may run over row ends, so whole groups around them
 * are decoded. */
static const float *decode(const qm_tensor *t, size_t first, size_t n, qm_scratch *s, qm_err *e)
{
    size_t block = t->codec.block, all = (size_t)qm_tensor_count(t);
    size_t group = first / block, past = (first + n + block - 1) / block;
    size_t from = group * block, to = past * block < all ? past * block : all;
    const uint8_t *plane[QM_MAX_PLANES] = {0};
    for (int i = 0; i < qm_format_planes(t->format); i++)
        plane[i] = t->plane[i].data + qm_plane_size(t->format, &t->codec, i, from);
    if (t->double_quant) {
        const float *absmax;
        if (!absmax_of(t, group, past, s, &absmax, e))
            return NULL;
        plane[1] = (const uint8_t *)absmax;
    }
    if (!room_for(&s->values, &s->room, to - from, e))
        return NULL;
    qm_decode(t->format, plane, to - from, &t->codec, s->values);
    qm_round_values(t->round, s->values, to - from);
    return s->values + (first - from);
}

const float *qm_weight_rows(const qm_weight *w, int64_t from, int64_t n, qm_scratch *s, qm_err *e)
{
    const qm_tensor *t = w->tensor;
    size_t first = (size_t)((w->first + from) * w->cols), count = (size_t)(n * w->cols);
    if (!qm_tensor_has_planes(t, e))
        return NULL;
    const uint8_t *plain = t->plane[0].data + first * sizeof(float);
    if (t->dtype == QM_F32 && t->codec.block == 1 && (uintptr_t)plain % sizeof(float) == 0)
        return (const float *)(const void *)plain;
    if (count == 0)
        return room_for(&s->values, &s->room, 1, e) ? s->values : NULL;
    return decode(t, first, count, s, e);
}
