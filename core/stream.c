/* stream.c: see stream.h.  A job is cut into chunks of whole rows; each thread owns one set of
 * buffers and takes a chunk through all stages while it is in cache.
 */
#include "stream.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "double_quant.h"

/* Values per chunk, about.  256 K f32 of values and as much again of scratch stay within a core's L2,
 * and a chunk's writes (64 KiB of 4-bit codes) are still long enough for the kernel. */
enum { CHUNK = 128 * 1024 };

/* Second-level groups that are worked on at once. */
enum { PIECE = 256 * QM_DOUBLE_QUANT_BLOCK };

typedef struct nested_piece {
    float absmax[PIECE], scale[PIECE / QM_DOUBLE_QUANT_BLOCK];
    uint8_t code[PIECE];
} nested_piece;

/* One sink while a job runs. */
typedef struct sink_run {
    uint64_t buffer_size[QM_MAX_PLANES]; /* of a chunk */
    uint64_t groups; /* double_quant: of the tensor; what is known of each when all have been seen: */
    float *absmax;   /*   the first-level scale */
    qm_groupsum *sum;
    qm_errsum *chunk_error; /* one per chunk, added up in chunk order: the sum must not depend on threads */
    bool lossless;
} sink_run;

typedef struct buffers { /* of one thread */
    uint8_t *raw;        /* source bytes of the chunk, planes back to back */
    float *absmax;       /* double_quant source: the chunk's first-level scales */
    float *x, *y;        /* values; scratch for deltas and decoded values */
    uint8_t *plane;      /* encoded planes of one sink, back to back */
    uint8_t *rows;       /* a plane with its rows in another order */
} buffers;

typedef struct chunk_sums {
    double ww, dd;
    uint64_t zero_groups[QM_MAX_SINKS];
    qm_errsum against; /* of qm_against, as are these: */
    uint64_t beyond, nonfinite;
} chunk_sums;

typedef struct stream {
    qm_job *job;
    int64_t chunk_rows, chunks;
    uint64_t raw_total, absmax_total, plane_total, rows_total;
    sink_run *sink;
    chunk_sums *sums; /* one per chunk */
    buffers *buf;     /* one per thread */
    int threads;
    atomic_ullong done; /* source values finished */
    double **norm_sums; /* column-norm pass: cols sums per chunk */
    int nstep;
    float *values, *most; /* value pass: where they go, or NULL; the largest magnitude of each chunk */
} stream;

/* ---- cutting into chunks ------------------------------------------------------------------- */

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Fewest rows after which a group of this format begins afresh. */
static int64_t rows_per_restart(const qm_format *f, const qm_codec *c, int64_t cols)
{
    return f->over_rows && cols > 0 ? c->block / gcd(c->block, cols) : 1;
}

/* Least common multiple; `most` when it is more than that. */
static int64_t lcm(int64_t a, int64_t b, int64_t most)
{
    int64_t m;
    return __builtin_mul_overflow(a / gcd(a, b), b, &m) || m > most ? most : m;
}

/* Fewest rows after which the source begins afresh, in steps of `step`. */
static int64_t source_step(const qm_source *s, int64_t step)
{
    step = lcm(step, rows_per_restart(s->format, &s->codec, s->cols), s->rows);
    if (s->interleaved_heads)
        step = lcm(step, s->rows / s->interleaved_heads, s->rows);
    if (s->double_quant) { /* a chunk begins with a nested group, too */
        int64_t nested = (int64_t)QM_DOUBLE_QUANT_BLOCK * s->codec.block;
        step = lcm(step, nested / gcd(nested, s->cols), s->rows);
    }
    return step;
}

