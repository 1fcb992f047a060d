/* file_test.c: files that cannot be over-read, and outputs that are whole or not there. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "../../core/file.h"
#include "test.h"

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static bool holds(const char *path, const void *bytes, size_t n)
{
    qm_err e = {0};
    qm_infile *f = qm_infile_open(path, &e);
    bool same = f && f->size == n && (n == 0 || memcmp(f->map, bytes, n) == 0);
    qm_infile_unref(f);
    return same;
}

static const char *part_of(const char *path)
{
    static char part[512];
    snprintf(part, sizeof part, "%s.part", path);
    return part;
}

/* ---- messages ---- */

TEST(err_first_failure_wins)
{
    qm_err e = {0};
    CHECK(!qm_fail(&e, QM_ECORRUPT, "first %d", 1));
    CHECK(!qm_fail(&e, QM_EFAIL, "second"));
    CHECK(e.code == QM_ECORRUPT && strcmp(e.msg, "first 1") == 0);
}

TEST(err_message_is_one_line_of_utf8)
{
    qm_err e = {0};
    qm_fail(&e, QM_EFAIL, "a\nb\x1b[31m\x7f\xff\xc2\x9b[2J \xc3\xa9\xe2\x82\xac");
    CHECKF(strcmp(e.msg, "a?b?[31m????[2J \xc3\xa9\xe2\x82\xac") == 0, "%s", e.msg);

    char longer[600];
    for (int i = 0; i < 598; i += 2)
        memcpy(longer + i, "\xc3\xa9", 2);
    longer[598] = 0;
    e = (qm_err){0};
    qm_fail(&e, QM_EFAIL, "%s", longer);
    CHECK(strlen(e.msg) == 511 && e.msg[510] == '?' && (uint8_t)e.msg[509] == 0xa9);
}

TEST(err_errno_is_read_first)
{
    qm_err e = {0};
    errno = ENOENT;
    qm_fail_errno(&e, "%s: cannot open", "x");
    CHECKF(strcmp(e.msg, "x: cannot open: No such file or directory") == 0, "%s", e.msg);
}

TEST(shape_counts_and_texts)
{
    char buf[64], small[8];
    qm_shape s = {2, {4096, 4100}};
    CHECK(qm_shape_count(&s) == 4096 * 4100
          && strcmp(qm_shape_text(&s, buf, sizeof buf), "[4096 x 4100]") == 0);
    CHECK(strcmp(qm_shape_text(&s, small, sizeof small), "[4096 x") == 0);
    CHECK(qm_shape_count(&(qm_shape){0, {0}}) == 1
          && strcmp(qm_shape_text(&(qm_shape){0, {0}}, buf, 64), "[]") == 0);
    CHECK(qm_shape_count(&(qm_shape){2, {5, 0}}) == 0);
    CHECK(qm_shape_count(&(qm_shape){2, {INT64_MAX, 2}}) == -1);
    CHECK(qm_shape_count(&(qm_shape){2, {-1, -1}}) == -1);
}

TEST(dtypes_are_in_the_order_of_safetensors)
{
    for (int i = 1; i < QM_DTYPE_COUNT; i++)
        CHECKF(qm_dtypes[i].name && qm_dtypes[i].bits > 0, "dtype %d", i);
    CHECK(strcmp(qm_dtypes[QM_BF16].safetensors, "BF16") == 0 && qm_dtypes[QM_BF16].bits == 16);
    CHECK(strcmp(qm_dtypes[QM_F8_E4M3].torch, "float8_e4m3fn") == 0 && qm_dtypes[QM_C64].bits == 64);
}

/* ---- input ---- */

TEST(infile_reads_within_its_bounds)
{
    qm_err e = {0};
    qm_infile *f = qm_infile_open(qm_test_write("in", "0123456789", 10), &e);
    char got[10] = "";
    CHECK(f && f->size == 10 && memcmp(f->map, "0123456789", 10) == 0);
    CHECK(qm_infile_read(f, 3, got, 7, &e) && memcmp(got, "3456789", 7) == 0);
    CHECK(qm_infile_read(f, 10, got, 0, &e));
    qm_infile_release(f);
    CHECK(f->map[9] == '9'); /* comes back by itself */
    CHECK(!qm_infile_read(f, 4, got, 7, &e) && e.code == QM_ECORRUPT);
    e = (qm_err){0};
    CHECK(!qm_infile_read(f, UINT64_MAX, got, 2, &e) && e.code == QM_ECORRUPT);
    qm_infile_unref(qm_infile_ref(f));
    CHECK(f->map[0] == '0'); /* one reference is left */
    qm_infile_unref(f);
    qm_infile_unref(NULL);
}

