/* file.c: see file.h. */
#define _GNU_SOURCE /* fallocate, sync_file_range */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Written bytes start their way to the disk in pieces of this size, so that the fsync at the end is short. */
#define WRITE_BEHIND (8u << 20)

/* ---- input ---- */

static bool infile_map(qm_infile *f, qm_err *e)
{
    /* O_NONBLOCK: opening a fifo would otherwise wait for a writer; regular files ignore it */
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (f->fd < 0)
        return qm_fail_errno(e, "%s: cannot open", f->path);
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return qm_fail_errno(e, "%s: cannot stat", f->path);
    if (S_ISDIR(st.st_mode))
        return qm_fail(e, QM_EFAIL, "%s: is a folder; name a file in it", f->path);
    if (!S_ISREG(st.st_mode))
        return qm_fail(e, QM_EFAIL, "%s: is not a regular file (a pipe or a device); copy it to disk first",
                       f->path);
    f->size = (uint64_t)st.st_size;
    if (f->size == 0)
        return true;
    void *map = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, f->fd, 0);
    if (map == MAP_FAILED)
        return qm_fail_errno(e, "%s: cannot map %" PRIu64 " bytes", f->path, f->size);
    f->map = map;
    return true;
}

qm_infile *qm_infile_open(const char *path, qm_err *e)
{
    qm_infile *f = calloc(1, sizeof *f);
    if (!f || !(f->path = strdup(path))) {
        free(f);
        qm_fail(e, QM_EFAIL, "%s: out of memory", path);
        return NULL;
    }
    f->refs = 1;
    if (!infile_map(f, e)) {
        qm_infile_unref(f);
        return NULL;
    }
    return f;
}

qm_infile *qm_infile_ref(qm_infile *f)
{
    __atomic_add_fetch(&f->refs, 1, __ATOMIC_RELAXED);
    return f;
}

void qm_infile_unref(qm_infile *f)
{
    if (!f || __atomic_sub_fetch(&f->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    if (f->map)
        munmap((void *)f->map, f->size);
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f);
}

bool qm_infile_read(const qm_infile *f, uint64_t at, void *dst, size_t n, qm_err *e)
{
    if (at > f->size || n > f->size - at)
        return qm_fail(e, QM_ECORRUPT,
                       "%s: needs %zu bytes at byte %" PRIu64 ", but the file ends at %" PRIu64, f->path, n,
                       at, f->size);
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(f->fd, (char *)dst + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return qm_fail_errno(e, "%s: cannot read %zu bytes at byte %" PRIu64, f->path, n - done,
                                 at + done);
        if (got == 0)
            return qm_fail(e, QM_ECORRUPT,
                           "%s: had %" PRIu64 " bytes when it was opened and now ends at byte %" PRIu64
                           "; somebody cut it short meanwhile, start again",
                           f->path, f->size, at + done);
        done += (size_t)got;
    }
    return true;
}

bool qm_infile_intact(const qm_infile *f, qm_err *e)
{
    struct stat st;
    if (fstat(f->fd, &st) < 0)
        return qm_fail_errno(e, "%s: cannot stat", f->path);
    return (uint64_t)st.st_size >= f->size
           || qm_fail(e, QM_ECORRUPT, "%s: somebody cut it short since it was opened; start again", f->path);
}

void qm_infile_release(const qm_infile *f)
{
    if (f->map)
        madvise((void *)f->map, f->size, MADV_DONTNEED);
}

/* ---- output ---- */

/* Bytes that may still be written to the disk of f; file systems that do not know say so with no blocks. */
static uint64_t bytes_free(const qm_outfile *f)
{
    struct statvfs vfs;
    if (fstatvfs(f->fd, &vfs) < 0 || vfs.f_blocks == 0)
        return UINT64_MAX;
    return (uint64_t)vfs.f_bavail * vfs.f_frsize;
}

/* The failure `number` of something that takes `need` bytes of disk, with the figures that help. */
static bool fail_space(const qm_outfile *f, int number, uint64_t need, qm_err *e)
{
    if (number == ENOSPC)
        return qm_fail(e, QM_ENOFIT,
                       "%s: no space left: needs %" PRIu64 " bytes, %" PRIu64
                       " free on that disk; free some or write elsewhere",
                       f->path, need, bytes_free(f));
    if (number == EDQUOT)
        return qm_fail(e, QM_ENOFIT, "%s: disk quota exceeded: needs %" PRIu64 " bytes", f->path, need);
    if (number == EFBIG)
        return qm_fail(e, QM_ENOFIT,
                       "%s: %" PRIu64
                       " bytes are more than one file may have there (file system or ulimit -f)",
                       f->path, f->size);
    errno = number;
    return qm_fail_errno(e, "%s: cannot write %" PRIu64 " bytes", f->path, need);
}

/* Takes the whole size from the disk at once.  Asks before, because a reservation that fails half-way has
 * filled the disk for everybody until it is undone, and because not every file system can reserve. */
static bool reserve(const qm_outfile *f, qm_err *e)
{
    if (f->size == 0)
        return true;
    if (f->size > bytes_free(f))
        return fail_space(f, ENOSPC, f->size, e);
    if (f->size > INT64_MAX)
        return fail_space(f, EFBIG, f->size, e);
    while (fallocate(f->fd, 0, 0, (off_t)f->size) < 0) {
        if (errno == EINTR && qm_interrupted())
            return qm_fail(e, QM_EINTERRUPT, "%s: interrupted", f->path);
        if (errno == EINTR)
            continue;
        if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS)
            return fail_space(f, errno, f->size, e);
        return ftruncate(f->fd, (off_t)f->size) == 0 || fail_space(f, errno, f->size, e);
    }
    return true;
}

