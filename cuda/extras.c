/* extras.c: what steps and sinks need of a job, brought to a GPU with each parcel; see extras.h. */
#include "extras.h"

#include <string.h>

#include "steps.h"

/* Two arrays that a step needs, in words of four bytes. */
typedef struct two_sizes {
    uint64_t words[2];
} two_sizes;

/* For `rows` rows. */
static two_sizes sizes_of(const qm_job *job, const qm_step *s, uint64_t rows)
{
    const uint64_t cols = (uint64_t)job->source.cols, few = s->nrow < rows ? s->nrow : rows;
    switch (s->kind) {
    case QM_STEP_LOW_RANK:
        return (two_sizes){{rows * s->rank, s->rank * cols}};
    case QM_STEP_DORA:
        return s->by_column ? (two_sizes){{cols, cols}} : (two_sizes){{rows, rows}};
    case QM_STEP_ROWS:
        return (two_sizes){{few * cols, few}};
    case QM_STEP_ADD:
        break;
    }
    return (two_sizes){{0, 0}};
}

bool qm_by_importance(const qm_sink *s) { return s->importance && s->format->encode_important; }

/* Matrices of a sink's importances that rows row ... row + rows - 1 lie in. */
static uint64_t matrices_of(const qm_sink *s, int64_t row, int64_t rows)
{
    return (uint64_t)((row + rows - 1) / s->importance_rows - row / s->importance_rows + 1);
}

uint64_t qm_extras_size(const qm_job *job, int64_t row, int64_t rows)
{
    uint64_t total = 0;
    for (int i = 0; i < job->nstep; i++) {
        two_sizes z = sizes_of(job, &job->step[i], (uint64_t)rows);
        qm_courier_place(&total, z.words[0] * sizeof(float));
        qm_courier_place(&total, z.words[1] * sizeof(float));
    }
    for (int k = 0; k < job->nsink; k++) {
        const qm_sink *s = &job->sink[k];
        if (qm_by_importance(s)) {
            uint64_t matrices = row < 0 ? (uint64_t)(rows / s->importance_rows + 2)
                                        : matrices_of(s, row, rows);
            qm_courier_place(&total, matrices * (uint64_t)job->source.cols * sizeof(float));
        }
    }
    return total;
}

/* ---- steps ------------------------------------------------------------------------------------------- */

/* Where a step's two arrays lie, with the parcel's bytes at `base`. */
typedef struct two {
    float *at[2];
    two_sizes size;
} two;

static two arrays_of(uint8_t *base, const qm_parcel *c, const qm_step *s, uint64_t *at)
{
    two t = {.size = sizes_of(c->job, s, (uint64_t)c->rows)};
    for (int i = 0; i < 2; i++)
        t.at[i] = (float *)(void *)(base + qm_courier_place(at, t.size.words[i] * sizeof(float)));
    return t;
}

/* Of the rows that are replaced those of this parcel, the last one where there are several, and where they belong;
 * QM_NO_ROW for the rest of the room. */
static void bring_rows(const qm_parcel *c, const qm_step *s, const two *t)
{
    const size_t cols = (size_t)c->job->source.cols;
    uint32_t *place_of = (uint32_t *)(void *)t->at[1];
    uint64_t most = t->size.words[1], n = 0;
    for (size_t k = s->nrow; k-- > 0 && n < most;) {
        if (s->row[k] < c->row || s->row[k] >= c->row + c->rows)
            continue;
        const uint32_t row = (uint32_t)(s->row[k] - c->row);
        bool replaced = false;
        for (uint64_t i = 0; i < n && !replaced; i++)
            replaced = place_of[i] == row;
        if (replaced)
            continue;
        memcpy(t->at[0] + n * cols, s->values + k * cols, cols * sizeof(float));
        place_of[n++] = row;
    }
    for (; n < most; n++)
        place_of[n] = QM_NO_ROW;
}

