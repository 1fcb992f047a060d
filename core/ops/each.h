/* each.h: ops that make every value of the result from the values at its place. */
#ifndef QM_OPS_EACH_H
#define QM_OPS_EACH_H

#include "../lanes.h"
#include "../op.h"

enum { QM_EACH_STEP = 32768 }; /* values a thread takes at a time */

typedef struct qm_each {
    const float *x, *y;
    float *z, number;
    void (*one)(const float *x, float *z, size_t n);
    void (*two)(const float *x, const float *y, float *z, size_t n);
    void (*with)(const float *x, float number, float *z, size_t n);
} qm_each;

static inline bool qm_each_slice(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const qm_each *j = arg;
    size_t n = (size_t)(to - from);
    if (j->one)
        j->one(j->x + from, j->z + from, n);
    else if (j->two)
        j->two(j->x + from, j->y + from, j->z + from, n);
    else
        j->with(j->x + from, j->number, j->z + from, n);
    return true;
}

static inline bool qm_each_run(qm_call *c, qm_each j, qm_err *e)
{
    j.z = qm_call_out(c);
    return qm_call_rows(c, qm_shape_count(&c->shape), QM_EACH_STEP, qm_each_slice, &j, e);
}

#endif
