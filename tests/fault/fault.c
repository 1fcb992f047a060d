/* fault.c: makes the n-th call of a system function fail.  Preloaded into the program by
 * tests/lua/fault_test.lua and told by the environment:
 *
 *   FAULT="pwrite 12 ENOSPC"   the 12th pwrite returns -1 with that errno
 *   FAULT="pwrite 12+ ENOSPC"  and so do all that follow
 *   FAULT="pwrite 12 short"    it writes half of what it was given, and says so
 *   FAULT="rename 2 kill"      the process is gone at that point
 *   FAULT_FIRED=path           made when it happens; still missing after a run that made fewer calls
 *
 * "malloc" stands for everything that allocates; what cJSON asks for, thousands of times, is counted apart as
 * "cjson".  "mmap64" is LuaJIT's own allocator (it asks for memory by that name; the core maps files with
 * mmap). fsync succeeds at once: nothing here needs a disk.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    const char *name;
    int number;
} errors[] = {{"ENOSPC", ENOSPC},        {"EIO", EIO},       {"EINTR", EINTR},
              {"ENOMEM", ENOMEM},        {"EACCES", EACCES}, {"EAGAIN", EAGAIN},
              {"EMFILE", EMFILE},        {"EDQUOT", EDQUOT}, {"EROFS", EROFS},
              {"EOPNOTSUPP", EOPNOTSUPP}};

/* What FAULT asks for; set when main begins and never changed. */
static char wanted[32];
static long nth;
static bool onwards, kills, shortens;
static int number;

static atomic_long calls;
static pthread_t main_thread;

/* Where the code of a library lies. */
typedef struct range {
    const char *library;
    uintptr_t from, to;
} range;

static range cjson = {.library = "libcjson"}, libgcc = {.library = "libgcc_s"};

static int find_code(struct dl_phdr_info *library, size_t size, void *arg)
{
    range *r = arg;
    (void)size;
    if (!strstr(library->dlpi_name, r->library))
        return 0;
    r->from = library->dlpi_addr;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        uintptr_t end = r->from + library->dlpi_phdr[i].p_vaddr + library->dlpi_phdr[i].p_memsz;
        r->to = end > r->to ? end : r->to;
    }
    return 1;
}

static bool lies_in(const void *code, const range *r)
{
    return (uintptr_t)code >= r->from && (uintptr_t)code < r->to;
}

static void read_environment(void)
{
    const char *text = getenv("FAULT");
    char count[32] = "", how[32] = "";
    if (!text || sscanf(text, "%31s %31s %31s", wanted, count, how) != 3)
        return;
    nth = atol(count);
    onwards = strchr(count, '+') != NULL;
    kills = strcmp(how, "kill") == 0;
    shortens = strcmp(how, "short") == 0;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (strcmp(how, errors[i].name) == 0)
            number = errors[i].number;
    main_thread = pthread_self();
    dl_iterate_phdr(find_code, &cjson);
    dl_iterate_phdr(find_code, &libgcc);
}

/* The function that this file stands before. */
#define REAL(name) ((__typeof__(&(name)))dlsym(RTLD_NEXT, #name))

/* Calls count from main on: what the loader and CUDA's runtime do before is not ours to survive. */
typedef int main_function(int, char **, char **);
static main_function *program_main;

static int main_that_counts(int argc, char **argv, char **env)
{
    read_environment();
    return program_main(argc, argv, env);
}

int __libc_start_main(main_function *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);
int __libc_start_main(main_function *entry, int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*loader_fini)(void), void *stack_end)
{
    program_main = entry;
    return REAL(__libc_start_main)(main_that_counts, argc, argv, init, fini, loader_fini, stack_end);
}

/* Whether this call of `name` is the one.  Uses system calls only: the caller may be malloc. */
static bool fires(const char *name)
{
    if (nth == 0 || strcmp(name, wanted) != 0)
        return false;
    long i = atomic_fetch_add(&calls, 1) + 1;
    if (i < nth || (i > nth && !onwards))
        return false;
    const char *mark = getenv("FAULT_FIRED");
    if (mark)
        syscall(SYS_mknodat, AT_FDCWD, mark, S_IFREG | 0666, 0);
    if (kills)
        syscall(SYS_kill, getpid(), SIGKILL);
    errno = number;
    return true;
}