static int64_t chunk_rows(const qm_job *job)
{
    const qm_source *s = &job->source;
    if (s->rows == 0 || s->cols == 0)
        return 1;
    int64_t step = source_step(s, 1);
    if (job->against)
        step = source_step(&job->against->source, step);
    for (int i = 0; i < job->nsink; i++) {
        const qm_sink *k = &job->sink[i];
        step = lcm(step, rows_per_restart(k->format, &k->codec, s->cols), s->rows);
        if (k->interleave_heads) /* whole heads */
            step = lcm(step, s->rows / k->interleave_heads, s->rows);
    }
    int64_t fit = CHUNK / s->cols / step * step;
    return fit > step ? fit : step;
}

static bool is_lossless(const qm_job *job, const qm_sink *k)
{
    const char *name = k->format->name;
    return strcmp(name, "f32") == 0 || (job->round == QM_ROUND_F16 && strcmp(name, "f16") == 0)
           || (job->round == QM_ROUND_BF16 && strcmp(name, "bf16") == 0);
}

/* What it takes to read n values of a source. */
static void measure_source(stream *st, const qm_source *s, uint64_t n)
{
    uint64_t raw = 0, absmax = s->double_quant ? qm_plane_size(s->format, &s->codec, 1, n) : 0;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        raw += qm_plane_size(s->format, &s->codec, i, n);
    st->raw_total = raw > st->raw_total ? raw : st->raw_total;
    st->absmax_total = absmax > st->absmax_total ? absmax : st->absmax_total;
    if (s->interleaved_heads)
        st->rows_total = n * sizeof(float);
}

/* Sizes of everything; allocates nothing. */
static void measure(stream *st, qm_job *job, int threads, sink_run *sinks)
{
    const qm_source *s = &job->source;
    *st = (stream){.job = job, .threads = threads, .sink = sinks};
    st->chunk_rows = chunk_rows(job);
    st->chunks = s->cols ? (s->rows + st->chunk_rows - 1) / st->chunk_rows : 0;
    int64_t rows = s->rows < st->chunk_rows ? s->rows : st->chunk_rows;
    uint64_t n = (uint64_t)(rows * s->cols);
    measure_source(st, s, n);
    if (job->against)
        measure_source(st, &job->against->source, n);
    for (int k = 0; k < job->nsink; k++) {
        const qm_sink *sink = &job->sink[k];
        uint64_t total = 0;
        for (int i = 0; i < qm_format_planes(sink->format); i++)
            total += sinks[k].buffer_size[i] = qm_plane_size(sink->format, &sink->codec, i, n);
        st->plane_total = total > st->plane_total ? total : st->plane_total;
        if (sink->interleave_heads && total > st->rows_total)
            st->rows_total = total;
        sinks[k].lossless = is_lossless(job, sink);
        if (sink->double_quant)
            sinks[k].groups = (uint64_t)(s->rows * s->cols + sink->codec.block - 1) / sink->codec.block;
    }
}

static uint64_t chunk_values(const stream *st)
{
    const qm_source *s = &st->job->source;
    int64_t rows = s->rows < st->chunk_rows ? s->rows : st->chunk_rows;
    return (uint64_t)(rows * s->cols);
}

static uint64_t memory_of(const stream *st)
{
    uint64_t per_thread = st->raw_total + st->absmax_total + 2 * sizeof(float) * chunk_values(st)
                          + st->plane_total + st->rows_total;
    uint64_t total = (uint64_t)st->threads * per_thread + (uint64_t)st->chunks * sizeof(chunk_sums);
    if (st->job->source.strided.shape.ndim) /* read through the map */
        total += (uint64_t)qm_strided_span(&st->job->source.strided)
                 * (st->job->source.format->plane[0].bits / 8);
    for (int k = 0; k < st->job->nsink; k++)
        total += st->sink[k].groups * (sizeof(qm_groupsum) + sizeof(float))
                 + (st->sink[k].groups ? sizeof(nested_piece) : 0) + (uint64_t)st->chunks * sizeof(qm_errsum);
    return total;
}

