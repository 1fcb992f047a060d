/* qm.h: what every file of the core agrees on: success, failure, element types.
 *
 * The core computes and reports. It never ends the process, never prints, and knows neither
 * Lua nor CUDA. A function that can fail returns bool and takes a qm_err as last argument:
 *
 *     if (!qm_infile_open(&f, path, e))
 *         return false;
 *
 * The first failure wins (a clean-up that fails on the way out does not hide the cause), and
 * on failure outputs are untouched.  A message is made once, where the facts are known, and
 * says what, where and what to do next:
 *
 *     model-00002.safetensors: tensor 'x.weight' [4096 x 4100 bf16]: q6_k needs rows of a
 *     multiple of 256 values; choose q8_0
 */
#ifndef QM_H
#define QM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QM_VERSION "0.1.0"

/* Codes double as the program's exit status, so they are part of the interface. */
typedef enum {
    QM_OK = 0,
    QM_EFAIL = 1,        /* system call failed, argument makes no sense */
    QM_EUSAGE = 2,       /* wrong command line */
    QM_EVERIFY = 3,      /* output does not match what it should hold */
    QM_ENOFIT = 4,       /* would not fit in memory or on disk; nothing was started */
    QM_EUNSUPPORTED = 5, /* well-formed, but not something this program does */
    QM_ECORRUPT = 6,     /* input breaks its format's rules */
    QM_EINTERRUPT = 130, /* the user asked to stop */
} qm_code;

typedef struct qm_err {
    qm_code code;
    char msg[512];
} qm_err;

/* Records the failure unless one is recorded already; always returns false. */
bool qm_fail(qm_err *e, qm_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4), nonnull));

/* As qm_fail, appending ": " and the text of errno, which it reads first. */
bool qm_fail_errno(qm_err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3), nonnull));

/* The analyser cannot see into err.c that these are always false; without a branch it follows qm_false from any
 * depth. */
#ifdef __clang_analyzer__
static inline bool qm_false(bool always)
{
    (void)always;
    return false;
}
#define qm_fail(...)       qm_false(qm_fail(__VA_ARGS__))
#define qm_fail_errno(...) qm_false(qm_fail_errno(__VA_ARGS__))
#endif

/* Set by a signal handler, polled by everything that takes longer than a blink. */
void qm_interrupt_request(void);
void qm_interrupt_clear(void);
bool qm_interrupted(void);

/* Element types as they occur in files.  ORDER follows safetensors' own order, because its
 * writer sorts tensors by it, largest first. */
typedef enum {
    QM_BOOL,
    QM_F4,
    QM_F6_E2M3,
    QM_F6_E3M2,
    QM_U8,
    QM_I8,
    QM_F8_E5M2,
    QM_F8_E4M3,
    QM_F8_E8M0,
    QM_F8_E4M3FNUZ,
    QM_F8_E5M2FNUZ,
    QM_I16,
    QM_U16,
    QM_F16,
    QM_BF16,
    QM_I32,
    QM_U32,
    QM_F32,
    QM_C64,
    QM_F64,
    QM_I64,
    QM_U64,
    QM_DTYPE_COUNT
} qm_dtype;

typedef struct qm_dtype_info {
    const char *name;        /* ours and torch's habit: "bf16" */
    const char *safetensors; /* "BF16" */
    const char *torch;       /* "bfloat16", or NULL */
    unsigned bits;
} qm_dtype_info;

extern const qm_dtype_info qm_dtypes[QM_DTYPE_COUNT];

#define QM_MAX_DIMS 8 /* safetensors sets no limit; no checkpoint in the field has more */

typedef struct qm_shape {
    int ndim;
    int64_t dim[QM_MAX_DIMS]; /* row-major, dim[ndim-1] contiguous */
} qm_shape;

/* More values than any tensor has.  Sizes in bytes and bits computed from a count cannot overflow then. */
#define QM_MAX_VALUES ((int64_t)1 << 53)

/* Product of the dimensions (1 for a scalar), or -1 when it is more than QM_MAX_VALUES or one is negative. */
int64_t qm_shape_count(const qm_shape *s);

/* Greatest common divisor of positive numbers: what chunks are cut by. */
int64_t qm_gcd(int64_t a, int64_t b);

/* "[4096 x 4100]"; "[]" for a scalar.  Returns buf. */
char *qm_shape_text(const qm_shape *s, char *buf, size_t size);

#endif
