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
#include "courier.h"

/* Values per chunk, about.  256 K f32 of values and as much again of scratch stay within a core's L2,
 * and a chunk's writes (64 KiB of 4-bit codes) are still long enough for the kernel. */
enum { CHUNK = 128 * 1024 };

/* Second-level groups that are worked on at once. */
enum { PIECE = 256 * QM_DOUBLE_QUANT_BLOCK };

typedef struct nested_piece {
    float absmax[PIECE], scale[PIECE / QM_DOUBLE_QUANT_BLOCK];
    uint8_t code[PIECE];
} nested_piece;

/* On a courier: long enough for a copy to run at full speed, short enough that few are under way at the end.
 * Shorter jobs than a courier is worth waking for stay here. */
enum { COURIER_CHUNK = 4 << 20, COURIER_LEAST = 64 * 1024 };

/* One sink while a job runs. */
typedef struct sink_run {
    uint64_t buffer_size[QM_MAX_PLANES]; /* of a chunk */
    uint64_t groups; /* double_quant: of the tensor; what is known of each when all have been seen: */
    float *absmax;   /*   the first-level scale */
    qm_groupsum *sum;
    qm_errsum *part_error; /* one per part, added up in their order: the sum must not depend on threads */
    bool lossless;
} sink_run;

typedef struct buffers { /* of one thread */
    uint8_t *raw;        /* the chunk's source, laid out by raw_layout; on a courier, memory of that */
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

typedef struct sizes { /* of buffers */
    uint64_t raw, values, plane, rows;
} sizes;

typedef struct stream {
    qm_job *job;
    bool by_courier;
    int64_t chunk_rows, chunks;
    int64_t part_rows,
        parts; /* chunks as they are here, for which errors are added up, wherever the work is done */
    sizes size;
    sink_run *sink;
    chunk_sums *sums; /* one per part */
    buffers *buf;     /* one per thread */
    int threads;
    atomic_llong left;  /* chunks that are not finished */
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

static int64_t chunk_rows(const qm_job *job, int64_t values)
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
    int64_t fit = values / s->cols / step * step;
    return fit > step ? fit : step;
}

/* A courier takes whole chunks as they would be here, several at once. */
static int64_t courier_rows(const qm_job *job)
{
    int64_t rows = chunk_rows(job, CHUNK), fit = COURIER_CHUNK / (rows * job->source.cols);
    return fit > 1 ? fit * rows : rows;
}

static bool is_lossless(const qm_job *job, const qm_sink *k)
{
    const char *name = k->format->name;
    return strcmp(name, "f32") == 0 || (job->round == QM_ROUND_F16 && strcmp(name, "f16") == 0)
           || (job->round == QM_ROUND_BF16 && strcmp(name, "bf16") == 0);
}

/* The source of n values in a thread's raw buffer: planes, then, of a double-quantised one, the first-level
 * scales and the nested ones. */
typedef struct raw_layout {
    uint64_t at[QM_MAX_PLANES], absmax, nested, total;
} raw_layout;

static raw_layout raw_of(const qm_source *s, uint64_t n)
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

/* What it takes to read n values of a source. */
static void measure_source(sizes *z, const qm_source *s, uint64_t n)
{
    uint64_t raw = raw_of(s, n).total;
    z->raw = raw > z->raw ? raw : z->raw;
    if (s->interleaved_heads)
        z->rows = n * sizeof(float);
}

/* Sizes of everything; allocates nothing. */
static void measure(stream *st, qm_job *job, int threads, sink_run *sinks, bool by_courier)
{
    const qm_source *s = &job->source;
    *st = (stream){.job = job, .threads = threads, .sink = sinks, .by_courier = by_courier};
    st->part_rows = st->chunk_rows = chunk_rows(job, CHUNK);
    st->parts = st->chunks = s->cols ? (s->rows + st->chunk_rows - 1) / st->chunk_rows : 0;
    if (by_courier) {
        st->chunk_rows = courier_rows(job);
        st->chunks = (s->rows + st->chunk_rows - 1) / st->chunk_rows;
    }
    atomic_store(&st->left, st->chunks);
    int64_t rows = s->rows < st->chunk_rows ? s->rows : st->chunk_rows;
    uint64_t n = (uint64_t)(rows * s->cols);
    st->size = (sizes){.values = n};
    measure_source(&st->size, s, n);
    if (job->against)
        measure_source(&st->size, &job->against->source, n);
    for (int k = 0; k < job->nsink; k++) {
        const qm_sink *sink = &job->sink[k];
        uint64_t total = 0;
        for (int i = 0; i < qm_format_planes(sink->format); i++)
            total += sinks[k].buffer_size[i] = qm_plane_size(sink->format, &sink->codec, i, n);
        st->size.plane = total > st->size.plane ? total : st->size.plane;
        if (sink->interleave_heads && total > st->size.rows)
            st->size.rows = total;
        sinks[k].lossless = is_lossless(job, sink);
        if (sink->double_quant)
            sinks[k].groups = (uint64_t)(s->rows * s->cols + sink->codec.block - 1) / sink->codec.block;
    }
    if (by_courier) /* the rest is the courier's */
        st->size = (sizes){.rows = st->size.rows};
}

static uint64_t bytes_of(const sizes *z)
{
    return z->raw + 2 * sizeof(float) * z->values + z->plane + z->rows;
}

/* Beside the threads' buffers. */
static uint64_t sums_of(const stream *st)
{
    uint64_t total = (uint64_t)st->parts * sizeof(chunk_sums);
    if (st->job->source.strided.shape.ndim) /* read through the map */
        total += (uint64_t)qm_strided_span(&st->job->source.strided)
                 * (st->job->source.format->plane[0].bits / 8);
    for (int k = 0; k < st->job->nsink; k++)
        total += st->sink[k].groups * (sizeof(qm_groupsum) + sizeof(float))
                 + (st->sink[k].groups ? sizeof(nested_piece) : 0) + (uint64_t)st->parts * sizeof(qm_errsum);
    return total;
}

static uint64_t memory_of(const stream *st)
{
    return (uint64_t)st->threads * bytes_of(&st->size) + sums_of(st);
}

uint64_t qm_stream_memory(const qm_job *job, int threads)
{
    sink_run sinks[QM_MAX_SINKS] = {0};
    stream st;
    qm_job copy = *job;
    copy.nsink = copy.nsink > QM_MAX_SINKS ? QM_MAX_SINKS : copy.nsink;
    measure(&st, &copy, threads, sinks, false);
    return memory_of(&st);
}

static bool goes_by_courier(const qm_job *job, const qm_device *d)
{
    return !job->against && job->source.rows * job->source.cols >= COURIER_LEAST && d->courier_takes(job);
}

uint64_t qm_stream_courier_memory(const qm_job *job, qm_device *d, uint64_t *pinned)
{
    *pinned = 0;
    if (!goes_by_courier(job, d))
        return 0;
    int64_t rows = courier_rows(job);
    rows = rows < job->source.rows ? rows : job->source.rows;
    return d->courier_memory(job, (uint64_t)(rows * job->source.cols), pinned);
}

static void buffers_free(buffers *b, int threads)
{
    for (int t = 0; b && t < threads; t++) {
        free(b[t].raw);
        free(b[t].x);
        free(b[t].y);
        free(b[t].plane);
        free(b[t].rows);
    }
    free(b);
}

static buffers *buffers_new(const sizes *z, int threads)
{
    buffers *buf = calloc((size_t)threads, sizeof *buf);
    bool ok = buf != NULL;
    for (int t = 0; ok && t < threads; t++) {
        buffers *b = &buf[t];
        ok = (b->raw = malloc(z->raw + 1)) && (b->x = malloc(z->values * sizeof *b->x + 1))
             && (b->y = malloc(z->values * sizeof *b->y + 1)) && (b->plane = malloc(z->plane + 1))
             && (b->rows = malloc(z->rows + 1));
    }
    if (ok)
        return buf;
    buffers_free(buf, threads);
    return NULL;
}

static void sums_free(stream *st)
{
    free(st->sums);
    for (int k = 0; st->sink && k < st->job->nsink; k++) {
        free(st->sink[k].absmax);
        free(st->sink[k].sum);
        free(st->sink[k].part_error);
    }
}

static bool sums_new(stream *st)
{
    bool ok = (st->sums = calloc((size_t)st->parts + 1, sizeof *st->sums));
    for (int k = 0; ok && k < st->job->nsink; k++) {
        sink_run *r = &st->sink[k];
        ok = (r->part_error = calloc((size_t)st->parts + 1, sizeof *r->part_error))
             && (!r->groups
                 || ((r->absmax = malloc(r->groups * sizeof *r->absmax))
                     && (r->sum = malloc(r->groups * sizeof *r->sum))));
    }
    return ok;
}

static bool no_memory(const stream *st, uint64_t bytes, qm_err *e)
{
    return qm_fail(e, QM_ENOFIT,
                   "%s: out of memory: %" PRIu64 " bytes to work on this tensor; try fewer --threads",
                   st->job->source.name, bytes);
}

static void release(stream *st)
{
    buffers_free(st->buf, st->threads);
    sums_free(st);
}

static bool allocate(stream *st, qm_err *e)
{
    st->buf = buffers_new(&st->size, st->threads);
    if (st->buf && sums_new(st))
        return true;
    release(st);
    return no_memory(st, memory_of(st), e);
}

/* ---- stages of one chunk ---------------------------------------------------------------------- */

typedef struct chunk {
    int64_t index, row, rows, part; /* part: the first */
    uint64_t first, n;              /* flat index of the first value; how many */
    buffers *b;
    qm_errsum same; /* of the values against themselves, for all exact sinks; n == 0 until it is known */
    const qm_job *job;
    const qm_parcel *far; /* what came back from a courier; NULL here */
} chunk;

static chunk chunk_at(const stream *st, int64_t index, int thread)
{
    const qm_source *s = &st->job->source;
    chunk c = {.index = index, .row = index * st->chunk_rows, .b = &st->buf[thread], .job = st->job};
    c.part = c.row / st->part_rows;
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
    raw_layout r = raw_of(s, c->n);
    for (int i = 0; i < qm_format_planes(s->format); i++)
        plane[i] = c->b->raw + (s->double_quant && i == 1 ? r.absmax : r.at[i]);
}

/* Where row i of a chunk of whole heads goes: a head's first half to the even places, its second to the odd. */
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

/* The source as it lies in the file. */
static bool load_raw(const qm_source *s, const chunk *c, qm_err *e)
{
    if (s->strided.shape.ndim)
        return qm_strided_read(&s->strided, s->file, s->at[0], s->format->plane[0].bits / 8, c->first, c->n,
                               c->b->raw, e);
    raw_layout r = raw_of(s, c->n);
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

static bool load(const qm_source *s, const chunk *c, float *values, qm_err *e)
{
    if (!load_raw(s, c, e))
        return false;
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
    st->sums[c->part].ww = sum.sum_xx;
    st->sums[c->part].dd = sum.sum_dd;
}

/* A value that is not finite, the i-th of the chunk. */
static bool not_finite(const stream *st, const chunk *c, uint64_t i, float value, qm_err *e)
{
    const qm_source *s = &st->job->source;
    const char *what = isnan(value) ? "NaN" : "infinite";
    bool narrow = st->job->round == QM_ROUND_F16 && !isnan(value);
    return qm_fail(
        e, QM_EFAIL, "%s: tensor '%s' is %s at row %" PRId64 ", column %" PRId64 "%s", s->file->path, s->name,
        what, c->row + (int64_t)i / s->cols, (int64_t)i % s->cols,
        narrow ? " once rounded to f16 (largest value 65504); write bf16 or f32 instead (--dtype bf16)"
               : "; mend the model, or pass --keep-nonfinite to carry it over");
}

static bool check_finite(const stream *st, const chunk *c, qm_err *e)
{
    size_t i = qm_vec_get()->first_nonfinite(c->b->x, c->n);
    return i == c->n || not_finite(st, c, i, c->b->x[i], e);
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
    if (!c->far)
        qm_vec_get()->group_sums(c->b->x, c->b->y, c->n, block, r->sum + g);
    else
        memcpy(r->sum + g, c->far->group[k - c->job->sink], n * sizeof *r->sum);
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
            st->sums[c->part].zero_groups[index] = count_zero_groups((const float *)(const void *)plane[1],
                                                                     size / sizeof(float));
    }
    return true;
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
    if (!put(st, c, index, (const uint8_t *const *)plane, e))
        return false;
    if ((!st->job->want_errors && !k->double_quant) || is_exact(st, index))
        return true;
    qm_decode(f, (const uint8_t *const *)plane, c->n, &k->codec, c->b->y);
    if (k->double_quant)
        keep_groups(r, k, c, plane[1]);
    qm_vec_get()->errors(c->b->x, c->b->y, c->n, &r->part_error[c->part]);
    learn_same(c, &r->part_error[c->part]);
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
    uint64_t block = s->codec.block ? s->codec.block : 1,
             first = g / QM_DOUBLE_QUANT_BLOCK * QM_DOUBLE_QUANT_BLOCK * block;
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
    uint64_t row = cols > 0 ? (uint64_t)cols : 1, block = s->codec.block > 1 ? s->codec.block : row,
             beyond = 0;
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
    chunk_sums *sums = &st->sums[c->part];
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

/* Many jobs, one after another in the numbers of their chunks. */
typedef struct batch {
    stream *st;
    int n;
    qm_courier *const *courier;
} batch;

static bool work_here(const stream *st, chunk *c, qm_err *e)
{
    const qm_job *job = st->job;
    if (!load(&job->source, c, c->b->x, e))
        return false;
    if (job->nstep) {
        apply(st, c, job->nstep);
        if (job->want_errors)
            measure_steps(st, c);
    }
    qm_round_values(job->round, c->b->x, c->n);
    if (!job->keep_nonfinite && !check_finite(st, c, e))
        return false;
    if (job->against && !hold_against(st, c, e))
        return false;
    for (int i = 0; i < job->nsink; i++)
        if (!drain(st, c, i, e))
            return false;
    for (int i = 0; job->want_errors && i < job->nsink; i++)
        if (is_exact(st, i))
            exact_errors(c, &st->sink[i].part_error[c->part]);
    return true;
}

/* The same by way of a device. */
static bool work_there(const stream *st, const chunk *here, qm_courier *courier, qm_err *e)
{
    const qm_job *job = st->job;
    raw_layout r = raw_of(&job->source, here->n);
    buffers there = {.raw = courier->memory(courier, r.total, e), .rows = here->b->rows};
    qm_parcel l = {.job = job, .row = here->row, .rows = here->rows, .n = here->n, .raw = r.total};
    l.each = (uint64_t)(st->part_rows * job->source.cols);
    chunk far = *here, *c = &far;
    c->b = &there;
    c->far = &l;
    if (!there.raw || !load_raw(&job->source, c, e))
        return false;
    memcpy(l.at, r.at, sizeof l.at);
    if (job->source.double_quant)
        l.at[1] = r.absmax;
    if (!courier->run(courier, &l, e)
        || (l.first_nonfinite < c->n && !not_finite(st, c, l.first_nonfinite, l.nonfinite, e)))
        return false;
    int64_t parts = (c->rows + st->part_rows - 1) / st->part_rows;
    for (int64_t i = 0; l.moved && i < parts; i++) {
        st->sums[c->part + i].ww = l.moved[i].sum_xx;
        st->sums[c->part + i].dd = l.moved[i].sum_dd;
    }
    for (int i = 0; i < job->nsink; i++) {
        const qm_sink *k = &job->sink[i];
        if (!put(st, c, i, l.plane[i], e))
            return false;
        if (k->double_quant)
            keep_groups(&st->sink[i], k, c, l.plane[i][1]);
        if (job->want_errors || k->double_quant)
            memcpy(&st->sink[i].part_error[c->part], l.error[i], (size_t)parts * sizeof *l.error[i]);
    }
    return true;
}

static bool finish(stream *st, qm_err *e);

static bool work(void *arg, int64_t index, int thread, qm_err *e)
{
    const batch *b = arg;
    stream *st = b->st;
    for (; index >= st->chunks; st++)
        index -= st->chunks;
    chunk c = chunk_at(st, index, thread);
    if (!(st->by_courier ? work_there(st, &c, b->courier[thread], e) : work_here(st, &c, e)))
        return false;
    atomic_fetch_add(&st->done, c.n);
    return atomic_fetch_sub(&st->left, 1) > 1 || finish(st, e);
}

static uint64_t source_bytes(const qm_source *s)
{
    uint64_t bytes = 0;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        bytes += qm_plane_size(s->format, &s->codec, i, (uint64_t)(s->rows * s->cols));
    return bytes;
}

static void tick(void *arg)
{
    const batch *b = arg;
    qm_job *first = b->st->job;
    uint64_t bytes = 0;
    if (!first->progress)
        return;
    for (int i = 0; i < b->n; i++) {
        const qm_source *s = &b->st[i].job->source;
        uint64_t total = (uint64_t)(s->rows * s->cols);
        if (total)
            bytes += (uint64_t)((double)source_bytes(s)
                                * ((double)atomic_load(&b->st[i].done) / (double)total));
    }
    first->progress(first->progress_arg, bytes);
}

static void collect(stream *st)
{
    qm_job *job = st->job;
    for (int64_t i = 0; i < st->parts; i++) {
        job->sum_ww += st->sums[i].ww;
        job->sum_dd += st->sums[i].dd;
        if (job->against) {
            qm_errsum_add(&job->against->error, &st->sums[i].against);
            job->against->beyond += st->sums[i].beyond;
            job->against->nonfinite += st->sums[i].nonfinite;
        }
        for (int k = 0; k < job->nsink; k++) {
            qm_errsum_add(&job->sink[k].error, &st->sink[k].part_error[i]);
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

/* When the last chunk is done. */
static bool finish(stream *st, qm_err *e)
{
    qm_job *job = st->job;
    bool ok = true;
    collect(st);
    for (int k = 0; ok && k < job->nsink; k++)
        if (job->sink[k].double_quant)
            ok = finish_double_quant(&job->sink[k], &st->sink[k],
                                     (uint64_t)(job->source.rows * job->source.cols), e);
    sums_free(st);
    st->sums = NULL;
    memset(st->sink, 0, sizeof *st->sink * (size_t)job->nsink);
    return ok;
}

static void larger_sizes(sizes *z, const sizes *than)
{
    z->raw = than->raw > z->raw ? than->raw : z->raw;
    z->values = than->values > z->values ? than->values : z->values;
    z->plane = than->plane > z->plane ? than->plane : z->plane;
    z->rows = than->rows > z->rows ? than->rows : z->rows;
}

static bool can_begin(const qm_job *job, qm_err *e)
{
    if (job->nsink > QM_MAX_SINKS)
        return qm_fail(e, QM_EFAIL, "%s: %d outputs in one pass; %d at most", job->source.name, job->nsink,
                       QM_MAX_SINKS);
    return check_source(&job->source, e) && (!job->against || check_source(&job->against->source, e));
}

static bool run_batch(qm_pool *pool, batch *b, qm_err *e)
{
    int threads = qm_pool_threads(pool);
    int64_t chunks = 0;
    uint64_t memory = 0;
    sizes most = {0};
    bool ok = true;
    for (int i = 0; i < b->n; i++) {
        chunks += b->st[i].chunks;
        memory += sums_of(&b->st[i]);
        larger_sizes(&most, &b->st[i].size);
    }
    buffers *buf = buffers_new(&most, threads);
    for (int i = 0; buf && ok && i < b->n; i++) {
        b->st[i].buf = buf;
        ok = sums_new(&b->st[i]);
    }
    if (!buf || !ok)
        ok = no_memory(&b->st[0], memory + (uint64_t)threads * bytes_of(&most), e);
    for (int i = 0; ok && i < b->n; i++)
        if (b->st[i].chunks == 0)
            ok = finish(&b->st[i], e);
    ok = ok && qm_pool_run(pool, chunks, work, tick, b, e);
    for (int i = 0; i < b->n; i++) {
        sums_free(&b->st[i]);
        const qm_job *job = b->st[i].job;
        if (job->source.strided.shape.ndim)
            qm_infile_release(job->source.file);
        if (job->against && job->against->source.strided.shape.ndim)
            qm_infile_release(job->against->source.file);
    }
    buffers_free(buf, threads);
    return ok;
}

bool qm_streams(qm_pool *pool, qm_courier *const *courier, qm_job *const *job, int n, qm_err *e)
{
    typedef sink_run sinks[QM_MAX_SINKS];
    for (int i = 0; i < n; i++)
        if (!can_begin(job[i], e))
            return false;
    batch b = {.st = calloc((size_t)n + 1, sizeof *b.st), .n = n, .courier = courier};
    sinks *sink = calloc((size_t)n + 1, sizeof *sink);
    bool ok = b.st && sink;
    if (!ok)
        qm_fail(e, QM_ENOFIT, "out of memory for %d tensors at once", n);
    for (int i = 0; ok && i < n; i++)
        measure(&b.st[i], job[i], qm_pool_threads(pool), sink[i],
                courier && goes_by_courier(job[i], courier[0]->device));
    ok = ok && (n == 0 || run_batch(pool, &b, e));
    free(b.st);
    free(sink);
    return ok;
}

bool qm_stream(qm_pool *pool, qm_job *job, qm_err *e) { return qm_streams(pool, NULL, &job, 1, e); }

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
    measure(&st, &copy, qm_pool_threads(pool), sinks, false);
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
    measure(&st, &copy, qm_pool_threads(pool), sinks, false);
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
