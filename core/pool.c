/* pool.c: threads that sleep between runs and take indices from one counter.
 *
 * Falling asleep and waking up takes longer than many an op of inference lasts, so in an eager pool everybody
 * looks for news a little while before they sleep: as long as that has paid off lately, which it does not
 * where others use the processors.
 */
#include "pool.h"

#include "cpu.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

typedef struct run {
    int64_t n;
    bool (*work)(void *, int64_t, int, qm_err *);
    void (*tick)(void *);
    void *arg;
    atomic_llong next;
    atomic_bool stop;
} run;

enum { CLOSED = -(1 << 24) };

typedef struct worker {
    qm_pool *pool;
    int index;
} worker;

struct qm_pool {
    int threads;
    pthread_t *thread; /* threads - 1 of them; the caller is the last */
    worker *worker;
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    atomic_ullong turn; /* counts runs; a worker that sees a new one joins in, if it is still going on */
    atomic_int gate;    /* workers in the current run; CLOSED more when no other may join */
    atomic_bool quit;
    atomic_bool eager;
    int patience; /* the caller's */
    run run;
    qm_err err; /* first failure, under lock */
};

static void take_indices(qm_pool *p, int thread)
{
    run *r = &p->run;
    while (!atomic_load(&r->stop)) {
        int64_t i = atomic_fetch_add(&r->next, 1);
        if (i >= r->n)
            return;
        qm_err e = {0};
        bool ok = !qm_interrupted() ? r->work(r->arg, i, thread, &e)
                                    : qm_fail(&e, QM_EINTERRUPT, "interrupted");
        if (!ok) {
            pthread_mutex_lock(&p->lock);
            if (!p->err.code)
                p->err = e;
            pthread_mutex_unlock(&p->lock);
            atomic_store(&r->stop, true);
        }
        if (thread == 0 && r->tick)
            r->tick(r->arg);
    }
}

/* How often one looks before one sleeps; the most is some 50 microseconds. */
enum { LEAST_PATIENCE = 16, MOST_PATIENCE = 4000 };

/* What was waited for this long, sleep and waking included, is worth looking for again. */
#define WORTH_NS 150000

static int next_patience(int patience, bool worth)
{
    int next = worth ? 2 * patience : patience / 2;
    return next < LEAST_PATIENCE ? LEAST_PATIENCE : next > MOST_PATIENCE ? MOST_PATIENCE : next;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void rest(void)
{
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

/* Waits for a run later than `seen`; false when there will be none. */
static bool wait_for_run(qm_pool *p, uint64_t seen, int *patience)
{
    for (int i = 0; p->eager && i < *patience && !atomic_load(&p->quit); i++) {
        if (atomic_load(&p->turn) != seen) {
            *patience = next_patience(*patience, true);
            return true;
        }
        rest();
    }
    const int64_t start = now_ns();
    pthread_mutex_lock(&p->lock);
    while (!p->quit && p->turn == seen)
        pthread_cond_wait(&p->start, &p->lock);
    pthread_mutex_unlock(&p->lock);
    *patience = next_patience(*patience, now_ns() - start < WORTH_NS);
    return !p->quit;
}

static void leave(qm_pool *p)
{
    if (atomic_fetch_sub(&p->gate, 1) - 1 != CLOSED)
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->lock);
}

/* Whoever wakes up when the others have done all the work is not waited for. */
static bool join(qm_pool *p)
{
    if (atomic_fetch_add(&p->gate, 1) >= 0)
        return true;
    leave(p);
    return false;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    qm_pool *p = w->pool;
    int patience = MOST_PATIENCE;
    for (uint64_t seen = 0; wait_for_run(p, seen, &patience);) {
        seen = p->turn;
        if (!join(p))
            continue;
        take_indices(p, w->index);
        leave(p);
    }
    return NULL;
}

static void wait_for_workers(qm_pool *p)
{
    for (int i = 0; p->eager && i < p->patience; i++) {
        if (atomic_load(&p->gate) == CLOSED) {
            p->patience = next_patience(p->patience, true);
            return;
        }
        rest();
    }
    const int64_t start = now_ns();
    pthread_mutex_lock(&p->lock);
    while (p->gate != CLOSED)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    p->patience = next_patience(p->patience, now_ns() - start < WORTH_NS);
}

void qm_pool_be_eager(qm_pool *p) { p->eager = p->threads <= qm_cpu_count(); }

qm_pool *qm_pool_new(int threads, qm_err *e)
{
    qm_pool *p = calloc(1, sizeof *p);
    if (p) {
        p->thread = calloc((size_t)threads, sizeof *p->thread);
        p->worker = calloc((size_t)threads, sizeof *p->worker);
    }
    if (!p || !p->thread || !p->worker) {
        if (p) {
            free(p->thread);
            free(p->worker);
        }
        free(p);
        qm_fail(e, QM_ENOFIT, "out of memory: cannot start %d threads", threads);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = 1;
    p->gate = CLOSED;
    p->patience = MOST_PATIENCE;
    for (int i = 1; i < threads; i++) {
        p->worker[i] = (worker){p, i};
        int failed = pthread_create(&p->thread[i], NULL, worker_main, &p->worker[i]);
        if (failed) {
            errno = failed;
            qm_fail_errno(e, "cannot start thread %d of %d; try --threads 1", i + 1, threads);
            qm_pool_free(p);
            return NULL;
        }
        p->threads++;
    }
    return p;
}

void qm_pool_free(qm_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->start);
    pthread_mutex_destroy(&p->lock);
    free(p->worker);
    free(p->thread);
    free(p);
}

int qm_pool_threads(const qm_pool *p) { return p->threads; }

bool qm_pool_run(qm_pool *p, int64_t n, bool (*work)(void *, int64_t, int, qm_err *), void (*tick)(void *),
                 void *arg, qm_err *e)
{
    pthread_mutex_lock(&p->lock);
    p->run.n = n;
    p->run.work = work;
    p->run.tick = tick;
    p->run.arg = arg;
    atomic_store(&p->run.next, 0);
    atomic_store(&p->run.stop, false);
    p->err = (qm_err){0};
    atomic_fetch_sub(&p->gate, CLOSED);
    p->turn++;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);

    take_indices(p, 0);

    atomic_fetch_add(&p->gate, CLOSED);
    wait_for_workers(p);
    pthread_mutex_lock(&p->lock);
    qm_err first = p->err;
    pthread_mutex_unlock(&p->lock);
    return !first.code || qm_fail(e, first.code, "%s", first.msg);
}
