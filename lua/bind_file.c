/* bind_file.c: files, folders, and the headers of containers, as Lua sees them. */
#define _GNU_SOURCE /* renameat2 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "../core/containers/gguf.h"
#include "../core/containers/safetensors.h"
#include "bind.h"

/* ---- input files ------------------------------------------------------------------------- */

static qm_infile *open_infile(lua_State *L, const char *path)
{
    void **box = qml_box(L, QML_INFILE);
    qm_err e = {0};
    *box = qm_infile_open(path, &e);
    if (!*box)
        qml_raise(L, &e);
    return *box;
}

/* infile(path) -> file; read-only, mapped. */
static int infile(lua_State *L)
{
    open_infile(L, qml_check_text(L, 1));
    return 1;
}

/* f:read(at, n) -> n bytes. */
static int infile_read(lua_State *L)
{
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    uint64_t at = qml_check_size(L, 2, "offset"), n = qml_check_size(L, 3, "length");
    qm_err e = {0};
    if (n > f->size || at > f->size - n) {
        qm_fail(&e, QM_ECORRUPT, "%s: bytes %llu to %llu are past its end at %llu", f->path,
                (unsigned long long)at, (unsigned long long)(at + n), (unsigned long long)f->size);
        return qml_raise(L, &e);
    }
    char *p = lua_newuserdata(L, n ? n : 1); /* collectable scratch */
    if (!qm_infile_read(f, at, p, n, &e))
        return qml_raise(L, &e);
    lua_pushlstring(L, p, n);
    return 1;
}

static int infile_size(lua_State *L)
{
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    lua_pushnumber(L, (double)f->size);
    return 1;
}

static int infile_path(lua_State *L)
{
    qm_infile *f = qml_check(L, 1, QML_INFILE);
    lua_pushstring(L, f->path);
    return 1;
}

/* f:release(): pages of the map that were read no longer count as this program's memory. */
static int infile_release(lua_State *L)
{
    qm_infile_release(qml_check(L, 1, QML_INFILE));
    return 0;
}

static int infile_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_INFILE);
    qm_infile_unref(*box);
    *box = NULL;
    return 0;
}

/* ---- output files ------------------------------------------------------------------------ */

/* outfile(path, size) -> file of that size under "<path>.part" until :finish(). */
static int outfile(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    uint64_t size = qml_check_size(L, 2, "size");
    void **box = qml_box(L, QML_OUTFILE);
    qm_err e = {0};
    *box = qm_outfile_create(path, size, &e);
    return *box ? 1 : qml_raise(L, &e);
}

/* o:write(at, bytes) */
static int outfile_write(lua_State *L)
{
    qm_outfile *f = qml_check(L, 1, QML_OUTFILE);
    uint64_t at = qml_check_size(L, 2, "offset");
    size_t n;
    const char *s = luaL_checklstring(L, 3, &n);
    qm_err e = {0};
    if (!qm_outfile_write(f, at, s, n, &e))
        return qml_raise(L, &e);
    return 0;
}

/* o:sync(): on disk when this returns, not yet under its name. */
static int outfile_sync(lua_State *L)
{
    qm_outfile *f = qml_check(L, 1, QML_OUTFILE);
    qm_err e = {0};
    if (!qm_outfile_sync(f, &e))
        return qml_raise(L, &e);
    return 0;
}

/* o:finish(): on disk and under its name when this returns. */
static int outfile_finish(lua_State *L)
{
    qm_outfile *f = qml_check(L, 1, QML_OUTFILE);
    qm_err e = {0};
    qml_check_idle(L, 1, QML_OUTFILE);
    if (!qm_outfile_finish(f, &e))
        return qml_raise(L, &e);
    return 0;
}

static int outfile_gc(lua_State *L)
{
    void **box = luaL_checkudata(L, 1, QML_OUTFILE);
    if (*box)
        qm_outfile_free(*box);
    *box = NULL;
    return 0;
}

static int outfile_drop(lua_State *L)
{
    qml_check_idle(L, 1, QML_OUTFILE);
    return outfile_gc(L);
}

/* overwrite(path, at, bytes): into a file that is there and at least that long; on disk when this returns. */
static int overwrite(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    uint64_t at = qml_check_size(L, 2, "offset");
    size_t n;
    const char *s = luaL_checklstring(L, 3, &n);
    qm_err e = {0};
    if (!qm_file_overwrite(path, at, s, n, &e))
        return qml_raise(L, &e);
    return 0;
}

/* ---- containers ---------------------------------------------------------------------------- */

typedef struct headers {
    qm_st_header st;
    qm_gguf_header gguf;
    qm_infile *file;
} headers;

