/* explore.c: see explore.h. */
#include "explore.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "double_quant.h"
#include "formats/bits.h"

static int64_t rows_of(const qm_tensor *t)
{
    int64_t cols = qm_tensor_cols(t);
    return cols ? qm_tensor_count(t) / cols : 0;
}

static bool stopped(qm_err *e) { return qm_interrupted() && !qm_fail(e, QM_EINTERRUPT, "interrupted"); }

static bool no_memory(uint64_t bytes, qm_err *e)
{
    return qm_fail(e, QM_ENOFIT, "out of memory for %" PRIu64 " bytes", bytes);
}

/* ---- in pieces ---------------------------------------------------------------------------------- */

/* Calls use(arg, values, index of the first, how many) for all of a tensor, piece by piece. */
typedef void (*use_values)(void *arg, const float *x, int64_t first, int64_t n);

static bool each_piece(const qm_tensor *t, int64_t piece, use_values use, void *arg, qm_err *e)
{
    int64_t total = qm_tensor_count(t);
    int64_t most = total < piece ? total : piece;
    float *x = malloc((size_t)most * sizeof *x + 1);
    bool ok = x || no_memory((uint64_t)most * sizeof *x, e);
    for (int64_t first = 0; ok && first < total; first += piece) {
        int64_t n = total - first < piece ? total - first : piece;
        ok = !stopped(e) && qm_tensor_range(t, first, n, x, e);
        if (ok)
            use(arg, x, first, n);
    }
    free(x);
    return ok;
}

/* A tensor that is read piece by piece must not be fetched from a device for each of them. */
static const qm_tensor *here(const qm_tensor *t, qm_tensor **copy, qm_err *e)
{
    *copy = NULL;
    return qm_tensor_device(t) ? *copy = qm_tensor_to(t, NULL, e) : t;
}

static bool pieces(const qm_tensor *t, use_values use, void *arg, qm_err *e)
{
    qm_tensor *copy;
    const qm_tensor *from = here(t, &copy, e);
    bool ok = from && each_piece(from, QM_EXPLORE_CHUNK, use, arg, e);
    qm_tensor_free(copy);
    return ok;
}

/* ---- slices --------------------------------------------------------------------------------------- */

qm_tensor *qm_slice_new(const qm_tensor *t, int64_t row, int64_t rows, int64_t col, int64_t cols, qm_err *e)
{
    int64_t all_rows = rows_of(t), all_cols = qm_tensor_cols(t);
    if (row < 0 || rows < 1 || row > all_rows || rows > all_rows - row || col < 0 || cols < 1
        || col > all_cols || cols > all_cols - col) {
        qm_fail(e, QM_EFAIL,
                "rows %" PRId64 " to %" PRId64 ", columns %" PRId64 " to %" PRId64 " do not lie in %" PRId64
                " rows of %" PRId64,
                row + 1, row + rows, col + 1, col + cols, all_rows, all_cols);
        return NULL;
    }
    qm_shape shape = {2, {rows, cols}};
    float *to = NULL;
    qm_tensor *copy, *out = NULL;
    const qm_tensor *from = here(t, &copy, e);
    if (from)
        out = qm_tensor_f32(&shape, &to, e);
    bool ok = out != NULL;
    if (ok && cols == all_cols)
        ok = qm_tensor_range(from, row * all_cols, rows * cols, to, e);
    else
        for (int64_t i = 0; ok && i < rows; i++)
            ok = !stopped(e) && qm_tensor_range(from, (row + i) * all_cols + col, cols, to + i * cols, e);
    qm_tensor_free(copy);
    if (ok)
        return out;
    qm_tensor_free(out);
    return NULL;
}

/* ---- statistics -------------------------------------------------------------------------------------- */

typedef struct moments {
    qm_stats s;
    double sum, second, fourth;
    uint64_t used;
} moments;

static void first_pass(void *arg, const float *x, int64_t first, int64_t n)
{
    (void)first;
    moments *m = arg;
    for (int64_t i = 0; i < n; i++) {
        double v = (double)x[i];
        m->s.nan += isnan(v) != 0;
        m->s.inf += isinf(v) != 0;
        if (!isfinite(v))
            continue;
        m->s.zeros += v == 0;
        m->s.min = m->used == 0 || v < m->s.min ? v : m->s.min;
        m->s.max = m->used == 0 || v > m->s.max ? v : m->s.max;
        m->used++;
        m->sum += v;
    }
}

static void second_pass(void *arg, const float *x, int64_t first, int64_t n)
{
    (void)first;
    moments *m = arg;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)x[i] - m->s.mean;
        if (!isfinite(x[i]))
            continue;
        m->second += d * d;
        m->fourth += d * d * d * d;
    }
}

