/* bind_explore.c: looking at tensors and computing with them; see core/explore.h. */
#include <math.h>
#include <string.h>

#include "../core/explore.h"
#include "bind.h"

static qm_tensor *tensor_arg(lua_State *L, int arg) { return qml_check(L, arg, QML_TENSOR); }

static int push(lua_State *L, void **box, qm_tensor *t, const qm_err *e)
{
    *box = t;
    return t ? 1 : qml_raise(L, e);
}

/* slice(t, row, rows, column, columns) -> f32 tensor; rows and columns count from 0. */
static int slice(lua_State *L)
{
    int64_t at[4];
    qm_err e = {0};
    for (int i = 0; i < 4; i++)
        at[i] = (int64_t)qml_check_size(L, i + 2, "a row or column");
    void **box = qml_box(L, QML_TENSOR);
    return push(L, box, qm_slice_new(tensor_arg(L, 1), at[0], at[1], at[2], at[3], &e), &e);
}

static void set(lua_State *L, const char *key, double value)
{
    lua_pushnumber(L, value);
    lua_setfield(L, -2, key);
}

/* stats(t) -> {min, max, mean, std, absmax, kurtosis, count, zeros, nan, inf}; NaN and infinities are counted
 * and left out. */
static int stats(lua_State *L)
{
    qm_stats s;
    qm_err e = {0};
    if (!qm_stats_of(tensor_arg(L, 1), &s, &e))
        return qml_raise(L, &e);
    lua_createtable(L, 0, 10);
    set(L, "min", s.min);
    set(L, "max", s.max);
    set(L, "mean", s.mean);
    set(L, "std", s.std);
    set(L, "absmax", s.absmax);
    set(L, "kurtosis", s.kurtosis);
    set(L, "count", (double)s.count);
    set(L, "zeros", (double)s.zeros);
    set(L, "nan", (double)s.nan);
    set(L, "inf", (double)s.inf);
    return 1;
}

enum { MOST_BINS = 1 << 16, MOST_PARTS = 1 << 20 };