uint64_t qm_stream_memory(const qm_job *job, int threads)
{
    sink_run sinks[QM_MAX_SINKS] = {0};
    stream st;
    qm_job copy = *job;
    copy.nsink = copy.nsink > QM_MAX_SINKS ? QM_MAX_SINKS : copy.nsink;
    measure(&st, &copy, threads, sinks);
    return memory_of(&st);
}

static void release(stream *st)
{
    for (int t = 0; st->buf && t < st->threads; t++) {
        free(st->buf[t].raw);
        free(st->buf[t].x);
        free(st->buf[t].y);
        free(st->buf[t].plane);
        free(st->buf[t].absmax);
        free(st->buf[t].rows);
    }
    free(st->buf);
    free(st->sums);
    for (int k = 0; st->sink && k < st->job->nsink; k++) {
        free(st->sink[k].absmax);
        free(st->sink[k].sum);
        free(st->sink[k].chunk_error);
    }
}

static bool allocate(stream *st, qm_err *e)
{
    uint64_t n = chunk_values(st);
    bool ok = (st->buf = calloc((size_t)st->threads, sizeof *st->buf))
              && (st->sums = calloc((size_t)st->chunks + 1, sizeof *st->sums));
    for (int t = 0; ok && t < st->threads; t++) {
        buffers *b = &st->buf[t];
        ok = (b->raw = malloc(st->raw_total + 1)) && (b->x = malloc(n * sizeof *b->x + 1))
             && (b->y = malloc(n * sizeof *b->y + 1)) && (b->plane = malloc(st->plane_total + 1))
             && (b->absmax = malloc(st->absmax_total + 1)) && (b->rows = malloc(st->rows_total + 1));
    }
    for (int k = 0; ok && k < st->job->nsink; k++) {
        sink_run *r = &st->sink[k];
        ok = (r->chunk_error = calloc((size_t)st->chunks + 1, sizeof *r->chunk_error))
             && (!r->groups
                 || ((r->absmax = malloc(r->groups * sizeof *r->absmax))
                     && (r->sum = malloc(r->groups * sizeof *r->sum))));
    }
    if (!ok) {
        qm_fail(e, QM_ENOFIT,
                "%s: out of memory: %" PRIu64 " bytes to work on this tensor; try fewer --threads",
                st->job->source.name, memory_of(st));
        release(st);
    }
    return ok;
}

/* ---- stages of one chunk ---------------------------------------------------------------------- */

typedef struct chunk {
    int64_t index, row, rows;
    uint64_t first, n; /* flat index of the first value; how many */
    buffers *b;
    qm_errsum same; /* of the values against themselves, for all exact sinks; n == 0 until it is known */
} chunk;

static chunk chunk_at(const stream *st, int64_t index, int thread)
{
    const qm_source *s = &st->job->source;
    chunk c = {.index = index, .row = index * st->chunk_rows, .b = &st->buf[thread]};
    c.rows = s->rows - c.row < st->chunk_rows ? s->rows - c.row : st->chunk_rows;
    c.first = (uint64_t)(c.row * s->cols);
    c.n = (uint64_t)(c.rows * s->cols);
    return c;
}

static const qm_infile *plane_file(const qm_source *s, int i)
{
    return s->plane_file[i] ? s->plane_file[i] : s->file;
}

/* First-level scales of a double-quantised chunk, which begins with a nested group. */
static bool load_absmax(const qm_source *s, const chunk *c, uint8_t *codes, qm_err *e)
{
    uint64_t first = c->first / s->codec.block, n = (c->n + s->codec.block - 1) / s->codec.block;
    uint64_t nested = (n + QM_DOUBLE_QUANT_BLOCK - 1) / QM_DOUBLE_QUANT_BLOCK;
    float *scales = c->b->y; /* free until the steps */
    const qm_infile *nested_file = s->nested_file ? s->nested_file : s->file;
    if (!qm_infile_read(plane_file(s, 1), s->at[1] + first, codes, n, e)
        || !qm_infile_read(nested_file, s->nested_at + first / QM_DOUBLE_QUANT_BLOCK * sizeof *scales, scales,
                           nested * sizeof *scales, e))
        return false;
    qm_double_dequant(codes, scales, n, s->offset, c->b->absmax);
    return true;
}

