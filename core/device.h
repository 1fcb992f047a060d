/* device.h: memory other than this machine's, where a tensor's planes may lie, and what can be done there.
 *
 * The core knows no GPU.  A backend (cuda/) fills in this table, and core/tensor.c asks it wherever a tensor
 * has its bytes there.  Results are the same bytes as here; sums for errors may differ in their last bits.
 */
#ifndef QM_DEVICE_H
#define QM_DEVICE_H

#include "qm.h"

struct qm_call;
struct qm_errsum;
struct qm_format;
struct qm_quantize_options;
struct qm_tensor;
struct qm_job;
typedef struct qm_courier qm_courier;

typedef struct qm_device qm_device;
struct qm_device {
    char name[16]; /* "cuda:0" */
    int refs;
    void (*close)(qm_device *d); /* the last reference is gone */

    /* A buffer is never read or written through its address here, only by read and write. */
    uint8_t *(*alloc)(qm_device *d, uint64_t size, qm_err *e);
    void (*release)(qm_device *d, uint8_t *data);
    bool (*write)(qm_device *d, uint8_t *to, const void *from, uint64_t size, qm_err *e);
    bool (*read)(qm_device *d, void *to, const uint8_t *from, uint64_t size, qm_err *e);

    /* As qm_tensor_quantize and qm_tensor_errors, for tensors of this device. */
    struct qm_tensor *(*quantize)(qm_device *d, const struct qm_tensor *t, const struct qm_format *f,
                                  const struct qm_quantize_options *o, qm_err *e);
    bool (*errors)(qm_device *d, const struct qm_tensor *a, const struct qm_tensor *b, struct qm_errsum *sum,
                   qm_err *e);

    /* A weight as this device multiplies by it best: *out, or NULL when that is t as it is; and back. */
    bool (*prepare)(qm_device *d, const struct qm_tensor *t, struct qm_tensor **out, qm_err *e);
    bool prepared_beside; /* *out keeps t's own planes, as it does here */
    struct qm_tensor *(*restore)(qm_device *d, const struct qm_tensor *t, qm_err *e);

    /* For plans (plan.h): what prepare makes, with planes on another device that nobody writes to; what a
     * call takes beside its result while it runs, and in *kept what a library that it uses keeps from then
     * on; and what ops keep, `decoding` token by token or not. */
    bool (*prepared)(qm_device *d, qm_device *where, const struct qm_tensor *t, struct qm_tensor **out,
                     qm_err *e);
    uint64_t (*op_memory)(qm_device *d, const struct qm_call *c, uint64_t *kept);
    uint64_t (*kept_memory)(qm_device *d, bool decoding);

    /* As qm_tensor_nest; and until what was allocated and begun is there for couriers, too. */
    bool (*nest)(qm_device *d, struct qm_tensor *t, const struct qm_quantize_options *o, qm_err *e);
    bool (*wait)(qm_device *d, qm_err *e);

    /* Runs a call whose tensors are all here and whose arguments are checked (op.h).  NULL: no ops here. */
    bool (*op)(qm_device *d, struct qm_call *c, qm_err *e);

    /* Couriers (courier.h): whether a job can go through one; a new one; and what one takes of the device's
     * memory and, in *pinned, of this machine's, for chunks of n values. */
    bool (*courier_takes)(const struct qm_job *job);
    qm_courier *(*courier_new)(qm_device *d, qm_err *e);
    uint64_t (*courier_memory)(const struct qm_job *job, uint64_t n, uint64_t *pinned);
    bool (*memory)(qm_device *d, uint64_t *free, uint64_t *total, qm_err *e);
};

static inline qm_device *qm_device_ref(qm_device *d)
{
    if (d)
        d->refs++;
    return d;
}

static inline void qm_device_unref(qm_device *d) /* NULL is fine */
{
    if (d && --d->refs == 0)
        d->close(d);
}

#endif
