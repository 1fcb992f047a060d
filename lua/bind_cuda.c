/* bind_cuda.c: GPUs as values, and tensors that go to them and back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/kv.h"
#include "../cuda/cuda.h"
#include "bind.h"
#include "couriers.h"

static qm_cuda *gpu(lua_State *L)
{
    qm_cuda *d = qm_cuda_of(qml_check(L, 1, QML_DEVICE));
    if (!d)
        luaL_argerror(L, 1, "is no GPU");
    return d;
}

/* cuda([index]) -> that GPU, opened; GPUs are counted from 0. */
static int cuda(lua_State *L)
{
    int index = luaL_optint(L, 1, 0);
    qm_err e = {0};
    void **box = qml_box(L, QML_DEVICE);
    qm_cuda *d = qm_cuda_open(index, &e);
    if (!d)
        return qml_raise(L, &e);
    *box = qm_cuda_device(d);
    return 1;
}

/* cuda_count() -> GPUs there are; 0 and why there is none. */
static int cuda_count(lua_State *L)
{
    qm_err e = {0};
    int n = qm_cuda_count(&e);
    lua_pushinteger(L, n < 0 ? 0 : n);
    if (n < 0)
        lua_pushstring(L, e.msg);
    return n < 0 ? 2 : 1;
}

static void set_number(lua_State *L, const char *name, double v)
{
    lua_pushnumber(L, v);
    lua_setfield(L, -2, name);
}

/* 13000 -> 13.0 */
static double version(int v)
{
    int major = v / 1000, minor = v % 1000 / 10;
    return major + minor / 10.0;
}

/* d:info() -> {name, index, capability, multiprocessors, memory, l2, driver, runtime, own_rcp}; bytes, and
 * CUDA versions as 13.0. */
static int info(lua_State *L)
{
    const qm_cuda_info *i = qm_cuda_get_info(gpu(L));
    lua_createtable(L, 0, 9);
    lua_pushstring(L, i->name);
    lua_setfield(L, -2, "name");
    lua_pushfstring(L, "%d.%d", i->major, i->minor);
    lua_setfield(L, -2, "capability");
    lua_pushboolean(L, i->own_rcp);
    lua_setfield(L, -2, "own_rcp");
    set_number(L, "index", i->index);
    set_number(L, "multiprocessors", i->multiprocessors);
    set_number(L, "memory", (double)i->memory);
    set_number(L, "l2", (double)i->l2);
    set_number(L, "driver", version(i->driver));
    set_number(L, "runtime", version(i->runtime));
    return 1;
}

/* d:memory() -> bytes free, bytes in all. */
static int memory(lua_State *L)
{
    uint64_t free, total;
    qm_err e = {0};
    if (!qm_cuda_memory(gpu(L), &free, &total, &e))
        return qml_raise(L, &e);
    lua_pushnumber(L, (double)free);
    lua_pushnumber(L, (double)total);
    return 2;
}

/* d:used() -> bytes of tensors and of what ops keep; the most of them since this was last asked; and the most
 * that was held of the GPU for them. */
static int used(lua_State *L)
{
    uint64_t now, most, held;
    qm_err e = {0};
    if (!qm_cuda_used(gpu(L), &now, &most, &held, &e))
        return qml_raise(L, &e);
    lua_pushnumber(L, (double)now);
    lua_pushnumber(L, (double)most);
    lua_pushnumber(L, (double)held);
    return 3;
}

/* Also d:close(); tensors on it stay what they are. */
static int device_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_DEVICE);
    qm_device_unref(*box);
    *box = NULL;
    return 0;
}

/* tostring(d): "cuda:0 NVIDIA H200, 139.8 GiB". */
static int device_text(lua_State *L)
{
    qm_device *d = qml_check(L, 1, QML_DEVICE);
    if (!qm_cuda_of(d)) {
        lua_pushstring(L, d->name);
        return 1;
    }
    const qm_cuda_info *i = qm_cuda_get_info(qm_cuda_of(d));
    char size[32];
    snprintf(size, sizeof size, "%.1f GiB", (double)i->memory / (1 << 30));
    lua_pushfstring(L, "%s %s, %s", d->name, i->name, size);
    return 1;
}