/* Whether "<path>.part" is still the file that we opened: another run to the same path takes the name. */
static bool part_is_ours(const qm_outfile *f)
{
    struct stat opened, named;
    return fstat(f->fd, &opened) == 0 && lstat(f->part, &named) == 0 && opened.st_dev == named.st_dev
           && opened.st_ino == named.st_ino;
}

static bool outfile_start(qm_outfile *f, qm_err *e)
{
    struct stat st;
    if (stat(f->path, &st) == 0 && !S_ISREG(st.st_mode)) /* rename would find out, hours later */
        return qm_fail(e, QM_EFAIL, "%s: exists and is not a file; choose another name", f->path);
    unlink(f->part); /* left over from a killed run */
    f->fd = open(f->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0)
        return qm_fail_errno(e, "%s: cannot create", f->part);
    return reserve(f, e);
}

qm_outfile *qm_outfile_create(const char *path, uint64_t size, qm_err *e)
{
    qm_outfile *f = calloc(1, sizeof *f);
    if (!f || !(f->path = strdup(path)) || asprintf(&f->part, "%s.part", path) < 0) {
        if (f)
            free(f->path);
        free(f);
        qm_fail(e, QM_EFAIL, "%s: out of memory", path);
        return NULL;
    }
    f->fd = -1;
    f->size = size;
    if (!outfile_start(f, e)) {
        qm_outfile_free(f);
        return NULL;
    }
    return f;
}

/* The write that crosses into a new piece sends the ones before it on their way; writes come in nearly
 * ascending order, so they are full but for some pages.  A hint: where the system cannot, fsync does it all.
 */
static void start_write_back(const qm_outfile *f, uint64_t at, size_t n)
{
    uint64_t from = at / WRITE_BEHIND * WRITE_BEHIND, to = (at + n) / WRITE_BEHIND * WRITE_BEHIND;
    if (to > from)
        sync_file_range(f->fd, (off_t)from, (off_t)(to - from), SYNC_FILE_RANGE_WRITE);
}

bool qm_outfile_write(const qm_outfile *f, uint64_t at, const void *src, size_t n, qm_err *e)
{
    if (f->fd < 0)
        return qm_fail(e, QM_EFAIL, "%s: written to after it was finished", f->path);
    if (at > f->size || n > f->size - at)
        return qm_fail(e, QM_EFAIL,
                       "%s: %zu bytes at byte %" PRIu64 " would go beyond its planned end, %" PRIu64, f->path,
                       n, at, f->size);
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(f->fd, (const char *)src + done, n - done, (off_t)(at + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return fail_space(f, put ? errno : EIO, n - done, e);
        done += (size_t)put;
    }
    start_write_back(f, at, n);
    return true;
}

/* Makes the renamed entry durable.  A folder that may be written but not read cannot be opened, and some
 * file systems have no fsync for folders; both keep the rename in order all the same. */
static bool sync_folder(const char *path, qm_err *e)
{
    const char *slash = strrchr(path, '/');
    char *folder = !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    if (!folder)
        return qm_fail(e, QM_EFAIL, "%s: out of memory", path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 ? fsync(fd) == 0 || errno == EINVAL : errno == EACCES;
    if (!ok)
        qm_fail_errno(e, "%s: cannot flush the folder to disk", folder);
    if (fd >= 0)
        close(fd);
    free(folder);
    return ok;
}

bool qm_outfile_sync(const qm_outfile *f, qm_err *e)
{
    if (f->fd < 0)
        return qm_fail(e, QM_EFAIL, "%s: is finished already", f->path);
    return fsync(f->fd) == 0 || fail_space(f, errno, f->size, e);
}

bool qm_outfile_finish(qm_outfile *f, qm_err *e)
{
    if (!qm_outfile_sync(f, e))
        return false;
    if (!part_is_ours(f))
        return qm_fail(e, QM_EFAIL,
                       "%s: was removed or replaced meanwhile; is another run writing the same output?",
                       f->part);
    if (rename(f->part, f->path) < 0)
        return qm_fail_errno(e, "%s: cannot rename to %s", f->part, f->path);
    close(f->fd);
    f->fd = -1;
    return sync_folder(f->path, e);
}

void qm_outfile_free(qm_outfile *f)
{
    if (!f)
        return;
    if (f->fd >= 0) {
        if (part_is_ours(f))
            unlink(f->part);
        close(f->fd);
    }
    free(f->path);
    free(f->part);
    free(f);
}

/* ---- in place ---- */

static bool overwrite_fd(int fd, const char *path, uint64_t at, const void *src, size_t n, qm_err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return qm_fail_errno(e, "%s: cannot stat", path);
    if (!S_ISREG(st.st_mode) || at > (uint64_t)st.st_size || n > (uint64_t)st.st_size - at)
        return qm_fail(e, QM_EFAIL, "%s: %zu bytes at byte %" PRIu64 " are not all inside the file", path, n,
                       at);
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(fd, (const char *)src + done, n - done, (off_t)(at + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return qm_fail_errno(e, "%s: cannot write %zu bytes at byte %" PRIu64, path, n - done, at + done);
        done += (size_t)put;
    }
    return fsync(fd) == 0 || qm_fail_errno(e, "%s: cannot flush to disk", path);
}

bool qm_file_overwrite(const char *path, uint64_t at, const void *src, size_t n, qm_err *e)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return qm_fail_errno(e, "%s: cannot open for writing", path);
    bool ok = overwrite_fd(fd, path, at, src, n, e);
    close(fd);
    return ok;
}