static void push_st(lua_State *L, const qm_st_header *h)
{
    lua_createtable(L, (int)h->count, 0);
    for (size_t i = 0; i < h->count; i++) {
        const qm_st_tensor *t = &h->tensor[i];
        lua_createtable(L, 0, 5);
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
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "tensors");
    lua_newtable(L);
    for (size_t i = 0; i < h->nmeta; i++) {
        lua_pushstring(L, h->meta[2 * i + 1]);
        lua_setfield(L, -2, h->meta[2 * i]);
    }
    lua_setfield(L, -2, "meta");
}

static const char *const gguf_kinds[QM_GGUF_KIND_COUNT] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

/* Pushes one element and returns the bytes it takes. Lengths were checked when the header was read. */
static uint64_t push_gguf_element(lua_State *L, qm_gguf_kind kind, const uint8_t *p)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        float f32;
        uint64_t u64;
        int64_t i64;
        double f64;
    } v;
    static const uint8_t sizes[QM_GGUF_KIND_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8};
    memcpy(&v, p, sizes[kind]);
    switch (kind) {
    case QM_GGUF_U8:
        lua_pushnumber(L, v.u8);
        break;
    case QM_GGUF_I8:
        lua_pushnumber(L, v.i8);
        break;
    case QM_GGUF_U16:
        lua_pushnumber(L, v.u16);
        break;
    case QM_GGUF_I16:
        lua_pushnumber(L, v.i16);
        break;
    case QM_GGUF_U32:
        lua_pushnumber(L, v.u32);
        break;
    case QM_GGUF_I32:
        lua_pushnumber(L, v.i32);
        break;
    case QM_GGUF_F32:
        lua_pushnumber(L, (double)v.f32);
        break;
    case QM_GGUF_BOOL:
        lua_pushboolean(L, v.u8);
        break;
    case QM_GGUF_U64:
        lua_pushnumber(L, (double)v.u64);
        break;
    case QM_GGUF_I64:
        lua_pushnumber(L, (double)v.i64);
        break;
    case QM_GGUF_F64:
        lua_pushnumber(L, v.f64);
        break;
    case QM_GGUF_STRING:
        lua_pushlstring(L, (const char *)p + 8, v.u64);
        return 8 + v.u64;
    default:
        lua_pushnil(L);
        break;
    }
    return sizes[kind];
}

/* at and size are of the whole pair in the file: tools carry pairs over by their bytes. */
static void push_gguf_pair(lua_State *L, const qm_gguf_pair *pair, const uint8_t *map)
{
    const qm_gguf_value *v = &pair->value;
    const uint8_t *start = (const uint8_t *)pair->key - sizeof pair->key_length;
    lua_createtable(L, 0, 6);
    lua_pushnumber(L, (double)(start - map));
    lua_setfield(L, -2, "at");
    lua_pushnumber(L, (double)(v->at + v->size - start));
    lua_setfield(L, -2, "size");
    lua_pushlstring(L, pair->key, pair->key_length);
    lua_setfield(L, -2, "key");
    lua_pushstring(L, v->array ? "array" : gguf_kinds[v->kind]);
    lua_setfield(L, -2, "type");
    if (v->array) {
        lua_pushstring(L, gguf_kinds[v->kind]);
        lua_setfield(L, -2, "elem");
        lua_createtable(L, (int)v->count, 0);
        const uint8_t *p = v->at;
        for (uint64_t i = 0; i < v->count; i++) {
            p += push_gguf_element(L, v->kind, p);
            lua_rawseti(L, -2, (int)i + 1);
        }
    } else {
        push_gguf_element(L, v->kind, v->at);
    }
    lua_setfield(L, -2, "value");
}

static void push_gguf(lua_State *L, const qm_gguf_header *h, const uint8_t *map)
{
    lua_pushnumber(L, h->version);
    lua_setfield(L, -2, "version");
    lua_pushnumber(L, h->alignment);
    lua_setfield(L, -2, "alignment");
    lua_createtable(L, (int)h->npair, 0);
    for (size_t i = 0; i < h->npair; i++) {
        push_gguf_pair(L, &h->pair[i], map);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "meta");
    lua_createtable(L, (int)h->count, 0);
    for (size_t i = 0; i < h->count; i++) {
        const qm_gguf_tensor *t = &h->tensor[i];
        const char *type = "?";
        unsigned block, bytes;
        qm_gguf_type_info(t->type, &type, &block, &bytes);
        lua_createtable(L, 0, 7);
        lua_pushstring(L, t->name);
        lua_setfield(L, -2, "name");
        lua_pushnumber(L, t->type);
        lua_setfield(L, -2, "type");
        lua_pushstring(L, type);
        lua_setfield(L, -2, "type_name");
        if (t->format) {
            lua_pushstring(L, t->format->name);
            lua_setfield(L, -2, "format");
        }
        qml_push_shape(L, &t->shape);
        lua_setfield(L, -2, "shape");
        lua_pushnumber(L, (double)t->at);
        lua_setfield(L, -2, "at");
        lua_pushnumber(L, (double)t->size);
        lua_setfield(L, -2, "size");
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "tensors");
}

