/* bind_tensor.c: formats and tensors. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/containers/safetensors.h"
#include "../core/random.h"
#include "../core/double_quant.h"
#include "bind.h"

/* ---- formats -------------------------------------------------------------------------------- */

void qml_push_format(lua_State *L, const qm_format *f)
{
    lua_createtable(L, 0, 12);
    lua_pushstring(L, f->name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, f->doc);
    lua_setfield(L, -2, "doc");
    lua_pushstring(L, f->source);
    lua_setfield(L, -2, "source");
    lua_pushnumber(L, f->block);
    lua_setfield(L, -2, "block");
    lua_pushnumber(L, f->block_min);
    lua_setfield(L, -2, "block_min");
    lua_pushnumber(L, f->block_max);
    lua_setfield(L, -2, "block_max");
    lua_pushboolean(L, f->any_block);
    lua_setfield(L, -2, "any_block");
    lua_pushboolean(L, f->over_rows);
    lua_setfield(L, -2, "over_rows");
    lua_pushnumber(L, (double)f->tensor_range);
    lua_setfield(L, -2, "tensor_range");
    lua_pushboolean(L, qm_can_double_quant(f));
    lua_setfield(L, -2, "can_double_quant");
    lua_pushnumber(L, f->gguf_type);
    lua_setfield(L, -2, "gguf_type");
    lua_pushstring(L, f->gguf_name);
    lua_setfield(L, -2, "gguf_name");
    lua_pushnumber(L, f->bound);
    lua_setfield(L, -2, "bound");
    lua_pushnumber(L, f->bound_rel);
    lua_setfield(L, -2, "bound_rel");
    lua_newtable(L);
    for (int i = 0; i < qm_format_planes(f); i++) {
        lua_createtable(L, 0, 4);
        lua_pushstring(L, f->plane[i].name);
        lua_setfield(L, -2, "name");
        lua_pushstring(L, qm_dtypes[f->plane[i].dtype].name);
        lua_setfield(L, -2, "dtype");
        lua_pushnumber(L, f->plane[i].bits);
        lua_setfield(L, -2, "bits");
        lua_pushnumber(L, f->plane[i].bytes);
        lua_setfield(L, -2, "bytes");
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "planes");
}

