/* bind_system.c: the machine around us: time, terminal, memory, the modules in this program. */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "../core/cpu.h"
#include "bind.h"
#include "embed.h"

/* now() -> seconds, monotonic. */
static int now(lua_State *L)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    lua_pushnumber(L, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec);
    return 1;
}

/* terminal(fd) -> columns when fd is a terminal, else nil. */
static int terminal(lua_State *L)
{
    int fd = luaL_checkint(L, 1);
    struct winsize w;
    if (!isatty(fd))
        return 0;
    lua_pushinteger(L, ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col ? w.ws_col : 80);
    return 1;
}

static bool meminfo(const char *path, const char *key, double *bytes)
{
    FILE *f = fopen(path, "r");
    char line[256];
    bool found = false;
    size_t n = strlen(key);
    while (f && !found && fgets(line, sizeof line, f)) {
        unsigned long long kib;
        if (strncmp(line, key, n) == 0 && sscanf(line + n, " %llu", &kib) == 1) {
            *bytes = 1024.0 * (double)kib;
            found = true;
        }
    }
    if (f)
        fclose(f);
    return found;
}

/* A cgroup's limit less what it uses: what is free inside a container. */
static bool cgroup_free(double *bytes)
{
    unsigned long long max, used;
    FILE *m = fopen("/sys/fs/cgroup/memory.max", "r"), *u = fopen("/sys/fs/cgroup/memory.current", "r");
    bool ok = m && u && fscanf(m, "%llu", &max) == 1 && fscanf(u, "%llu", &used) == 1;
    if (ok)
        *bytes = max > used ? (double)(max - used) : 0;
    if (m)
        fclose(m);
    if (u)
        fclose(u);
    return ok;
}

/* memory() -> {available, peak, own} in bytes: what this process may still take (container limits
 * included), the most it has held (VmHWM), and what it holds now besides pages of files (RssAnon). */
static int memory(lua_State *L)
{
    double available, peak = 0, own = 0, group;
    if (!meminfo("/proc/meminfo", "MemAvailable:", &available)) /* no /proc here: all there is */
        available = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (cgroup_free(&group) && group < available)
        available = group;
    meminfo("/proc/self/status", "VmHWM:", &peak);
    meminfo("/proc/self/status", "RssAnon:", &own);
    lua_createtable(L, 0, 3);
    lua_pushnumber(L, own);
    lua_setfield(L, -2, "own");
    lua_pushnumber(L, available);
    lua_setfield(L, -2, "available");
    lua_pushnumber(L, peak);
    lua_setfield(L, -2, "peak");
    return 1;
}

/* cpus() -> processors this process may use. */
static int cpus(lua_State *L)
{
    lua_pushinteger(L, qm_cpu_count());
    return 1;
}

/* simd([highest]) -> level in use; with an argument, first sets the lid ("scalar", "avx2", "avx512").
 * The bytes written never depend on it. */
static int simd(lua_State *L)
{
    if (!lua_isnoneornil(L, 1))
        qm_cpu_limit((qm_simd)luaL_checkoption(L, 1, NULL, qm_simd_names));
    lua_pushstring(L, qm_simd_names[qm_cpu_simd()]);
    return 1;
}

/* source(name) -> text, path of an embedded module ("qmoon.lora") or command ("command:merge"). */
static int source(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    for (const qml_file *f = qml_embedded; f->name; f++)
        if (strcmp(f->name, name) == 0) {
            lua_pushlstring(L, f->start, (size_t)(f->end - f->start));
            lua_pushstring(L, f->path);
            return 2;
        }
    return 0;
}

/* modules(prefix) -> names of embedded modules that begin with it, in order. */
static int modules(lua_State *L)
{
    size_t n;
    const char *prefix = luaL_optlstring(L, 1, "", &n);
    int k = 0;
    lua_newtable(L);
    for (const qml_file *f = qml_embedded; f->name; f++)
        if (strncmp(f->name, prefix, n) == 0) {
            lua_pushstring(L, f->name);
            lua_rawseti(L, -2, ++k);
        }
    return 1;
}

/* interrupted() -> whether the user has asked to stop. */
static int interrupted(lua_State *L)
{
    lua_pushboolean(L, qm_interrupted());
    return 1;
}

/* uninterrupt(): forget a request to stop; the prompt does so before each chunk. */
static int uninterrupt(lua_State *L)
{
    lua_sethook(L, NULL, 0, 0); /* main.c's, which would stop the next instruction */
    qm_interrupt_clear();
    return 0;
}

void qml_open_system(lua_State *L)
{
    static const luaL_Reg functions[] = {{"now", now},
                                         {"terminal", terminal},
                                         {"memory", memory},
                                         {"cpus", cpus},
                                         {"simd", simd},
                                         {"source", source},
                                         {"modules", modules},
                                         {"interrupted", interrupted},
                                         {"uninterrupt", uninterrupt},
                                         {NULL, NULL}};
    qml_functions(L, functions);
}