bool qm_stats_of(const qm_tensor *t, qm_stats *s, qm_err *e)
{
    moments m = {0};
    if (!pieces(t, first_pass, &m, e))
        return false;
    m.s.mean = m.used ? m.sum / (double)m.used : 0;
    if (!pieces(t, second_pass, &m, e))
        return false;
    m.s.count = (uint64_t)qm_tensor_count(t);
    m.s.std = m.used ? sqrt(m.second / (double)m.used) : 0;
    m.s.absmax = fmax(fabs(m.s.min), fabs(m.s.max));
    m.s.kurtosis = m.second > 0 ? m.fourth * (double)m.used / (m.second * m.second) : 0;
    *s = m.s;
    return true;
}

typedef struct histogram {
    double low, high;
    int bins;
    uint64_t *count, *below, *above;
} histogram;

static void count_values(void *arg, const float *x, int64_t first, int64_t n)
{
    (void)first;
    histogram *h = arg;
    double scale = h->bins / (h->high - h->low);
    for (int64_t i = 0; i < n; i++) {
        double v = (double)x[i];
        if (isnan(v))
            continue;
        if (v < h->low) {
            ++*h->below;
        } else if (v > h->high) {
            ++*h->above;
        } else {
            int bin = (int)((v - h->low) * scale);
            h->count[bin < h->bins ? bin : h->bins - 1]++;
        }
    }
}

bool qm_histogram(const qm_tensor *t, double low, double high, int bins, uint64_t *count, uint64_t *below,
                  uint64_t *above, qm_err *e)
{
    if (bins < 1 || !(low < high) || !isfinite(low) || !isfinite(high))
        return qm_fail(e, QM_EFAIL,
                       "a histogram needs bins and a range from low to high, not %d from %g to %g", bins, low,
                       high);
    memset(count, 0, (size_t)bins * sizeof *count);
    *below = *above = 0;
    histogram h = {low, high, bins, count, below, above};
    return pieces(t, count_values, &h, e);
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

bool qm_quantiles(const qm_tensor *t, const double *p, int n, double *value, qm_err *e)
{
    size_t count = (size_t)qm_tensor_count(t), kept = 0;
    float *x = malloc(count * sizeof *x + 1);
    if (!x)
        return no_memory(count * sizeof *x, e);
    bool ok = qm_tensor_values(t, x, e);
    for (size_t i = 0; ok && i < count; i++)
        if (!isnan(x[i]))
            x[kept++] = x[i];
    if (ok && kept == 0)
        ok = qm_fail(e, QM_EFAIL, "quantiles: there are no values");
    if (ok)
        qsort(x, kept, sizeof *x, by_value);
    for (int i = 0; ok && i < n; i++) {
        double at = p[i] * (double)(kept - 1), below = floor(at);
        size_t k = (size_t)below, next = k + 1 < kept ? k + 1 : k;
        value[i] = (double)x[k] + (at - below) * ((double)x[next] - (double)x[k]);
    }
    free(x);
    return ok;
}

/* ---- errors, part by part -------------------------------------------------------------------- */

int64_t qm_parts(const qm_tensor *t, qm_by by, int64_t block)
{
    int64_t n = qm_tensor_count(t);
    return by == QM_BY_ROW ? rows_of(t) : by == QM_BY_COLUMN ? qm_tensor_cols(t) : (n + block - 1) / block;
}

static void add_columns(const float *x, const float *y, int64_t rows, int64_t cols, qm_errsum *sum)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++, x++, y++) {
            double a = (double)*x, b = (double)*y, d = b - a;
            qm_errsum *s = &sum[j];
            s->sum_xx += a * a;
            s->sum_yy += b * b;
            s->sum_xy += a * b;
            s->sum_dd += d * d;
            s->sum_d += d;
            s->max_d = fmax(s->max_d, fabs(d));
            s->max_x = fmax(s->max_x, fabs(a));
            s->n++;
        }
}

static bool errors_in_pieces(const qm_tensor *a, const qm_tensor *b, int64_t part, bool columns, float *x,
                             int64_t piece, qm_errsum *sum, qm_err *e)
{
    int64_t total = qm_tensor_count(a);
    for (int64_t first = 0; first < total; first += piece) {
        int64_t n = total - first < piece ? total - first : piece;
        if (stopped(e) || !qm_tensor_range(a, first, n, x, e) || !qm_tensor_range(b, first, n, x + piece, e))
            return false;
        if (columns)
            add_columns(x, x + piece, n / part, part, sum);
        for (int64_t i = 0; !columns && i < n; i += part)
            qm_vec_get()->errors(x + i, x + piece + i, (size_t)(n - i < part ? n - i : part),
                                 &sum[(first + i) / part]);
    }
    return true;
}

