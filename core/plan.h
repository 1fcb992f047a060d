/* plan.h: a device that only counts.  Tensors and caches on it have shapes and sizes and no bytes; ops make
 * results that are none.  A model that is loaded there and runs there, by the same functions as elsewhere,
 * shows what it would take of another device's memory or of this machine's, before anything is read.
 */
#ifndef QM_PLAN_H
#define QM_PLAN_H

#include "device.h"

/* Counts for `of`, which stays open with it, or for this machine when that is NULL. */
qm_device *qm_plan_new(qm_device *of, qm_err *e);
bool qm_is_plan(const qm_device *d);

/* Bytes there are now; the most there were since this was last asked; and what libraries keep that ops have
 * used. */
void qm_plan_memory(qm_device *plan, uint64_t *now, uint64_t *most, uint64_t *kept);

#endif
