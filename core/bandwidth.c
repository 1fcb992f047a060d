/* bandwidth.c: see bandwidth.h. */
#define _GNU_SOURCE
#include "bandwidth.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { TIMES = 8, CHUNK = 1 << 18, PAGE = 2 << 20, AHEAD = 4096 };

typedef struct job {
    const uint64_t *data;
    atomic_ullong seen; /* so that reading is of use to somebody */
} job;

static bool read_chunk(void *arg, int64_t index, int thread, qm_err *e)
{
    (void)thread, (void)e;
    job *j = arg;
    const uint64_t *at = j->data + index * (CHUNK / 8);
    uint64_t bits[8] = {0};
    for (int i = 0; i < CHUNK / 8; i += 8) {
        __builtin_prefetch((const char *)(at + i) + AHEAD);
        for (int k = 0; k < 8; k++)
            bits[k] |= at[i + k];
    }
    atomic_fetch_or(&j->seen, bits[0] | bits[1] | bits[2] | bits[3] | bits[4] | bits[5] | bits[6] | bits[7]);
    return true;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool qm_read_speed(qm_pool *pool, size_t size, double *speed, qm_err *e)
{
    size = (size + PAGE - 1) / PAGE * PAGE;
    void *data = aligned_alloc(PAGE, size);
    if (!data)
        return qm_fail(e, QM_ENOFIT, "out of memory for %zu bytes to read", size);
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);
#endif
    memset(data, 1, size);
    job j = {.data = data};
    double best = 0;
    bool ok = true;
    for (int i = 0; ok && i < TIMES; i++) {
        double start = seconds();
        ok = qm_pool_run(pool, (int64_t)(size / CHUNK), read_chunk, NULL, &j, e);
        double now = (double)size / (seconds() - start);
        best = now > best ? now : best;
    }
    free(data);
    *speed = best;
    return ok;
}
