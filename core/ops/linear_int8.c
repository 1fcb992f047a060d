/* linear_int8: LLM.int8() as bitsandbytes runs it: 8-bit weights times activations that are quantised too.
 *
 *     x        is rounded to f16
 *     outlier  |x| >= threshold; its whole column is left out of the integers, in all rows of the call
 *     a        round(x * 127 / s), s the row's largest |x| that is no outlier
 *     y        f16( (sum of a * code) * s * absmax[n] / 127² + bias )  + outlier columns in f16
 *
 * So a row's result depends on which other rows are in the call, here as there.  bitsandbytes,
 * int8_vectorwise_quant, int8_scaled_mm, int8_mixed_scaled_mm; the constant is that of its CUDA code.  One
 * departure: 127 / s is IEEE's.
 */
#include "../half.h"
#include "../op.h"
#include "../weight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { X, WEIGHT, BIAS, THRESHOLD };

enum { MOST_COLS = INT32_MAX / (127 * 127) };

#define STEP 6.200012e-05f /* 1 / 127², as bitsandbytes writes it */

typedef struct job {
    const int8_t *code;
    const uint8_t *absmax; /* f32s, as they lie in a file */
    const float *bias;
    float *half; /* [T, K]: x as f16 */
    int8_t *a;   /* [T, K] */
    float *s;    /* [T] */
    int64_t *column;
    int64_t outliers, tokens, cols, out;
    float *y;
} job;

static float to_half(float x) { return qm_f16_to_f32(qm_f32_to_f16(x)); }

static bool check(qm_call *c, qm_err *e)
{
    const qm_tensor *w = c->arg[WEIGHT].tensor;
    if (qm_tensor_cols(w) > MOST_COLS)
        return qm_call_fail(c, e, "rows of %lld values overflow a 32-bit sum", (long long)qm_tensor_cols(w));
    return (w->format && strcmp(w->format->name, "int8") == 0 && qm_tensor_has_planes(w, e))
           || qm_call_fail(c, e, "weight must be int8, and is %s; give t:quantize \"int8\"",
                           w->format ? w->format->name : "of no format");
}

static void find_outliers(job *j, const float *x, float threshold)
{
    bool *hit = (bool *)(void *)j->a; /* a is written afterwards */
    memset(hit, 0, (size_t)j->cols * sizeof *hit);
    for (int64_t i = 0; i < j->tokens * j->cols; i++) {
        j->half[i] = to_half(x[i]);
        hit[i % j->cols] |= threshold > 0 && fabsf(j->half[i]) >= threshold;
    }
    for (int64_t k = 0; k < j->cols; k++)
        if (hit[k])
            j->column[j->outliers++] = k;
}

static void quantize_row(const job *j, int64_t t, float threshold)
{
    const float *x = j->half + t * j->cols;
    int8_t *a = j->a + t * j->cols;
    float s = 0;
    for (int64_t k = 0; k < j->cols; k++)
        if (fabsf(x[k]) > s && !(threshold > 0 && fabsf(x[k]) >= threshold))
            s = fabsf(x[k]);
    j->s[t] = s;
    float scale = 127 / s;
    for (int64_t k = 0; k < j->cols; k++) {
        float v = x[k] * scale;
        a[k] = fabsf(v) <= 127.5f ? (int8_t)rintf(v) : 0; /* outliers, and the NaN of a row of zeros */
    }
    for (int64_t i = 0; i < j->outliers; i++)
        a[j->column[i]] = 0;
}

static float one(const job *j, int64_t t, int64_t n)
{
    const int8_t *a = j->a + t * j->cols, *w = j->code + n * j->cols;
    int32_t sum = 0;
    float absmax;
    memcpy(&absmax, j->absmax + (size_t)n * sizeof absmax, sizeof absmax);
    for (int64_t k = 0; k < j->cols; k++)
        sum += a[k] * w[k];
    float y = to_half(fmaf((float)sum * j->s[t] * absmax, STEP, j->bias ? j->bias[n] : 0));
    if (j->outliers == 0)
        return y;
    float more = 0;
    for (int64_t i = 0; i < j->outliers; i++) {
        int64_t k = j->column[i];
        more += j->half[t * j->cols + k] * to_half((float)w[k] * absmax * 7.874015718698502e-3f);
    }
    return to_half(y + more);
}

static bool rows(void *arg, int64_t from, int64_t to, int thread, qm_err *e)
{
    (void)thread, (void)e;
    const job *j = arg;
    for (int64_t n = from; n < to; n++)
        for (int64_t t = 0; t < j->tokens; t++)
            j->y[t * j->out + n] = one(j, t, n);
    return true;
}

static bool run(qm_call *c, qm_err *e)
{
    const qm_tensor *w = c->arg[WEIGHT].tensor;
    float threshold = (float)c->arg[THRESHOLD].number;
    qm_scratch space = {0};
    job j = {.code = (const int8_t *)w->plane[0].data, .absmax = w->plane[1].data};
    j.cols = qm_tensor_cols(w);
    j.out = w->shape.dim[0];
    j.tokens = j.cols ? qm_tensor_count(c->arg[X].tensor) / j.cols : 0;
    j.y = qm_call_out(c);
    if (c->arg[BIAS].given) {
        qm_weight b = {c->arg[BIAS].tensor, 0, 1, j.out};
        if (!(j.bias = qm_weight_rows(&b, 0, 1, &space, e)))
            return false;
    }
    size_t n = (size_t)(j.tokens * j.cols);
    j.half = calloc(n + 1, sizeof *j.half);
    j.a = malloc(n + 1);
    j.s = malloc((size_t)j.tokens * sizeof *j.s + 1);
    j.column = malloc((size_t)j.cols * sizeof *j.column + 1);
    bool ok = j.half && j.a && j.s && j.column;
    if (!ok)
        qm_call_fail(c, e, "out of memory for %zu values", n);
    if (ok && n) {
        find_outliers(&j, qm_arg_values(c, X), threshold);
        for (int64_t t = 0; t < j.tokens; t++)
            quantize_row(&j, t, threshold);
        ok = qm_call_rows(c, j.out, 1 + 65536 / (j.cols * j.tokens), rows, &j, e);
    }
    free(j.half);
    free(j.a);
    free(j.s);
    free(j.column);
    qm_scratch_free(&space);
    return ok;
}

const qm_op qm_op_linear_int8 = {
    .name = "linear_int8",
    .doc = "LLM.int8(): int8 weights times activations in int8, outlier columns in 16 bit",
    .param = {{"x", QM_ARG_TENSOR, "activations", .shape = "... K"},
              {"weight", QM_ARG_WEIGHT, "an int8 weight", .shape = "N K"},
              {"bias", QM_ARG_WEIGHT, "added to every row", .shape = "N", .optional = true},
              {"threshold", QM_ARG_FLOAT, "magnitude from which on a value is an outlier; 0: none is",
               .optional = true, .absent = 6, .least = 0, .most = 1e9}},
    .shape = "... N",
    .tolerance = 1e-3, /* an f16 that falls on the other side */
    .check = check,
    .run = run,
};
