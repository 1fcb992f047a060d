/* linear.c: see linear.h.  Weights are decoded a few rows at a time, exactly as qm_decode has them, and every
 * sum is taken in the order of lanes.h, whoever computes it. */
#include "linear.h"

#include "lanes.h"

typedef struct job {
    const float *x, *bias;
    float *y;
    int64_t tokens;
    const qm_weight *w;
    int64_t step;
} job;

static bool some_rows(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    const int64_t cols = j->w->cols, all = j->w->rows, from = index * j->step;
    const int64_t n = all - from < j->step ? all - from : j->step;
    const qm_lanes *lanes = qm_lanes_get();
    qm_scratch s = {0};
    const float *rows = qm_weight_rows(j->w, from, n, &s, e);
    for (int64_t t = 0; rows && t < j->tokens; t++)
        for (int64_t i = 0; i < n; i++)
            j->y[t * all + from + i] = lanes->dot(j->x + t * cols, rows + i * cols, (size_t)cols)
                                       + (j->bias ? j->bias[from + i] : 0);
    qm_scratch_free(&s);
    return rows != NULL;
}

bool qm_linear(qm_pool *pool, const float *x, int64_t tokens, const qm_weight *w, const float *bias, float *y,
               qm_err *e)
{
    int64_t step = w->cols < 16384 ? 16384 / (w->cols ? w->cols : 1) : 1; /* some 64 KB of f32 */
    job j = {x, bias, y, tokens, w, step};
    return qm_pool_run(pool, (w->rows + step - 1) / step, some_rows, NULL, &j, e);
}
