/* linear_int8.c: LLM.int8() on a GPU: the op; int8.cu has the kernels. */
#include "call.h"

/* Everything that is made of x, in one piece: how much that is; and, from p on, where. */
static uint64_t place(qm_int8 *j, char *p)
{
    j->stride = (j->cols + 31) / 32 * 32;
    uint64_t a = whole((uint64_t)j->tokens * j->stride), s = whole(j->tokens * sizeof *j->s),
             hit = whole(j->cols);
    if (p) {
        j->a = (int8_t *)p;
        j->s = (float *)(void *)(p + a);
        j->hit = (uint8_t *)p + a + s;
        j->column = (int32_t *)(void *)(p + a + s + hit);
        j->outliers = j->column + j->cols;
    }
    return a + s + hit + j->cols * sizeof *j->column + sizeof *j->outliers;
}

static uint64_t memory(const qm_call *c, uint64_t *kept)
{
    qm_int8 j = {.tokens = rows_of(c->arg[0].tensor), .cols = (uint32_t)qm_tensor_cols(c->arg[0].tensor)};
    *kept = 0;
    return place(&j, NULL);
}

static bool make_room(qm_cuda *d, qm_int8 *j, void **taken, qm_err *e)
{
    char *p = *taken = qm_cuda_take(d, place(j, NULL), e);
    if (p)
        place(j, p);
    return p != NULL;
}

static bool linear_int8(qm_cuda *d, qm_call *c, qm_err *e)
{
    enum { X, WEIGHT, BIAS, THRESHOLD };
    const qm_tensor *w = c->arg[WEIGHT].tensor;
    activation x = arg(c, X), y;
    vector bias;
    void *taken = NULL;
    if (!make_out(d, c, false, &y, e) || !read_vector(d, &c->arg[BIAS], &bias, e) || !qm_cuda_flush(d, e))
        return false;
    qm_int8 j = {.x = x.x,
                 .tokens = x.rows,
                 .cols = x.cols,
                 .threshold = (float)c->arg[THRESHOLD].number,
                 .code = (const int8_t *)w->plane[0].data,
                 .absmax = (const float *)(const void *)w->plane[1].data,
                 .bias = bias.values,
                 .rows = y.cols,
                 .y = y.x};
    bool ok = x.rows == 0 || y.cols == 0
              || (make_room(d, &j, &taken, e) && ran(d, c, qm_linear_int8(&j, d->stream), e));
    qm_cuda_give(d, taken);
    drop_vector(d, &bias);
    return ok;
}

const qm_cuda_way qm_cuda_int8[] = {
    {"linear_int8", linear_int8, memory},
    {NULL, NULL, NULL},
};
