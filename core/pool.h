/* pool.h: run a function over the indices 0 … n-1 on several threads. */
#ifndef QM_POOL_H
#define QM_POOL_H

#include "qm.h"

typedef struct qm_pool qm_pool;

/* threads >= 1; the calling thread is one of them. */
qm_pool *qm_pool_new(int threads, qm_err *e);
void qm_pool_free(qm_pool *p);
int qm_pool_threads(const qm_pool *p);

/* For many short runs one after another: threads stay awake a while between them. */
void qm_pool_be_eager(qm_pool *p);

/* Calls work(arg, index, thread) once for every index, in no fixed order; thread is
 * 0 … threads-1, 0 being the caller.  After the first failure, or an interrupt, no further
 * index is started; e then holds the failure. `tick`, if not NULL, is called on the calling
 * thread after each of its own indices. */
bool qm_pool_run(qm_pool *p, int64_t n, bool (*work)(void *arg, int64_t index, int thread, qm_err *e),
                 void (*tick)(void *arg), void *arg, qm_err *e);

#endif