bool qm_errors_by(const qm_tensor *a, const qm_tensor *b, qm_by by, int64_t block, qm_errsum *sum, qm_err *e)
{
    char left[96], right[96];
    if (qm_tensor_count(a) != qm_tensor_count(b) || qm_tensor_cols(a) != qm_tensor_cols(b))
        return qm_fail(e, QM_EFAIL, "shapes %s and %s differ", qm_shape_text(&a->shape, left, sizeof left),
                       qm_shape_text(&b->shape, right, sizeof right));
    memset(sum, 0, (size_t)qm_parts(a, by, block) * sizeof *sum);
    int64_t part = by == QM_BY_BLOCK ? block : qm_tensor_cols(a);
    if (part == 0)
        return true;
    int64_t piece = QM_EXPLORE_CHUNK / part * part;
    piece = piece ? piece : part;
    float *x = malloc(2 * (size_t)piece * sizeof *x);
    qm_tensor *copy_a, *copy_b = NULL;
    const qm_tensor *from_a = here(a, &copy_a, e), *from_b = from_a ? here(b, &copy_b, e) : NULL;
    bool ok = (x || no_memory(2 * (uint64_t)piece * sizeof *x, e)) && from_b
              && errors_in_pieces(from_a, from_b, part, by == QM_BY_COLUMN, x, piece, sum, e);
    qm_tensor_free(copy_a);
    qm_tensor_free(copy_b);
    free(x);
    return ok;
}

/* ---- codes and scales
 * --------------------------------------------------------------------------------------- */

/* Codes in a plane of their own, in bits.h's order. */
static bool has_codes(const qm_tensor *t, qm_err *e)
{
    const qm_format *f = t->format;
    if (qm_tensor_device(t))
        return qm_fail(e, QM_EUNSUPPORTED, "the tensor is on %s; bring it here first: t:to(qm.cpu)",
                       qm_tensor_device(t)->name);
    if (!qm_tensor_has_planes(t, e))
        return false;
    if (f && qm_format_planes(f) > 1 && f->plane[0].bits >= 1 && f->plane[0].bits <= 8
        && f->plane[0].bytes == 0 && (f->over_rows || f->any_block || f->plane[0].bits == 8))
        return true;
    return qm_fail(e, QM_EUNSUPPORTED,
                   "format %s keeps no codes and scales of their own; formats such as nf4, int4 and int8 do",
                   f ? f->name : qm_dtypes[t->dtype].name);
}

bool qm_codes(const qm_tensor *t, int64_t first, int64_t n, int32_t *code, qm_err *e)
{
    if (!has_codes(t, e))
        return false;
    const qm_format *f = t->format;
    int64_t block = t->codec.block, total = qm_tensor_count(t);
    unsigned bits = f->plane[0].bits;
    if (first < 0 || n < 0 || first > total || n > total - first)
        return qm_fail(e, QM_EFAIL, "values %" PRId64 " to %" PRId64 " do not lie in %" PRId64, first + 1,
                       first + n, total);
    bool is_signed = t->dtype == QM_I8 && bits == 8;
    for (int64_t at = first - first % block; at < first + n; at += block) { /* a block begins on a byte */
        qm_bits_in in = {.at = t->plane[0].data + qm_plane_size(f, &t->codec, 0, (uint64_t)at)};
        for (int64_t i = at; i < at + block && i < first + n; i++) {
            int32_t c = (int32_t)qm_bits_get(&in, bits);
            if (i >= first)
                code[i - first] = is_signed ? (int8_t)c : c;
        }
    }
    return true;
}

qm_tensor *qm_scales(const qm_tensor *t, qm_err *e)
{
    if (!has_codes(t, e))
        return NULL;
    const qm_format *f = t->format;
    if (!t->double_quant && (f->plane[1].dtype != QM_F32 || f->plane[1].bits != 0 || f->plane[1].bytes % 4)) {
        qm_fail(e, QM_EUNSUPPORTED, "format %s has no f32 scales", f->name);
        return NULL;
    }
    int64_t n = (int64_t)(t->double_quant ? t->plane[1].size : t->plane[1].size / sizeof(float));
    int64_t each = t->double_quant ? 1 : f->plane[1].bytes / 4;
    qm_shape shape = each > 1 ? (qm_shape){2, {n / each, each}} : (qm_shape){1, {n}};
    float *to;
    qm_tensor *out = qm_tensor_f32(&shape, &to, e);
    if (out && t->double_quant)
        qm_double_dequant(t->plane[1].data, (const float *)(const void *)t->plane[2].data, (size_t)n,
                          t->offset, to);
    else if (out)
        memcpy(to, t->plane[1].data, (size_t)n * sizeof *to);
    return out;
}