/* histogram(t, low, high, bins) -> list of counts, how many lie below, how many above. */
static int histogram(lua_State *L)
{
    double low = luaL_checknumber(L, 2), high = luaL_checknumber(L, 3);
    uint64_t bins = qml_check_size(L, 4, "bins"), below, above;
    if (bins < 1 || bins > MOST_BINS)
        return luaL_argerror(L, 4, "bins must be from 1 to 65536");
    uint64_t *count = lua_newuserdata(L, bins * sizeof *count);
    qm_err e = {0};
    if (!qm_histogram(tensor_arg(L, 1), low, high, (int)bins, count, &below, &above, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)bins, 0);
    for (int i = 0; i < (int)bins; i++) {
        lua_pushnumber(L, (double)count[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushnumber(L, (double)below);
    lua_pushnumber(L, (double)above);
    return 3;
}

/* quantiles(t, {p, …}) -> list of values. */
static int quantiles(lua_State *L)
{
    luaL_checktype(L, 2, LUA_TTABLE);
    size_t n = lua_objlen(L, 2);
    if (n > 1000)
        return luaL_argerror(L, 2, "has more than 1000 shares");
    double p[1000], value[1000];
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        p[i] = lua_type(L, -1) == LUA_TNUMBER ? lua_tonumber(L, -1) : -1;
        lua_pop(L, 1);
        if (!(p[i] >= 0 && p[i] <= 1))
            return luaL_argerror(L, 2, "must be shares from 0 to 1");
    }
    qm_err e = {0};
    if (!qm_quantiles(tensor_arg(L, 1), p, (int)n, value, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)n, 0);
    for (size_t i = 0; i < n; i++) {
        lua_pushnumber(L, value[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* errors_by(a, b, "row" | "column" | "block" [, block]) -> list of error sums. */
static int errors_by(lua_State *L)
{
    static const char *const kinds[] = {"row", "column", "block", NULL};
    qm_tensor *a = tensor_arg(L, 1), *b = tensor_arg(L, 2);
    qm_by by = (qm_by)luaL_checkoption(L, 3, NULL, kinds);
    uint64_t block = by == QM_BY_BLOCK ? qml_check_size(L, 4, "a block") : 1;
    if (block < 1)
        return luaL_argerror(L, 4, "a block has at least one value");
    int64_t n = qm_parts(a, by, (int64_t)block);
    qm_err e = {0};
    if (n > MOST_PARTS) {
        qm_fail(&e, QM_EFAIL, "%lld %ss are too many to list; t:slice takes a part of the tensor",
                (long long)n, kinds[by]);
        return qml_raise(L, &e);
    }
    qm_errsum *sum = lua_newuserdata(L, (size_t)n * sizeof *sum + 1);
    if (!qm_errors_by(a, b, by, (int64_t)block, sum, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)n, 0);
    for (int i = 0; i < (int)n; i++) {
        qml_push_errsum(L, &sum[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* codes(t, first, last) -> list of the codes of those values, which count from 1. */
static int codes(lua_State *L)
{
    uint64_t first = qml_check_size(L, 2, "the first value"), last = qml_check_size(L, 3, "the last value");
    qm_tensor *t = tensor_arg(L, 1);
    qm_err e = {0};
    if (first < 1 || last < first || last > (uint64_t)qm_tensor_count(t) || last - first >= 16 * MOST_PARTS)
        return luaL_argerror(
            L, 3, "the values from first to last do not lie in the tensor, or are too many to list");
    int n = (int)(last - first) + 1;
    int32_t *code = lua_newuserdata(L, (size_t)n * sizeof *code);
    if (!qm_codes(t, (int64_t)first - 1, n, code, &e))
        return qml_raise(L, &e);
    lua_createtable(L, n, 0);
    for (int i = 0; i < n; i++) {
        lua_pushinteger(L, code[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* scale_values(t) -> f32 tensor, one value a group. */
static int scale_values(lua_State *L)
{
    qm_err e = {0};
    void **box = qml_box(L, QML_TENSOR);
    return push(L, box, qm_scales(tensor_arg(L, 1), &e), &e);
}

/* matmul(a, b) -> f32 tensor. */
static int matmul(lua_State *L)
{
    qm_err e = {0};
    void **box = qml_box(L, QML_TENSOR);
    return push(L, box, qm_matmul(tensor_arg(L, 1), tensor_arg(L, 2), &e), &e);
}

/* elementwise("add" | "sub" | "mul" | "div", a, tensor or number) -> f32 tensor. */
static int elementwise(lua_State *L)
{
    static const char *const names[] = {"add", "sub", "mul", "div", NULL};
    qm_arithmetic op = (qm_arithmetic)luaL_checkoption(L, 1, NULL, names);
    qm_tensor *a = tensor_arg(L, 2);
    qm_err e = {0};
    bool number = lua_type(L, 3) == LUA_TNUMBER;
    qm_tensor *b = number ? NULL : tensor_arg(L, 3);
    void **box = qml_box(L, QML_TENSOR);
    return push(L, box, number ? qm_with_number(a, lua_tonumber(L, 3), op, &e) : qm_elementwise(a, b, op, &e),
                &e);
}

/* svd(t) -> u, s, v. */
static int svd(lua_State *L)
{
    qm_tensor *a = tensor_arg(L, 1), *out[3] = {0};
    qm_err e = {0};
    void **box[3];
    for (int i = 0; i < 3; i++)
        box[i] = qml_box(L, QML_TENSOR);
    bool ok = qm_svd(a, &out[0], &out[1], &out[2], &e);
    for (int i = 0; i < 3; i++)
        *box[i] = out[i];
    return ok ? 3 : qml_raise(L, &e);
}

/* reshape(t, shape) -> an f32 tensor of the same values. */
static int reshape(lua_State *L)
{
    qm_tensor *t = tensor_arg(L, 1);
    qm_shape shape;
    qm_err e = {0};
    char text[96];
    qml_check_shape(L, 2, &shape);
    if (qm_shape_count(&shape) != qm_tensor_count(t)) {
        qm_fail(&e, QM_EFAIL, "%s has %lld values, the new shape %lld",
                qm_shape_text(&t->shape, text, sizeof text), (long long)qm_tensor_count(t),
                (long long)qm_shape_count(&shape));
        return qml_raise(L, &e);
    }
    void **box = qml_box(L, QML_TENSOR);
    float *v;
    qm_tensor *out = qm_tensor_f32(&shape, &v, &e);
    *box = out;
    return out && qm_tensor_values(t, v, &e) ? 1 : qml_raise(L, &e);
}

void qml_open_explore(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"slice", slice},         {"stats", stats}, {"histogram", histogram},       {"quantiles", quantiles},
        {"errors_by", errors_by}, {"codes", codes}, {"scale_values", scale_values}, {"matmul", matmul},
        {"reshape", reshape},     {"svd", svd},     {"elementwise", elementwise},   {NULL, NULL}};
    qml_functions(L, functions);
}
