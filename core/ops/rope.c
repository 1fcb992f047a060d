/* rope: rotary position embedding.  Of every head's first rotary_dim values, pair j is turned by the angle
 * position * base^(-2j / rotary_dim) / factor[j]:
 *
 *     neox   | a0 a1 … | b0 b1 … | rest |     pair j is (value j, value j + rotary_dim / 2)   HF checkpoints
 *     norm   | a0 b0 a1 b1 …     | rest |     pair j is (value 2j, value 2j + 1)              GGUF of llama
 *
 * Frequencies and angles are rounded to f32 as transformers has them.  Linear scaling is a factor for every
 * pair; Llama 3's is a tensor of them (rope_freqs in a GGUF); Phi 3's also scales sine and cosine.
 */
#include "../op.h"
#include "../weight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { X, FIRST, HEAD_DIM, ROTARY_DIM, BASE, KIND, FACTORS, SCALE };
enum { NEOX, NORM };

typedef struct job {
    const float *x, *frequency;
    float *y, scale;
    int64_t first, row, head, rotary;
    bool neox;
} job;

static int64_t rotary_of(const qm_call *c)
{
    return qm_arg_int(c, c->arg[ROTARY_DIM].given ? ROTARY_DIM : HEAD_DIM);
}

static bool check(qm_call *c, qm_err *e)
{
    int64_t row = qm_tensor_cols(c->arg[X].tensor), head = qm_arg_int(c, HEAD_DIM), rotary = rotary_of(c);
    if (row % head)
        return qm_call_fail(c, e, "rows of %lld values hold no whole number of heads of %lld", (long long)row,
                            (long long)head);
    if (rotary > head || rotary % 2)
        return qm_call_fail(c, e, "rotary_dim %lld must be even and at most head_dim, %lld",
                            (long long)rotary, (long long)head);
    const qm_tensor *f = c->arg[FACTORS].tensor;
    if (f && qm_tensor_count(f) != rotary / 2)
        return qm_call_fail(c, e, "%lld factors for %lld pairs", (long long)qm_tensor_count(f),
                            (long long)rotary / 2);
    return true;
}

static void turn(const float *x, float *y, int64_t pairs, int64_t stride, int64_t apart, const float *cosine,
                 const float *sine)
{
    for (int64_t j = 0; j < pairs; j++) {
        float a = x[j * stride], b = x[j * stride + apart];
        y[j * stride] = a * cosine[j] - b * sine[j];
        y[j * stride + apart] = b * cosine[j] + a * sine[j];
    }
}

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread;
    const job *j = arg;
    int64_t pairs = j->rotary / 2;
    float *cosine = malloc((size_t)(2 * pairs) * sizeof *cosine + 1);
    if (!cosine)
        return qm_fail(e, QM_ENOFIT, "rope: out of memory");
    float *sine = cosine + pairs;
    for (int64_t t = from; t < to; t++) {
        for (int64_t p = 0; p < pairs; p++) {
            double angle = (double)((float)(j->first + t) * j->frequency[p]);
            cosine[p] = (float)cos(angle) * j->scale;
            sine[p] = (float)sin(angle) * j->scale;
        }
        for (int64_t h = 0; h < j->row; h += j->head) {
            const float *x = j->x + t * j->row + h;
            float *y = j->y + t * j->row + h;
            turn(x, y, pairs, j->neox ? 1 : 2, j->neox ? pairs : 1, cosine, sine);
            memcpy(y + j->rotary, x + j->rotary, (size_t)(j->head - j->rotary) * sizeof *y);
        }
    }
    free(cosine);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    job j = {.x = qm_arg_values(c, X), .y = qm_call_out(c), .first = qm_arg_int(c, FIRST)};
    j.row = qm_tensor_cols(c->arg[X].tensor);
    j.head = qm_arg_int(c, HEAD_DIM);
    j.rotary = rotary_of(c);
    j.scale = (float)c->arg[SCALE].number;
    j.neox = c->arg[KIND].choice == NEOX;
    qm_scratch s = {0};
    const float *factor = NULL;
    if (c->arg[FACTORS].given) {
        qm_weight w = {c->arg[FACTORS].tensor, 0, 1, j.rotary / 2};
        if (!(factor = qm_weight_rows(&w, 0, 1, &s, e)))
            return false;
    }
    float *frequency = malloc((size_t)j.rotary * sizeof *frequency + 1);
    for (int64_t p = 0; frequency && p < j.rotary / 2; p++) {
        float power = (float)pow(c->arg[BASE].number, (double)(2 * p) / (double)j.rotary);
        frequency[p] = 1 / power / (factor ? factor[p] : 1);
    }
    j.frequency = frequency;
    bool ok = frequency ? qm_call_rows(c, c->arg[X].tensor->shape.dim[0], 8, rows, &j, e)
                        : qm_call_fail(c, e, "out of memory");
    free(frequency);
    qm_scratch_free(&s);
    return ok;
}

const qm_op qm_op_rope = {
    .name = "rope",
    .doc = "rotary position embedding of queries or keys",
    .param = {{"x", QM_ARG_TENSOR, "a token's heads in every row", .shape = "T C"},
              {"first_position", QM_ARG_INT, "position of the first row, from 0", .least = 0, .most = 0x1p31},
              {"head_dim", QM_ARG_INT, "values of a head", .named = true, .least = 1, .most = 65536},
              {"rotary_dim", QM_ARG_INT, "values of a head that are turned (all of them)", .named = true,
               .optional = true, .least = 0, .most = 65536},
              {"base", QM_ARG_FLOAT, "theta", .named = true, .optional = true, .absent = 10000, .least = 1,
               .most = 1e15},
              {"kind", QM_ARG_STRING, "which values make a pair", .named = true, .optional = true,
               .choices = "neox norm"},
              {"factors", QM_ARG_WEIGHT, "what each pair's frequency is divided by", .shape = "P",
               .named = true, .optional = true},
              {"scale", QM_ARG_FLOAT, "of sine and cosine", .named = true, .optional = true, .absent = 1}},
    .shape = "=x",
    .tolerance = 1e-6,
    .check = check,
    .run = run,
};