/* Two that were opened apart are equal when they are the same GPU; their tensors still do not mix. */
static int device_equal(lua_State *L)
{
    qm_device *a = qml_check(L, 1, QML_DEVICE), *b = qml_check(L, 2, QML_DEVICE);
    lua_pushboolean(L, strcmp(a->name, b->name) == 0);
    return 1;
}

/* t:to(device) -> the tensor's copy there; "cpu" is this machine's memory. */
static int to(lua_State *L)
{
    qm_tensor *t = qml_check(L, 1, QML_TENSOR);
    bool here = lua_type(L, 2) == LUA_TSTRING && strcmp(lua_tostring(L, 2), "cpu") == 0;
    qm_device *d = here ? NULL : qml_check(L, 2, QML_DEVICE);
    qm_err e = {0};
    void **box = qml_box(L, QML_TENSOR);
    *box = qm_tensor_to(t, d, &e);
    return *box ? 1 : qml_raise(L, &e);
}

/* t:device() -> where its bytes are: a GPU, or "cpu". */
static int device(lua_State *L)
{
    qm_device *d = qm_tensor_device(qml_check(L, 1, QML_TENSOR));
    if (!d) {
        lua_pushliteral(L, "cpu");
        return 1;
    }
    *qml_box(L, QML_DEVICE) = qm_device_ref(d);
    return 1;
}

