/* bind_text.c: JSON in, bytes out, digests, regular expressions. */
#include <sha2.h>
#include <string.h>

#include "../core/json.h"
#include "../core/regex.h"
#include "../core/utf8.h"
#include "bind.h"

#define QML_SCAN "qmoon.scan" /* a search that is under way; Lua never sees one */

/* ---- JSON ---------------------------------------------------------------------------- */

static char null_key; /* its address is core.null */

static void push_json(lua_State *L, const cJSON *v)
{
    luaL_checkstack(L, 4, "JSON nests too deeply");
    if (cJSON_IsObject(v) || cJSON_IsArray(v)) {
        bool object = cJSON_IsObject(v);
        int i = 0;
        lua_newtable(L);
        for (const cJSON *c = v->child; c; c = c->next) {
            push_json(L, c);
            if (object)
                lua_setfield(L, -2, c->string);
            else
                lua_rawseti(L, -2, ++i);
        }
    } else if (cJSON_IsString(v)) {
        lua_pushstring(L, v->valuestring);
    } else if (cJSON_IsNumber(v)) {
        lua_pushnumber(L, v->valuedouble);
    } else if (cJSON_IsBool(v)) {
        lua_pushboolean(L, cJSON_IsTrue(v));
    } else {
        lua_pushlightuserdata(L, &null_key);
    }
}

/* Parses argument 1 and runs `push` on (tree, argument 3) under pcall: converting may run out of Lua memory,
 * and the tree must be freed either way.  The collector waits meanwhile: all that is made here is wanted. */
static int with_json(lua_State *L, size_t limit, lua_CFunction push)
{
    size_t n;
    const char *text = luaL_checklstring(L, 1, &n);
    const char *what = luaL_optstring(L, 2, "JSON");
    qm_err e = {0};
    lua_settop(L, 3);
    cJSON *v = qm_json_parse(text, n, limit, what, &e);
    if (!v)
        return qml_raise(L, &e);
    lua_pushcfunction(L, push);
    lua_pushlightuserdata(L, v);
    lua_pushvalue(L, 3);
    lua_gc(L, LUA_GCSTOP, 0);
    int failed = lua_pcall(L, 2, 1, 0);
    lua_gc(L, LUA_GCRESTART, -1); /* when there is twice as much, as after a collection */
    cJSON_Delete(v);
    return failed ? lua_error(L) : 1;
}

static int push_tree(lua_State *L)
{
    push_json(L, lua_touserdata(L, 1));
    return 1;
}

/* json_decode(text, what [, limit]) -> value.  Objects and arrays are tables, null is core.null. */
static int json_decode(lua_State *L)
{
    return with_json(L, lua_isnoneornil(L, 3) ? 1 << 30 : qml_check_size(L, 3, "limit"), push_tree);
}

static int push_keys(lua_State *L)
{
    const cJSON *object = cJSON_GetObjectItemCaseSensitive(lua_touserdata(L, 1), lua_tostring(L, 2));
    int i = 0;
    lua_newtable(L);
    for (const cJSON *c = cJSON_IsObject(object) ? object->child : NULL; c; c = c->next) {
        lua_pushstring(L, c->string);
        lua_rawseti(L, -2, ++i);
    }
    return 1;
}

/* json_keys(text, what, member) -> the keys of the top-level object's `member`, in the order of the text,
 * which tables do not keep.  Empty when the member is no object. */
static int json_keys(lua_State *L)
{
    luaL_checkstring(L, 3);
    return with_json(L, 1 << 30, push_keys);
}

/* ---- packing --------------------------------------------------------------------------- */

/* The bytes of the number at `arg`; returns how many. */
static size_t number_bytes(lua_State *L, char letter, int arg, uint8_t bytes[8])
{
    /* little-endian machines only, as the whole program */
    static const char letters[] = "bBhHiIlL";
    const char *at = letter ? strchr(letters, letter) : NULL;
    if (!at && letter != 'f' && letter != 'd')
        luaL_argerror(L, 1, lua_pushfstring(L, "letter '%c' is none of bBhHiIlLfds", letter));
    double x = luaL_checknumber(L, arg);
    if (letter == 'd') {
        memcpy(bytes, &x, sizeof x);
        return sizeof x;
    }
    if (letter == 'f') {
        float f = (float)x;
        memcpy(bytes, &f, sizeof f);
        return sizeof f;
    }
    size_t n = (size_t)1 << ((at - letters) / 2);
    double span = n == 8 ? 9007199254740992.0 : (double)((uint64_t)1 << (8 * n - 1));
    bool is_signed = (at - letters) % 2 == 0;
    double low = is_signed ? -span : 0, high = is_signed || n == 8 ? span - 1 : 2 * span - 1;
    if (!(x >= low && x <= high) || x != (double)(int64_t)x)
        luaL_argerror(L, arg, lua_pushfstring(L, "%f does not fit letter '%c'", x, letter));
    int64_t whole = (int64_t)x;
    memcpy(bytes, &whole, n);
    return n;
}

/* pack(letters, ...) -> little-endian bytes.  b/B h/H i/I l/L: 8 16 32 64 bit signed/unsigned,
 * f d: floats, s: u64 length and the bytes (a GGUF string). */
