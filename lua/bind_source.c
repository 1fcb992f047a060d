/* bind_source.c: sources that are more than one run of bytes: PyTorch's views, tensors of several planes. */
#include <string.h>

#include "../core/containers/torch.h"
#include "../core/double_quant.h"
#include "bind.h"

/* ---- PyTorch files -------------------------------------------------------------------------- */

static void push_strides(lua_State *L, const qm_strided *s)
{
    qm_shape strides = {.ndim = s->shape.ndim};
    memcpy(strides.dim, s->stride, sizeof strides.dim);
    qml_push_shape(L, &strides);
}

static void push_torch_tensor(lua_State *L, const qm_torch_tensor *t)
{
    lua_createtable(L, 0, 7);
    lua_pushstring(L, t->name);
    lua_setfield(L, -2, "name");
    lua_pushstring(L, qm_dtypes[t->dtype].name);
    lua_setfield(L, -2, "dtype");
    qml_push_shape(L, &t->shape);
    lua_setfield(L, -2, "shape");
    lua_pushnumber(L, (double)t->at);
    lua_setfield(L, -2, "at");
    lua_pushnumber(L, (double)t->size);
    lua_setfield(L, -2, "size");
    if (t->group) {
        lua_pushlstring(L, t->name, t->group);
        lua_setfield(L, -2, "group");
    }
    if (t->strided.shape.ndim) {
        push_strides(L, &t->strided);
        lua_setfield(L, -2, "strides");
    }
}