/* Runs under pcall, so that the C header is freed even when Lua runs out of memory.  The collector waits
 * meanwhile: a vocabulary is hundreds of thousands of strings, all of them wanted. */
static int push_header(lua_State *L)
{
    const headers *h = lua_touserdata(L, 1);
    bool gguf = lua_toboolean(L, 3);
    lua_newtable(L);
    lua_pushvalue(L, 2);
    lua_setfield(L, -2, "file");
    if (gguf)
        push_gguf(L, &h->gguf, h->file->map);
    else
        push_st(L, &h->st);
    return 1;
}

static int read_header(lua_State *L, bool gguf)
{
    headers h = {0};
    qm_err e = {0};
    h.file = open_infile(L, qml_check_text(L, 1));
    if (gguf ? !qm_gguf_read(&h.gguf, h.file, &e) : !qm_st_read(&h.st, h.file, &e))
        return qml_raise(L, &e);
    lua_pushcfunction(L, push_header);
    lua_pushlightuserdata(L, &h);
    lua_pushvalue(L, -3);
    lua_pushboolean(L, gguf);
    lua_gc(L, LUA_GCSTOP, 0);
    int failed = lua_pcall(L, 3, 1, 0);
    lua_gc(L, LUA_GCRESTART, -1); /* when there is twice as much, as after a collection */
    qm_st_free(&h.st);
    qm_gguf_free(&h.gguf);
    qm_infile_release(h.file);
    return failed ? lua_error(L) : 1;
}

/* safetensors(path) -> {file, tensors = {{name, dtype, shape, at, size}, …}, meta} */
static int safetensors(lua_State *L) { return read_header(L, false); }

/* gguf(path) -> {file, version, alignment, meta = {{key, type, elem, value, at, size}, …}, tensors} */
static int gguf_header(lua_State *L) { return read_header(L, true); }

/* gguf_types() -> {id, name, block, bytes} of every ggml type that files may hold. */
static int gguf_types(lua_State *L)
{
    int k = 0;
    lua_newtable(L);
    for (int id = 0; id < 64; id++) {
        const char *name;
        unsigned block, bytes;
        if (!qm_gguf_type_info(id, &name, &block, &bytes))
            continue;
        lua_createtable(L, 0, 4);
        lua_pushinteger(L, id);
        lua_setfield(L, -2, "id");
        lua_pushstring(L, name);
        lua_setfield(L, -2, "name");
        lua_pushinteger(L, (lua_Integer)block);
        lua_setfield(L, -2, "block");
        lua_pushinteger(L, (lua_Integer)bytes);
        lua_setfield(L, -2, "bytes");
        lua_rawseti(L, -2, ++k);
    }
    return 1;
}

/* ---- folders -------------------------------------------------------------------------------- */

static int fail_errno(lua_State *L, const char *what, const char *path)
{
    qm_err e = {0};
    qm_fail_errno(&e, "%s: %s", path, what);
    return qml_raise(L, &e);
}

/* stat(path) -> {type = "file" | "dir" | "other", size, inode}, or nil when there is nothing. */
static int path_stat(lua_State *L)
{
    struct stat st;
    if (stat(qml_check_text(L, 1), &st) != 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return 0;
        return fail_errno(L, "cannot be looked at", lua_tostring(L, 1));
    }
    lua_createtable(L, 0, 3);
    lua_pushstring(L, S_ISREG(st.st_mode) ? "file" : S_ISDIR(st.st_mode) ? "dir" : "other");
    lua_setfield(L, -2, "type");
    lua_pushnumber(L, (double)st.st_size);
    lua_setfield(L, -2, "size");
    lua_pushfstring(L, "%f:%f", (double)st.st_dev, (double)st.st_ino);
    lua_setfield(L, -2, "id");
    return 1;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* list(dir) -> names in byte order, without "." and "..". */
static int path_list(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, by_name), k = 0;
    if (n < 0)
        return fail_errno(L, "cannot be listed", path);
    lua_newtable(L);
    for (int i = 0; i < n; i++) {
        const char *name = entry[i]->d_name;
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            lua_pushstring(L, name);
            lua_rawseti(L, -2, ++k);
        }
        free(entry[i]);
    }
    free(entry);
    return 1;
}

/* mkdir(path): with its parents; fine when it is there. */
static int path_mkdir(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    char *part = lua_newuserdata(L, strlen(path) + 1);
    strcpy(part, path);
    for (char *p = part + 1;; p++) {
        char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST && !(errno == EROFS && access(part, F_OK) == 0))
            return fail_errno(L, "cannot be made", part);
        *p = c;
        if (c == '\0')
            break;
    }
    struct stat st;
    if (stat(path, &st) != 0)
        return fail_errno(L, "cannot be made", path);
    if (!S_ISDIR(st.st_mode)) {
        errno = ENOTDIR;
        return fail_errno(L, "cannot be made", path);
    }
    return 0;
}

