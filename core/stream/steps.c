/* steps.c: what is done to a chunk's values before they are encoded; see parts.h. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "parts.h"

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

void qm_steps_apply(const stream *st, const chunk *c, int nstep)
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

void qm_steps_measure(const stream *st, const chunk *c)
{
    qm_errsum sum = {0};
    qm_source_decode(&st->job->source, c, c->b->y);
    qm_vec_get()->errors(c->b->y, c->b->x, c->n, &sum);
    st->sums[c->part].ww = sum.sum_xx;
    st->sums[c->part].dd = sum.sum_dd;
}

bool qm_value_not_finite(const stream *st, const chunk *c, uint64_t i, float value, qm_err *e)
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

bool qm_values_finish(const stream *st, const chunk *c, qm_err *e)
{
    qm_round_values(st->job->round, c->b->x, c->n);
    if (st->job->keep_nonfinite)
        return true;
    size_t i = qm_vec_get()->first_nonfinite(c->b->x, c->n);
    return i == c->n || qm_value_not_finite(st, c, i, c->b->x[i], e);
}
