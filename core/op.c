/* op.c: see op.h.  Checks arguments against the descriptor, makes the result, runs. */
#include "op.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 24

/* What the words of this call's shapes stand for, and the parameter that said so. */
typedef struct words {
    int n;
    struct {
        const char *text;
        size_t length;
        int64_t value;
        const char *from;
    } word[MAX_WORDS];
    bool led;
    qm_shape lead; /* what "..." stands for */
    const char *lead_from;
} words;

int qm_op_params(const qm_op *op)
{
    int n = 0;
    while (n < QM_MAX_PARAMS && op->param[n].name)
        n++;
    return n;
}

bool qm_call_fail(const qm_call *c, qm_err *e, const char *fmt, ...)
{
    char text[sizeof e->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return qm_fail(e, QM_EFAIL, "%s: %s", c->op->name, text);
}

/* ---- shapes ------------------------------------------------------------------------------------------- */

static const char *next_word(const char *p, size_t *length)
{
    p += strspn(p, " ");
    *length = strcspn(p, " ");
    return *length ? p : NULL;
}

static int count_words(const char *spec)
{
    int n = 0;
    size_t length;
    for (const char *p = spec; (p = next_word(p, &length)); p += length)
        n++;
    return n;
}

/* Notes that a word stands for `value`, or checks that it does.  `shape` is that of the parameter, NULL where
 * it is a list. */
static bool bind_word(const qm_call *c, words *w, const char *word, size_t length, int64_t value,
                      const char *param, const qm_shape *shape, qm_err *e)
{
    for (int i = 0; i < w->n; i++)
        if (w->word[i].length == length && memcmp(w->word[i].text, word, length) == 0) {
            if (w->word[i].value == value)
                return true;
            char text[160] = "a list";
            if (shape)
                qm_shape_text(shape, text, sizeof text);
            return qm_call_fail(c, e, "%s is %s: its %.*s is %lld, that of %s is %lld", param, text,
                                (int)length, word, (long long)value, w->word[i].from,
                                (long long)w->word[i].value);
        }
    w->word[w->n].text = word;
    w->word[w->n].length = length;
    w->word[w->n].value = value;
    w->word[w->n].from = param;
    w->n++;
    return true;
}

static bool bind_lead(const qm_call *c, words *w, const qm_shape *lead, const char *param,
                      const qm_shape *shape, qm_err *e)
{
    if (!w->led) {
        w->led = true;
        w->lead = *lead;
        w->lead_from = param;
        return true;
    }
    bool same = w->lead.ndim == lead->ndim
                && memcmp(w->lead.dim, lead->dim, (size_t)lead->ndim * sizeof lead->dim[0]) == 0;
    if (same)
        return true;
    char text[160];
    qm_shape_text(shape, text, sizeof text);
    return qm_call_fail(c, e, "%s is %s, and its leading dimensions are not those of %s", param, text,
                        w->lead_from);
}

static bool match_shape(const qm_call *c, words *w, const qm_param *p, const qm_shape *s, qm_err *e)
{
    if (strcmp(p->shape, "*") == 0)
        return true;
    bool lead = strncmp(p->shape, "...", 3) == 0;
    int n = count_words(p->shape) - lead;
    if (lead ? s->ndim < n : s->ndim != n) {
        char text[160];
        qm_shape_text(s, text, sizeof text);
        return qm_call_fail(c, e, "%s must be [%s], and is %s", p->name, p->shape, text);
    }
    if (lead) {
        qm_shape front = {s->ndim - n, {0}};
        memcpy(front.dim, s->dim, (size_t)front.ndim * sizeof front.dim[0]);
        if (!bind_lead(c, w, &front, p->name, s, e))
            return false;
    }
    const char *word = p->shape + 3 * lead;
    size_t length;
    for (int i = s->ndim - n; (word = next_word(word, &length)); word += length, i++)
        if (!bind_word(c, w, word, length, s->dim[i], p->name, s, e))
            return false;
    return true;
}

static bool result_shape(qm_call *c, const words *w, qm_err *e)
{
    const char *spec = c->op->shape;
    if (spec[0] == '=') {
        for (int i = 0; i < qm_op_params(c->op); i++)
            if (strcmp(c->op->param[i].name, spec + 1) == 0)
                c->shape = c->arg[i].tensor->shape;
        return true;
    }
    c->shape = (qm_shape){0};
    size_t length;
    for (const char *word = spec; (word = next_word(word, &length)); word += length) {
        if (strncmp(word, "...", 3) == 0) {
            c->shape = w->lead;
            continue;
        }
        if (c->shape.ndim == QM_MAX_DIMS)
            return qm_call_fail(c, e, "the result would have more than %d dimensions", QM_MAX_DIMS);
        for (int i = 0; i < w->n; i++)
            if (w->word[i].length == length && memcmp(w->word[i].text, word, length) == 0)
                c->shape.dim[c->shape.ndim] = w->word[i].value;
        c->shape.ndim++;
    }
    return true;
}

/* ---- arguments ---------------------------------------------------------------------------------------- */

static bool check_number(const qm_call *c, const qm_param *p, qm_arg *a, qm_err *e)
{
    if (!a->given) {
        a->number = p->absent;
        return true;
    }
    double v = a->number;
    if (p->kind == QM_ARG_BOOL)
        return true;
    if (p->kind == QM_ARG_INT && !(v == floor(v) && fabs(v) <= 0x1p53))
        return qm_call_fail(c, e, "%s must be a whole number, not %g", p->name, v);
    if (!isfinite(v) || (p->least < p->most && !(v >= p->least && v <= p->most))) {
        if (p->least < p->most)
            return qm_call_fail(c, e, "%s must be from %g to %g, not %g", p->name, p->least, p->most, v);
        return qm_call_fail(c, e, "%s must be a finite number, not %g", p->name, v);
    }
    return true;
}

static bool check_weight(const qm_call *c, const qm_param *p, const qm_tensor *t, qm_err *e)
{
    if (t->format && (t->format->decode || qm_tensor_device(t)))
        return true;
    return qm_call_fail(c, e, "%s is a tensor of %s, which has no decoder here; give t:dequantize()", p->name,
                        t->format ? t->format->name : qm_dtypes[t->dtype].name);
}

static bool check_activation(const qm_call *c, const qm_param *p, const qm_tensor *t, qm_err *e)
{
    if (t->format && strcmp(t->format->name, "f32") == 0) {
        bool aligned = qm_tensor_device(t) || (uintptr_t)t->plane[0].data % sizeof(float) == 0;
        return aligned
               || qm_call_fail(c, e, "%s lies at an odd place of its file; give t:dequantize()", p->name);
    }
    return qm_call_fail(c, e, "%s must be f32, and is %s; give t:dequantize()", p->name,
                        t->format ? t->format->name : qm_dtypes[t->dtype].name);
}

static bool check_list(const qm_call *c, words *w, const qm_param *p, const qm_arg *a, qm_err *e)
{
    if (a->tensor)
        return check_weight(c, p, a->tensor, e) && match_shape(c, w, p, &a->tensor->shape, e);
    if (a->count == 0)
        return qm_call_fail(c, e, "%s is an empty list", p->name);
    for (int64_t i = 0; i < a->count; i++) {
        const qm_tensor *t = a->list[i];
        if (t->shape.ndim >= QM_MAX_DIMS)
            return qm_call_fail(c, e, "%s: tensor %lld has too many dimensions", p->name, (long long)i + 1);
        qm_shape stacked = {t->shape.ndim + 1, {a->count}};
        memcpy(stacked.dim + 1, t->shape.dim, (size_t)t->shape.ndim * sizeof stacked.dim[0]);
        if (!check_weight(c, p, t, e) || !match_shape(c, w, p, &stacked, e))
            return false;
    }
    return true;
}

static bool check_arg(const qm_call *c, words *w, const qm_param *p, qm_arg *a, qm_err *e)
{
    size_t length;
    if (!a->given && !p->optional)
        return qm_call_fail(c, e, "%s is missing: %s", p->name, p->doc);
    switch (p->kind) {
    case QM_ARG_TENSOR:
        return !a->given
               || (check_activation(c, p, a->tensor, e) && match_shape(c, w, p, &a->tensor->shape, e));
    case QM_ARG_WEIGHT:
        return !a->given || (check_weight(c, p, a->tensor, e) && match_shape(c, w, p, &a->tensor->shape, e));
    case QM_ARG_WEIGHTS:
        return !a->given || check_list(c, w, p, a, e);
    case QM_ARG_IDS: {
        const char *word = p->shape ? next_word(p->shape, &length) : NULL;
        for (int64_t i = 0; i < a->count; i++)
            if (a->ids[i] < 0)
                return qm_call_fail(c, e, "%s: number %lld is %d; ids count from 0", p->name,
                                    (long long)i + 1, a->ids[i]);
        return !a->given || !word || bind_word(c, w, word, length, a->count, p->name, NULL, e);
    }
    case QM_ARG_INT:
    case QM_ARG_FLOAT:
    case QM_ARG_BOOL:
        return check_number(c, p, a, e);
    case QM_ARG_STRING:
    case QM_ARG_CACHE:
        return true;
    }
    return true;
}

/* ---- devices ------------------------------------------------------------------------------------------- */

static bool same_device(const qm_call *c, const qm_tensor *t, const char *name, qm_device **device,
                        const char **first, qm_err *e)
{
    qm_device *d = qm_tensor_device(t);
    if (!*first) {
        *first = name;
        *device = d;
    }
    return d == *device
           || qm_call_fail(c, e, "%s is on %s, %s on %s; bring them together with t:to(...)", *first,
                           *device ? (*device)->name : "the CPU", name, d ? d->name : "the CPU");
}

static bool find_device(const qm_call *c, qm_device **device, qm_err *e)
{
    const char *first = NULL;
    *device = NULL;
    for (int i = 0; i < qm_op_params(c->op); i++) {
        const qm_arg *a = &c->arg[i];
        if (a->tensor && !same_device(c, a->tensor, c->op->param[i].name, device, &first, e))
            return false;
        for (int64_t j = 0; a->list && j < a->count; j++)
            if (!same_device(c, a->list[j], c->op->param[i].name, device, &first, e))
                return false;
    }
    return true;
}

/* ---- calling ------------------------------------------------------------------------------------------- */

static bool make_result(qm_call *c, qm_err *e)
{
    float *values;
    if (c->op->result == QM_RESULT_TENSOR)
        return (c->out = qm_tensor_f32(&c->shape, &values, e)) != NULL;
    if (!(c->out = qm_tensor_new(NULL, &c->shape, e)))
        return false;
    c->out->dtype = QM_I32;
    return qm_tensor_plane_new(c->out, 0, (uint64_t)qm_shape_count(&c->shape) * sizeof(int32_t), NULL, e)
           != NULL;
}

/* Everything but running. */
static bool check_call(qm_call *c, qm_device **device, qm_err *e)
{
    words w = {0};
    for (int i = 0; i < qm_op_params(c->op); i++)
        if (!check_arg(c, &w, &c->op->param[i], &c->arg[i], e))
            return false;
    if (!result_shape(c, &w, e) || (c->op->check && !c->op->check(c, e)) || !find_device(c, device, e))
        return false;
    return !*device || (*device)->op
           || qm_fail(e, QM_EUNSUPPORTED, "%s: %s cannot run ops; bring the tensors here first: t:to(qm.cpu)",
                      c->op->name, (*device)->name);
}

static bool run_calls(qm_call *c, int n, qm_device *const *device, qm_err *e)
{
    bool ok = true, here = c->op->run_all != NULL;
    for (int i = 0; i < n; i++)
        here = here && !device[i];
    for (int i = 0; ok && i < n; i++)
        ok = device[i] ? device[i]->op(device[i], &c[i], e)
                       : make_result(&c[i], e) && (here || c->op->run(&c[i], e));
    return ok && (!here || c->op->run_all(c, n, e));
}

bool qm_op_calls(qm_call *c, int n, qm_err *e)
{
    qm_device *device[QM_MAX_CALLS];
    if (n > QM_MAX_CALLS)
        return qm_call_fail(c, e, "%d calls at once; %d at most", n, QM_MAX_CALLS);
    for (int i = 0; i < n; i++)
        if (!check_call(&c[i], &device[i], e))
            return false;
    if (n == 0 || run_calls(c, n, device, e))
        return true;
    for (int i = 0; i < n; i++) {
        qm_tensor_free(c[i].out);
        c[i].out = NULL;
    }
    return false;
}

bool qm_op_call(qm_call *c, qm_err *e) { return qm_op_calls(c, 1, e); }

typedef struct slices {
    int64_t n, step;
    bool (*work)(void *, int64_t, int64_t, int, qm_err *);
    void *arg;
} slices;

static bool slice_work(void *arg, int64_t index, int thread, qm_err *e)
{
    const slices *s = arg;
    int64_t from = index * s->step, to = from + s->step < s->n ? from + s->step : s->n;
    return s->work(s->arg, from, to, thread, e);
}

bool qm_call_rows(qm_call *c, int64_t n, int64_t step,
                  bool (*work)(void *arg, int64_t from, int64_t to, int thread, qm_err *e), void *arg,
                  qm_err *e)
{
    if (n <= step)
        return n <= 0 || work(arg, 0, n, 0, e);
    slices s = {n, step, work, arg};
    return qm_pool_run(c->pool, (n + step - 1) / step, slice_work, NULL, &s, e);
}
