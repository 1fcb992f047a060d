/* bind_ops.c: all ops of core/ops as functions, by one closure each, and the cache of keys and values.
 *
 * A call gives an op's parameters in the order of its descriptor; those that are named there are fields of
 * one table, which stands where the first of them does and may be left out at the end if all of them are
 * optional.
 */
#include <malloc.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/bandwidth.h"
#include "../core/cpu.h"
#include "../core/op.h"
#include "../core/pack.h"
#include "bind.h"

/* ---- the pool -------------------------------------------------------------------------------- */

static char pool_key; /* its address is the registry's key of the ops' pool */

/* Activations of a long prompt are made and dropped by the hundred, some of many megabytes.  Left to itself
 * malloc gives their memory back to the system every time, and getting it again takes longer than computing
 * what is in it. */
static void keep_memory(void)
{
#ifdef M_TRIM_THRESHOLD
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
#endif
}

static void make_pool(lua_State *L, int threads)
{
    keep_memory();
    qm_err e = {0};
    lua_pushlightuserdata(L, &pool_key);
    void **box = qml_box(L, QML_POOL);
    *box = qm_pool_new(threads, &e);
    if (*box)
        qm_pool_be_eager(*box);
    else
        qml_raise(L, &e);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

static qm_pool *ops_pool(lua_State *L)
{
    lua_pushlightuserdata(L, &pool_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    const qml_userdata *box = lua_touserdata(L, -1);
    lua_pop(L, 1);
    if (box && box->object)
        return box->object;
    make_pool(L, qm_cpu_count());
    return ops_pool(L);
}

/* ops_threads([n]) -> how many threads ops use, after setting it to n. */
static int ops_threads(lua_State *L)
{
    if (!lua_isnoneornil(L, 1)) {
        uint64_t n = qml_check_size(L, 1, "threads");
        if (n < 1 || n > 1024)
            return luaL_argerror(L, 1, "must be from 1 to 1024");
        make_pool(L, (int)n);
    }
    lua_pushinteger(L, qm_pool_threads(ops_pool(L)));
    return 1;
}

/* ---- arguments ------------------------------------------------------------------------------- */

static int wrong_type(lua_State *L, const qm_op *op, const qm_param *p, const char *want)
{
    return luaL_error(L, "%s: %s must be %s, got %s", op->name, p->name, want, luaL_typename(L, -1));
}

/* The tensor on top of the stack. */
static const qm_tensor *to_tensor(lua_State *L, const qm_op *op, const qm_param *p, const char *want)
{
    void **box = luaL_testudata(L, -1, QML_TENSOR);
    if (!box)
        wrong_type(L, op, p, want);
    else if (!*box)
        luaL_error(L, "%s: %s is a tensor that was closed", op->name, p->name);
    return box ? *box : NULL;
}

/* The list of tensors on top of the stack, as an array that is left below it. */
static void to_list(lua_State *L, const qm_op *op, const qm_param *p, qm_arg *a)
{
    a->count = (int64_t)lua_objlen(L, -1);
    const qm_tensor **list = lua_newuserdata(L, (size_t)a->count * sizeof(void *) + 1);
    lua_insert(L, -2);
    for (int64_t i = 0; i < a->count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        list[i] = to_tensor(L, op, p, "a list of tensors");
        lua_pop(L, 1);
    }
    a->list = list;
}

static void to_ids(lua_State *L, const qm_op *op, const qm_param *p, qm_arg *a)
{
    void **box = luaL_testudata(L, -1, QML_TENSOR);
    if (box) {
        const qm_tensor *t = to_tensor(L, op, p, "");
        if (t->dtype != QM_I32 || t->format || qm_tensor_device(t)
            || (uintptr_t)t->plane[0].data % sizeof(int32_t))
            wrong_type(L, op, p, "a list of ids or an i32 tensor");
        a->ids = (const int32_t *)(const void *)t->plane[0].data;
        a->count = qm_tensor_count(t);
        return;
    }
    if (!lua_istable(L, -1))
        wrong_type(L, op, p, "a list of ids or an i32 tensor");
    a->count = (int64_t)lua_objlen(L, -1);
    int32_t *ids = lua_newuserdata(L, (size_t)a->count * sizeof *ids + 1);
    lua_insert(L, -2);
    for (int64_t i = 0; i < a->count; i++) {
        lua_rawgeti(L, -1, (int)i + 1);
        double v = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
        if (!(v >= 0 && v <= INT32_MAX && v == floor(v)))
            luaL_error(L, "%s: number %d of %s is no id; ids are whole numbers from 0", op->name, (int)i + 1,
                       p->name);
        ids[i] = (int32_t)v;
        lua_pop(L, 1);
    }
    a->ids = ids;
}

static void to_choice(lua_State *L, const qm_op *op, const qm_param *p, qm_arg *a)
{
    if (lua_type(L, -1) != LUA_TSTRING)
        wrong_type(L, op, p, lua_pushfstring(L, "one of: %s", p->choices));
    size_t n, length;
    const char *text = lua_tolstring(L, -1, &n);
    for (const char *word = p->choices; *word; word += length + (word[length] == ' '), a->choice++) {
        length = strcspn(word, " ");
        if (length == n && memcmp(word, text, n) == 0)
            return;
    }
    luaL_error(L, "%s: %s must be one of: %s; got '%s'", op->name, p->name, p->choices, text);
}

/* The argument on top of the stack; what it needs in memory stays below it. */
static void to_arg(lua_State *L, const qm_op *op, const qm_param *p, qm_arg *a)
{
    if (lua_isnil(L, -1))
        return;
    a->given = true;
    switch (p->kind) {
    case QM_ARG_TENSOR:
    case QM_ARG_WEIGHT:
        a->tensor = to_tensor(L, op, p, "a tensor");
        break;
    case QM_ARG_WEIGHTS:
        if (lua_istable(L, -1))
            to_list(L, op, p, a);
        else
            a->tensor = to_tensor(L, op, p, "a list of tensors, or one that is a stack of them");
        break;
    case QM_ARG_INT:
    case QM_ARG_FLOAT:
        if (lua_type(L, -1) != LUA_TNUMBER)
            wrong_type(L, op, p, "a number");
        a->number = lua_tonumber(L, -1);
        break;
    case QM_ARG_BOOL:
        if (!lua_isboolean(L, -1))
            wrong_type(L, op, p, "true or false");
        a->number = lua_toboolean(L, -1);
        break;
    case QM_ARG_STRING:
        to_choice(L, op, p, a);
        break;
    case QM_ARG_IDS:
        to_ids(L, op, p, a);
        break;
    case QM_ARG_CACHE: {
        void **box = luaL_testudata(L, -1, QML_CACHE);
        if (!box)
            wrong_type(L, op, p, "a cache; qm.kv_cache makes one");
        else if (!*box)
            luaL_error(L, "%s: %s was closed", op->name, p->name);
        a->cache = box ? *box : NULL;
        break;
    }
    }
}

static void check_option_names(lua_State *L, const qm_op *op, int table)
{
    for (lua_pushnil(L); lua_next(L, table); lua_pop(L, 1)) {
        bool known = false;
        for (int i = 0; i < qm_op_params(op); i++)
            known = known
                    || (op->param[i].named && lua_type(L, -2) == LUA_TSTRING
                        && strcmp(op->param[i].name, lua_tostring(L, -2)) == 0);
        if (!known)
            luaL_error(L, "%s: there is no option '%s'; help: qm.ops.help \"%s\"", op->name,
                       lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : luaL_typename(L, -2), op->name);
    }
}

static void read_args(lua_State *L, const qm_op *op, qm_call *c)
{
    int given = lua_gettop(L), next = 1, table = 0, n = qm_op_params(op);
    while (given > 0 && lua_isnil(L, given))
        given--;
    luaL_checkstack(L, 4 * QM_MAX_PARAMS, "too many arguments");
    for (int i = 0; i < n; i++) {
        const qm_param *p = &op->param[i];
        if (p->named && !table) {
            table = next++;
            if (table <= given && !lua_isnil(L, table)) {
                if (!lua_istable(L, table))
                    luaL_error(L, "%s: argument %d must be a table of options, got %s", op->name, table,
                               luaL_typename(L, table));
                check_option_names(L, op, table);
            }
        }
        int at = p->named ? table : next++;
        if (at > given || lua_isnil(L, at)) {
            lua_pushnil(L);
        } else if (p->named) {
            lua_pushstring(L, p->name);
            lua_rawget(L, table);
        } else {
            lua_pushvalue(L, at);
        }
        to_arg(L, op, p, &c->arg[i]); /* the stack keeps what it refers to */
    }
    if (given >= next)
        luaL_error(L, "%s takes %d arguments, got %d", op->name, next - 1, given);
}

/* ---- calling
 * ------------------------------------------------------------------------------------------------ */

static char made_key; /* the registry's key of the list of what ops made in a tidy(), if one runs */

/* The list, or nil, on top of the stack. */
static bool push_made(lua_State *L)
{
    lua_pushlightuserdata(L, &made_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    return !lua_isnil(L, -1);
}

/* Puts what is on top of the stack in its place. */
static void set_made(lua_State *L)
{
    lua_pushlightuserdata(L, &made_key);
    lua_insert(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

/* Remembers the tensor on top of the stack. */
static void remember_made(lua_State *L)
{
    if (push_made(L)) {
        lua_pushvalue(L, -2);
        lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
    }
    lua_pop(L, 1);
}

/* The tensor on top of the stack is what it was; its memory is given back. */
static void close_made(lua_State *L)
{
    qml_userdata *box = lua_touserdata(L, -1);
    if (box->held > 0)
        return;
    qm_tensor_free(box->object);
    box->object = NULL;
    qml_uncount_bytes(L, -1);
}

/* tidy(f, …) -> what f returns, after closing every other tensor that ops made meanwhile: activations are
 * large, and the collector would find them late. */
static int tidy(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    int n = lua_gettop(L);
    push_made(L);
    lua_insert(L, 1); /* the list outside, at 1 */
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_insert(L, 2); /* the list inside, at 2 */
    set_made(L);
    bool failed = lua_pcall(L, n - 1, LUA_MULTRET, 0) != 0;
    int top = lua_gettop(L);
    lua_pushvalue(L, 1);
    set_made(L);
    for (int i = 1, all = (int)lua_objlen(L, 2); i <= all; i++) {
        lua_rawgeti(L, 2, i);
        bool kept = false;
        for (int k = 3; k <= top && !failed; k++)
            kept = kept || lua_rawequal(L, -1, k);
        if (kept)
            remember_made(L);
        else
            close_made(L);
        lua_pop(L, 1);
    }
    return failed ? lua_error(L) : top - 2;
}

static int call_op(lua_State *L)
{
    const qm_op *op = lua_touserdata(L, lua_upvalueindex(1));
    qm_call c = {.op = op};
    qm_err e = {0};
    read_args(L, op, &c);
    c.pool = ops_pool(L);
    void **box = qml_box(L, QML_TENSOR);
    if (!qm_op_call(&c, &e))
        return qml_raise(L, &e);
    *box = c.out;
    if (op->result == QM_RESULT_TENSOR) {
        qml_count_bytes(L, -1, qm_tensor_bytes(c.out));
        remember_made(L);
        return 1;
    }
    const int32_t *ids = (const int32_t *)(const void *)c.out->plane[0].data;
    int64_t n = qm_tensor_count(c.out);
    if (op->result == QM_RESULT_ID) {
        lua_pushinteger(L, ids[0]);
        return 1;
    }
    lua_createtable(L, (int)n, 0);
    for (int64_t i = 0; i < n; i++) {
        lua_pushinteger(L, ids[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

static const qm_op *find_op(lua_State *L, int arg)
{
    const char *name = luaL_checkstring(L, arg);
    int i = 0;
    while (qm_ops[i] && strcmp(qm_ops[i]->name, name) != 0)
        i++;
    if (!qm_ops[i] || qm_ops[i]->result != QM_RESULT_TENSOR)
        luaL_error(L, "there is no op '%s' that makes a tensor", name);
    return qm_ops[i];
}

/* The arguments of a call, in a list at `list`, those that are named left out; the stack keeps what they refer to. */
static void list_args(lua_State *L, int list, qm_call *c)
{
    luaL_checktype(L, list, LUA_TTABLE);
    luaL_checkstack(L, 4 * QM_MAX_PARAMS, "too many arguments");
    for (int i = 0; i < qm_op_params(c->op); i++) {
        if (c->op->param[i].named)
            continue;
        lua_rawgeti(L, list, i + 1);
        to_arg(L, c->op, &c->op->param[i], &c->arg[i]);
    }
}

/* at_once(name, {argument, …}, …) -> the results of several calls of one op, which do not wait for each other. */
static int at_once(lua_State *L)
{
    qm_call c[QM_MAX_CALLS] = {{0}};
    int n = lua_gettop(L) - 1;
    qm_err e = {0};
    const qm_op *op = find_op(L, 1);
    if (n > QM_MAX_CALLS)
        return luaL_error(L, "%s: %d calls at once; %d at most", op->name, n, QM_MAX_CALLS);
    for (int i = 0; i < n; i++) {
        c[i].op = op;
        c[i].pool = ops_pool(L);
        list_args(L, i + 2, &c[i]);
    }
    luaL_checkstack(L, n + 8, "too many results");
    void **box[QM_MAX_CALLS];
    for (int i = 0; i < n; i++)
        box[i] = qml_box(L, QML_TENSOR);
    if (!qm_op_calls(c, n, &e))
        return qml_raise(L, &e);
    for (int i = 0; i < n; i++)
        *box[i] = c[i].out;
    for (int i = 0, first = lua_gettop(L) - n + 1; i < n; i++) {
        lua_pushvalue(L, first + i);
        qml_count_bytes(L, -1, qm_tensor_bytes(c[i].out));
        remember_made(L);
        lua_pop(L, 1);
    }
    return n;
}

/* prepare(weight) -> the same weight with a copy of its codes beside it, laid out for speed; on a device, as
 * that multiplies by it best, which may be what it is. */
static int prepare(lua_State *L)
{
    const qm_tensor *t = qml_check(L, 1, QML_TENSOR);
    qm_device *d = qm_tensor_device(t);
    qm_tensor *out = NULL;
    qm_err e = {0};
    lua_settop(L, 1);
    void **box = qml_box(L, QML_TENSOR);
    bool ok = d ? !d->prepare || d->prepare(d, t, &out, &e)
                : (out = qm_tensor_prepare(t, ops_pool(L), &e)) != NULL;
    if (!ok)
        return qml_raise(L, &e);
    *box = out;
    lua_settop(L, out ? 2 : 1);
    return 1;
}

/* read_speed(bytes) -> bytes a second at which the ops' threads read memory. */
static int read_speed(lua_State *L)
{
    uint64_t size = qml_check_size(L, 1, "bytes");
    double speed;
    qm_err e = {0};
    if (size < 1 || size > (uint64_t)1 << 40)
        return luaL_argerror(L, 1, "must be from 1 to 2^40");
    if (!qm_read_speed(ops_pool(L), (size_t)size, &speed, &e))
        return qml_raise(L, &e);
    lua_pushnumber(L, speed);
    return 1;
}

/* ---- descriptors ---------------------------------------------------------------------------------- */

static const char *const kinds[] = {
    [QM_ARG_TENSOR] = "tensor", [QM_ARG_WEIGHT] = "weight", [QM_ARG_WEIGHTS] = "weights",
    [QM_ARG_INT] = "int",       [QM_ARG_FLOAT] = "float",   [QM_ARG_BOOL] = "bool",
    [QM_ARG_STRING] = "string", [QM_ARG_IDS] = "ids",       [QM_ARG_CACHE] = "cache"};

static void push_param(lua_State *L, const qm_param *p)
{
    const struct {
        const char *name, *text;
    } texts[] = {{"name", p->name},
                 {"kind", kinds[p->kind]},
                 {"doc", p->doc},
                 {"shape", p->shape},
                 {"choices", p->choices}};
    lua_newtable(L);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        lua_pushstring(L, texts[i].text); /* nil for NULL */
        lua_setfield(L, -2, texts[i].name);
    }
    lua_pushboolean(L, p->optional);
    lua_setfield(L, -2, "optional");
    lua_pushboolean(L, p->named);
    lua_setfield(L, -2, "named");
    if (p->optional && (p->kind == QM_ARG_INT || p->kind == QM_ARG_FLOAT)) {
        lua_pushnumber(L, p->absent);
        lua_setfield(L, -2, "absent");
    }
    if (p->least < p->most) {
        lua_pushnumber(L, p->least);
        lua_setfield(L, -2, "least");
        lua_pushnumber(L, p->most);
        lua_setfield(L, -2, "most");
    }
}

/* ops() -> list of {name, doc, shape, tolerance, params, call}, in order of name. */
static int ops(lua_State *L)
{
    lua_newtable(L);
    for (int i = 0; qm_ops[i]; i++) {
        const qm_op *op = qm_ops[i];
        lua_newtable(L);
        lua_pushstring(L, op->name);
        lua_setfield(L, -2, "name");
        lua_pushstring(L, op->doc);
        lua_setfield(L, -2, "doc");
        lua_pushstring(L, op->result == QM_RESULT_TENSOR ? op->shape
                          : op->result == QM_RESULT_ID   ? "id"
                                                         : "ids");
        lua_setfield(L, -2, "shape");
        lua_pushnumber(L, op->tolerance);
        lua_setfield(L, -2, "tolerance");
        lua_newtable(L);
        for (int j = 0; j < qm_op_params(op); j++) {
            push_param(L, &op->param[j]);
            lua_rawseti(L, -2, j + 1);
        }
        lua_setfield(L, -2, "params");
        lua_pushlightuserdata(L, (void *)(uintptr_t)op);
        lua_pushcclosure(L, call_op, 1);
        lua_setfield(L, -2, "call");
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* ---- the cache
 * ------------------------------------------------------------------------------------------------- */

static int field_count(lua_State *L, const char *name, double absent, int most)
{
    double v = qml_field_number(L, 1, name, absent);
    if (!(v >= 1 && v <= most && v == floor(v)))
        luaL_error(L, "kv_cache: %s must be a whole number from 1 to %d", name, most);
    return (int)v;
}

/* kv_cache{layers, kv_heads, head_dim, context, dtype = "f16" | "f32" | "bf16" | "q8_0", device = GPU} ->
 * cache. */
static int kv_cache(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    int layers = field_count(L, "layers", -1, 65536), heads = field_count(L, "kv_heads", -1, 65536);
    int dim = field_count(L, "head_dim", -1, 65536), context = field_count(L, "context", -1, 1 << 30);
    const char *name = qml_field_string(L, 1, "dtype", "f16");
    qm_device *device = qml_field_box(L, 1, "device", QML_DEVICE);
    qm_dtype dtype = qm_kv_type(name);
    if (dtype == QM_DTYPE_COUNT)
        return luaL_error(L, "kv_cache: dtype must be %s, not '%s'", qm_kv_types, name);
    qm_err e = {0};
    void **box = qml_box(L, QML_CACHE);
    *box = qm_kv_new(layers, heads, dim, context, dtype, device, &e);
    if (!*box)
        return qml_raise(L, &e);
    return 1;
}

/* cache:length() -> tokens that every layer holds. */
static int cache_length(lua_State *L)
{
    lua_pushinteger(L, qm_kv_length(qml_check(L, 1, QML_CACHE)));
    return 1;
}

/* cache:truncate(n): forgets all tokens but the first n. */
static int cache_truncate(lua_State *L)
{
    qm_kv *kv = qml_check(L, 1, QML_CACHE);
    uint64_t n = qml_check_size(L, 2, "tokens");
    qm_kv_truncate(kv, n < INT32_MAX ? (int)n : INT32_MAX);
    return 0;
}

/* cache:bytes() -> the memory it takes when it is full. */
static int cache_bytes(lua_State *L)
{
    lua_pushnumber(L, (double)qm_kv_bytes(qml_check(L, 1, QML_CACHE)));
    return 1;
}

/* cache:info() -> {layers, kv_heads, head_dim, context, dtype}. */
static int cache_info(lua_State *L)
{
    const qm_kv *kv = qml_check(L, 1, QML_CACHE);
    const struct {
        const char *name;
        int value;
    } row[] = {{"layers", kv->layers},
               {"kv_heads", kv->kv_heads},
               {"head_dim", kv->head_dim},
               {"context", kv->context}};
    lua_newtable(L);
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        lua_pushinteger(L, row[i].value);
        lua_setfield(L, -2, row[i].name);
    }
    lua_pushstring(L, qm_kv_type_name(kv->dtype));
    lua_setfield(L, -2, "dtype");
    return 1;
}

/* cache:copy() -> a cache of its own with the same tokens. */
static int cache_copy(lua_State *L)
{
    const qm_kv *kv = qml_check(L, 1, QML_CACHE);
    qm_err e = {0};
    void **box = qml_box(L, QML_CACHE);
    *box = qm_kv_copy(kv, &e);
    if (!*box)
        return qml_raise(L, &e);
    return 1;
}

static int cache_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_CACHE);
    qm_kv_free(*box);
    *box = NULL;
    return 0;
}

void qml_open_ops(lua_State *L)
{
    static const luaL_Reg methods[] = {{"length", cache_length},
                                       {"truncate", cache_truncate},
                                       {"bytes", cache_bytes},
                                       {"info", cache_info},
                                       {"copy", cache_copy},
                                       {"close", cache_gc},
                                       {NULL, NULL}};
    static const luaL_Reg functions[] = {{"ops", ops},
                                         {"prepare", prepare},
                                         {"at_once", at_once},
                                         {"tidy", tidy},
                                         {"read_speed", read_speed},
                                         {"ops_threads", ops_threads},
                                         {"kv_cache", kv_cache},
                                         {NULL, NULL}};
    qml_class(L, QML_CACHE, methods, cache_gc);
    qml_functions(L, functions);
}
