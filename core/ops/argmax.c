/* argmax: the column of every row's largest value, from 0; of equal ones the first. */
#include "../op.h"

static bool run(qm_call *c, qm_err *e)
{
    const qm_tensor *t = c->arg[0].tensor;
    const float *x = qm_arg_values(c, 0);
    int64_t cols = qm_tensor_cols(t), rows = cols ? qm_tensor_count(t) / cols : 0;
    if (cols == 0)
        return qm_call_fail(c, e, "rows of no values have no largest");
    for (int64_t i = 0; i < rows; i++, x += cols) {
        int64_t best = 0;
        for (int64_t j = 0; j < cols; j++) {
            if (x[j] != x[j])
                return qm_call_fail(c, e, "row %lld has a NaN in column %lld", (long long)i, (long long)j);
            best = x[j] > x[best] ? j : best;
        }
        qm_call_ids(c)[i] = (int32_t)best;
    }
    return true;
}

const qm_op qm_op_argmax = {
    .name = "argmax",
    .doc = "the column of every row's largest value",
    .param = {{"logits", QM_ARG_TENSOR, "rows", .shape = "... V"}},
    .shape = "...",
    .result = QM_RESULT_IDS,
    .run = run,
};
