/* bind_stream.c: a Lua table becomes a qm_job.
 *
 * The job points at tensors, files and strings of that table, and while it runs a progress function may do
 * what it likes. So the table is copied first; the copy, out of everybody's reach, keeps all of it alive, and
 * what can be closed is held.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/double_quant.h"
#include "../core/pool.h"
#include "../core/random.h"
#include "../core/stream.h"
#include "bind.h"
#include "couriers.h"

enum { MAX_STEPS = 64 };

enum { JOB_DEPTH = 6 }; /* jobs[1].steps[1].row[1] needs 5 */

/* Puts a copy, tables within tables included, in the place of the table on top of the stack.  Raw: what a
 * metatable would add is not in it. */
static void copy_table(lua_State *L, int depth)
{
    int from = lua_gettop(L), to = from + 1;
    if (depth == 0)
        luaL_error(L, "a job's tables are nested too deeply");
    luaL_checkstack(L, 8, "a job");
    lua_newtable(L);
    for (lua_pushnil(L); lua_next(L, from);) {
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        if (lua_istable(L, -1))
            copy_table(L, depth - 1);
        lua_rawset(L, to);
    }
    lua_replace(L, from);
}

/* Runs `body` on (argument 1, a copy of the job in argument `job`, argument 3) with all that it uses held. */
int qml_with_job(lua_State *L, int job, lua_CFunction body)
{
    luaL_checktype(L, job, LUA_TTABLE);
    lua_settop(L, 3);
    lua_pushvalue(L, job);
    copy_table(L, JOB_DEPTH);
    lua_replace(L, job);
    lua_pushcfunction(L, body);
    for (int i = 1; i <= 3; i++)
        lua_pushvalue(L, i);
    luaL_checkstack(L, 8 * JOB_DEPTH, "a job");
    qml_hold(L, 1, 1);
    if (job != 1)
        qml_hold(L, job, 1);
    int failed = lua_pcall(L, 3, 1, 0);
    qml_hold(L, 1, -1);
    if (job != 1)
        qml_hold(L, job, -1);
    return failed ? lua_error(L) : 1;
}

static qm_pool *idle_pool(lua_State *L, int arg)
{
    qml_check_idle(L, arg, QML_POOL);
    return qml_check(L, arg, QML_POOL);
}

typedef struct job_box {
    qm_job job;
    qm_step step[MAX_STEPS];
    qm_sink sink[QM_MAX_SINKS];
    qm_against against;
    qml_progress progress;
} job_box;

static const qm_format *field_format(lua_State *L, int table)
{
    lua_getfield(L, table, "format");
    const qm_format *f = qml_check_format(L, lua_gettop(L));
    lua_pop(L, 1);
    return f;
}

static void read_codec(lua_State *L, int table, qm_codec *c, const qm_format *f, int64_t cols,
                       const char *what)
{
    qm_err e = {0};
    if (!qm_codec_init(c, f, cols, qml_field_block(L, table), what, &e))
        qml_raise(L, &e);
    c->factor = (float)qml_field_number(L, table, "factor", 0);
    if (!f->encode || !f->decode || (f->tensor_range != 0 && c->factor == 0)) {
        qm_fail(&e, QM_EUNSUPPORTED, "%s: %s cannot be streamed: %s", what, f->name,
                f->tensor_range != 0 ? "it depends on the whole tensor"
                                     : "only the functions it was made with can code it");
        qml_raise(L, &e);
    }
    c->exact_zero = qml_field_boolean(L, table, "exact_zero", false);
    c->nearest = qml_field_boolean(L, table, "nearest", false);
}