/* formats() -> every format's descriptor, in order of name. */
static int formats(lua_State *L)
{
    lua_newtable(L);
    for (int i = 0; qm_formats[i]; i++) {
        qml_push_format(L, qm_formats[i]);
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* dtypes() -> list of {name, safetensors, torch, bits}, in safetensors' order. */
static int dtypes(lua_State *L)
{
    lua_newtable(L);
    for (int i = 0; i < QM_DTYPE_COUNT; i++) {
        lua_createtable(L, 0, 4);
        lua_pushstring(L, qm_dtypes[i].name);
        lua_setfield(L, -2, "name");
        lua_pushstring(L, qm_dtypes[i].safetensors);
        lua_setfield(L, -2, "safetensors");
        lua_pushstring(L, qm_dtypes[i].torch);
        lua_setfield(L, -2, "torch");
        lua_pushnumber(L, qm_dtypes[i].bits);
        lua_setfield(L, -2, "bits");
        lua_rawseti(L, -2, i + 1);
    }
    return 1;
}

/* plane_sizes(format, count, cols [, block [, what]]) -> list of bytes per plane, block used. */
static int plane_sizes(lua_State *L)
{
    const qm_format *f = qml_check_format(L, 1);
    uint64_t n = qml_check_size(L, 2, "count"), cols = qml_check_size(L, 3, "cols");
    uint32_t block = qml_opt_block(L, 4, 0);
    qm_codec c;
    qm_err e = {0};
    if (!qm_codec_init(&c, f, (int64_t)cols, block, luaL_optstring(L, 5, "tensor"), &e))
        return qml_raise(L, &e);
    lua_newtable(L);
    for (int i = 0; i < qm_format_planes(f); i++) {
        lua_pushnumber(L, (double)qm_plane_size(f, &c, i, n));
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushnumber(L, c.block);
    return 2;
}

/* levels(format) -> f32 bytes of what codes 0, 1, 2 … decode to with a scale of 1: the quant_map that
 * bitsandbytes stores (which has +0 where the format decodes to -0). */
static int levels(lua_State *L)
{
    const qm_format *f = qml_check_format(L, 1);
    uint32_t bits = f->plane[0].bits;
    if (!f->over_rows || (bits != 4 && bits != 8) || qm_format_planes(f) != 2 || f->made)
        return luaL_argerror(L, 1, "has no table of levels");
    uint32_t n = 1u << bits;
    uint8_t codes[256] = {0};
    float value[256], one = 1;
    for (uint32_t i = 0; i < n; i++)
        codes[bits == 4 ? i / 2 : i] = (uint8_t)(bits == 8 ? i : i % 2 ? codes[i / 2] | i : i << 4);
    const uint8_t *const plane[QM_MAX_PLANES] = {codes, (const uint8_t *)&one};
    qm_codec c = {.block = n};
    f->decode(plane, n, &c, value);
    for (uint32_t i = 0; i < n; i++)
        value[i] = value[i] == 0 ? 0.0f : value[i];
    lua_pushlstring(L, (const char *)value, n * sizeof *value);
    return 1;
}

/* ---- making tensors ----------------------------------------------------------------------------- */

static int push_tensor(lua_State *L, void **box, qm_tensor *t, const qm_err *e)
{
    if (!t)
        return qml_raise(L, e);
    *box = t;
    return 1;
}

/* view(infile, {name, at, size, shape, dtype | format}) -> tensor over the file's map.  With a list of
 * offsets as `at`, one per plane, and block, double_quant, nested_at, offset, round, files as in
 * core/stream.h: of several planes.  With strides: a copy, in order. */
static int view(lua_State *L)
{
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_getfield(L, 2, "at");
    lua_getfield(L, 2, "strides");
    bool planes = lua_istable(L, -2), strided = lua_istable(L, -1);
    lua_pop(L, 2);
    if (planes || strided)
        return planes ? qml_view_planes(L) : qml_view_strided(L);
    uint64_t at = qml_field_size(L, 2, "at", 0), size = qml_field_size(L, 2, "size", 0);
    const char *name = qml_field_string(L, 2, "name", "tensor");
    const char *dtype = qml_field_string(L, 2, "dtype", NULL);
    const char *format = qml_field_string(L, 2, "format", dtype);
    qm_shape shape;
    qm_err e = {0};
    lua_getfield(L, 2, "shape");
    qml_check_shape(L, lua_gettop(L), &shape);
    const qm_format *fmt = format ? qm_format_find(format) : NULL;
    int dt = fmt ? (int)fmt->plane[0].dtype : -1;
    for (int i = 0; !fmt && dtype && i < QM_DTYPE_COUNT; i++)
        if (strcmp(qm_dtypes[i].name, dtype) == 0)
            dt = i;
    if (dt < 0)
        return luaL_error(L, "view: neither a format nor an element type is called '%s'",
                          format ? format : "nil");
    if (fmt && qm_format_planes(fmt) != 1)
        return luaL_error(L, "view: format '%s' does not lie in one piece", fmt->name);
    uint64_t n = (uint64_t)qm_shape_count(&shape), need = n * qm_dtypes[dt].bits / 8;
    if (fmt) {
        qm_codec c;
        int64_t cols = shape.ndim ? shape.dim[shape.ndim - 1] : 1;
        if (!qm_codec_init(&c, fmt, cols, 0, name, &e))
            return qml_raise(L, &e);
        need = qm_plane_size(fmt, &c, 0, n);
    }
    if (size != need || size > f->size || at > f->size - size)
        return luaL_error(L, "view: tensor '%s' does not lie in %s", name, f->path);
    void **box = qml_box(L, QML_TENSOR);
    qm_tensor *t = qm_tensor_view(name, f, at, size, &shape, (qm_dtype)dt, fmt, &e);
    return push_tensor(L, box, t, &e);
}

/* tensor(shape, list) -> f32 tensor of those numbers; instead of the list, a string of f32s in memory order. */
static int tensor(lua_State *L)
{
    qm_shape shape;
    qm_err e = {0};
    qml_check_shape(L, 1, &shape);
    bool packed = lua_type(L, 2) == LUA_TSTRING;
    if (!packed)
        luaL_checktype(L, 2, LUA_TTABLE);
    int64_t n = qm_shape_count(&shape), given = (int64_t)(lua_objlen(L, 2) / (packed ? sizeof(float) : 1));
    if (given != n || (packed && lua_objlen(L, 2) % sizeof(float) != 0))
        return luaL_error(L, "tensor: %f numbers for a shape that holds %f", (double)given, (double)n);
    void **box = qml_box(L, QML_TENSOR);
    float *v;
    *box = qm_tensor_f32(&shape, &v, &e);
    if (!*box)
        return qml_raise(L, &e);
    if (packed) {
        memcpy(v, lua_tostring(L, 2), (size_t)n * sizeof *v);
        return 1;
    }
    for (int64_t i = 0; i < n; i++) {
        lua_rawgeti(L, 2, (int)i + 1);
        if (lua_type(L, -1) != LUA_TNUMBER)
            return luaL_error(L, "tensor: element %d is a %s, not a number", (int)i + 1,
                              luaL_typename(L, -1));
        v[i] = (float)lua_tonumber(L, -1);
        lua_pop(L, 1);
    }
    return 1;
}

/* random(kind, shape, seed, a, b): kind "normal" (mean a, deviation b), "uniform" (from a to b),
 * "student" (a degrees of freedom, scale b). */
static int random_tensor(lua_State *L)
{
    static const char *const kinds[] = {"normal", "uniform", "student", NULL};
    int kind = luaL_checkoption(L, 1, NULL, kinds);
    qm_shape shape;
    qm_err e = {0};
    qml_check_shape(L, 2, &shape);
    uint64_t seed = qml_check_size(L, 3, "seed");
    double a = luaL_checknumber(L, 4), b = luaL_checknumber(L, 5);
    if (kind == 2 && !(a >= 1 && a <= 1000 && a == floor(a)))
        return luaL_argerror(L, 4, "degrees of freedom must be a whole number from 1 to 1000");
    void **box = qml_box(L, QML_TENSOR);
    float *v;
    *box = qm_tensor_f32(&shape, &v, &e);
    if (!*box)
        return qml_raise(L, &e);
    size_t n = (size_t)qm_shape_count(&shape);
    if (kind == 0)
        qm_random_fill_normal(v, n, seed, 0, a, b);
    else if (kind == 1)
        qm_random_fill_uniform(v, n, seed, 0, a, b);
    else
        qm_random_fill_student(v, n, seed, 0, (int)a, b);
    return 1;
}

/* ---- methods ---------------------------------------------------------------------------------------- */

static qm_tensor *self(lua_State *L) { return qml_check(L, 1, QML_TENSOR); }

/* t:info() -> {name, shape, format, dtype, block, double_quant, offset, bytes, bits} */
static int info(lua_State *L)
{
    qm_tensor *t = self(L);
    int64_t n = qm_tensor_count(t);
    lua_createtable(L, 0, 9);
    lua_pushstring(L, t->name);
    lua_setfield(L, -2, "name");
    qml_push_shape(L, &t->shape);
    lua_setfield(L, -2, "shape");
    lua_pushstring(L, t->format ? t->format->name : qm_dtypes[t->dtype].name);
    lua_setfield(L, -2, "format");
    lua_pushnumber(L, (double)n);
    lua_setfield(L, -2, "count");
    lua_pushnumber(L, t->format ? t->codec.block : 1);
    lua_setfield(L, -2, "block");
    lua_pushboolean(L, t->double_quant);
    lua_setfield(L, -2, "double_quant");
    if (t->double_quant) {
        lua_pushnumber(L, (double)t->offset);
        lua_setfield(L, -2, "offset");
    }
    lua_pushnumber(L, (double)qm_tensor_bytes(t));
    lua_setfield(L, -2, "bytes");
    lua_pushnumber(L, n ? 8.0 * (double)qm_tensor_bytes(t) / (double)n : 0);
    lua_setfield(L, -2, "bits");
    lua_newtable(L);
    for (int i = 0; i <= QM_MAX_PLANES; i++) {
        lua_pushnumber(L, (double)t->plane[i].size);
        lua_rawseti(L, -2, i + 1);
    }
    lua_setfield(L, -2, "planes");
    return 1;
}

static bool optional_boolean(lua_State *L, const char *name)
{
    return lua_istable(L, 3) && qml_field_boolean(L, 3, name, false);
}

/* t:quantize(format, {block, double_quant, exact_zero, nearest, offset}) -> quantised tensor. */
static int quantize(lua_State *L)
{
    qm_tensor *t = self(L);
    const qm_format *f = qml_check_format(L, 2);
    qm_quantize_options o = {0};
    qm_err e = {0};
    if (!lua_isnoneornil(L, 3)) {
        luaL_checktype(L, 3, LUA_TTABLE);
        o.block = qml_field_block(L, 3);
        double offset = qml_field_number(L, 3, "offset", NAN);
        o.offset_given = !isnan(offset);
        o.offset = (float)offset;
    }
    o.double_quant = optional_boolean(L, "double_quant");
    o.exact_zero = optional_boolean(L, "exact_zero");
    o.nearest = optional_boolean(L, "nearest");
    void **box = qml_box(L, QML_TENSOR);
    return push_tensor(L, box, qm_tensor_quantize(t, f, &o, &e), &e);
}

/* t:dequantize() -> f32 tensor. */
static int dequantize(lua_State *L)
{
    qm_tensor *t = self(L);
    qm_err e = {0};
    void **box = qml_box(L, QML_TENSOR);
    return push_tensor(L, box, qm_tensor_dequantize(t, &e), &e);
}

/* t:transpose() -> f32 tensor, rows and columns exchanged. */
static int transpose(lua_State *L)
{
    qm_tensor *t = self(L);
    qm_err e = {0};
    void **box = qml_box(L, QML_TENSOR);
    return push_tensor(L, box, qm_tensor_transpose(t, &e), &e);
}

/* t:plane(i) -> the bytes of plane i (1 codes or blocks, 2 scales, 3 second-level scales). */
static int plane(lua_State *L)
{
    qm_tensor *t = self(L);
    int i = luaL_checkint(L, 2);
    if (i < 1 || i > QM_MAX_PLANES + 1)
        return luaL_argerror(L, 2, "must be from 1 to 4");
    if (qm_tensor_device(t) || t->origin) {
        qm_err e = {0};
        void **box = qml_box(L, QML_TENSOR);
        *box = t = qm_tensor_to(t, NULL, &e);
        if (!t)
            return qml_raise(L, &e);
    }
    lua_pushlstring(L, (const char *)t->plane[i - 1].data, t->plane[i - 1].size);
    return 1;
}

/* t:values(first, last) -> the values of that range of the flat tensor (1-based), as a list. */
static int values(lua_State *L)
{
    qm_tensor *t = self(L);
    int64_t n = qm_tensor_count(t);
    double from = luaL_optnumber(L, 2, 1), to = luaL_optnumber(L, 3, (double)n);
    int64_t first = from >= 1 && from <= (double)n ? (int64_t)from : from < 1 ? 1 : n + 1;
    int64_t last = to >= 0 && to <= (double)n ? (int64_t)to : to < 0 ? 0 : n;
    qm_err e = {0};
    int64_t count = last >= first ? last - first + 1 : 0;
    float *v = lua_newuserdata(L, (size_t)count * sizeof *v + 1);
    if (!qm_tensor_range(t, count ? first - 1 : 0, count, v, &e))
        return qml_raise(L, &e);
    lua_createtable(L, (int)count, 0);
    for (int64_t i = 0; i < count; i++) {
        lua_pushnumber(L, (double)v[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return 1;
}

/* a:errors(b) -> sums of b against a: {n, xx, yy, xy, dd, d, max_d, max_x}. */
static int errors(lua_State *L)
{
    qm_tensor *a = self(L), *b = qml_check(L, 2, QML_TENSOR);
    qm_errsum s;
    qm_err e = {0};
    if (!qm_tensor_errors(a, b, &s, &e))
        return qml_raise(L, &e);
    qml_push_errsum(L, &s);
    return 1;
}

void qml_push_errsum(lua_State *L, const qm_errsum *s)
{
    const struct {
        const char *name;
        double value;
    } row[] = {{"n", (double)s->n}, {"xx", s->sum_xx}, {"yy", s->sum_yy},   {"xy", s->sum_xy},
               {"dd", s->sum_dd},   {"d", s->sum_d},   {"max_d", s->max_d}, {"max_x", s->max_x}};
    lua_createtable(L, 0, 8);
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        lua_pushnumber(L, row[i].value);
        lua_setfield(L, -2, row[i].name);
    }
}

/* tostring(t) calls the method `text`, which lua/qmoon/tensor.lua adds. */
static int tensor_text(lua_State *L)
{
    luaL_checkudata(L, 1, QML_TENSOR);
    lua_getfield(L, 1, "text");
    if (lua_isnil(L, -1)) {
        lua_pushliteral(L, "tensor");
        return 1;
    }
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
    return 1;
}

static int tensor_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_TENSOR);
    qm_tensor_free(*box);
    *box = NULL;
    qml_uncount_bytes(L, 1);
    return 0;
}

/* t:close(): gives the memory back now; Lua's collector does not know how much it is. */
static int tensor_close(lua_State *L)
{
    qml_check_idle(L, 1, QML_TENSOR);
    return tensor_gc(L);
}

void qml_open_tensor(lua_State *L)
{
    static const luaL_Reg methods[] = {{"info", info},
                                       {"close", tensor_close},
                                       {"quantize", quantize},
                                       {"dequantize", dequantize},
                                       {"transpose", transpose},
                                       {"plane", plane},
                                       {"values", values},
                                       {"errors", errors},
                                       {NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"formats", formats}, {"dtypes", dtypes}, {"plane_sizes", plane_sizes}, {"levels", levels},
        {"view", view},       {"tensor", tensor}, {"random", random_tensor},    {NULL, NULL}};
    qml_class(L, QML_TENSOR, methods, tensor_gc);
    luaL_getmetatable(L, QML_TENSOR);
    lua_pushcfunction(L, tensor_text);
    lua_setfield(L, -2, "__tostring");
    lua_getfield(L, -1, "__index"); /* Lua adds the methods that need no C */
    lua_setfield(L, -3, "tensor_methods");
    lua_pop(L, 1);
    qml_functions(L, functions);
}
