/* load.h: many weights into memory at once, as when a model is loaded: in pieces that follow one another as
 * they lie in the files, on all threads.
 *
 *     file -> values -> encoded -> laid out                                a new tensor here
 *     file -> pinned memory -> a device: values -> encoded -> laid out     a new tensor there
 *
 * A weight takes memory from its first piece on and is laid out after its last one.  Until then its planes
 * lie in one room that all weights share, so that a device holds no more than every weight in its final form,
 * that room, of twice the largest weight's planes, and the couriers' pieces; and what it is left with is not
 * full of holes.  The bytes are those of qm_tensor_quantize, qm_tensor_to and the device's prepare.
 */
#ifndef QM_LOAD_H
#define QM_LOAD_H

#include "courier.h"
#include "tensor.h"

typedef struct qm_loading {
    const qm_tensor *from;   /* here: in files, or in memory */
    const qm_format *format; /* what it becomes; NULL: what it is */
    qm_quantize_options options;
    qm_round round; /* of what it becomes: as qm_tensor has it */
    bool lay_out;   /* as the device multiplies by it best; here what is encoded, and its planes given back */
    qm_tensor *out; /* the caller's, when all went well */
} qm_loading;

/* d: where to, or NULL: here.  courier: of d, one for each thread of the pool; NULL here, and for a device
 * that has nothing to be brought (plan.h).  progress: on the calling thread, with the bytes of `from` that
 * are done. */
bool qm_load(qm_pool *pool, qm_device *d, qm_courier *const *courier, qm_loading *w, int n,
             void (*progress)(void *arg, uint64_t bytes), void *arg, qm_err *e);

/* Bytes that qm_load takes of this machine's memory while it runs, or, with a device, of its memory for
 * couriers. */
uint64_t qm_load_memory(const qm_loading *w, int n, int threads, const qm_device *d);

#endif
