/* passes.c: runs over a whole tensor that write nothing; see parts.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parts.h"

typedef struct pass {
    qm_job job; /* the caller's, without its sinks */
    stream st;
    int nstep;
    double *squares;      /* column norms: cols sums of each chunk */
    float *values, *most; /* values: where they go, or NULL; the largest magnitude of each chunk */
} pass;

/* Ready to run, with room for `each` numbers of `size` bytes from every chunk, which is given back; NULL:
 * nothing is left behind. */
static void *begin(pass *p, qm_pool *pool, const qm_job *job, int64_t each, size_t size, qm_err *e)
{
    p->job = *job;
    p->job.nsink = 0;
    if (!qm_source_check(&job->source, e))
        return NULL;
    qm_stream_measure(&p->st, &p->job, qm_pool_threads(pool), NULL, false);
    size_t numbers = (size_t)(p->st.chunks * each);
    void *room = calloc(numbers + 1, size);
    if (!room)
        qm_fail(e, QM_ENOFIT, "%s: out of memory for %zu numbers of its chunks", job->source.name, numbers);
    else if (qm_stream_allocate(&p->st, e))
        return room;
    free(room);
    return NULL;
}

static bool norm_work(void *arg, int64_t index, int thread, qm_err *e)
{
    const pass *p = arg;
    chunk c = qm_stream_chunk(&p->st, index, thread);
    int64_t cols = p->job.source.cols;
    double *squares = p->squares + index * cols;
    if (!qm_source_load(&p->job.source, &c, c.b->x, e))
        return false;
    qm_steps_apply(&p->st, &c, p->nstep);
    for (int64_t i = 0; i < c.rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            double v = (double)c.b->x[i * cols + j];
            squares[j] += v * v;
        }
    return true;
}

bool qm_stream_column_norms(qm_pool *pool, const qm_job *job, int nstep, float *norm, qm_err *e)
{
    pass p = {.nstep = nstep};
    int64_t cols = job->source.cols;
    if (!(p.squares = begin(&p, pool, job, cols, sizeof *p.squares, e)))
        return false;
    bool ok = qm_pool_run(pool, p.st.chunks, norm_work, NULL, &p, e);
    for (int64_t j = 0; ok && j < cols; j++) {
        double sum = 0;
        for (int64_t i = 0; i < p.st.chunks; i++)
            sum += p.squares[i * cols + j];
        norm[j] = (float)sqrt(sum);
    }
    free(p.squares);
    qm_stream_release(&p.st);
    return ok;
}

static bool value_work(void *arg, int64_t index, int thread, qm_err *e)
{
    const pass *p = arg;
    chunk c = qm_stream_chunk(&p->st, index, thread);
    qm_errsum sum = {0};
    if (!qm_source_load(&p->job.source, &c, c.b->x, e))
        return false;
    qm_steps_apply(&p->st, &c, p->job.nstep);
    if (!qm_values_finish(&p->st, &c, e))
        return false;
    qm_vec_get()->errors(c.b->x, c.b->x, c.n, &sum);
    p->most[index] = (float)sum.max_x;
    if (p->values)
        memcpy(p->values + c.first, c.b->x, c.n * sizeof *c.b->x);
    return true;
}

bool qm_stream_values(qm_pool *pool, const qm_job *job, float *values, float *most, qm_err *e)
{
    pass p = {.values = values};
    if (!(p.most = begin(&p, pool, job, 1, sizeof *p.most, e)))
        return false;
    bool ok = qm_pool_run(pool, p.st.chunks, value_work, NULL, &p, e);
    *most = 0;
    for (int64_t i = 0; ok && i < p.st.chunks; i++)
        *most = p.most[i] > *most ? p.most[i] : *most;
    free(p.most);
    qm_stream_release(&p.st);
    return ok;
}
