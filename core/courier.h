/* courier.h: one thread's way through a device: a chunk of a job's values (stream.h) goes there as it lies in
 * the file, and comes back as the bytes of every sink.
 *
 * The thread reads the source into memory of the courier, calls run, and finds the planes in other memory of
 * the courier, to be written before the next run.  A courier belongs to one thread at a time; several of one
 * device work side by side, so that reading, copying there, encoding, copying back and writing all go on at
 * once. The bytes are those of the CPU.
 */
#ifndef QM_COURIER_H
#define QM_COURIER_H

#include "stream.h"

/* Where the source's planes lie in the courier's memory: each at a multiple of this. */
enum { QM_COURIER_ALIGN = 256 };

static inline uint64_t qm_courier_aligned(uint64_t size)
{
    return (size + QM_COURIER_ALIGN - 1) / QM_COURIER_ALIGN * QM_COURIER_ALIGN;
}

/* Where `size` bytes go behind *total, which grows by them. */
static inline uint64_t qm_courier_place(uint64_t *total, uint64_t size)
{
    uint64_t at = *total;
    *total += qm_courier_aligned(size);
    return at;
}

typedef struct qm_parcel {
    const qm_job *job;
    int64_t row, rows;          /* of the job's source */
    uint64_t n;                 /* values */
    uint64_t each;              /* of which so many at a time have errors of their own */
    uint64_t at[QM_MAX_PLANES]; /* of the source's planes in the courier's memory; scales are f32, never
                                   quantised twice */
    uint64_t raw;               /* bytes of the courier's memory that are used */

    /* Out. */
    uint64_t first_nonfinite;                          /* n: there is none, or nobody asked */
    float nonfinite;                                   /* that value */
    const uint8_t *plane[QM_MAX_SINKS][QM_MAX_PLANES]; /* scales are f32: double quantisation comes later */
    const qm_groupsum *group[QM_MAX_SINKS];            /* of double-quantised sinks */
    const qm_errsum *error[QM_MAX_SINKS]; /* with want_errors or double_quant: every `each` values' */
    const qm_errsum *moved;               /* of the values after the steps against those before them */
} qm_parcel;

struct qm_courier {
    qm_device *device;
    uint8_t *(*memory)(qm_courier *l, uint64_t size,
                       qm_err *e); /* for a chunk's source; valid until the next call */
    bool (*run)(qm_courier *l, qm_parcel *c, qm_err *e);

    /* To stay there (load.h): values first … of `to`, a tensor of this device, are those of `part`, whose
     * planes lie in the first `raw` bytes of the courier's memory.  encode: quantised on the way; else plane
     * by plane, as they are. */
    bool (*bring)(qm_courier *l, const struct qm_tensor *part, uint64_t raw, struct qm_tensor *to,
                  int64_t first, bool encode, qm_err *e);
    void (*free)(qm_courier *l);
};

#endif
