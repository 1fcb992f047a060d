/* bandwidth.h: how fast this machine reads memory: the roof over everything that reads a weight once a token. */
#ifndef QM_BANDWIDTH_H
#define QM_BANDWIDTH_H

#include "pool.h"

/* Bytes a second at which all threads of the pool together read `size` bytes, which should be more than
 * caches hold; the best of several times over. */
bool qm_read_speed(qm_pool *pool, size_t size, double *speed, qm_err *e);

#endif
