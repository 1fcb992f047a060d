/* weight.h: rows of a weight, whatever its format, as f32. */
#ifndef QM_WEIGHT_H
#define QM_WEIGHT_H

#include "tensor.h"

/* Rows `first` … first + rows - 1 of a tensor read as rows of `cols` values: a whole matrix, or one expert of
 * a stack of them. */
typedef struct qm_weight {
    const qm_tensor *tensor;
    int64_t first, rows, cols;
} qm_weight;

qm_weight qm_weight_of(const qm_tensor *t);              /* all rows of the last dimension */
qm_weight qm_weight_part(const qm_tensor *t, int64_t i); /* t[i], of a stack */

/* Memory for decoding, used again from call to call; zero it first, free it at the end. */
typedef struct qm_scratch {
    float *values, *absmax;
    size_t room, absmax_room;
} qm_scratch;

void qm_scratch_free(qm_scratch *s);

/* Rows from … from + n - 1 decoded; valid until the scratch is used again.  NULL: out of memory. */
const float *qm_weight_rows(const qm_weight *w, int64_t from, int64_t n, qm_scratch *s, qm_err *e);

#endif
