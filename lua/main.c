/* main.c: the program around the library.  It makes a Lua state, lets `require` find the modules
 * inside the program, and hands the command line to lua/qmoon/host.lua, which decides everything.
 */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bind.h"
#include "embed.h"

static lua_State *running; /* for the signal handler */

#define SAME_INTERRUPT 0.3 /* seconds: nobody presses Ctrl-C again so soon, and means more by it */

/* First Ctrl-C: work in C stops at its next chunk, and Lua at its next instruction (a compiled loop
 * that calls nothing cannot be stopped: LuaJIT checks no hooks there).  Second: leave at once; what is
 * unfinished has no final name yet, so nothing is lost that was there before. */
static void stop_lua(lua_State *L, lua_Debug *ar)
{
    (void)ar;
    lua_sethook(L, NULL, 0, 0);
    qm_err e = {0};
    qm_fail(&e, QM_EINTERRUPT, "interrupted");
    qml_raise(L, &e);
}

static void on_interrupt(int sig)
{
    static struct timespec first;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double since = (double)(now.tv_sec - first.tv_sec) + 1e-9 * (double)(now.tv_nsec - first.tv_nsec);
    if (qm_interrupted() && since < SAME_INTERRUPT)
        return; /* timeout(1) signals the process and then its group: that is one interrupt */
    if (qm_interrupted())
        _exit(128 + sig);
    first = now;
    qm_interrupt_request();
    lua_sethook(running, stop_lua, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

/* package.loaders entry: modules embedded in the program. */
static int find_embedded(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    for (const qml_file *f = qml_embedded; f->name; f++) {
        if (strcmp(f->name, name) != 0)
            continue;
        lua_pushfstring(L, "@%s", f->path);
        if (luaL_loadbuffer(L, f->start, (size_t)(f->end - f->start), lua_tostring(L, -1)) != 0)
            return lua_error(L);
        return 1;
    }
    lua_pushfstring(L, "\n\tno module '%s' in the program", name);
    return 1;
}

static void add_loader(lua_State *L)
{
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "loaders");
    for (int i = (int)lua_objlen(L, -1); i >= 2; i--) { /* second place: after package.preload */
        lua_rawgeti(L, -1, i);
        lua_rawseti(L, -2, i + 1);
    }
    lua_pushcfunction(L, find_embedded);
    lua_rawseti(L, -2, 2);
    lua_getfield(L, -2, "preload");
    lua_pushcfunction(L, luaopen_qmoon_core);
    lua_setfield(L, -2, "qmoon.core");
    lua_pop(L, 3);
}

/* main(argv) of qmoon.host returns the exit status. */
static int start(lua_State *L)
{
    int argc = (int)lua_tointeger(L, 1);
    char **argv = lua_touserdata(L, 2);
    luaL_openlibs(L);
    add_loader(L);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "qmoon.host");
    lua_call(L, 1, 1);
    lua_createtable(L, argc, 1);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_call(L, 1, 1);
    return 1;
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "C.UTF-8"); /* numbers stay with the C locale */
    signal(SIGPIPE, SIG_IGN);       /* a closed pipe is a write error, not a death; */
    signal(SIGXFSZ, SIG_IGN);       /* so is a file that grows past `ulimit -f` */
    lua_State *L = luaL_newstate();
    if (!L) {
        fprintf(stderr, "error: out of memory: Lua cannot start\n");
        return QM_EFAIL;
    }
    running = L;
    struct sigaction interrupt = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &interrupt, NULL);
    sigaction(SIGTERM, &interrupt, NULL);

    lua_pushcfunction(L, start);
    lua_pushinteger(L, argc);
    lua_pushlightuserdata(L, argv);
    int status = QM_EFAIL;
    if (lua_pcall(L, 2, 1, 0) != 0)
        fprintf(stderr, "error: %s\n",
                lua_isstring(L, -1) ? lua_tostring(L, -1) : "error in the program itself");
    else
        status = (int)lua_tointeger(L, -1);
    lua_close(L);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    if (errno != EPIPE) /* the reader has seen enough */
        fprintf(stderr, "error: standard output: not all could be written; is its disk full?\n");
    return status ? status : QM_EFAIL;
}