static void sync_folder_of(const char *path)
{
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        *(slash == folder ? slash + 1 : slash) = '\0';
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

/* rename(from, to): and the folder is synced, so that it holds across a power cut. */
static int path_rename(lua_State *L)
{
    const char *from = qml_check_text(L, 1), *to = qml_check_text(L, 2);
    if (rename(from, to) != 0)
        return fail_errno(L, lua_pushfstring(L, "cannot be renamed to %s", to), from);
    sync_folder_of(to);
    return 0;
}

/* exchange(a, b) -> true: each name stands for what the other stood for, in one step; false where the file
 * system cannot do that. */
static int path_exchange(lua_State *L)
{
    const char *a = qml_check_text(L, 1), *b = qml_check_text(L, 2);
    bool done = renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0;
    if (!done && errno != EINVAL && errno != ENOSYS)
        return fail_errno(L, lua_pushfstring(L, "cannot be renamed to %s", b), a);
    if (done)
        sync_folder_of(b);
    lua_pushboolean(L, done);
    return 1;
}

static bool remove_tree(const char *path, int depth)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT;
    if (!S_ISDIR(st.st_mode))
        return unlink(path) == 0;
    if (rmdir(path) == 0) /* was empty; needs no memory, which may be what ran out */
        return true;
    DIR *d = depth < 16 ? opendir(path) : NULL;
    if (!d)
        return false;
    bool ok = true;
    for (struct dirent *entry; ok && (entry = readdir(d));) {
        char inner[PATH_MAX];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        ok = snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) < (int)sizeof inner
             && remove_tree(inner, depth + 1);
    }
    closedir(d);
    return ok && rmdir(path) == 0;
}

/* remove_tree(path): a file, or a folder and all in it; links are removed, never followed. */
static int path_remove_tree(lua_State *L)
{
    const char *path = qml_check_text(L, 1);
    if (!remove_tree(path, 0))
        return fail_errno(L, "cannot be removed", path);
    return 0;
}

/* disk_free(path) -> bytes free to this user on the file system holding path (or its nearest parent
 * that exists), and a string that is equal for paths on one file system. */
static int path_disk_free(lua_State *L)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", qml_check_text(L, 1));
    struct statvfs fs;
    struct stat st;
    while (statvfs(path, &fs) != 0 || stat(path, &st) != 0) {
        char *slash = strrchr(path, '/');
        if (errno != ENOENT || strcmp(path, "/") == 0 || strcmp(path, ".") == 0)
            return fail_errno(L, "free space cannot be found out", path);
        if (!slash)
            strcpy(path, ".");
        else
            *(slash == path ? slash + 1 : slash) = '\0';
    }
    lua_pushnumber(L, (double)fs.f_bavail * (double)fs.f_frsize);
    lua_pushfstring(L, "%f", (double)st.st_dev);
    return 2;
}

/* realpath(path) -> absolute path without links. */
static int path_real(lua_State *L)
{
    char *p = realpath(qml_check_text(L, 1), NULL);
    if (!p)
        return fail_errno(L, "cannot be found", lua_tostring(L, 1));
    lua_pushstring(L, p);
    free(p);
    return 1;
}

static int path_writable(lua_State *L)
{
    lua_pushboolean(L, access(qml_check_text(L, 1), W_OK) == 0);
    return 1;
}

void qml_open_files(lua_State *L)
{
    static const luaL_Reg in[] = {{"read", infile_read},
                                  {"size", infile_size},
                                  {"path", infile_path},
                                  {"release", infile_release},
                                  {NULL, NULL}};
    static const luaL_Reg out[] = {{"write", outfile_write},
                                   {"sync", outfile_sync},
                                   {"finish", outfile_finish},
                                   {"drop", outfile_drop},
                                   {NULL, NULL}};
    static const luaL_Reg functions[] = {{"infile", infile},
                                         {"outfile", outfile},
                                         {"overwrite", overwrite},
                                         {"safetensors", safetensors},
                                         {"gguf", gguf_header},
                                         {"gguf_types", gguf_types},
                                         {"stat", path_stat},
                                         {"list", path_list},
                                         {"mkdir", path_mkdir},
                                         {"rename", path_rename},
                                         {"exchange", path_exchange},
                                         {"remove_tree", path_remove_tree},
                                         {"disk_free", path_disk_free},
                                         {"realpath", path_real},
                                         {"writable", path_writable},
                                         {NULL, NULL}};
    qml_class(L, QML_INFILE, in, infile_gc);
    qml_class(L, QML_OUTFILE, out, outfile_gc);
    qml_functions(L, functions);
}