/* Where the chunk's source planes lie in memory once they are read. */
static void raw_planes(const qm_source *s, const chunk *c, const uint8_t *plane[QM_MAX_PLANES])
{
    uint8_t *raw = c->b->raw;
    for (int i = 0; i < qm_format_planes(s->format); i++) {
        plane[i] = raw;
        raw += qm_plane_size(s->format, &s->codec, i, c->n);
    }
    if (s->double_quant)
        plane[1] = (const uint8_t *)c->b->absmax;
}

/* Where row i of a chunk of whole heads goes: a head's first half to the even places, its second to the odd.
 */
static int64_t interleaved_row(int64_t i, int64_t head_rows)
{
    int64_t half = head_rows / 2, j = i % head_rows;
    return i - j + (j < half ? 2 * j : 2 * (j - half) + 1);
}

static void decode_source(const qm_source *s, const chunk *c, float *values)
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
        memcpy(values + i * s->cols, rows + interleaved_row(i, s->rows / s->interleaved_heads) * s->cols,
               (size_t)s->cols * sizeof *values);
}

static bool load(const qm_source *s, const chunk *c, float *values, qm_err *e)
{
    uint8_t *raw = c->b->raw;
    if (s->strided.shape.ndim) {
        if (!qm_strided_read(&s->strided, s->file, s->at[0], s->format->plane[0].bits / 8, c->first, c->n,
                             raw, e))
            return false;
        decode_source(s, c, values);
        return true;
    }
    for (int i = 0; i < qm_format_planes(s->format); i++) {
        uint64_t before = qm_plane_size(s->format, &s->codec, i, c->first);
        uint64_t size = qm_plane_size(s->format, &s->codec, i, c->n);
        if (s->double_quant && i == 1 ? !load_absmax(s, c, raw, e)
                                      : !qm_infile_read(plane_file(s, i), s->at[i] + before, raw, size, e))
            return false;
        raw += size;
    }
    decode_source(s, c, values);
    return true;
}

static void step_low_rank(const qm_step *s, const chunk *c, int64_t cols)
{
    const qm_vec *v = qm_vec_get();
    v->low_rank(s->left + (size_t)c->row * s->rank, s->rank, s->right, s->rank, s->scale, c->b->y,
                (size_t)c->rows, (size_t)cols);
    qm_round_values(s->round_delta, c->b->y, c->n);
    v->add(c->b->x, c->b->y, c->n);
}

/* DoRA: every row (or column) gets the length that was trained for it. */
static void step_dora(const qm_step *s, const chunk *c, int64_t cols)
{
    for (int64_t i = 0; i < c->rows; i++) {
        float *x = c->b->x + i * cols;
        if (s->by_column) {
            for (int64_t j = 0; j < cols; j++)
                x[j] = s->magnitude[j] / s->norm[j] * x[j];
            continue;
        }
        double sum = 0;
        for (int64_t j = 0; j < cols; j++)
            sum += (double)x[j] * (double)x[j];
        qm_vec_get()->scale(x, s->magnitude[c->row + i] / (float)sqrt(sum), (size_t)cols);
    }
}

static void step_rows(const qm_step *s, const chunk *c, int64_t cols)
{
    for (size_t k = 0; k < s->nrow; k++)
        if (s->row[k] >= c->row && s->row[k] < c->row + c->rows)
            memcpy(c->b->x + (s->row[k] - c->row) * cols, s->values + k * (size_t)cols,
                   (size_t)cols * sizeof(float));
}

static void step_add(const qm_step *s, const chunk *c)
{
    for (uint64_t i = 0; i < c->n; i++)
        c->b->x[i] += s->values[c->first + i] * s->scale;
}