TEST(infile_cut_short_while_open_is_an_error)
{
    static char bytes[20000], got[20000];
    qm_err e = {0};
    const char *path = qm_test_write("shrinks", bytes, sizeof bytes);
    qm_infile *f = qm_infile_open(path, &e);
    CHECK(truncate(path, 5000) == 0);
    CHECK(!qm_infile_read(f, 0, got, sizeof got, &e) && e.code == QM_ECORRUPT);
    CHECKF(strstr(e.msg, "had 20000 bytes") && strstr(e.msg, "ends at byte 5000"), "%s", e.msg);
    qm_infile_unref(f);
}

static void cannot_open(const char *path, const char *why)
{
    qm_err e = {0};
    CHECK(!qm_infile_open(path, &e));
    CHECKF(strstr(e.msg, why) && strstr(e.msg, path), "%s", e.msg);
}

TEST(infile_takes_regular_files_only)
{
    const char *fifo = qm_test_tmp("fifo");
    CHECK(mkfifo(fifo, 0600) == 0);
    cannot_open(fifo, "not a regular file"); /* and does not wait for a writer */
    cannot_open("/dev/null", "not a regular file");
    cannot_open("/tmp", "is a folder");
    cannot_open(qm_test_tmp("missing"), "No such file");
    qm_err e = {0};
    qm_infile *f = qm_infile_open(qm_test_write("empty", "", 0), &e);
    CHECK(f && f->size == 0 && !f->map);
    qm_infile_release(f);
    qm_infile_unref(f);
}

/* ---- output ---- */

TEST(outfile_appears_when_finished)
{
    qm_err e = {0};
    const char *path = qm_test_tmp("out");
    qm_outfile *f = qm_outfile_create(path, 6, &e);
    struct stat st;
    CHECKF(f, "%s", e.msg);
    CHECK(stat(part_of(path), &st) == 0 && st.st_size == 6 && !exists(path));
    CHECK(qm_outfile_write(f, 3, "def", 3, &e) && qm_outfile_write(f, 0, "abc", 3, &e));
    CHECK(!qm_outfile_write(f, 4, "xyz", 3, &e) && strstr(e.msg, "planned end"));
    e = (qm_err){0};
    CHECK(!qm_outfile_write(f, UINT64_MAX, "x", 2, &e));
    e = (qm_err){0};
    CHECK(qm_outfile_finish(f, &e) && f->fd == -1);
    CHECK(holds(path, "abcdef", 6) && !exists(part_of(path)));
    CHECK(!qm_outfile_write(f, 0, "x", 1, &e) && strstr(e.msg, "finished"));
    qm_outfile_free(f);
    CHECK(exists(path));
}

TEST(outfile_unfinished_leaves_nothing)
{
    qm_err e = {0};
    const char *path = qm_test_write("kept", "old", 3);
    qm_outfile *f = qm_outfile_create(path, 1000, &e);
    CHECK(qm_outfile_write(f, 0, "new", 3, &e));
    qm_outfile_free(f);
    CHECK(holds(path, "old", 3) && !exists(part_of(path)));
    qm_outfile_free(NULL);
}

TEST(outfile_replaces_what_a_killed_run_left)
{
    qm_err e = {0};
    const char *path = qm_test_tmp("again");
    qm_test_write("again.part", "half of something longer", 24);
    qm_outfile *f = qm_outfile_create(path, 2, &e);
    CHECK(qm_outfile_write(f, 0, "ok", 2, &e) && qm_outfile_finish(f, &e));
    qm_outfile_free(f);
    CHECK(holds(path, "ok", 2));
}

