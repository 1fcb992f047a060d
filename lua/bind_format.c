/* bind_format.c: formats made at run time, and levels fitted to values. */
#include <math.h>
#include <string.h>

#include "../core/codebook.h"
#include "../core/fit.h"
#include "bind.h"

static int push_made(lua_State *L, void **box, const qm_format *f, const qm_err *e)
{
    if (!f)
        return qml_raise(L, e);
    *box = (void *)(uintptr_t)f; /* boxes hold void *; nothing writes through it */
    return 1;
}

/* The numbers of a list, at most `most` of them, into v; returns how many there are. */
static int check_numbers(lua_State *L, int arg, float *v, int most)
{
    luaL_checktype(L, arg, LUA_TTABLE);
    size_t n = lua_objlen(L, arg);
    for (int i = 0; i < (int)n && i < most; i++) {
        lua_rawgeti(L, arg, i + 1);
        if (lua_type(L, -1) != LUA_TNUMBER)
            luaL_error(L, "level %d is a %s, not a number", i + 1, luaL_typename(L, -1));
        v[i] = (float)lua_tonumber(L, -1);
        lua_pop(L, 1);
    }
    return n > INT32_MAX ? INT32_MAX : (int)n;
}

static void push_numbers(lua_State *L, const float *v, int n)
{
    lua_createtable(L, n, 0);
    for (int i = 0; i < n; i++) {
        lua_pushnumber(L, (double)v[i]);
        lua_rawseti(L, -2, i + 1);
    }
}

/* codebook(name, levels [, block]) -> format. */
static int codebook(lua_State *L)
{
    float level[256];
    qm_err e = {0};
    const char *name = qml_check_text(L, 1);
    int count = check_numbers(L, 2, level, 256);
    uint32_t block = qml_opt_block(L, 3, 64);
    void **box = qml_box(L, QML_FORMAT);
    return push_made(L, box, qm_codebook_new(name, level, count, block, &e), &e);
}

/* opaque(name, bits, scales [, block]) -> a format that has sizes only. */
static int opaque(lua_State *L)
{
    qm_err e = {0};
    const char *name = qml_check_text(L, 1);
    double bits = luaL_checknumber(L, 2), scales = luaL_checknumber(L, 3);
    if (!(bits >= 0 && bits <= 64 && bits == floor(bits))
        || !(scales >= 0 && scales <= 1e6 && scales == floor(scales)))
        return luaL_error(L, "format '%s': bits and scales are whole numbers", name);
    uint32_t block = qml_opt_block(L, 4, 64);
    void **box = qml_box(L, QML_FORMAT);
    return push_made(L, box, qm_opaque_new(name, (unsigned)bits, (unsigned)scales, block, &e), &e);
}

/* tensor_of_planes(format, shape, block, {bytes of plane 1, …} [, name]) -> tensor. */
static int tensor_of_planes(lua_State *L)
{
    const qm_format *f = qml_check_format(L, 1);
    qm_shape shape;
    qm_slice plane[QM_MAX_PLANES] = {{0}};
    qm_err e = {0};
    qml_check_shape(L, 2, &shape);
    uint32_t block = qml_opt_block(L, 3, 0);
    const char *name = luaL_optstring(L, 5, NULL);
    luaL_checktype(L, 4, LUA_TTABLE);
    for (int i = 0; i < qm_format_planes(f); i++) {
        size_t size;
        lua_rawgeti(L, 4, i + 1); /* stays on the stack while it is read */
        plane[i].data = (const uint8_t *)luaL_checklstring(L, -1, &size);
        plane[i].size = size;
    }
    void **box = qml_box(L, QML_TENSOR);
    if (!(*box = qm_tensor_of_planes(name, &shape, f, block, plane, &e)))
        return qml_raise(L, &e);
    return 1;
}

/* ---- fitting -------------------------------------------------------------------------------------- */

/* Values of the tensor in the memory of a userdata, which is left on the stack. */
static const float *values_of(lua_State *L, const qm_tensor *t)
{
    qm_err e = {0};
    float *v = lua_newuserdata(L, (size_t)qm_tensor_count(t) * sizeof *v + 1);
    if (!qm_tensor_values(t, v, &e))
        qml_raise(L, &e);
    return v;
}