/* at = list of offsets, one per plane. */
static void read_offsets(lua_State *L, int table, uint64_t at[QM_MAX_PLANES], int planes)
{
    lua_getfield(L, table, "at");
    luaL_checktype(L, -1, LUA_TTABLE);
    for (int i = 0; i < planes; i++) {
        lua_rawgeti(L, -1, i + 1);
        if (!lua_isnumber(L, -1))
            luaL_error(L, "field 'at' must have %d offsets, one for each plane", planes);
        at[i] = qml_check_size(L, lua_gettop(L), "offset");
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

/* a * b, or -1 when that cannot be a number of values. */
static int64_t product(int64_t a, int64_t b)
{
    int64_t n;
    return __builtin_mul_overflow(a, b, &n) || n > QM_MAX_VALUES ? -1 : n;
}

static void read_source(lua_State *L, int table, qm_source *s)
{
    s->file = qml_field_box(L, table, "file", QML_INFILE);
    s->name = qml_field_string(L, table, "name", "tensor");
    s->format = field_format(L, table);
    s->rows = (int64_t)qml_field_size(L, table, "rows", 1);
    s->cols = (int64_t)qml_field_size(L, table, "cols", 0);
    if (!s->file)
        luaL_error(L, "source of '%s' has no file", s->name);
    if (product(s->rows, s->cols) < 0)
        luaL_error(L, "source of '%s': %f x %f values cannot be counted", s->name, (double)s->rows,
                   (double)s->cols);
    read_codec(L, table, &s->codec, s->format, s->cols, s->name);
    read_offsets(L, table, s->at, qm_format_planes(s->format));
    s->double_quant = qml_field_boolean(L, table, "double_quant", false);
    s->nested_at = qml_field_size(L, table, "nested_at", 0);
    s->offset = (float)qml_field_number(L, table, "offset", 0);
    s->round = qml_field_round(L, table, "round");
    qml_field_files(L, table, qm_format_planes(s->format), s->file, s->plane_file, &s->nested_file);
    qml_field_strided(L, table, s->file, s->at[0], s->format->plane[0].bits, &s->strided);
    if (s->strided.shape.ndim
        && (s->format->block != 1 || qm_shape_count(&s->strided.shape) != s->rows * s->cols))
        luaL_error(L, "source of '%s': strides go with plain elements, all of them", s->name);
    s->interleaved_heads = (int64_t)qml_field_size(L, table, "interleaved_heads", 0);
    if (s->interleaved_heads && s->rows % (2 * s->interleaved_heads) != 0)
        luaL_error(L, "source of '%s': rows do not make %f heads of two halves", s->name,
                   (double)s->interleaved_heads);
    if (s->double_quant && !qm_can_double_quant(s->format))
        luaL_error(L, "source of '%s': format %s is never double quantised", s->name, s->format->name);
}

/* Values of an f32 tensor field, which must hold `n` of them. */
static const float *field_floats(lua_State *L, int table, const char *field, int64_t n)
{
    const qm_tensor *t = qml_field_box(L, table, field, QML_TENSOR);
    if (n < 0)
        luaL_error(L, "step: field '%s' would have more values than can be counted", field);
    if (!t || t->dtype != QM_F32 || !t->format || qm_tensor_count(t) != n || qm_tensor_device(t))
        luaL_error(L, "step: field '%s' must be an f32 tensor of %f values in memory", field, (double)n);
    return (const float *)(const void *)t->plane[0].data;
}

static void read_step(lua_State *L, int table, qm_step *s, const qm_source *src)
{
    const char *kind = qml_field_string(L, table, "kind", "?");
    s->scale = (float)qml_field_number(L, table, "scale", 1);
    s->round_after = qml_field_round(L, table, "round_after");
    if (strcmp(kind, "low_rank") == 0) {
        s->kind = QM_STEP_LOW_RANK;
        s->rank = qml_field_size(L, table, "rank", 0);
        s->left = field_floats(L, table, "left", product(src->rows, (int64_t)s->rank));
        s->right = field_floats(L, table, "right", product((int64_t)s->rank, src->cols));
        s->round_delta = qml_field_round(L, table, "round_delta");
    } else if (strcmp(kind, "dora") == 0) {
        s->kind = QM_STEP_DORA;
        s->by_column = qml_field_boolean(L, table, "by_column", false);
        int64_t n = s->by_column ? src->cols : src->rows;
        s->magnitude = field_floats(L, table, "magnitude", n);
        if (s->by_column)
            s->norm = field_floats(L, table, "norm", n);
    } else if (strcmp(kind, "add") == 0) {
        s->kind = QM_STEP_ADD;
        s->values = field_floats(L, table, "values", src->rows * src->cols);
    } else if (strcmp(kind, "rows") == 0) {
        s->kind = QM_STEP_ROWS;
        lua_getfield(L, table, "row");
        luaL_checktype(L, -1, LUA_TTABLE);
        s->nrow = lua_objlen(L, -1);
        int64_t *row = lua_newuserdata(L, s->nrow * sizeof *row + 1);
        lua_setfield(L, table, "row_numbers"); /* where it is kept */
        for (size_t i = 0; i < s->nrow; i++) {
            lua_rawgeti(L, -1, (int)i + 1);
            double number = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : -1;
            if (!(number >= 0 && number < (double)src->rows) || number != floor(number))
                luaL_error(L, "step: row %f is none of the %f there are, from 0 on", number,
                           (double)src->rows);
            row[i] = (int64_t)number;
            lua_pop(L, 1);
        }
        lua_pop(L, 1);
        s->row = row;
        s->values = field_floats(L, table, "values", product((int64_t)s->nrow, src->cols));
    } else {
        luaL_error(L, "step of unknown kind '%s'", kind);
    }
}

/* importance = f32 tensor: cols values, or as many for each of several matrices of equally many rows. */
static void read_importance(lua_State *L, int table, qm_sink *k, const qm_source *src)
{
    const qm_tensor *t = qml_field_box(L, table, "importance", QML_TENSOR);
    if (!t)
        return;
    int64_t n = qm_tensor_count(t), matrices = src->cols > 0 ? n / src->cols : 0;
    if (matrices < 1 || n % src->cols != 0 || src->rows % matrices != 0)
        luaL_error(L, "sink of '%s': %f importances do not fit rows of %f", src->name, (double)n,
                   (double)src->cols);
    k->importance = field_floats(L, table, "importance", n);
    k->importance_rows = src->rows / matrices;
}

static void read_sink(lua_State *L, int table, qm_sink *k, const qm_source *src)
{
    k->format = field_format(L, table);
    k->file = qml_field_box(L, table, "file", QML_OUTFILE);
    read_codec(L, table, &k->codec, k->format, src->cols, src->name);
    k->double_quant = qml_field_boolean(L, table, "double_quant", false);
    double offset = qml_field_number(L, table, "offset", NAN);
    k->offset_given = !isnan(offset);
    k->offset = (float)offset;
    if (k->file) /* a plan has none yet */
        read_offsets(L, table, k->at, qm_format_planes(k->format));
    k->nested_at = qml_field_size(L, table, "nested_at", 0);
    read_importance(L, table, k, src);
    k->add = (float)qml_field_number(L, table, "add", 0);
    k->round_added = qml_field_round(L, table, "round_added");
    k->interleave_heads = (int64_t)qml_field_size(L, table, "interleave_heads", 0);
    if (k->interleave_heads && (src->rows % (2 * k->interleave_heads) != 0 || k->format->over_rows))
        luaL_error(L, "sink of '%s': rows do not make %f heads of two halves", src->name,
                   (double)k->interleave_heads);
    if (k->double_quant && !qm_can_double_quant(k->format))
        luaL_error(L, "sink of '%s': format %s is never double quantised", src->name, k->format->name);
}

/* Calls read(L, index of element, i) for the list in a field; returns how many. */
static int read_list(lua_State *L, int table, const char *field, int most, job_box *b,
                     void (*read)(lua_State *, int, job_box *, int))
{
    lua_getfield(L, table, field);
    if (!lua_isnil(L, -1) && !lua_istable(L, -1))
        luaL_error(L, "field '%s' must be a list, got %s", field, luaL_typename(L, -1));
    size_t given = lua_istable(L, -1) ? lua_objlen(L, -1) : 0;
    if (given > (size_t)most)
        luaL_error(L, "%s: %f of them; %d at most", field, (double)given, most);
    int n = (int)given;
    for (int i = 0; i < n; i++) {
        lua_rawgeti(L, -1, i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        read(L, lua_gettop(L), b, i);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return n;
}

/* against = a source, with add and slack. */
static void read_against(lua_State *L, int table, job_box *b)
{
    lua_getfield(L, table, "against");
    if (!lua_isnil(L, -1)) {
        int t = lua_gettop(L);
        luaL_checktype(L, t, LUA_TTABLE);
        const qm_source *s = &b->job.source, *o = &b->against.source;
        read_source(L, t, &b->against.source);
        if (o->rows != s->rows || o->cols != s->cols)
            luaL_error(L, "'%s' is [%f x %f], what it is held against [%f x %f]", o->name, (double)o->rows,
                       (double)o->cols, (double)s->rows, (double)s->cols);
        b->against.add = (float)qml_field_number(L, t, "add", 0);
        b->against.slack = qml_field_number(L, t, "slack", 1);
        b->job.against = &b->against;
    }
    lua_pop(L, 1);
}

static void step_i(lua_State *L, int t, job_box *b, int i) { read_step(L, t, &b->step[i], &b->job.source); }
static void sink_i(lua_State *L, int t, job_box *b, int i) { read_sink(L, t, &b->sink[i], &b->job.source); }

static void read_job(lua_State *L, int table, job_box *b)
{
    luaL_checktype(L, table, LUA_TTABLE);
    memset(b, 0, sizeof *b);
    lua_getfield(L, table, "source");
    luaL_checktype(L, -1, LUA_TTABLE);
    read_source(L, lua_gettop(L), &b->job.source);
    lua_pop(L, 1);
    read_against(L, table, b);
    b->job.round = qml_field_round(L, table, "round");
    b->job.keep_nonfinite = qml_field_boolean(L, table, "keep_nonfinite", false);
    b->job.want_errors = qml_field_boolean(L, table, "errors", true);
    b->job.nstep = read_list(L, table, "steps", MAX_STEPS, b, step_i);
    b->job.nsink = read_list(L, table, "sinks", QM_MAX_SINKS, b, sink_i);
    b->job.step = b->step;
    b->job.sink = b->sink;
}

void qml_progress_call(void *arg, uint64_t bytes)
{
    qml_progress *p = arg;
    if (p->failed || !p->function)
        return;
    lua_pushvalue(p->L, p->function);
    lua_pushnumber(p->L, (double)bytes);
    p->failed = lua_pcall(p->L, 1, 0, 0) != 0;
    if (p->failed)
        qm_interrupt_request(); /* stop the workers; the error is raised once they have */
}

static void push_against(lua_State *L, const qm_against *a)
{
    lua_createtable(L, 0, 3);
    qml_push_errsum(L, &a->error);
    lua_setfield(L, -2, "error");
    lua_pushnumber(L, (double)a->beyond);
    lua_setfield(L, -2, "beyond");
    lua_pushnumber(L, (double)a->nonfinite);
    lua_setfield(L, -2, "nonfinite");
}

static void push_results(lua_State *L, const job_box *b)
{
    lua_createtable(L, 0, 4);
    if (b->job.against) {
        push_against(L, b->job.against);
        lua_setfield(L, -2, "against");
    }
    lua_pushnumber(L, b->job.sum_ww);
    lua_setfield(L, -2, "ww");
    lua_pushnumber(L, b->job.sum_dd);
    lua_setfield(L, -2, "dd");
    lua_createtable(L, b->job.nsink, 0);
    for (int i = 0; i < b->job.nsink; i++) {
        const qm_sink *k = &b->sink[i];
        lua_createtable(L, 0, 3);
        qml_push_errsum(L, &k->error);
        lua_setfield(L, -2, "error");
        lua_pushnumber(L, (double)k->offset);
        lua_setfield(L, -2, "offset");
        lua_pushnumber(L, (double)k->zero_groups);
        lua_setfield(L, -2, "zero_groups");
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "sinks");
}

/* The job in a table, anchored on the stack; its sinks must have files unless nothing is to be written. */
static job_box *read_whole_job(lua_State *L, int table)
{
    job_box *b = lua_newuserdata(L, sizeof *b);
    read_job(L, table, b);
    bool measure = qml_field_boolean(L, table, "measure", false);
    for (int i = 0; i < b->job.nsink; i++)
        if (!b->sink[i].file && !measure)
            luaL_error(L, "sink %d has no file", i + 1);
    return b;
}

void qml_progress_read(lua_State *L, int table, qml_progress *p)
{
    lua_getfield(L, table, "progress");
    *p = (qml_progress){.L = L};
    if (!lua_isnil(L, -1)) {
        luaL_checktype(L, -1, LUA_TFUNCTION);
        p->function = lua_gettop(L);
    }
}

void qml_progress_check(lua_State *L, const qml_progress *p, bool ok, const qm_err *e)
{
    if (p->failed) { /* on top: the error of the progress function */
        qm_interrupt_clear();
        lua_error(L);
    }
    if (!ok)
        qml_raise(L, e);
}

static void read_progress(lua_State *L, int table, job_box *b)
{
    qml_progress_read(L, table, &b->progress);
    b->job.progress = qml_progress_call;
    b->job.progress_arg = &b->progress;
}

static int run_stream(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    job_box *b = read_whole_job(L, 2);
    qm_err e = {0};
    read_progress(L, 2, b);
    qml_progress_check(L, &b->progress, qm_stream(pool, &b->job, &e), &e);
    push_results(L, b);
    return 1;
}

/* stream(pool, job) -> {ww, dd, sinks = {{error, offset, zero_groups}, …}}.  See core/stream.h for what a
 * job is; field names are the same.  Sinks need no file when job.measure is set.  With job.against there is
 * against = {error, beyond, nonfinite}, too. */
static int stream(lua_State *L)
{
    idle_pool(L, 1);
    return qml_with_job(L, 2, run_stream);
}

enum { MOST_JOBS = 4096 };

static int run_streams(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    const qml_couriers *couriers = qml_field_box(L, 2, "couriers", QML_COURIERS);
    size_t n = lua_objlen(L, 2);
    if (couriers && couriers->n < qm_pool_threads(pool))
        return luaL_error(L, "%d couriers for %d threads", couriers->n, qm_pool_threads(pool));
    if (n > MOST_JOBS)
        return luaL_error(L, "%f jobs at once; %d at most", (double)n, MOST_JOBS);
    job_box **box = lua_newuserdata(L, (n + 1) * sizeof(job_box *));
    qm_job **job = lua_newuserdata(L, (n + 1) * sizeof(qm_job *));
    lua_createtable(L, (int)n, 0); /* keeps them */
    int kept = lua_gettop(L);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        box[i] = read_whole_job(L, lua_gettop(L));
        job[i] = &box[i]->job;
        lua_rawseti(L, kept, (int)i + 1);
        lua_pop(L, 1);
    }
    qm_err e = {0};
    lua_createtable(L, (int)n, 0);
    if (n == 0)
        return 1;
    int results = lua_gettop(L);
    read_progress(L, 2, box[0]);
    qml_progress_check(L, &box[0]->progress,
                       qm_streams(pool, couriers ? couriers->courier : NULL, job, (int)n, &e), &e);
    for (size_t i = 0; i < n; i++) {
        push_results(L, box[i]);
        lua_rawseti(L, results, (int)i + 1);
    }
    lua_settop(L, results);
    return 1;
}

/* streams(pool, {job, …, couriers=, progress=}) -> list of what stream() gives; couriers: of GPUs
 * (couriers()), at least as many as the pool has threads. */
static int streams(lua_State *L)
{
    idle_pool(L, 1);
    return qml_with_job(L, 2, run_streams);
}

static int run_courier_memory(lua_State *L)
{
    job_box *b = lua_newuserdata(L, sizeof *b);
    uint64_t pinned, there;
    read_job(L, 1, b);
    there = qm_stream_courier_memory(&b->job, qml_check(L, 2, QML_DEVICE), &pinned);
    lua_createtable(L, 2, 0);
    lua_pushnumber(L, (double)there);
    lua_rawseti(L, -2, 1);
    lua_pushnumber(L, (double)pinned);
    lua_rawseti(L, -2, 2);
    return 1;
}

/* courier_memory(job, device) -> {bytes of the device's memory, bytes of this machine's} that a courier takes
 * for it; 0 when it does not go there. */
static int courier_memory(lua_State *L)
{
    qml_check(L, 2, QML_DEVICE);
    return qml_with_job(L, 1, run_courier_memory);
}

static int check_threads(lua_State *L, int arg)
{
    double threads = luaL_optnumber(L, arg, 1);
    if (!(threads >= 1 && threads <= 1024))
        luaL_argerror(L, arg, "threads must be from 1 to 1024");
    return (int)threads;
}

static int measure_stream(lua_State *L)
{
    int threads = check_threads(L, 2);
    job_box *b = lua_newuserdata(L, sizeof *b);
    read_job(L, 1, b);
    lua_pushnumber(L, (double)qm_stream_memory(&b->job, threads));
    return 1;
}

/* stream_memory(job, threads) -> bytes that stream() will take for it.  Needs no open files in the sinks. */
static int stream_memory(lua_State *L) { return qml_with_job(L, 1, measure_stream); }

static int run_column_norms(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    job_box *b = lua_newuserdata(L, sizeof *b);
    read_job(L, 2, b);
    int nstep = luaL_checkint(L, 3);
    if (nstep < 0 || nstep > b->job.nstep)
        return luaL_argerror(L, 3, "more steps than the job has");
    qm_shape shape = {1, {b->job.source.cols}};
    void **box = qml_box(L, QML_TENSOR);
    qm_err e = {0};
    float *norm;
    *box = qm_tensor_f32(&shape, &norm, &e);
    if (!*box || !qm_stream_column_norms(pool, &b->job, nstep, norm, &e))
        return qml_raise(L, &e);
    return 1;
}

/* column_norms(pool, job, nstep) -> f32 tensor [cols]. */
static int column_norms(lua_State *L)
{
    idle_pool(L, 1);
    return qml_with_job(L, 2, run_column_norms);
}

static int run_values(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    job_box *b = lua_newuserdata(L, sizeof *b);
    read_job(L, 2, b);
    qm_shape shape = {2, {b->job.source.rows, b->job.source.cols}};
    void **box = qml_box(L, QML_TENSOR);
    qm_err e = {0};
    float *values, most;
    *box = qm_tensor_f32(&shape, &values, &e);
    if (!*box || !qm_stream_values(pool, &b->job, values, &most, &e))
        return qml_raise(L, &e);
    return 1;
}

/* stream_values(pool, job) -> f32 tensor [rows, cols] of what the job's sinks would be given. */
static int stream_values(lua_State *L)
{
    idle_pool(L, 1);
    return qml_with_job(L, 2, run_values);
}

static int run_factor(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    const qm_format *f = qml_check_format(L, 3);
    job_box *b = lua_newuserdata(L, sizeof *b);
    read_job(L, 2, b);
    qm_err e = {0};
    float most;
    if (!qm_stream_values(pool, &b->job, NULL, &most, &e))
        return qml_raise(L, &e);
    float factor = qm_format_factor(f, most);
    lua_pushnumber(L, factor == 0 ? 1 : (double)factor);
    return 1;
}

/* stream_factor(pool, job, format) -> the factor for those values of a format with one for the whole tensor. */
static int stream_factor(lua_State *L)
{
    idle_pool(L, 1);
    return qml_with_job(L, 2, run_factor);
}

/* ---- pool -------------------------------------------------------------------------------------------- */

static int pool(lua_State *L)
{
    int threads = check_threads(L, 1);
    void **box = qml_box(L, QML_POOL);
    qm_err e = {0};
    *box = qm_pool_new(threads, &e);
    return *box ? 1 : qml_raise(L, &e);
}

static int pool_threads(lua_State *L)
{
    lua_pushinteger(L, qm_pool_threads(qml_check(L, 1, QML_POOL)));
    return 1;
}

static int pool_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_POOL);
    qm_pool_free(*box);
    *box = NULL;
    return 0;
}

static int pool_close(lua_State *L)
{
    qml_check_idle(L, 1, QML_POOL);
    return pool_gc(L);
}

/* ---- synthetic checkpoints ------------------------------------------------------------------- */

typedef struct fill {
    const qm_outfile *file;
    uint64_t at, n, seed;
    float std;
} fill;

enum { FILL_CHUNK = 64 * 1024 };

static bool fill_work(void *arg, int64_t index, int thread, qm_err *e)
{
    const fill *f = arg;
    uint16_t buffer[FILL_CHUNK];
    uint64_t first = (uint64_t)index * FILL_CHUNK, n = f->n - first < FILL_CHUNK ? f->n - first : FILL_CHUNK;
    (void)thread;
    qm_random_fill_bf16(buffer, n, f->seed, first, f->std);
    return qm_outfile_write(f->file, f->at + 2 * first, buffer, 2 * n, e);
}

/* fill_bf16(pool, outfile, at, count, seed, std): random weights straight into a file. */
static int fill_bf16(lua_State *L)
{
    qm_pool *p = idle_pool(L, 1);
    fill f = {.file = qml_check(L, 2, QML_OUTFILE),
              .at = qml_check_size(L, 3, "offset"),
              .n = qml_check_size(L, 4, "count"),
              .seed = qml_check_size(L, 5, "seed"),
              .std = (float)luaL_checknumber(L, 6)};
    qm_err e = {0};
    if (!qm_pool_run(p, (int64_t)((f.n + FILL_CHUNK - 1) / FILL_CHUNK), fill_work, NULL, &f, &e))
        return qml_raise(L, &e);
    return 0;
}

void qml_open_stream(lua_State *L)
{
    static const luaL_Reg methods[] = {{"threads", pool_threads}, {"close", pool_close}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"pool", pool},
                                         {"stream", stream},
                                         {"stream_memory", stream_memory},
                                         {"streams", streams},
                                         {"courier_memory", courier_memory},
                                         {"column_norms", column_norms},
                                         {"stream_values", stream_values},
                                         {"stream_factor", stream_factor},
                                         {"fill_bf16", fill_bf16},
                                         {NULL, NULL}};
    qml_class(L, QML_POOL, methods, pool_gc);
    qml_functions(L, functions);
}