static void apply(const stream *st, const chunk *c, int nstep)
{
    int64_t cols = st->job->source.cols;
    for (int i = 0; i < nstep; i++) {
        const qm_step *s = &st->job->step[i];
        switch (s->kind) {
        case QM_STEP_LOW_RANK:
            step_low_rank(s, c, cols);
            break;
        case QM_STEP_DORA:
            step_dora(s, c, cols);
            break;
        case QM_STEP_ROWS:
            step_rows(s, c, cols);
            break;
        case QM_STEP_ADD:
            step_add(s, c);
            break;
        }
        qm_round_values(s->round_after, c->b->x, c->n);
    }
}

/* How far the steps move this chunk: the source is decoded once more, which costs less than keeping it. */
static void measure_steps(const stream *st, const chunk *c)
{
    qm_errsum sum = {0};
    decode_source(&st->job->source, c, c->b->y);
    qm_vec_get()->errors(c->b->y, c->b->x, c->n, &sum);
    st->sums[c->index].ww = sum.sum_xx;
    st->sums[c->index].dd = sum.sum_dd;
}

static bool check_finite(const stream *st, const chunk *c, qm_err *e)
{
    const qm_source *s = &st->job->source;
    size_t i = qm_vec_get()->first_nonfinite(c->b->x, c->n);
    if (i == c->n)
        return true;
    const char *what = isnan(c->b->x[i]) ? "NaN" : "infinite";
    bool narrow = st->job->round == QM_ROUND_F16 && !isnan(c->b->x[i]);
    return qm_fail(
        e, QM_EFAIL, "%s: tensor '%s' is %s at row %" PRId64 ", column %" PRId64 "%s", s->file->path, s->name,
        what, c->row + (int64_t)i / s->cols, (int64_t)i % s->cols,
        narrow ? " once rounded to f16 (largest value 65504); write bf16 or f32 instead (--dtype bf16)"
               : "; mend the model, or pass --keep-nonfinite to carry it over");
}

/* ---- sinks --------------------------------------------------------------------------------------- */

static uint64_t count_zero_groups(const float *absmax, uint64_t n)
{
    uint64_t zeros = 0;
    for (uint64_t i = 0; i < n; i++)
        zeros += absmax[i] == 0;
    return zeros;
}

/* The error of a double-quantised sink changes with the second level: per group, what is needed then. */
static void keep_groups(const sink_run *r, const qm_sink *k, const chunk *c, const void *absmax)
{
    uint64_t block = k->codec.block, g = c->first / block, n = (c->n + block - 1) / block;
    memcpy(r->absmax + g, absmax, n * sizeof *r->absmax);
    qm_vec_get()->group_sums(c->b->x, c->b->y, c->n, block, r->sum + g);
}

