/* op.h: what an operation is, and the registry of all of them.
 *
 * `ls core/ops` is the registry: a file named rope.c must define `const qm_op qm_op_rope`.  An op is
 * declared once: parameters, shapes, documentation, tolerance.  The argument checks, the Lua function, its
 * help and the tests of wrong arguments are made from that, so a run function never sees a tensor of a wrong
 * shape, a missing argument or a number out of range.
 *
 * Shapes are written as words, one per dimension: linear has x "T K", weight "N K", bias "N" and the result
 * "T N".  A word stands for the same number wherever it occurs in a call.  "…" in front stands for any
 * leading dimensions, the same everywhere too; "*" is any shape at all.
 *
 * Activations are f32 tensors, weights tensors of any format, results fresh f32 tensors.  Nothing but the
 * cache is ever changed.  Results do not depend on the number of threads.
 */
#ifndef QM_OP_H
#define QM_OP_H

#include "kv.h"
#include "pool.h"
#include "tensor.h"

#define QM_MAX_PARAMS 16
#define QM_MAX_CALLS  8 /* at once */

typedef enum {
    QM_ARG_TENSOR,  /* f32, here or on a device */
    QM_ARG_WEIGHT,  /* a tensor of any format that has a codec */
    QM_ARG_WEIGHTS, /* a list of those, all of the shape given; or one tensor with a dimension more in front
                     */
    QM_ARG_INT,
    QM_ARG_FLOAT,
    QM_ARG_BOOL,
    QM_ARG_STRING, /* one of `choices` */
    QM_ARG_IDS,    /* whole numbers from 0: a list, or an i32 tensor */
    QM_ARG_CACHE,
} qm_arg_kind;

typedef struct qm_param {
    const char *name;
    qm_arg_kind kind;
    const char *doc;
    const char *shape; /* of tensors; of ids the word for their number */
    bool optional;
    bool named;          /* a field of the op's table of options, which stands where its first one does */
    double absent;       /* the value of an optional number or bool that was not given */
    double least, most;  /* of numbers, both included; least == most: any finite number */
    const char *choices; /* "neox norm": of strings; the first one is meant when none is given */
} qm_param;

typedef struct qm_arg {
    bool given;
    double number;                /* INT, FLOAT, BOOL */
    int choice;                   /* STRING: index into choices */
    const qm_tensor *tensor;      /* TENSOR, WEIGHT; WEIGHTS given as one stacked tensor */
    const qm_tensor *const *list; /* WEIGHTS given as a list */
    const int32_t *ids;
    int64_t count; /* of ids or of the list */
    qm_kv *cache;
} qm_arg;

typedef struct qm_call {
    const struct qm_op *op;
    qm_arg arg[QM_MAX_PARAMS]; /* as op->param */
    qm_pool *pool;
    qm_shape shape; /* of the result, set by the check */

    qm_tensor *out; /* the result: f32, or i32 where it is ids */
} qm_call;

typedef enum { QM_RESULT_TENSOR, QM_RESULT_IDS, QM_RESULT_ID } qm_result;

typedef struct qm_op {
    const char *name;
    const char *doc; /* one line */
    qm_param param[QM_MAX_PARAMS];
    const char *shape; /* of the result; "=x": that of parameter x */
    qm_result result;
    /* Largest difference, relative to the largest value of the result, between a fast path or a device and
     * the plain one; 0: the same bits. */
    double tolerance;
    /* What the descriptor cannot say; may set c->shape. */
    bool (*check)(qm_call *c, qm_err *e);
    /* One of them: for one call; or for several at once, with the results that one after another would have. */
    bool (*run)(qm_call *c, qm_err *e);
    bool (*run_all)(qm_call *c, int n, qm_err *e);
    /* For plans: bytes that it takes here beside its result while it runs; NULL: next to none. */
    uint64_t (*memory)(const qm_call *c);
} qm_op;

/* NULL-terminated, in order of name; written by core/ops/registry.sh. */
extern const qm_op *const qm_ops[];

int qm_op_params(const qm_op *op);

/* Checks every argument, makes the result and runs.  On failure nothing is returned and the cache is as it
 * was. */
bool qm_op_call(qm_call *c, qm_err *e);

/* Several calls of one op, which do not wait for each other; on a device they run one after another. */
bool qm_op_calls(qm_call *c, int n, qm_err *e);

/* For run functions. */
static inline const float *qm_arg_values(const qm_call *c, int i)
{
    return (const float *)(const void *)c->arg[i].tensor->plane[0].data;
}
static inline int64_t qm_arg_int(const qm_call *c, int i) { return (int64_t)c->arg[i].number; }
static inline float *qm_call_out(qm_call *c) { return (float *)(void *)c->out->plane[0].buf->heap; }
static inline int32_t *qm_call_ids(qm_call *c) { return (int32_t *)(void *)c->out->plane[0].buf->heap; }

/* A failure of this call: "rope: …". */
bool qm_call_fail(const qm_call *c, qm_err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Runs work over rows 0 … n-1 in slices of `step` rows. */
bool qm_call_rows(qm_call *c, int64_t n, int64_t step,
                  bool (*work)(void *arg, int64_t from, int64_t to, int thread, qm_err *e), void *arg,
                  qm_err *e);

#endif