static void read_weights(lua_State *L, int table, const qm_tensor *t, qm_fit_weights *w)
{
    const qm_tensor *own = qml_field_box(L, table, "weights", QML_TENSOR);
    w->by_size = qml_field_boolean(L, table, "by_size", false);
    if (!own)
        return;
    w->period = (size_t)qm_tensor_count(own);
    if (qm_tensor_count(own) != qm_tensor_count(t) && qm_tensor_count(own) != qm_tensor_cols(t))
        luaL_error(
            L, "fit: %f weights for rows of %f values: one for each column is needed, or one for each value",
            (double)w->period, (double)qm_tensor_cols(t));
    w->weight = values_of(L, own);
}

/* fit(tensor, {kind = "kmeans" | "quantiles", levels, block, weights, by_size}) -> list of levels. */
static int fit(lua_State *L)
{
    const qm_tensor *t = qml_check(L, 1, QML_TENSOR);
    luaL_checktype(L, 2, LUA_TTABLE);
    const char *kind = qml_field_string(L, 2, "kind", "kmeans");
    double count = qml_field_number(L, 2, "levels", 16);
    lua_getfield(L, 2, "block");
    uint32_t block = qml_opt_block(L, lua_gettop(L), 64);
    int64_t cols = qm_tensor_cols(t);
    qm_fit_weights w = {0};
    qm_err e = {0};
    float level[256];
    if (!(count >= 2 && count <= 256 && count == floor(count)))
        return luaL_error(L, "fit: 2 to 256 levels make a codebook, not %f", count);
    if (block == QM_BLOCK_ROW)
        block = cols < QM_BLOCK_ROW ? (uint32_t)cols : QM_BLOCK_ROW;
    read_weights(L, 2, t, &w);
    const float *x = values_of(L, t);
    qm_fit *f = lua_newuserdata(L, sizeof *f);
    memset(f, 0, sizeof *f);
    bool kmeans = strcmp(kind, "kmeans") == 0;
    if (!qm_fit_add(f, x, (size_t)qm_tensor_count(t), block, &w, &e)
        || !(kmeans ? qm_fit_kmeans : qm_fit_quantiles)(f, (int)count, level, &e))
        return qml_raise(L, &e);
    push_numbers(L, level, (int)count);
    return 1;
}

/* normal_quantile(p) -> x with P(X <= x) = p, X normal with mean 0 and deviation 1. */
static int normal_quantile(lua_State *L)
{
    double p = luaL_checknumber(L, 1);
    if (!(p > 0 && p < 1))
        return luaL_argerror(L, 1, "must lie between 0 and 1");
    lua_pushnumber(L, qm_normal_quantile(p));
    return 1;
}

/* ---- methods -------------------------------------------------------------------------------------- */

/* f:info() -> as an entry of formats(). */
static int info(lua_State *L)
{
    qml_push_format(L, qml_check(L, 1, QML_FORMAT));
    return 1;
}

/* f:levels() -> list of a codebook's levels in the order of their codes; nil of another format. */
static int levels(lua_State *L)
{
    const qm_format *f = qml_check(L, 1, QML_FORMAT);
    float level[256];
    int n = qm_codebook_count(f);
    for (int i = 0; i < n; i++)
        level[i] = qm_codebook_level(f, i);
    if (n)
        push_numbers(L, level, n);
    else
        lua_pushnil(L);
    return 1;
}

/* tostring(f) calls the method `text`, which lua/qmoon/codebook.lua adds. */
static int format_text(lua_State *L)
{
    luaL_checkudata(L, 1, QML_FORMAT);
    lua_getfield(L, 1, "text");
    if (lua_isnil(L, -1)) {
        lua_pushliteral(L, "format");
        return 1;
    }
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
    return 1;
}

static int format_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_FORMAT);
    qm_format_unref(*box);
    *box = NULL;
    return 0;
}

void qml_open_format(lua_State *L)
{
    static const luaL_Reg methods[] = {{"info", info}, {"levels", levels}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"codebook", codebook},
                                         {"opaque", opaque},
                                         {"tensor_of_planes", tensor_of_planes},
                                         {"fit", fit},
                                         {"normal_quantile", normal_quantile},
                                         {NULL, NULL}};
    qml_class(L, QML_FORMAT, methods, format_gc);
    luaL_getmetatable(L, QML_FORMAT);
    lua_pushcfunction(L, format_text);
    lua_setfield(L, -2, "__tostring");
    lua_getfield(L, -1, "__index"); /* Lua adds the methods that need no C */
    lua_setfield(L, -3, "format_methods");
    lua_pop(L, 1);
    qml_functions(L, functions);
}