static int pack(lua_State *L)
{
    size_t n;
    const char *letters = luaL_checklstring(L, 1, &n);
    luaL_Buffer b; /* it may keep values on the stack, so arguments are addressed by absolute index */
    luaL_buffinit(L, &b);
    for (size_t i = 0; i < n; i++) {
        int arg = (int)i + 2;
        uint8_t bytes[8];
        size_t length;
        if (letters[i] == 's') {
            const char *s = luaL_checklstring(L, arg, &length);
            uint64_t wide = length;
            luaL_addlstring(&b, (const char *)&wide, sizeof wide);
            luaL_addlstring(&b, s, length);
        } else {
            length = number_bytes(L, letters[i], arg, bytes);
            luaL_addlstring(&b, (const char *)bytes, length);
        }
    }
    luaL_pushresult(&b);
    return 1;
}

/* Strings of the list at index 2, as pack writes them, to `out`; NULL: only their size is asked for. */
static size_t pack_strings(lua_State *L, int n, uint8_t *out)
{
    size_t total = 0, length;
    for (int i = 1; i <= n; i++) {
        lua_rawgeti(L, 2, i);
        const char *s = luaL_checklstring(L, -1, &length);
        uint64_t wide = length;
        if (out) {
            memcpy(out + total, &wide, sizeof wide);
            memcpy(out + total + sizeof wide, s, length);
        }
        total += sizeof wide + length;
        lua_pop(L, 1);
    }
    return total;
}

/* pack_array(letter, list) -> bytes of every element, in one piece: vocabularies have hundreds of thousands. */
static int pack_array(lua_State *L)
{
    char letter = *luaL_checkstring(L, 1);
    luaL_checktype(L, 2, LUA_TTABLE);
    int n = (int)lua_objlen(L, 2);
    lua_settop(L, 2);
    size_t total = letter == 's' ? pack_strings(L, n, NULL) : 8 * (size_t)n;
    uint8_t *out = lua_newuserdata(L, total + 1);
    if (letter == 's')
        pack_strings(L, n, out);
    else
        total = 0;
    for (int i = 1; letter != 's' && i <= n; i++) {
        lua_rawgeti(L, 2, i);
        total += number_bytes(L, letter, 4, out + total);
        lua_pop(L, 1);
    }
    lua_pushlstring(L, (const char *)out, total);
    return 1;
}

/* sha256(bytes) -> 64 hexadecimal digits. */
static int sha256(lua_State *L)
{
    size_t n;
    const char *s = luaL_checklstring(L, 1, &n);
    char hex[SHA256_DIGEST_STRING_LENGTH];
    SHA256Data((const uint8_t *)s, n, hex);
    lua_pushstring(L, hex);
    return 1;
}

/* ---- regular expressions ------------------------------------------------------------------ */

static int regex_new(lua_State *L)
{
    size_t n;
    const char *pattern = luaL_checklstring(L, 1, &n);
    void **box = qml_box(L, QML_REGEX);
    qm_err e = {0};
    *box = qm_regex_new(pattern, n, &e);
    return *box ? 1 : qml_raise(L, &e);
}

static int regex_test(lua_State *L, qm_regex_mode mode)
{
    qm_regex *r = qml_check(L, 1, QML_REGEX);
    size_t n;
    const char *s = luaL_checklstring(L, 2, &n);
    bool matches;
    qm_err e = {0};
    if (!qm_regex_test(r, mode, s, n, &matches, &e))
        return qml_raise(L, &e);
    lua_pushboolean(L, matches);
    return 1;
}

static int regex_match(lua_State *L) { return regex_test(L, QM_REGEX_MATCH); }
static int regex_fullmatch(lua_State *L) { return regex_test(L, QM_REGEX_FULL); }
static int regex_search(lua_State *L) { return regex_test(L, QM_REGEX_SEARCH); }

/* r:replace(subject, text) -> subject with every match replaced by text, taken as it is. */
static int regex_replace(lua_State *L)
{
    qm_regex *r = qml_check(L, 1, QML_REGEX);
    size_t n, n_text, from, to, last = 0;
    const char *subject = luaL_checklstring(L, 2, &n), *text = luaL_checklstring(L, 3, &n_text);
    luaL_argcheck(L, qm_utf8_text(subject, n), 2, "is not UTF-8");
    qm_err e = {0};
    void **scan = qml_box(L, QML_SCAN);
    qm_regex_scan *s = *scan = qm_regex_scan_new(r, &e);
    if (!s)
        return qml_raise(L, &e);
    bool found = false, fine;
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    qm_regex_start(s, subject, n);
    while ((fine = qm_regex_next(s, &found, &from, &to, &e)) && found) {
        luaL_addlstring(&b, subject + last, from - last);
        luaL_addlstring(&b, text, n_text);
        last = to;
    }
    if (!fine)
        return qml_raise(L, &e);
    luaL_addlstring(&b, subject + last, n - last);
    luaL_pushresult(&b);
    return 1;
}

static int scan_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_SCAN);
    qm_regex_scan_free(*box);
    *box = NULL;
    return 0;
}

static int regex_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_REGEX);
    qm_regex_free(*box);
    *box = NULL;
    return 0;
}

void qml_open_text(lua_State *L)
{
    static const luaL_Reg methods[] = {{"match", regex_match},
                                       {"fullmatch", regex_fullmatch},
                                       {"search", regex_search},
                                       {"replace", regex_replace},
                                       {NULL, NULL}};
    static const luaL_Reg none[] = {{NULL, NULL}};
    static const luaL_Reg functions[] = {
        {"json_decode", json_decode}, {"json_keys", json_keys}, {"pack", pack}, {"pack_array", pack_array},
        {"sha256", sha256},           {"regex", regex_new},     {NULL, NULL}};
    qml_class(L, QML_REGEX, methods, regex_gc);
    qml_class(L, QML_SCAN, none, scan_gc);
    qml_functions(L, functions);
    lua_pushlightuserdata(L, &null_key);
    lua_setfield(L, -2, "null");
}