/* The bug that safetensors once had: saving over the file that is mapped. */
TEST(outfile_over_its_own_input)
{
    qm_err e = {0};
    const char *path = qm_test_write("self", "abc", 3);
    qm_infile *in = qm_infile_open(path, &e);
    qm_outfile *out = qm_outfile_create(path, 3, &e);
    for (uint64_t i = 0; i < 3; i++)
        CHECK(qm_outfile_write(out, 2 - i, in->map + i, 1, &e));
    CHECK(qm_outfile_finish(out, &e) && memcmp(in->map, "abc", 3) == 0);
    qm_outfile_free(out);
    qm_infile_unref(in);
    CHECK(holds(path, "cba", 3));
}

TEST(outfile_of_two_runs_is_not_mixed)
{
    qm_err e = {0};
    const char *path = qm_test_tmp("race");
    qm_outfile *first = qm_outfile_create(path, 1, &e), *second = qm_outfile_create(path, 1, &e);
    CHECK(qm_outfile_write(first, 0, "1", 1, &e) && qm_outfile_write(second, 0, "2", 1, &e));
    CHECK(!qm_outfile_finish(first, &e) && strstr(e.msg, "another run"));
    qm_outfile_free(first);
    e = (qm_err){0};
    CHECK(qm_outfile_finish(second, &e));
    qm_outfile_free(second);
    CHECK(holds(path, "2", 1));
}

static void cannot_create(const char *path, uint64_t size, qm_code code, const char *why)
{
    qm_err e = {0};
    qm_outfile *f = qm_outfile_create(path, size, &e);
    CHECKF(!f && e.code == code && strstr(e.msg, why) && strstr(e.msg, path), "%s", e.msg);
    CHECK(!exists(part_of(path)));
    qm_outfile_free(f);
}

TEST(outfile_that_cannot_be)
{
    struct statvfs vfs;
    const char *path = qm_test_tmp("big");
    CHECK(statvfs("/tmp", &vfs) == 0);
    cannot_create(path, (uint64_t)vfs.f_bavail * vfs.f_frsize + (1u << 30), QM_ENOFIT,
                  "no space left: needs ");
    cannot_create(path, UINT64_MAX - 1, QM_ENOFIT, "no space left: needs 18446744073709551614 bytes");
    cannot_create("/tmp", 1, QM_EFAIL, "not a file");
    cannot_create("/no/such/folder/x", 1, QM_EFAIL, "No such file");
    cannot_create("/proc/x", 1, QM_EFAIL, "cannot create");
}

/* What a write meets when the disk fills up in spite of the reservation. */
TEST(outfile_hits_a_limit)
{
    struct rlimit old, low = {4096, 4096};
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    low.rlim_max = old.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
    cannot_create(qm_test_tmp("limited"), 100000, QM_ENOFIT, "more than one file may have");
    setrlimit(RLIMIT_FSIZE, &old);

    qm_err e = {0};
    static const char zeros[10000];
    qm_outfile *f = qm_outfile_create(qm_test_tmp("limited"), sizeof zeros, &e);
    setrlimit(RLIMIT_FSIZE, &low);
    CHECK(!qm_outfile_write(f, 0, zeros, sizeof zeros, &e) && e.code == QM_ENOFIT);
    setrlimit(RLIMIT_FSIZE, &old);
    qm_outfile_free(f);
    signal(SIGXFSZ, handler);
}

#define CHUNK  (256u << 10)
#define CHUNKS 8

static qm_outfile *shared;

static void *write_odd(void *arg)
{
    qm_err e = {0};
    char *bytes = malloc(CHUNK);
    for (uint64_t i = (uintptr_t)arg; i < CHUNKS; i += 2) {
        memset(bytes, 'a' + (int)i, CHUNK);
        CHECKF(qm_outfile_write(shared, i * CHUNK, bytes, CHUNK, &e), "%s", e.msg);
    }
    free(bytes);
    return NULL;
}

TEST(outfile_written_by_two_threads)
{
    qm_err e = {0};
    const char *path = qm_test_tmp("threads");
    shared = qm_outfile_create(path, CHUNKS * CHUNK, &e);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, write_odd, (void *)1) == 0);
    write_odd((void *)0);
    pthread_join(other, NULL);
    CHECK(qm_outfile_finish(shared, &e));
    qm_outfile_free(shared);
    qm_infile *f = qm_infile_open(path, &e);
    for (uint64_t i = 0; i < CHUNKS * CHUNK; i += CHUNK / 2)
        CHECK(f->map[i] == 'a' + i / CHUNK);
    qm_infile_unref(f);
}
