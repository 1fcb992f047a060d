/* arithmetic.c: the part of explore.h that computes with tensors.  Plain loops: this is for following a
 * paper, not for running a model. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "explore.h"

static bool stopped(qm_err *e) { return qm_interrupted() && !qm_fail(e, QM_EINTERRUPT, "interrupted"); }

static const float *floats(const qm_tensor *t) { return (const float *)(const void *)t->plane[0].data; }

static bool is_matrix(const qm_tensor *t) { return t->shape.ndim == 2; }

/* ---- products ------------------------------------------------------------------------------------ */

static bool multiply(const float *a, const float *b, float *out, int64_t m, int64_t k, int64_t n, qm_err *e)
{
    double *sum = malloc((size_t)n * sizeof *sum + 1);
    if (!sum)
        return qm_fail(e, QM_ENOFIT, "out of memory for a row of %lld sums", (long long)n);
    for (int64_t i = 0; i < m && !e->code; i++) {
        memset(sum, 0, (size_t)n * sizeof *sum);
        for (int64_t p = 0; p < k; p++) {
            double x = (double)a[i * k + p];
            const float *row = b + p * n;
            for (int64_t j = 0; j < n; j++)
                sum[j] += x * (double)row[j];
        }
        for (int64_t j = 0; j < n; j++)
            out[i * n + j] = (float)sum[j];
        (void)stopped(e);
    }
    free(sum);
    return !e->code;
}

qm_tensor *qm_matmul(const qm_tensor *a, const qm_tensor *b, qm_err *e)
{
    char left[96], right[96];
    if (!is_matrix(a) || !is_matrix(b) || a->shape.dim[1] != b->shape.dim[0]) {
        qm_fail(e, QM_EFAIL,
                "%s and %s cannot be multiplied: [m x k] goes with [k x n]; t:transpose() turns one",
                qm_shape_text(&a->shape, left, sizeof left), qm_shape_text(&b->shape, right, sizeof right));
        return NULL;
    }
    qm_shape shape = {2, {a->shape.dim[0], b->shape.dim[1]}};
    float *to;
    qm_tensor *x = qm_tensor_dequantize(a, e), *y = x ? qm_tensor_dequantize(b, e) : NULL;
    qm_tensor *out = y ? qm_tensor_f32(&shape, &to, e) : NULL;
    if (out && !multiply(floats(x), floats(y), to, shape.dim[0], a->shape.dim[1], shape.dim[1], e)) {
        qm_tensor_free(out);
        out = NULL;
    }
    qm_tensor_free(x);
    qm_tensor_free(y);
    return out;
}

/* ---- value by value -------------------------------------------------------------------------------- */

static float compute(float x, float y, qm_arithmetic op)
{
    return op == QM_ADD ? x + y : op == QM_SUB ? x - y : op == QM_MUL ? x * y : x / y;
}

/* How far b moves on for a value, and for a row, of a; false when the shapes do not go together. */
static bool strides_of(const qm_tensor *a, const qm_tensor *b, int64_t *value, int64_t *row)
{
    int64_t cols = qm_tensor_cols(a), n = qm_tensor_count(a), m = qm_tensor_count(b);
    bool same = a->shape.ndim == b->shape.ndim
                && memcmp(a->shape.dim, b->shape.dim, (size_t)a->shape.ndim * sizeof a->shape.dim[0]) == 0;
    if (same) {
        *value = 1;
        *row = cols;
    } else if (m == cols && qm_tensor_cols(b) == cols) {
        *value = 1;
        *row = 0;
    } else if (cols && b->shape.ndim == 2 && b->shape.dim[1] == 1 && m == n / cols) {
        *value = 0;
        *row = 1;
    } else {
        return false;
    }
    return true;
}