static void bring_step(uint8_t *here, const qm_parcel *c, const qm_step *s, uint64_t *at)
{
    two t = arrays_of(here, c, s, at);
    const uint64_t *words = t.size.words;
    switch (s->kind) {
    case QM_STEP_LOW_RANK:
        memcpy(t.at[0], s->left + (uint64_t)c->row * s->rank, words[0] * sizeof(float));
        memcpy(t.at[1], s->right, words[1] * sizeof(float));
        return;
    case QM_STEP_DORA:
        memcpy(t.at[0], s->magnitude + (s->by_column ? 0 : c->row), words[0] * sizeof(float));
        if (s->by_column)
            memcpy(t.at[1], s->norm, words[1] * sizeof(float));
        return;
    case QM_STEP_ROWS:
        bring_rows(c, s, &t);
        return;
    case QM_STEP_ADD:
        return;
    }
}

static cudaError_t take_step(uint8_t *there, const qm_parcel *c, const qm_step *s, uint64_t *at, float *x,
                             cudaStream_t h)
{
    two t = arrays_of(there, c, s, at);
    uint64_t rows = (uint64_t)c->rows, cols = (uint64_t)c->job->source.cols;
    cudaError_t r = cudaSuccess;
    switch (s->kind) {
    case QM_STEP_LOW_RANK:
        return qm_steps_low_rank(t.at[0], t.at[1], (uint32_t)s->rank, s->scale, s->round_delta,
                                 s->round_after, x, rows, cols, h);
    case QM_STEP_DORA:
        return s->by_column ? qm_steps_dora_columns(t.at[0], t.at[1], s->round_after, x, rows, cols, h)
                            : qm_steps_dora_rows(t.at[0], t.at[1], s->round_after, x, rows, cols, h);
    case QM_STEP_ROWS:
        r = qm_steps_rows(t.at[0], (const uint32_t *)(void *)t.at[1], t.size.words[1], x, cols, h);
        return r ? r : qm_steps_round(s->round_after, x, rows * cols, h);
    case QM_STEP_ADD:
        break;
    }
    return cudaErrorInvalidValue;
}

/* ---- sinks ------------------------------------------------------------------------------------------- */

/* Where a sink's importances lie among what travels behind the source. */
static uint64_t place_of_importance(const qm_parcel *c, int sink)
{
    qm_job before = *c->job;
    before.nsink = sink;
    return qm_courier_aligned(c->raw) + qm_extras_size(&before, c->row, c->rows);
}

static void bring_importance(uint8_t *here, const qm_parcel *c, int sink)
{
    const qm_sink *s = &c->job->sink[sink];
    const uint64_t cols = (uint64_t)c->job->source.cols;
    if (qm_by_importance(s))
        memcpy(here + place_of_importance(c, sink),
               s->importance + (uint64_t)(c->row / s->importance_rows) * cols,
               matrices_of(s, c->row, c->rows) * cols * sizeof(float));
}

/* ---- all of a parcel --------------------------------------------------------------------------------- */

void qm_extras_bring(const qm_parcel *c, uint8_t *here)
{
    uint64_t at = qm_courier_aligned(c->raw);
    for (int i = 0; i < c->job->nstep; i++)
        bring_step(here, c, &c->job->step[i], &at);
    for (int k = 0; k < c->job->nsink; k++)
        bring_importance(here, c, k);
}

cudaError_t qm_extras_steps(const qm_parcel *c, uint8_t *there, float *x, cudaStream_t s)
{
    uint64_t at = qm_courier_aligned(c->raw);
    cudaError_t r = cudaSuccess;
    for (int i = 0; i < c->job->nstep && !r; i++)
        r = take_step(there, c, &c->job->step[i], &at, x, s);
    return r;
}

const float *qm_extras_importance(const qm_parcel *c, int sink, const uint8_t *there)
{
    return (const float *)(const void *)(there + place_of_importance(c, sink));
}