static void exact_errors(chunk *c, qm_errsum *sum)
{
    if (c->same.n == 0)
        qm_vec_get()->errors(c->b->x, c->b->x, c->n, &c->same);
    qm_errsum_add(sum, &c->same);
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
        memcpy(c->b->rows + (uint64_t)interleaved_row(i, head_rows) * row, plane + (uint64_t)i * row, row);
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

/* A sink that loses nothing; what it adds is no error. */
static bool is_exact(const stream *st, int index)
{
    return st->sink[index].lossless || st->job->sink[index].add != 0;
}

static bool drain(const stream *st, chunk *c, int index, qm_err *e)
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

    for (int i = 0; i < planes; i++) {
        uint64_t before = qm_plane_size(f, &k->codec, i, c->first);
        uint64_t size = qm_plane_size(f, &k->codec, i, c->n);
        bool later = k->double_quant && i == 1;
        const uint8_t *bytes = plane[i];
        if (k->interleave_heads)
            bytes = interleave(c, bytes, size, st->job->source.rows / k->interleave_heads);
        if (!later && k->file && !qm_outfile_write(k->file, k->at[i] + before, bytes, size, e))
            return false;
        if (i == 1 && f->over_rows)
            st->sums[c->index].zero_groups[index] = count_zero_groups((const float *)(const void *)plane[1],
                                                                      size / sizeof(float));
    }
    if ((!st->job->want_errors && !k->double_quant) || is_exact(st, index))
        return true;
    qm_decode(f, (const uint8_t *const *)plane, c->n, &k->codec, c->b->y);
    if (k->double_quant)
        keep_groups(r, k, c, plane[1]);
    qm_vec_get()->errors(c->b->x, c->b->y, c->n, &r->chunk_error[c->index]);
    learn_same(c, &r->chunk_error[c->index]);
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

/* Second level of a double-quantised sink, once every absmax is known, and its share of the error. */
static bool finish_double_quant(qm_sink *k, const sink_run *r, uint64_t total, qm_err *e)
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

/* ---- against another source ------------------------------------------------------------------------- */

/* What the second level may change of group g's scale: the 8-bit map's bound, of the largest of its 256. Only
 * formats whose scale is the absmax itself are read with a second level. */
static double nested_slack(const qm_source *s, const float *x, uint64_t n, uint64_t g)
{
    static const char *const map = "dynamic8";
    uint64_t block = s->codec.block, first = g / QM_DOUBLE_QUANT_BLOCK * QM_DOUBLE_QUANT_BLOCK * block;
    uint64_t last = first + QM_DOUBLE_QUANT_BLOCK * block < n ? first + QM_DOUBLE_QUANT_BLOCK * block : n;
    double largest = 0, absmax = 0;
    for (uint64_t i = first; i < last; i++) {
        absmax = fmax(absmax, fabs((double)x[i]));
        if ((i + 1) % block == 0 || i + 1 == last) {
            largest = fmax(largest, fabs(absmax - (double)s->offset));
            absmax = 0;
        }
    }
    return qm_format_find(map)->bound * largest;
}

/* Values of y further from x than the format allows: its bound times the group's absmax, and what rounding x
 * to 16 bits on the way there may have changed. */
static uint64_t count_beyond(const qm_against *a, const float *x, const float *y, uint64_t n, int64_t cols)
{
    const qm_source *s = &a->source;
    const qm_format *f = s->format;
    uint64_t block = s->codec.block > 1 ? s->codec.block : (uint64_t)cols, beyond = 0;
    double nested = 0;
    for (uint64_t first = 0; first < n; first += block) {
        uint64_t last = first + block < n ? first + block : n, g = first / block;
        double absmax = 0;
        for (uint64_t i = first; i < last; i++)
            absmax = fmax(absmax, fabs((double)x[i]));
        if (s->double_quant && g % QM_DOUBLE_QUANT_BLOCK == 0)
            nested = nested_slack(s, x, n, g);
        double limit = a->slack * (f->bound + f->bound_abs) * absmax + nested + ldexp(absmax, -8)
                       + ldexp(1, -24);
        for (uint64_t i = first; i < last; i++)
            beyond += !(fabs((double)y[i] - (double)x[i])
                        <= limit + (f->bound_rel + ldexp(1, -8)) * fabs((double)x[i]));
    }
    return beyond;
}

static bool hold_against(const stream *st, const chunk *c, qm_err *e)
{
    const qm_against *a = st->job->against;
    chunk_sums *sums = &st->sums[c->index];
    float *y = c->b->y;
    if (!load(&a->source, c, y, e))
        return false;
    for (uint64_t i = 0; a->add != 0 && i < c->n; i++)
        y[i] -= a->add;
    for (uint64_t i = 0; i < c->n; i++)
        sums->nonfinite += !isfinite(y[i]);
    qm_vec_get()->errors(c->b->x, y, c->n, &sums->against);
    sums->beyond = count_beyond(a, c->b->x, y, c->n, a->source.cols);
    return true;
}

/* ---- running --------------------------------------------------------------------------------------- */

static bool work(void *arg, int64_t index, int thread, qm_err *e)
{
    stream *st = arg;
    qm_job *job = st->job;
    chunk c = chunk_at(st, index, thread);
    if (!load(&st->job->source, &c, c.b->x, e))
        return false;
    if (job->nstep) {
        apply(st, &c, job->nstep);
        if (job->want_errors)
            measure_steps(st, &c);
    }
    qm_round_values(job->round, c.b->x, c.n);
    if (!job->keep_nonfinite && !check_finite(st, &c, e))
        return false;
    if (job->against && !hold_against(st, &c, e))
        return false;
    for (int i = 0; i < job->nsink; i++)
        if (!drain(st, &c, i, e))
            return false;
    for (int i = 0; job->want_errors && i < job->nsink; i++)
        if (is_exact(st, i))
            exact_errors(&c, &st->sink[i].chunk_error[c.index]);
    atomic_fetch_add(&st->done, c.n);
    return true;
}

static void tick(void *arg)
{
    stream *st = arg;
    qm_job *job = st->job;
    uint64_t total = (uint64_t)(job->source.rows * job->source.cols), bytes = 0;
    for (int i = 0; i < qm_format_planes(job->source.format); i++)
        bytes += qm_plane_size(job->source.format, &job->source.codec, i, total);
    if (job->progress && total)
        job->progress(job->progress_arg,
                      (uint64_t)((double)bytes * ((double)atomic_load(&st->done) / (double)total)));
}

static void collect(stream *st)
{
    qm_job *job = st->job;
    for (int64_t i = 0; i < st->chunks; i++) {
        job->sum_ww += st->sums[i].ww;
        job->sum_dd += st->sums[i].dd;
        if (job->against) {
            qm_errsum_add(&job->against->error, &st->sums[i].against);
            job->against->beyond += st->sums[i].beyond;
            job->against->nonfinite += st->sums[i].nonfinite;
        }
        for (int k = 0; k < job->nsink; k++) {
            qm_errsum_add(&job->sink[k].error, &st->sink[k].chunk_error[i]);
            job->sink[k].zero_groups += st->sums[i].zero_groups[k];
        }
    }
}

static bool lies_in(const qm_source *s, const qm_infile *f, uint64_t at, uint64_t size, qm_err *e)
{
    return (at <= f->size && size <= f->size - at)
           || qm_fail(e, QM_ECORRUPT,
                      "%s: tensor '%s' [%" PRId64 " x %" PRId64 " %s] takes %" PRIu64
                      " bytes from byte %" PRIu64 ", but the file ends at %" PRIu64,
                      f->path, s->name, s->rows, s->cols, s->format->name, size, at, f->size);
}

/* Before anything is allocated for it, the source must be there. */
static bool check_source(const qm_source *s, qm_err *e)
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

bool qm_stream(qm_pool *pool, qm_job *job, qm_err *e)
{
    stream st;
    sink_run sinks[QM_MAX_SINKS] = {0};
    if (!check_source(&job->source, e) || (job->against && !check_source(&job->against->source, e)))
        return false;
    if (job->nsink > QM_MAX_SINKS)
        return qm_fail(e, QM_EFAIL, "%s: %d outputs in one pass; %d at most", job->source.name, job->nsink,
                       QM_MAX_SINKS);
    measure(&st, job, qm_pool_threads(pool), sinks);
    if (!allocate(&st, e))
        return false;
    bool ok = qm_pool_run(pool, st.chunks, work, tick, &st, e);
    if (ok)
        collect(&st);
    for (int k = 0; ok && k < job->nsink; k++)
        if (job->sink[k].double_quant)
            ok = finish_double_quant(&job->sink[k], &sinks[k],
                                     (uint64_t)(job->source.rows * job->source.cols), e);
    if (job->source.strided.shape.ndim)
        qm_infile_release(job->source.file);
    if (job->against && job->against->source.strided.shape.ndim)
        qm_infile_release(job->against->source.file);
    release(&st);
    return ok;
}

/* ---- column norms ------------------------------------------------------------------------------------ */

static bool norm_work(void *arg, int64_t index, int thread, qm_err *e)
{
    stream *st = arg;
    chunk c = chunk_at(st, index, thread);
    int64_t cols = st->job->source.cols;
    if (!load(&st->job->source, &c, c.b->x, e))
        return false;
    apply(st, &c, st->nstep);
    for (int64_t i = 0; i < c.rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double v = (double)c.b->x[i * cols + j];
            st->norm_sums[index][j] += v * v;
        }
    return true;
}

bool qm_stream_column_norms(qm_pool *pool, const qm_job *job, int nstep, float *norm, qm_err *e)
{
    stream st;
    sink_run sinks[QM_MAX_SINKS] = {0};
    qm_job copy = *job;
    copy.nsink = 0;
    if (!check_source(&job->source, e))
        return false;
    measure(&st, &copy, qm_pool_threads(pool), sinks);
    st.nstep = nstep;
    if (!allocate(&st, e))
        return false;
    size_t cols = (size_t)job->source.cols;
    bool ok = (st.norm_sums = calloc((size_t)st.chunks + 1, sizeof *st.norm_sums));
    for (int64_t i = 0; ok && i < st.chunks; i++)
        ok = (st.norm_sums[i] = calloc(cols + 1, sizeof **st.norm_sums));
    if (!ok)
        qm_fail(e, QM_ENOFIT, "%s: out of memory for column norms", job->source.name);
    ok = ok && qm_pool_run(pool, st.chunks, norm_work, NULL, &st, e);
    for (size_t j = 0; ok && j < cols; j++) {
        double sum = 0;
        for (int64_t i = 0; i < st.chunks; i++)
            sum += st.norm_sums[i][j];
        norm[j] = (float)sqrt(sum);
    }
    for (int64_t i = 0; st.norm_sums && i < st.chunks; i++)
        free(st.norm_sums[i]);
    free(st.norm_sums);
    release(&st);
    return ok;
}

/* ---- all values -------------------------------------------------------------------------------------- */

static bool value_work(void *arg, int64_t index, int thread, qm_err *e)
{
    stream *st = arg;
    chunk c = chunk_at(st, index, thread);
    qm_errsum sum = {0};
    if (!load(&st->job->source, &c, c.b->x, e))
        return false;
    apply(st, &c, st->job->nstep);
    qm_round_values(st->job->round, c.b->x, c.n);
    if (!st->job->keep_nonfinite && !check_finite(st, &c, e))
        return false;
    qm_vec_get()->errors(c.b->x, c.b->x, c.n, &sum);
    st->most[index] = (float)sum.max_x;
    if (st->values)
        memcpy(st->values + c.first, c.b->x, c.n * sizeof *c.b->x);
    return true;
}

bool qm_stream_values(qm_pool *pool, const qm_job *job, float *values, float *most, qm_err *e)
{
    stream st;
    sink_run sinks[QM_MAX_SINKS] = {0};
    qm_job copy = *job;
    copy.nsink = 0;
    if (!check_source(&job->source, e))
        return false;
    measure(&st, &copy, qm_pool_threads(pool), sinks);
    st.values = values;
    if (!allocate(&st, e))
        return false;
    st.most = calloc((size_t)st.chunks + 1, sizeof *st.most);
    bool ok = st.most || qm_fail(e, QM_ENOFIT, "%s: out of memory", job->source.name);
    ok = ok && qm_pool_run(pool, st.chunks, value_work, NULL, &st, e);
    *most = 0;
    for (int64_t i = 0; ok && i < st.chunks; i++)
        *most = st.most[i] > *most ? st.most[i] : *most;
    free(st.most);
    release(&st);
    return ok;
}
