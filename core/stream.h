/* stream.h: the one way through.
 *
 *     source rows -> f32 -> merge steps -> round once -> encode into every sink -> pwrite
 *
 * One tensor at a time, cut into chunks of whole rows that stay in the processor's cache.
 * Chunks are independent, so threads take them in any order and the bytes are the same.
 * Memory: threads x one chunk, plus 16 bytes per group of each double-quantised sink
 * (its offset is the mean of all scales, so they wait until the last is known).
 *
 * Several jobs can be run as one, so that threads go on with the next tensor while others finish the last,
 * and on devices, by way of couriers (courier.h), where chunks are longer.  The bytes are the same again.
 */
#ifndef QM_STREAM_H
#define QM_STREAM_H

#include "device.h"
#include "file.h"
#include "format.h"
#include "pool.h"
#include "strided.h"
#include "vec.h"

/* Where values come from: rows x cols values, stored row-major in `format`, from byte `at`.
 * A 1-D tensor is one row.  A format with several planes names the start of each. */
typedef struct qm_source {
    qm_infile *file;
    const char *name; /* of the tensor, for messages */
    const qm_format *format;
    qm_codec codec;
    uint64_t at[QM_MAX_PLANES];
    int64_t rows, cols;
    qm_strided strided; /* of a plain format: how the elements lie, when not in order */
    qm_round round;     /* values are rounded to this as soon as they are decoded (quant_state's dtype) */

    /* bitsandbytes' double quantisation: plane 1 holds one byte a group, nested_at one f32 per 256 groups. */
    bool double_quant;
    uint64_t nested_at;
    float offset;

    /* Files of single planes and of the nested scales, where a sharded checkpoint has them apart; NULL: file. */
    qm_infile *plane_file[QM_MAX_PLANES], *nested_file;

    /* Rows that lie as qm_sink.interleave_heads writes them are put back as they are decoded.  Heads, or 0. */
    int64_t interleaved_heads;
} qm_source;

/* What is done to the values before they are encoded, in order. */
typedef enum {
    QM_STEP_LOW_RANK, /* x += scale * left . right */
    QM_STEP_DORA,     /* x = magnitude / ||x|| * x, after the low-rank step it belongs to */
    QM_STEP_ROWS,     /* chosen rows are replaced */
    QM_STEP_ADD,      /* x += scale * values, for a 1-D tensor (a LoRA bias) */
} qm_step_kind;

typedef struct qm_step {
    qm_step_kind kind;
    const float *left;  /* LOW_RANK: [rows x rank] */
    const float *right; /* LOW_RANK: [rank x cols] */
    size_t rank;
    float scale;
    qm_round round_delta;   /* LOW_RANK: delta is rounded to this before it is added */
    qm_round round_after;   /* the sum is rounded to this (a chain of merges, as peft does it) */
    const float *magnitude; /* DORA: one per row, or one per column when by_column */
    bool by_column;         /* DORA: norms run down the columns; they were summed in a pass before */
    const float *norm;      /* DORA by_column: the norms; NULL otherwise */
    const int64_t *row;     /* ROWS: row numbers */
    const float *values;    /* ROWS: [nrow x cols]; ADD: [cols] */
    size_t nrow;
} qm_step;

/* Where values go. */
typedef struct qm_sink {
    const qm_format *format;
    qm_codec codec;
    qm_outfile *file;           /* NULL: nothing is written, errors are measured all the same */
    uint64_t at[QM_MAX_PLANES]; /* start of each plane in the file */

    /* GGUF's llama stores the rows of each attention head interleaved: of a head's h rows, row j of the first
     * half goes to 2j and row j of the second to 2j + 1.  The number of heads, or 0; rows must be a multiple
     * of 2 * heads. */
    int64_t interleave_heads;
    float add;            /* added to every value for this sink alone (gemma's norms: 1) … */
    qm_round round_added; /* … and the sum rounded to this */

    /* How much each column counts (an importance matrix), or NULL: cols values for every `importance_rows`
     * rows, so that stacked matrices have their own. */
    const float *importance;
    int64_t importance_rows;

    /* Double quantisation (bitsandbytes): plane 1, the f32 absmax, is itself encoded.  at[1] then
     * takes one byte a group and nested_at one f32 per 256 groups. */
    bool double_quant;
    uint64_t nested_at;
    float offset; /* in: used when offset_given; out: what was used */
    bool offset_given;

    /* Out. */
    qm_errsum error;      /* decoded against the rounded values */
    uint64_t zero_groups; /* groups whose values are all zero */
} qm_sink;

#define QM_MAX_SINKS 16

/* What the values are held against: another source of as many rows and columns, which a file was written to. */
typedef struct qm_against {
    qm_source source;
    float add;    /* taken off its values (gemma's norms: 1) */
    double slack; /* of the format's bound: 1 is what the tests enforce */
    /* Out. */
    qm_errsum error; /* of its values against the job's */
    uint64_t beyond; /* values that are further off than the format's bound allows, or not finite */
    uint64_t nonfinite;
} qm_against;

typedef struct qm_job qm_job;
struct qm_job {
    qm_source source;
    qm_against *against; /* or NULL */
    const qm_step *step;
    int nstep;
    qm_round round; /* what every sink encodes is rounded to this, once */
    qm_sink *sink;
    int nsink;
    bool keep_nonfinite; /* else NaN or infinity is an error that names the element */
    bool want_errors;

    /* Called on the calling thread between chunks with the source bytes done so far. */
    void (*progress)(void *arg, uint64_t bytes);
    void *progress_arg;

    /* Out: how far the steps moved the tensor. */
    double sum_ww; /* sum of squares of the source values */
    double sum_dd; /* sum of squares of (merged before rounding - source) */
};

bool qm_stream(qm_pool *pool, qm_job *job, qm_err *e);

/* All of them, in any order.  courier: one for each thread of the pool, which take the jobs that they can; or
 * NULL.  progress of the first is called with the bytes of all. */
bool qm_streams(qm_pool *pool, qm_courier *const *courier, qm_job *const *job, int n, qm_err *e);

/* What a courier of this device takes for a job, of its memory and of this machine's; 0 when it does not go
 * there. */
uint64_t qm_stream_courier_memory(const qm_job *job, qm_device *d, uint64_t *pinned);

/* Bytes of working memory that qm_stream will take for this job on this many threads: the same
 * function that allocates them, so that a plan cannot drift from the run. */
uint64_t qm_stream_memory(const qm_job *job, int threads);

/* norm[j] = sqrt(sum over rows of x[i][j]^2) after the first `nstep` steps: the pass before a
 * QM_STEP_DORA with by_column. */
bool qm_stream_column_norms(qm_pool *pool, const qm_job *job, int nstep, float *norm, qm_err *e);

/* For what must see a whole tensor first: the values that sinks would be given, into values[rows * cols]
 * unless that is NULL, and the largest magnitude among them. */
bool qm_stream_values(qm_pool *pool, const qm_job *job, float *values, float *most, qm_err *e);

#endif
