/* bind.c: the module qmoon.core, and what its parts share. */
#include <math.h>
#include <string.h>

#include "bind.h"

static const struct {
    qm_code code;
    const char *kind;
} kinds[] = {
    {QM_EFAIL, "fail"},
    {QM_EUSAGE, "usage"},
    {QM_EVERIFY, "verify"},
    {QM_ENOFIT, "nofit"},
    {QM_EUNSUPPORTED, "unsupported"},
    {QM_ECORRUPT, "corrupt"},
    {QM_EINTERRUPT, "interrupt"},
};
enum { NKINDS = sizeof kinds / sizeof kinds[0] };

static int error_text(lua_State *L)
{
    lua_getfield(L, 1, "message");
    return 1;
}

/* Raises {kind, code, message} from the message on top of the stack. */
__attribute__((noreturn)) static void raise(lua_State *L, qm_code code)
{
    const char *kind = "fail";
    for (int i = 0; i < NKINDS; i++)
        if (kinds[i].code == code)
            kind = kinds[i].kind;
    lua_createtable(L, 0, 3);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, "message");
    lua_pushstring(L, kind);
    lua_setfield(L, -2, "kind");
    lua_pushinteger(L, code);
    lua_setfield(L, -2, "code");
    luaL_getmetatable(L, "qmoon.error");
    lua_setmetatable(L, -2);
    lua_error(L);
}

int qml_raise(lua_State *L, const qm_err *e)
{
    if (e->code == QM_EINTERRUPT) /* this is the answer to it: main.c's hook has nothing left to do */
        lua_sethook(L, NULL, 0, 0);
    lua_pushstring(L, e->msg);
    raise(L, e->code);
}

/* fail(kind, format, ...): raises an error object; kind is one of the table above. */
static int fail(lua_State *L)
{
    const char *kind = luaL_checkstring(L, 1);
    int n = lua_gettop(L);
    lua_getglobal(L, "string");
    lua_getfield(L, -1, "format");
    lua_insert(L, 2);
    lua_pop(L, 1);
    lua_call(L, n - 1, 1);
    for (int i = 0; i < NKINDS; i++)
        if (strcmp(kinds[i].kind, kind) == 0)
            raise(L, kinds[i].code);
    return luaL_argerror(L, 1, "unknown kind of error");
}

void **qml_box(lua_State *L, const char *class)
{
    qml_userdata *box = lua_newuserdata(L, sizeof *box);
    *box = (qml_userdata){0};
    luaL_getmetatable(L, class);
    lua_setmetatable(L, -2);
    return &box->object;
}

/* ---- memory behind boxes ------------------------------------------------------------------------ */

typedef struct counted {
    uint64_t bytes, limit;
} counted;

static char counted_key; /* its address is the registry's key of the count */

#define COUNTED_STEP ((uint64_t)256 << 20)

static counted *counted_of(lua_State *L)
{
    lua_pushlightuserdata(L, &counted_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    counted *n = lua_touserdata(L, -1);
    lua_pop(L, 1);
    return n;
}

void qml_count_bytes(lua_State *L, int index, uint64_t bytes)
{
    qml_userdata *box = lua_touserdata(L, index);
    counted *n = counted_of(L);
    box->bytes = bytes;
    n->bytes += bytes;
    if (n->bytes < n->limit)
        return;
    lua_gc(L, LUA_GCCOLLECT, 0);
    n->limit = 2 * n->bytes + COUNTED_STEP;
}

void qml_uncount_bytes(lua_State *L, int index)
{
    qml_userdata *box = lua_touserdata(L, index);
    if (box->bytes)
        counted_of(L)->bytes -= box->bytes;
    box->bytes = 0;
}

void *qml_check(lua_State *L, int arg, const char *class)
{
    void **box = luaL_checkudata(L, arg, class);
    if (!*box)
        luaL_argerror(L, arg, "is closed");
    return *box;
}

void qml_check_idle(lua_State *L, int arg, const char *class)
{
    const qml_userdata *box = luaL_checkudata(L, arg, class);
    if (box->held > 0)
        luaL_argerror(L, arg, "is in use by a job that is running");
}

/* Metatables of boxes have this under the number 1: numbers as keys need no memory, so holds cannot fail. */
static char box_mark;

static bool is_box(lua_State *L, int index)
{
    if (lua_type(L, index) != LUA_TUSERDATA || !lua_getmetatable(L, index))
        return false;
    lua_rawgeti(L, -1, 1);
    bool is = lua_touserdata(L, -1) == &box_mark;
    lua_pop(L, 2);
    return is;
}

void qml_hold(lua_State *L, int index, int by)
{
    if (is_box(L, index)) {
        qml_userdata *box = lua_touserdata(L, index);
        box->held += by;
    } else if (lua_istable(L, index)) {
        for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1))
            qml_hold(L, lua_gettop(L), by);
    }
}

