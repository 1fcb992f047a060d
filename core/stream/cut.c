/* cut.c: a job in chunks of whole rows; see parts.h. */
#include "parts.h"

/* Values per chunk, about.  256 K f32 of values and as much again of scratch stay within a core's L2,
 * and a chunk's writes (64 KiB of 4-bit codes) are still long enough for the kernel. */
enum { CHUNK = 128 * 1024 };

/* On a courier: long enough for a copy to run at full speed, short enough that few are under way at the end.
 * Shorter jobs than a courier is worth waking for stay here. */
enum { COURIER_CHUNK = 4 << 20, COURIER_LEAST = 64 * 1024 };

/* Fewest rows after which a group of this format begins afresh. */
static int64_t rows_per_restart(const qm_format *f, const qm_codec *c, int64_t cols)
{
    return f->over_rows && cols > 0 ? c->block / qm_gcd(c->block, cols) : 1;
}

/* Least common multiple; `most` when it is more than that. */
static int64_t lcm(int64_t a, int64_t b, int64_t most)
{
    int64_t m;
    return __builtin_mul_overflow(a / qm_gcd(a, b), b, &m) || m > most ? most : m;
}

/* Fewest rows after which the source begins afresh, in steps of `step`. */
static int64_t source_step(const qm_source *s, int64_t step)
{
    step = lcm(step, rows_per_restart(s->format, &s->codec, s->cols), s->rows);
    if (s->interleaved_heads)
        step = lcm(step, s->rows / s->interleaved_heads, s->rows);
    if (s->double_quant) { /* a chunk begins with a nested group, too */
        int64_t nested = (int64_t)QM_DOUBLE_QUANT_BLOCK * s->codec.block;
        step = lcm(step, nested / qm_gcd(nested, s->cols), s->rows);
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

/* What it takes to read n values of a source. */
static void measure_source(sizes *z, const qm_source *s, uint64_t n)
{
    uint64_t raw = qm_source_layout(s, n).total;
    z->raw = raw > z->raw ? raw : z->raw;
    if (s->interleaved_heads)
        z->rows = n * sizeof(float);
}

void qm_stream_measure(stream *st, qm_job *job, int threads, sink_run *sinks, bool by_courier)
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
            total += qm_plane_size(sink->format, &sink->codec, i, n);
        st->size.plane = total > st->size.plane ? total : st->size.plane;
        if (sink->interleave_heads && total > st->size.rows)
            st->size.rows = total;
        if (sink->double_quant)
            sinks[k].groups = (uint64_t)(s->rows * s->cols + sink->codec.block - 1) / sink->codec.block;
    }
    if (by_courier) /* the rest is the courier's */
        st->size = (sizes){.rows = st->size.rows};
}

bool qm_stream_goes_by_courier(const qm_job *job, const qm_device *d)
{
    return !job->against && job->source.rows * job->source.cols >= COURIER_LEAST && d->courier_takes(job);
}

uint64_t qm_stream_courier_memory(const qm_job *job, qm_device *d, uint64_t *pinned)
{
    *pinned = 0;
    if (!qm_stream_goes_by_courier(job, d))
        return 0;
    int64_t rows = courier_rows(job);
    rows = rows < job->source.rows ? rows : job->source.rows;
    return d->courier_memory(job, (uint64_t)(rows * job->source.cols), pinned);
}

chunk qm_stream_chunk(const stream *st, int64_t index, int thread)
{
    const qm_source *s = &st->job->source;
    chunk c = {.row = index * st->chunk_rows, .b = &st->buf[thread], .job = st->job};
    c.part = c.row / st->part_rows;
    c.rows = s->rows - c.row < st->chunk_rows ? s->rows - c.row : st->chunk_rows;
    c.first = (uint64_t)(c.row * s->cols);
    c.n = (uint64_t)(c.rows * s->cols);
    return c;
}