/* Runs under pcall, so that the C header is freed even when Lua runs out of memory. */
static int push_header(lua_State *L)
{
    const qm_torch_header *h = lua_touserdata(L, 1);
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, 2);
    lua_setfield(L, -2, "file");
    lua_createtable(L, (int)h->count, 0);
    for (size_t i = 0; i < h->count; i++) {
        push_torch_tensor(L, &h->tensor[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "tensors");
    return 1;
}

/* torch(path) -> {file, tensors = {{name, dtype, shape, at, size [, group] [, strides]}, …}}; group is the
 * outermost key of a nested tensor; strides (in elements) only where the elements do not lie in order. */
static int torch(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    void **box = qml_box(L, QML_INFILE);
    qm_err e = {0};
    *box = qm_infile_open(path, &e);
    qm_torch_header h = {0};
    if (!*box || !qm_torch_read(&h, *box, &e))
        return qml_raise(L, &e);
    lua_pushcfunction(L, push_header);
    lua_pushlightuserdata(L, &h);
    lua_pushvalue(L, -3);
    int failed = lua_pcall(L, 2, 1, 0);
    qm_torch_free(&h);
    qm_infile_release(*box);
    return failed ? lua_error(L) : 1;
}

/* ---- elements out of order ------------------------------------------------------------------ */

void qml_field_strided(lua_State *L, int table, const qm_infile *f, uint64_t at, unsigned bits, qm_strided *s)
{
    *s = (qm_strided){0};
    lua_getfield(L, table, "strides");
    if (!lua_isnil(L, -1)) {
        qm_shape strides;
        qml_check_shape(L, lua_gettop(L), &strides);
        lua_getfield(L, table, "shape");
        qml_check_shape(L, lua_gettop(L), &s->shape);
        lua_pop(L, 1);
        memcpy(s->stride, strides.dim, sizeof s->stride);
        int64_t span = qm_strided_span(s);
        if (strides.ndim != s->shape.ndim || bits % 8 != 0 || span < 0 || at > f->size
            || (uint64_t)span > (f->size - at) / (bits / 8))
            luaL_error(L, "strides do not fit shape and file");
        if (qm_shape_count(&s->shape) == 0)
            *s = (qm_strided){0};
    }
    lua_pop(L, 1);
}

static unsigned element_bits(lua_State *L, int table)
{
    const char *dtype = qml_field_string(L, table, "dtype", "?");
    for (int i = 0; i < QM_DTYPE_COUNT; i++)
        if (strcmp(qm_dtypes[i].name, dtype) == 0)
            return qm_dtypes[i].bits;
    return (unsigned)luaL_error(L, "no element type is called '%s'", dtype);
}

/* gather(infile, {dtype, shape, strides, at}, first, count) -> the bytes of those elements, in order. */
static int gather(lua_State *L)
{
    const qm_infile *f = qml_check(L, 1, QML_INFILE);
    luaL_checktype(L, 2, LUA_TTABLE);
    uint64_t at = qml_field_size(L, 2, "at", 0), first = qml_check_size(L, 3, "first"),
             n = qml_check_size(L, 4, "count");
    unsigned bits = element_bits(L, 2);
    qm_strided s;
    qm_err e = {0};
    qml_field_strided(L, 2, f, at, bits, &s);
    uint64_t count = (uint64_t)qm_shape_count(&s.shape);
    if (!s.shape.ndim || first > count || n > count - first)
        return luaL_argerror(L, 4, "elements beyond the last");
    void *bytes = lua_newuserdata(L, n * (bits / 8) + 1); /* collectable scratch */
    if (!qm_strided_read(&s, f, at, bits / 8, first, n, bytes, &e))
        return qml_raise(L, &e);
    lua_pushlstring(L, bytes, n * (bits / 8));
    return 1;
}

/* ---- views ---------------------------------------------------------------------------------- */

int qml_view_strided(lua_State *L)
{
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    uint64_t at = qml_field_size(L, 2, "at", 0);
    const char *name = qml_field_string(L, 2, "name", "tensor"),
               *dtype = qml_field_string(L, 2, "dtype", "?");
    unsigned bits = element_bits(L, 2);
    qm_strided s;
    qm_err e = {0};
    qml_field_strided(L, 2, f, at, bits, &s);
    void **box = qml_box(L, QML_TENSOR);
    *box = qm_tensor_gather(name, f, at, &s, dtype, &e);
    return *box ? 1 : qml_raise(L, &e);
}

/* Files of the planes (1 …), where they are not all in `file`. */
static qm_infile *plane_file(lua_State *L, int table, int i, qm_infile *otherwise)
{
    lua_getfield(L, table, "files");
    qm_infile *f = otherwise;
    if (lua_istable(L, -1)) {
        lua_rawgeti(L, -1, i);
        if (!lua_isnil(L, -1))
            f = qml_check(L, lua_gettop(L), QML_INFILE);
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
    return f;
}

void qml_field_files(lua_State *L, int table, int planes, qm_infile *file, qm_infile *plane[QM_MAX_PLANES],
                     qm_infile **nested)
{
    for (int i = 0; i < planes; i++)
        plane[i] = plane_file(L, table, i + 1, file);
    *nested = plane_file(L, table, planes + 1, file);
}

qm_round qml_field_round(lua_State *L, int table, const char *field)
{
    const char *name = qml_field_string(L, table, field, "none");
    if (strcmp(name, "f16") == 0)
        return QM_ROUND_F16;
    if (strcmp(name, "bf16") == 0)
        return QM_ROUND_BF16;
    if (strcmp(name, "none") != 0 && strcmp(name, "f32") != 0)
        luaL_error(L, "field '%s' must be f16, bf16 or f32, got '%s'", field, name);
    return QM_ROUND_NONE;
}

int qml_view_planes(lua_State *L)
{
    qm_planes v = {.name = qml_field_string(L, 2, "name", "tensor")};
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    qm_err e = {0};
    lua_getfield(L, 2, "format");
    v.format = qml_check_format(L, lua_gettop(L));
    lua_getfield(L, 2, "shape");
    qml_check_shape(L, lua_gettop(L), &v.shape);
    v.block = (uint32_t)qml_field_size(L, 2, "block", 0);
    v.cols = (int64_t)qml_field_size(L, 2, "cols",
                                     v.shape.ndim ? (uint64_t)v.shape.dim[v.shape.ndim - 1] : 1);
    v.double_quant = qml_field_boolean(L, 2, "double_quant", false);
    v.offset = (float)qml_field_number(L, 2, "offset", 0);
    v.factor = (float)qml_field_number(L, 2, "factor", 0);
    v.round = qml_field_round(L, 2, "round");
    int planes = qm_format_planes(v.format);
    qml_field_files(L, 2, planes, f, v.file, &v.file[planes]);
    lua_getfield(L, 2, "at");
    luaL_checktype(L, -1, LUA_TTABLE);
    for (int i = 0; i < planes; i++) {
        lua_rawgeti(L, -1, i + 1);
        v.at[i] = qml_check_size(L, lua_gettop(L), "offset");
        lua_pop(L, 1);
    }
    v.at[planes] = qml_field_size(L, 2, "nested_at", 0);
    if (v.double_quant && !qm_can_double_quant(v.format))
        return luaL_error(L, "view of '%s': format %s is never double quantised", v.name, v.format->name);
    void **box = qml_box(L, QML_TENSOR);
    *box = qm_tensor_planes(&v, &e);
    return *box ? 1 : qml_raise(L, &e);
}

void qml_open_source(lua_State *L)
{
    static const luaL_Reg functions[] = {{"torch", torch}, {"gather", gather}, {NULL, NULL}};
    qml_functions(L, functions);
}