/* cuda_ops() -> list of the ops that run on a GPU; nil in a build without CUDA. */
static int cuda_ops(lua_State *L)
{
    if (!qm_cuda_op_name(0))
        return 0;
    lua_newtable(L);
    for (int i = 0; qm_cuda_op_name(i); i++) {
        lua_pushstring(L, qm_cuda_op_name(i));
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* ---- steps ---------------------------------------------------------------------------------------- */

typedef struct recording {
    lua_State *L;
    int function;
} recording;

/* Calls the function; its error object stays on the stack, for qml_raise's caller to throw. */
static bool record(void *arg, qm_err *e)
{
    const recording *r = arg;
    lua_pushvalue(r->L, r->function);
    return lua_pcall(r->L, 0, 0, 0) == 0 || qm_fail(e, QM_EFAIL, "recording a step failed");
}

/* cuda_step(device, cache, f [, program]) -> step.  f calls ops for one token, the last of them argmax or sample;
 * program: what can be becomes one kernel, unless it is false. */
static int cuda_step(lua_State *L)
{
    qm_cuda *d = gpu(L);
    qm_kv *kv = qml_check(L, 2, QML_CACHE);
    luaL_checktype(L, 3, LUA_TFUNCTION);
    bool program = lua_isnoneornil(L, 4) || lua_toboolean(L, 4);
    lua_settop(L, 3);
    qm_err e = {0};
    void **box = qml_box(L, QML_STEP);
    recording r = {L, 3};
    *box = qm_cuda_step_new(d, kv, program, record, &r, &e);
    if (!*box && lua_gettop(L) > 4)
        return lua_error(L); /* f's own */
    if (!*box)
        return qml_raise(L, &e);
    lua_createtable(L, 1, 0); /* the cache lives as long as the step */
    lua_pushvalue(L, 2);
    lua_rawseti(L, -2, 1);
    lua_setfenv(L, -2);
    return 1;
}

/* step:run(id, n) -> list of n ids, the first being what follows `id`. */
static int step_run(lua_State *L)
{
    qm_cuda_step *s = qml_check(L, 1, QML_STEP);
    lua_Integer id = luaL_checkinteger(L, 2);
    uint64_t n = qml_check_size(L, 3, "steps");
    luaL_argcheck(L, id >= 0 && id <= INT32_MAX, 2, "is no id");
    luaL_argcheck(L, n >= 1 && n <= 1 << 20, 3, "must be from 1 to 1048576");
    qm_err e = {0};
    int32_t *ids = lua_newuserdata(L, n * sizeof *ids);
    if (!qm_cuda_step_run(s, (int32_t)id, (int)n, ids, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)n, 0);
    for (int i = 0; i < (int)n; i++) {
        lua_pushinteger(L, ids[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* step:programs() -> how many kernels walk through several ops; 0: every op is launched by itself. */
static int step_programs(lua_State *L)
{
    lua_pushinteger(L, qm_cuda_step_programs(qml_check(L, 1, QML_STEP)));
    return 1;
}

static int step_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_STEP);
    qm_cuda_step_free(*box);
    *box = NULL;
    return 0;
}

/* ---- couriers --------------------------------------------------------------------------------------- */

static int couriers_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_COURIERS);
    qml_couriers *l = *box;
    *box = NULL;
    for (int i = 0; l && i < l->n; i++)
        l->courier[i]->free(l->courier[i]);
    free(l);
    return 0;
}

static int couriers_close(lua_State *L)
{
    qml_check_idle(L, 1, QML_COURIERS);
    return couriers_gc(L);
}

/* couriers({device, …}, count) -> so many couriers, one GPU after another in turn, for streams(). */
static int couriers(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    int devices = (int)lua_objlen(L, 1);
    double count = luaL_checknumber(L, 2);
    if (devices < 1 || !(count >= 1 && count <= 1024))
        return luaL_error(L, "couriers: a list of devices and a number from 1 to 1024 are wanted");
    void **box = qml_box(L, QML_COURIERS);
    qml_couriers *l = *box = calloc(1, sizeof *l + (size_t)count * sizeof(qm_courier *));
    qm_err e = {0};
    if (!l) {
        qm_fail(&e, QM_ENOFIT, "out of memory for %d couriers", (int)count);
        return qml_raise(L, &e);
    }
    for (; l->n < (int)count; l->n++) {
        lua_rawgeti(L, 1, l->n % devices + 1);
        qm_device *d = qml_check(L, lua_gettop(L), QML_DEVICE);
        if (!d->courier_new)
            return luaL_error(L, "couriers: %s has none", d->name);
        if (!(l->courier[l->n] = d->courier_new(d, &e)))
            return qml_raise(L, &e);
        lua_pop(L, 1);
    }
    return 1;
}

void qml_open_cuda(lua_State *L)
{
    static const luaL_Reg methods[] = {
        {"info", info}, {"memory", memory}, {"used", used}, {"close", device_gc}, {NULL, NULL}};
    static const luaL_Reg of_tensors[] = {{"to", to}, {"device", device}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"cuda", cuda},         {"cuda_count", cuda_count},
                                         {"cuda_ops", cuda_ops}, {"cuda_step", cuda_step},
                                         {"couriers", couriers}, {NULL, NULL}};
    static const luaL_Reg of_steps[] = {
        {"run", step_run}, {"programs", step_programs}, {"close", step_gc}, {NULL, NULL}};
    static const luaL_Reg of_couriers[] = {{"close", couriers_close}, {NULL, NULL}};
    qml_class(L, QML_STEP, of_steps, step_gc);
    qml_class(L, QML_COURIERS, of_couriers, couriers_gc);
    qml_class(L, QML_DEVICE, methods, device_gc);
    luaL_getmetatable(L, QML_DEVICE);
    lua_pushcfunction(L, device_text);
    lua_setfield(L, -2, "__tostring");
    lua_pushcfunction(L, device_equal);
    lua_setfield(L, -2, "__eq");
    lua_pop(L, 1);
    lua_getfield(L, -1, "tensor_methods");
    qml_functions(L, of_tensors);
    lua_pop(L, 1);
    qml_functions(L, functions);
}