/* result FUNCTION(parameters) that fails with `failure`. */
#define STAND_BEFORE(result, failure, name, parameters, ...) \
    result name parameters                                   \
    {                                                        \
        if (fires(#name))                                    \
            return failure;                                  \
        return REAL(name)(__VA_ARGS__);                      \
    }

STAND_BEFORE(int, -1, fallocate, (int fd, int mode, off_t at, off_t n), fd, mode, at, n)
STAND_BEFORE(int, -1, ftruncate, (int fd, off_t n), fd, n)
STAND_BEFORE(int, -1, rename, (const char *from, const char *to), from, to)
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    return fires("rename") ? -1 : REAL(renameat2)(from_dir, from, to_dir, to, flags);
}

STAND_BEFORE(int, -1, mkdir, (const char *path, mode_t mode), path, mode)
STAND_BEFORE(int, -1, unlink, (const char *path), path)
STAND_BEFORE(int, -1, rmdir, (const char *path), path)
STAND_BEFORE(int, -1, stat, (const char *path, struct stat *st), path, st)
STAND_BEFORE(int, -1, lstat, (const char *path, struct stat *st), path, st)
STAND_BEFORE(int, -1, fstat, (int fd, struct stat *st), fd, st)
STAND_BEFORE(int, -1, statvfs, (const char *path, struct statvfs *fs), path, fs)
STAND_BEFORE(int, -1, fstatvfs, (int fd, struct statvfs *fs), fd, fs)
STAND_BEFORE(DIR *, NULL, opendir, (const char *path), path)
STAND_BEFORE(FILE *, NULL, fopen, (const char *path, const char *mode), path, mode)
STAND_BEFORE(void *, MAP_FAILED, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t from), at, n,
             prot, flags, fd, from)
STAND_BEFORE(void *, MAP_FAILED, mmap64, (void *at, size_t n, int prot, int flags, int fd, off_t from), at, n,
             prot, flags, fd, from)
STAND_BEFORE(int, EAGAIN, pthread_create,
             (pthread_t * thread, const pthread_attr_t *attr, void *(*body)(void *), void *arg), thread, attr,
             body, arg)
STAND_BEFORE(int, -1, scandir,
             (const char *path, struct dirent ***list, int (*filter)(const struct dirent *),
              int (*compare)(const struct dirent **, const struct dirent **)),
             path, list, filter, compare)

/* The name has an old meaning besides, which dlsym may find first: an error when `to` is NULL. */
char *realpath(const char *path, char *to)
{
    char *(*real)(const char *, char *) = (__typeof__(&realpath))dlvsym(RTLD_NEXT, "realpath", "GLIBC_2.3");
    return fires("realpath") ? NULL : (real ? real : REAL(realpath))(path, to);
}

ssize_t pread(int fd, void *to, size_t n, off_t at)
{
    if (!fires("pread"))
        return REAL(pread)(fd, to, n, at);
    return shortens ? REAL(pread)(fd, to, (n + 1) / 2, at) : -1;
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at)
{
    if (!fires("pwrite"))
        return REAL(pwrite)(fd, from, n, at);
    return shortens ? REAL(pwrite)(fd, from, (n + 1) / 2, at) : -1;
}

int fsync(int fd)
{
    (void)fd;
    return fires("fsync") ? -1 : 0;
}

int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    mode_t mode = (flags & O_CREAT) ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    return fires("open") ? -1 : REAL(open)(path, flags, mode);
}

/* Who cannot do without: libgcc does not look whether it got anything when LuaJIT's machine code is
 * registered with it; setlocale loses a few bytes; and on the core's threads, which take no memory,
 * sanitizers do. */
static bool in_setlocale;

char *setlocale(int category, const char *locale)
{
    in_setlocale = true;
    char *done = REAL(setlocale)(category, locale);
    in_setlocale = false;
    return done;
}

static bool no_memory_for(const void *caller)
{
    if (in_setlocale || lies_in(caller, &libgcc) || !pthread_equal(pthread_self(), main_thread))
        return false;
    return fires(lies_in(caller, &cjson) ? "cjson" : "malloc");
}

/* dlsym does not allocate when it finds what it looks for, so these do not go round in circles. */
void *malloc(size_t size) { return no_memory_for(__builtin_return_address(0)) ? NULL : REAL(malloc)(size); }

void *calloc(size_t count, size_t size)
{
    return no_memory_for(__builtin_return_address(0)) ? NULL : REAL(calloc)(count, size);
}

void *realloc(void *p, size_t size)
{
    return no_memory_for(__builtin_return_address(0)) ? NULL : REAL(realloc)(p, size);
}
