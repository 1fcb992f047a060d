/* parts.h: what the files of the stream share.  Nobody else includes it.
 *
 *     cut.c       a job in chunks, and whether couriers take it
 *     memory.c    the buffers of threads and the sums of a job: their sizes, and where they are allocated
 *     source.c    a chunk as it lies in files, and its values
 *     steps.c     what is done to the values
 *     sinks.c     where they go: encoded, written, and held against what was encoded
 *     against.c   held against another source
 *     passes.c    runs over a whole tensor that write nothing
 *
 * and ../stream.c, which takes a chunk through them.
 */
#ifndef QM_STREAM_PARTS_H
#define QM_STREAM_PARTS_H

#include <stdatomic.h>

#include "../courier.h"
#include "../double_quant.h"
#include "../stream.h"

/* Second-level groups that are worked on at once. */
enum { PIECE = 256 * QM_DOUBLE_QUANT_BLOCK };

typedef struct nested_piece {
    float absmax[PIECE], scale[PIECE / QM_DOUBLE_QUANT_BLOCK];
    uint8_t code[PIECE];
} nested_piece;

/* One sink while a job runs. */
typedef struct sink_run {
    uint64_t groups; /* double_quant: of the tensor; what is known of each when all have been seen: */
    float *absmax;   /*   the first-level scale */
    qm_groupsum *sum;
    qm_errsum *part_error; /* one per part, added up in their order: the sum must not depend on threads */
} sink_run;

typedef struct buffers { /* of one thread */
    uint8_t *raw;        /* the chunk's source, laid out by qm_source_layout; on a courier, memory of that */
    float *x, *y;        /* values; scratch for deltas and decoded values */
    uint8_t *plane;      /* encoded planes of one sink, back to back */
    uint8_t *rows;       /* a plane with its rows in another order */
} buffers;

typedef struct sizes { /* of buffers */
    uint64_t raw, values, plane, rows;
} sizes;

typedef struct chunk_sums {
    double ww, dd;
    uint64_t zero_groups[QM_MAX_SINKS];
    qm_errsum against; /* of qm_against, as are these: */
    uint64_t beyond, nonfinite;
} chunk_sums;

/* A job while it runs. */
typedef struct stream {
    qm_job *job;
    bool by_courier;
    int64_t chunk_rows, chunks;
    int64_t part_rows, parts; /* chunks as they are here: errors are added up by them, wherever the work is
                                 done */
    sizes size;
    sink_run *sink;
    chunk_sums *sums; /* one per part */
    buffers *buf;     /* one per thread */
    int threads;
    atomic_llong left;  /* chunks that are not finished */
    atomic_ullong done; /* source values finished */
} stream;

typedef struct chunk {
    int64_t row, rows, part; /* part: the first */
    uint64_t first, n;       /* flat index of the first value; how many */
    buffers *b;
    qm_errsum same; /* of the values against themselves, for all exact sinks; n == 0 until it is known */
    const qm_job *job;
    const qm_parcel *far; /* what came back from a courier; NULL here */
} chunk;

/* ---- cut.c ------------------------------------------------------------------------------------------ */

/* A job as a stream, with sizes of everything; allocates nothing. */
void qm_stream_measure(stream *st, qm_job *job, int threads, sink_run *sinks, bool by_courier);

chunk qm_stream_chunk(const stream *st, int64_t index, int thread);

bool qm_stream_goes_by_courier(const qm_job *job, const qm_device *d);

/* ---- memory.c --------------------------------------------------------------------------------------- */

uint64_t qm_buffers_bytes(const sizes *z); /* of one thread */
buffers *qm_buffers_new(const sizes *z, int threads);
void qm_buffers_free(buffers *b, int threads); /* NULL is fine */

uint64_t qm_sums_bytes(const stream *st); /* beside the threads' buffers */
bool qm_sums_new(stream *st);             /* on failure some are there: free them */
void qm_sums_free(stream *st);            /* and none are there afterwards */

/* Both, for a stream that runs by itself. */
bool qm_stream_allocate(stream *st, qm_err *e);
void qm_stream_release(stream *st);

/* Fails: `bytes` to work on this stream's tensor are not to be had. */
bool qm_stream_no_memory(const stream *st, uint64_t bytes, qm_err *e);

/* ---- source.c --------------------------------------------------------------------------------------- */

/* The source of n values in memory: planes, then, of a double-quantised one, the first-level scales, which
 * take the place of plane 1 when it is decoded, and the nested ones. */
typedef struct raw_layout {
    uint64_t at[QM_MAX_PLANES], absmax, nested, total;
} raw_layout;

raw_layout qm_source_layout(const qm_source *s, uint64_t n);

/* That the files are as long as the source says, before anything is allocated for it. */
bool qm_source_check(const qm_source *s, qm_err *e);

uint64_t qm_source_bytes(const qm_source *s); /* all of it, decoded to one level */

/* Into the chunk's raw buffer, as it lies in the file; from there into values; both. */
bool qm_source_read(const qm_source *s, const chunk *c, qm_err *e);
void qm_source_decode(const qm_source *s, const chunk *c, float *values);
bool qm_source_load(const qm_source *s, const chunk *c, float *values, qm_err *e);

/* Where row i of a chunk of whole heads goes: a head's first half to the even places, its second to the odd. */
int64_t qm_interleaved_row(int64_t i, int64_t head_rows);

/* ---- steps.c ---------------------------------------------------------------------------------------- */

/* The first nstep steps, on the chunk's values. */
void qm_steps_apply(const stream *st, const chunk *c, int nstep);

/* How far they have moved them: the source is decoded once more, which costs less than keeping it. */
void qm_steps_measure(const stream *st, const chunk *c);

/* Rounds the values as the job says and, unless it keeps them, fails for the first that is not finite. */
bool qm_values_finish(const stream *st, const chunk *c, qm_err *e);

/* Fails: the chunk's i-th value is not finite. */
bool qm_value_not_finite(const stream *st, const chunk *c, uint64_t i, float value, qm_err *e);

/* ---- sinks.c ---------------------------------------------------------------------------------------- */

/* The chunk's values encoded into sink number `index`, written, and measured where that is asked for. */
bool qm_sink_drain(const stream *st, chunk *c, int index, qm_err *e);

/* Sinks that lose nothing share one measurement, which any other sink may have made already; after all of
 * them. */
void qm_sinks_measure_exact(const stream *st, chunk *c);

/* As qm_sink_drain, of a chunk that was encoded and measured on a courier. */
bool qm_sink_deliver(const stream *st, const chunk *c, int index, qm_err *e);

/* Second level of a double-quantised sink, once every absmax of its `total` values is known, and its share
 * of the error. */
bool qm_sink_finish(qm_sink *k, const sink_run *r, uint64_t total, qm_err *e);

/* ---- against.c -------------------------------------------------------------------------------------- */

/* The chunk's values against those of the job's other source. */
bool qm_against_hold(const stream *st, const chunk *c, qm_err *e);

#endif
