/* explore.h: looking at tensors: parts of them, where their values lie, how far two are apart and where.
 *
 * A tensor is seen as rows of its last dimension.  Large ones are decoded in pieces of EXPLORE_CHUNK values,
 * so a view of a file costs no more memory than that.  All sums run in the order of the values.
 */
#ifndef QM_EXPLORE_H
#define QM_EXPLORE_H

#include "tensor.h"

enum { QM_EXPLORE_CHUNK = 1 << 20 };

/* Rows row ... row+rows-1 of columns col ... col+cols-1, as a new f32 tensor [rows x cols].  Fails when there
 * are no such. */
qm_tensor *qm_slice_new(const qm_tensor *t, int64_t row, int64_t rows, int64_t col, int64_t cols, qm_err *e);

typedef struct qm_stats {
    double min, max, mean, std; /* of the finite values; 0 when there are none */
    double absmax, kurtosis;    /* kurtosis: 3 for a normal distribution */
    uint64_t count, zeros, nan, inf;
} qm_stats;

bool qm_stats_of(const qm_tensor *t, qm_stats *s, qm_err *e);

/* Values in `bins` equal parts of [low, high); high itself counts into the last.  below, above: values
 * beyond; NaN is left out. */
bool qm_histogram(const qm_tensor *t, double low, double high, int bins, uint64_t *count, uint64_t *below,
                  uint64_t *above, qm_err *e);

/* What a share p[i] of the values is not above, between the two nearest (as numpy's default).  NaN is left
 * out; fails when nothing is left.  Takes as much memory as the values. */
bool qm_quantiles(const qm_tensor *t, const double *p, int n, double *value, qm_err *e);

typedef enum { QM_BY_ROW, QM_BY_COLUMN, QM_BY_BLOCK } qm_by;

/* How many parts there are; blocks are runs of `block` values, over row ends, the last perhaps short. */
int64_t qm_parts(const qm_tensor *t, qm_by by, int64_t block);

/* Error sums of b against a for each part, into sum[qm_parts(…)]. */
bool qm_errors_by(const qm_tensor *a, const qm_tensor *b, qm_by by, int64_t block, qm_errsum *sum, qm_err *e);

/* The code of values first ... first+n-1 of a quantised tensor that keeps its codes in a plane of their own. */
bool qm_codes(const qm_tensor *t, int64_t first, int64_t n, int32_t *code, qm_err *e);

/* The f32 scales of such a tensor, one per group, second level decoded. */
qm_tensor *qm_scales(const qm_tensor *t, qm_err *e);

/* ---- arithmetic, in f32; sums in double ------------------------------------------------------ */

qm_tensor *qm_matmul(const qm_tensor *a, const qm_tensor *b, qm_err *e); /* [m x k] [k x n] */

typedef enum { QM_ADD, QM_SUB, QM_MUL, QM_DIV } qm_arithmetic;

/* Value by value.  b has a's shape, or is a row that every row of a meets ([cols] or [1 x cols]), or a column
 * ([rows x 1]). */
qm_tensor *qm_elementwise(const qm_tensor *a, const qm_tensor *b, qm_arithmetic op, qm_err *e);

/* With one number in the place of b. */
qm_tensor *qm_with_number(const qm_tensor *a, double b, qm_arithmetic op, qm_err *e);

/* a = u diag(s) v, s descending: u [m x k], s [k], v [k x n], k the smaller of m and n.  By LAPACK, opened
 * when it is first needed; fails with the name of its package where it is not there. */
bool qm_svd(const qm_tensor *a, qm_tensor **u, qm_tensor **s, qm_tensor **v, qm_err *e);

#endif