const char *qml_check_text(lua_State *L, int arg)
{
    size_t n;
    const char *text = luaL_checklstring(L, arg, &n);
    if (strlen(text) != n)
        luaL_argerror(L, arg, "has a zero byte in it");
    return text;
}

/* Raw: a metatable's __index could hand out a string that nothing else refers to, or close what was read
 * before. */
static void push_field(lua_State *L, int table, const char *name)
{
    lua_pushstring(L, name);
    lua_rawget(L, table);
}

void *qml_field_box(lua_State *L, int table, const char *name, const char *class)
{
    push_field(L, table, name);
    void *p = NULL;
    if (!lua_isnil(L, -1)) {
        void **box = luaL_testudata(L, -1, class);
        p = box ? *box : NULL;
        if (!p)
            luaL_error(L, "field '%s' must be an open %s, got %s", name, class, luaL_typename(L, -1));
    }
    lua_pop(L, 1);
    return p;
}

void qml_class(lua_State *L, const char *class, const luaL_Reg *methods, lua_CFunction gc)
{
    luaL_newmetatable(L, class);
    lua_newtable(L);
    qml_functions(L, methods);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, gc);
    lua_setfield(L, -2, "__gc");
    lua_pushstring(L, class);
    lua_setfield(L, -2, "__name");
    lua_pushboolean(L, 0); /* scripts cannot reach in and swap __gc */
    lua_setfield(L, -2, "__metatable");
    lua_pushlightuserdata(L, &box_mark);
    lua_rawseti(L, -2, 1);
    lua_pop(L, 1);
}

void qml_functions(lua_State *L, const luaL_Reg *functions) { luaL_setfuncs(L, functions, 0); }

static void wrong_field(lua_State *L, const char *name, const char *want)
{
    luaL_error(L, "field '%s' must be a %s, got %s", name, want, luaL_typename(L, -1));
}

const char *qml_field_string(lua_State *L, int table, const char *name, const char *absent)
{
    push_field(L, table, name);
    if (!lua_isnil(L, -1)) {
        if (lua_type(L, -1) != LUA_TSTRING)
            wrong_field(L, name, "string");
        absent = lua_tostring(L, -1); /* stays referenced by the table */
    }
    lua_pop(L, 1);
    return absent;
}

double qml_field_number(lua_State *L, int table, const char *name, double absent)
{
    push_field(L, table, name);
    if (!lua_isnil(L, -1)) {
        if (lua_type(L, -1) != LUA_TNUMBER)
            wrong_field(L, name, "number");
        absent = lua_tonumber(L, -1);
    }
    lua_pop(L, 1);
    return absent;
}

bool qml_field_boolean(lua_State *L, int table, const char *name, bool absent)
{
    push_field(L, table, name);
    if (!lua_isnil(L, -1)) {
        if (!lua_isboolean(L, -1))
            wrong_field(L, name, "boolean");
        absent = lua_toboolean(L, -1);
    }
    lua_pop(L, 1);
    return absent;
}

static bool is_size(double v) { return v >= 0 && v <= 9007199254740992.0 && v == floor(v); }

