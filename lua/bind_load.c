/* bind_load.c: weights into memory (core/load.h), and plans of what that takes (core/plan.h). */
#include <stdlib.h>
#include <string.h>

#include "../core/load.h"
#include "../core/plan.h"
#include "bind.h"
#include "couriers.h"

enum { MOST_WEIGHTS = 1 << 20 };

/* {tensor=, format=, block=, double_quant=, exact_zero=, nearest=, round=, prepare=}: without a format as it
 * is. */
static void read_loading(lua_State *L, int table, qm_loading *w)
{
    *w = (qm_loading){.from = qml_field_box(L, table, "tensor", QML_TENSOR)};
    if (!w->from) {
        luaL_error(L, "load: a weight has no tensor");
        return;
    }
    if (qm_tensor_device(w->from))
        luaL_error(L, "load: tensor '%s' is not in this machine's memory",
                   w->from->name ? w->from->name : "");
    w->lay_out = qml_field_boolean(L, table, "prepare", false);
    lua_getfield(L, table, "format");
    if (!lua_isnil(L, -1))
        w->format = qml_check_format(L, lua_gettop(L));
    lua_pop(L, 1);
    w->round = qml_field_round(L, table, "round");
    w->options = (qm_quantize_options){.block = qml_field_block(L, table),
                                       .double_quant = qml_field_boolean(L, table, "double_quant", false),
                                       .exact_zero = qml_field_boolean(L, table, "exact_zero", false),
                                       .nearest = qml_field_boolean(L, table, "nearest", false)};
}

/* The weights of a list, in memory that the stack keeps. */
static qm_loading *read_list(lua_State *L, int list, int *n)
{
    size_t given = lua_objlen(L, list);
    if (given > MOST_WEIGHTS)
        luaL_error(L, "load: %f weights; %d at most", (double)given, MOST_WEIGHTS);
    *n = (int)given;
    qm_loading *w = lua_newuserdata(L, (given + 1) * sizeof *w);
    for (int i = 0; i < *n; i++) {
        lua_rawgeti(L, list, i + 1);
        luaL_checktype(L, -1, LUA_TTABLE);
        read_loading(L, lua_gettop(L), &w[i]);
        lua_pop(L, 1);
    }
    return w;
}

static const qml_couriers *couriers_for(lua_State *L, const qm_device *d, const qm_pool *pool)
{
    const qml_couriers *couriers = qml_field_box(L, 2, "couriers", QML_COURIERS);
    if (!d || qm_is_plan(d))
        return NULL;
    if (!couriers || couriers->n < qm_pool_threads(pool) || couriers->courier[0]->device != d)
        luaL_error(L, "load: %d threads need as many couriers of the device", qm_pool_threads(pool));
    return couriers;
}

static int run_load(lua_State *L)
{
    qm_pool *pool = qml_check(L, 1, QML_POOL);
    qm_device *d = qml_field_box(L, 2, "device", QML_DEVICE);
    const qml_couriers *couriers = couriers_for(L, d, pool);
    int n;
    qm_loading *w = read_list(L, 2, &n);
    qml_progress progress;
    qm_err e = {0};
    lua_createtable(L, n, 0);
    int results = lua_gettop(L);
    for (int i = 0; i < n; i++) {
        qml_box(L, QML_TENSOR);
        lua_rawseti(L, results, i + 1);
    }
    qml_progress_read(L, 2, &progress);
    bool ok = qm_load(pool, d, couriers ? couriers->courier : NULL, w, n, qml_progress_call, &progress, &e);
    for (int i = 0; i < n && ok; i++) {
        lua_rawgeti(L, results, i + 1);
        void **box = lua_touserdata(L, -1);
        *box = w[i].out;
        lua_pop(L, 1);
    }
    qml_progress_check(L, &progress, ok, &e);
    lua_settop(L, results);
    return 1;
}

/* load(pool, {weight, …, device=, couriers=, progress=}) -> list of tensors: quantised on the way where a
 * weight names a format, and laid out where it says prepare.  device: a GPU, for which there are as many
 * couriers as the pool has threads, or a plan; nil: this machine's memory, where a weight without a format
 * stays where it is.  progress: a function of the bytes that are done. */
static int load(lua_State *L)
{
    qml_check_idle(L, 1, QML_POOL);
    return qml_with_job(L, 2, run_load);
}

static int run_load_memory(lua_State *L)
{
    int threads = luaL_checkint(L, 3), n;
    const qm_device *d = qml_field_box(L, 1, "device", QML_DEVICE);
    const qm_loading *w = read_list(L, 1, &n);
    lua_pushnumber(L, (double)qm_load_memory(w, n, threads, d));
    return 1;
}

/* load_memory({weight, …, device=}, nil, threads) -> bytes that load takes while it runs beside what it
 * makes: of the device's memory, or of this machine's. */
static int load_memory(lua_State *L) { return qml_with_job(L, 1, run_load_memory); }

/* ---- plans ----------------------------------------------------------------------------------- */

/* plan_device([device]) -> a device that only counts what another one, or this machine, would have to hold. */
static int plan_device(lua_State *L)
{
    qm_device *of = lua_isnoneornil(L, 1) ? NULL : qml_check(L, 1, QML_DEVICE);
    qm_err e = {0};
    void **box = qml_box(L, QML_DEVICE);
    *box = qm_plan_new(of, &e);
    return *box ? 1 : qml_raise(L, &e);
}

/* plan_memory(plan) -> bytes now, the most since it was last asked, what libraries keep that ops have used. */
static int plan_memory(lua_State *L)
{
    qm_device *d = qml_check(L, 1, QML_DEVICE);
    uint64_t now, most, kept;
    if (!qm_is_plan(d))
        return luaL_argerror(L, 1, "is no plan");
    qm_plan_memory(d, &now, &most, &kept);
    lua_pushnumber(L, (double)now);
    lua_pushnumber(L, (double)most);
    lua_pushnumber(L, (double)kept);
    return 3;
}

/* kept_memory(device, decoding) -> bytes that ops keep on a device beside tensors: buffers, workspaces, and
 * where tokens are decoded one by one the memory of a captured step. */
static int kept_memory(lua_State *L)
{
    qm_device *d = qml_check(L, 1, QML_DEVICE);
    lua_pushnumber(L, d->kept_memory ? (double)d->kept_memory(d, lua_toboolean(L, 2)) : 0);
    return 1;
}

void qml_open_load(lua_State *L)
{
    static const luaL_Reg functions[] = {{"load", load},
                                         {"load_memory", load_memory},
                                         {"plan_device", plan_device},
                                         {"plan_memory", plan_memory},
                                         {"kept_memory", kept_memory},
                                         {NULL, NULL}};
    qml_functions(L, functions);
}