qm_tensor *qm_elementwise(const qm_tensor *a, const qm_tensor *b, qm_arithmetic op, qm_err *e)
{
    char left[96], right[96];
    int64_t by_value, by_row, cols = qm_tensor_cols(a);
    if (!strides_of(a, b, &by_value, &by_row)) {
        qm_fail(e, QM_EFAIL,
                "shapes %s and %s do not go together: the second must be the same, one row, or one column",
                qm_shape_text(&a->shape, left, sizeof left), qm_shape_text(&b->shape, right, sizeof right));
        return NULL;
    }
    float *to;
    qm_tensor *x = qm_tensor_dequantize(a, e), *y = x ? qm_tensor_dequantize(b, e) : NULL;
    qm_tensor *out = y ? qm_tensor_f32(&a->shape, &to, e) : NULL;
    int64_t rows = cols ? qm_tensor_count(a) / cols : 0;
    for (int64_t i = 0; out && i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            to[i * cols + j] = compute(floats(x)[i * cols + j], floats(y)[i * by_row + j * by_value], op);
    qm_tensor_free(x);
    qm_tensor_free(y);
    return out;
}

qm_tensor *qm_with_number(const qm_tensor *a, double b, qm_arithmetic op, qm_err *e)
{
    float *to;
    qm_tensor *x = qm_tensor_dequantize(a, e), *out = x ? qm_tensor_f32(&a->shape, &to, e) : NULL;
    int64_t n = qm_tensor_count(a);
    for (int64_t i = 0; out && i < n; i++)
        to[i] = compute(floats(x)[i], (float)b, op);
    qm_tensor_free(x);
    return out;
}

/* ---- singular values --------------------------------------------------------------------------------- */

/* LAPACK's dgesdd, columns first; the integers are 32 bits in all of Debian's builds. */
typedef void (*gesdd)(const char *job, const int *m, const int *n, double *a, const int *lda, double *s,
                      double *u, const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork,
                      int *iwork, int *info, size_t job_length);

enum { SVD_MOST = 1 << 24 }; /* values of the matrix: beyond that it takes minutes */

static gesdd find_lapack(qm_err *e)
{
    static const char *const libraries[] = {"liblapack.so.3", "libopenblas.so.0", "libmkl_rt.so"};
    const char *chosen = getenv("QMOON_LAPACK");
    void *library = chosen ? dlopen(chosen, RTLD_NOW) : NULL;
    for (size_t i = 0; !chosen && !library && i < sizeof libraries / sizeof libraries[0]; i++)
        library = dlopen(libraries[i], RTLD_NOW);
    gesdd f = NULL;
    void *symbol = library ? dlsym(library, "dgesdd_") : NULL;
    memcpy(&f, &symbol, sizeof f); /* ISO C knows no cast from an object's address to a function's */
    if (!f)
        qm_fail(e, QM_EUNSUPPORTED,
                "singular values need LAPACK, and %s is not there: apt-get install liblapack3",
                chosen ? chosen : "liblapack.so.3");
    return f;
}

typedef struct svd {
    double *a, *s, *u, *v, *work;
    int *iwork;
} svd;

static void svd_free(svd *w)
{
    free(w->a);
    free(w->s);
    free(w->u);
    free(w->v);
    free(w->work);
    free(w->iwork);
}

/* A matrix by rows is its transpose by columns, so LAPACK is given [n x m] and its U is our V. */
static bool svd_run(gesdd run, svd *w, int m, int n, int k, qm_err *e)
{
    double size = 0;
    int ask = -1, info = 0;
    if (!(w->s = malloc((size_t)k * sizeof *w->s)) || !(w->u = malloc((size_t)k * (size_t)n * sizeof *w->u))
        || !(w->v = malloc((size_t)k * (size_t)m * sizeof *w->v))
        || !(w->iwork = malloc(8 * (size_t)k * sizeof *w->iwork)))
        return qm_fail(e, QM_ENOFIT, "out of memory for the singular vectors of [%d x %d]", m, n);
    run("S", &n, &m, w->a, &n, w->s, w->u, &n, w->v, &k, &size, &ask, w->iwork, &info, 1);
    int length = (int)size;
    if (info != 0 || !(w->work = malloc((size_t)length * sizeof *w->work)))
        return qm_fail(e, QM_ENOFIT, "out of memory for %d numbers that LAPACK works with", length);
    run("S", &n, &m, w->a, &n, w->s, w->u, &n, w->v, &k, w->work, &length, w->iwork, &info, 1);
    return info == 0 || qm_fail(e, QM_EFAIL, "LAPACK found no singular values (dgesdd: %d)", info);
}

static qm_tensor *from_doubles(const double *x, const qm_shape *shape, qm_err *e)
{
    float *to;
    qm_tensor *t = qm_tensor_f32(shape, &to, e);
    for (int64_t i = 0, n = qm_shape_count(shape); t && i < n; i++)
        to[i] = (float)x[i];
    return t;
}

bool qm_svd(const qm_tensor *a, qm_tensor **u, qm_tensor **s, qm_tensor **v, qm_err *e)
{
    char text[96];
    int64_t count = qm_tensor_count(a);
    if (!is_matrix(a) || count < 1 || count > SVD_MOST)
        return qm_fail(e, QM_EFAIL,
                       "singular values are of a matrix of up to %d values, not of %s; t:slice takes a part",
                       SVD_MOST, qm_shape_text(&a->shape, text, sizeof text));
    int m = (int)a->shape.dim[0], n = (int)a->shape.dim[1], k = m < n ? m : n;
    gesdd run = find_lapack(e);
    qm_tensor *x = run ? qm_tensor_dequantize(a, e) : NULL;
    svd w = {0};
    if (x && !(w.a = malloc((size_t)count * sizeof *w.a)))
        qm_fail(e, QM_ENOFIT, "out of memory for %lld numbers", (long long)count);
    for (int64_t i = 0; w.a && i < count; i++) {
        w.a[i] = (double)floats(x)[i];
        if (!isfinite(w.a[i]))
            qm_fail(e, QM_EFAIL, "there is NaN or infinity in the tensor, so it has no singular values");
    }
    qm_tensor_free(x);
    bool ok = w.a && !e->code && svd_run(run, &w, m, n, k, e);
    if (ok) {
        *u = from_doubles(w.v, &(qm_shape){2, {m, k}}, e);
        *s = from_doubles(w.s, &(qm_shape){1, {k}}, e);
        *v = from_doubles(w.u, &(qm_shape){2, {k, n}}, e);
        ok = *u && *s && *v;
    }
    svd_free(&w);
    return ok;
}