uint64_t qml_check_size(lua_State *L, int arg, const char *what)
{
    double v = luaL_checknumber(L, arg);
    if (!is_size(v))
        luaL_argerror(L, arg, lua_pushfstring(L, "%s must be a whole number from 0 to 2^53", what));
    return (uint64_t)v;
}

uint64_t qml_field_size(lua_State *L, int table, const char *name, uint64_t absent)
{
    double v = qml_field_number(L, table, name, (double)absent);
    if (!is_size(v))
        luaL_error(L, "field '%s' must be a whole number from 0 to 2^53", name);
    return (uint64_t)v;
}

void qml_push_shape(lua_State *L, const qm_shape *s)
{
    lua_createtable(L, s->ndim, 0);
    for (int i = 0; i < s->ndim; i++) {
        lua_pushnumber(L, (double)s->dim[i]);
        lua_rawseti(L, -2, i + 1);
    }
}

void qml_check_shape(lua_State *L, int arg, qm_shape *s)
{
    luaL_checktype(L, arg, LUA_TTABLE);
    size_t n = lua_objlen(L, arg);
    if (n > QM_MAX_DIMS)
        luaL_argerror(L, arg, "has more than 8 dimensions");
    s->ndim = (int)n;
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(L, arg, (int)i + 1);
        double v = lua_isnumber(L, -1) ? lua_tonumber(L, -1) : -1;
        if (!is_size(v))
            luaL_argerror(L, arg, "dimensions must be whole numbers >= 0");
        s->dim[i] = (int64_t)v;
        lua_pop(L, 1);
    }
    if (qm_shape_count(s) < 0)
        luaL_argerror(L, arg, "has more values than can be counted");
}

const qm_format *qml_check_format(lua_State *L, int arg)
{
    if (luaL_testudata(L, arg, QML_FORMAT))
        return qml_check(L, arg, QML_FORMAT);
    const char *name = qml_check_text(L, arg);
    const qm_format *f = qm_format_find(name);
    if (!f) {
        qm_err e = {0};
        qm_fail(&e, QM_EUNSUPPORTED, "unknown format '%s'; qm.formats() lists those there are", name);
        qml_raise(L, &e);
    }
    return f;
}

uint32_t qml_opt_block(lua_State *L, int arg, uint32_t absent)
{
    if (lua_isnoneornil(L, arg))
        return absent;
    if (lua_type(L, arg) == LUA_TSTRING && strcmp(lua_tostring(L, arg), "row") == 0)
        return QM_BLOCK_ROW;
    double v = lua_type(L, arg) == LUA_TNUMBER ? lua_tonumber(L, arg) : -1;
    if (!is_size(v) || v >= QM_BLOCK_ROW)
        luaL_error(L, "a block is a whole number of values, or \"row\"");
    return (uint32_t)v;
}

uint32_t qml_field_block(lua_State *L, int table)
{
    lua_getfield(L, table, "block");
    uint32_t block = qml_opt_block(L, lua_gettop(L), 0);
    lua_pop(L, 1);
    return block;
}

int luaopen_qmoon_core(lua_State *L)
{
    luaL_newmetatable(L, "qmoon.error");
    lua_pushcfunction(L, error_text);
    lua_setfield(L, -2, "__tostring");
    lua_pop(L, 1);

    lua_pushlightuserdata(L, &counted_key);
    *(counted *)lua_newuserdata(L, sizeof(counted)) = (counted){0, COUNTED_STEP};
    lua_rawset(L, LUA_REGISTRYINDEX);

    lua_newtable(L);
    lua_pushcfunction(L, fail);
    lua_setfield(L, -2, "fail");
    lua_pushliteral(L, QM_VERSION);
    lua_setfield(L, -2, "version");
    qml_open_text(L);
    qml_open_files(L);
    qml_open_tensor(L);
    qml_open_ops(L);
    qml_open_format(L);
    qml_open_stream(L);
    qml_open_source(L);
    qml_open_tokenizer(L);
    qml_open_cuda(L);
    qml_open_load(L);
    qml_open_system(L);
    qml_open_edit(L);
    qml_open_explore(L);
    return 1;
}
