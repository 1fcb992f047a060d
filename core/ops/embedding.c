/* embedding: the rows of a table that ids name. */
#include "../op.h"
#include "../weight.h"

#include <string.h>

enum { WEIGHT, IDS };

static bool check(qm_call *c, qm_err *e)
{
    int64_t rows = c->arg[WEIGHT].tensor->shape.dim[0];
    for (int64_t i = 0; i < c->arg[IDS].count; i++)
        if (c->arg[IDS].ids[i] >= rows)
            return qm_call_fail(c, e, "id %d (number %lld of ids) is beyond the %lld rows of the weight",
                                c->arg[IDS].ids[i], (long long)i + 1, (long long)rows);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    qm_weight w = qm_weight_of(c->arg[WEIGHT].tensor);
    qm_scratch s = {0};
    bool ok = true;
    for (int64_t i = 0; ok && i < c->arg[IDS].count; i++) {
        const float *row = qm_weight_rows(&w, c->arg[IDS].ids[i], 1, &s, e);
        if ((ok = row != NULL))
            memcpy(qm_call_out(c) + i * w.cols, row, (size_t)w.cols * sizeof *row);
    }
    qm_scratch_free(&s);
    return ok;
}

const qm_op qm_op_embedding = {
    .name = "embedding",
    .doc = "rows of a table, one for every id",
    .param = {{"weight", QM_ARG_WEIGHT, "the table", .shape = "V D"},
              {"ids", QM_ARG_IDS, "numbers of rows, from 0", .shape = "T"}},
    .shape = "T D",
    .tolerance = 0,
    .check = check,
    .run = run,
};
