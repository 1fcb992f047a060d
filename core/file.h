/* file.h: input files that cannot be over-read, output files that are never half there. */
#ifndef QM_FILE_H
#define QM_FILE_H

#include "qm.h"

/* An input file: opened read-only, mapped whole.  Refcounted: tensors that point into the map
 * keep it alive.  Streaming reads go through pread instead, so that a large file does not
 * count as resident memory and a file cut short meanwhile is an error, not a SIGBUS. */
typedef struct qm_infile {
    char *path;
    int fd;
    uint64_t size;
    const uint8_t *map; /* NULL for an empty file */
    int refs;
} qm_infile;

qm_infile *qm_infile_open(const char *path, qm_err *e);
qm_infile *qm_infile_ref(qm_infile *f);
void qm_infile_unref(qm_infile *f); /* NULL is fine */
bool qm_infile_read(const qm_infile *f, uint64_t at, void *dst, size_t n, qm_err *e);
bool qm_infile_intact(const qm_infile *f,
                      qm_err *e);           /* still as long as when it was opened: before the map is read */
void qm_infile_release(const qm_infile *f); /* give the mapped pages back to the system */

/* An output file of known size, written anywhere in any order from any thread under
 * "<path>.part", reserved on disk at once (a full disk is found before any work), then
 * fsynced and renamed.  Until then nothing appears under its name. */
typedef struct qm_outfile {
    char *path, *part;
    int fd; /* -1 once finished or dropped */
    uint64_t size;
} qm_outfile;

qm_outfile *qm_outfile_create(const char *path, uint64_t size, qm_err *e);
bool qm_outfile_write(const qm_outfile *f, uint64_t at, const void *src, size_t n, qm_err *e);
bool qm_outfile_sync(const qm_outfile *f, qm_err *e); /* fsync: what can still fail on the disk fails now */
bool qm_outfile_finish(qm_outfile *f, qm_err *e);     /* fsync + rename + fsync of the folder */
void qm_outfile_free(qm_outfile *f);                  /* unfinished: the .part is removed */

/* Writes over bytes of a file that is there, and only inside it: for headers that keep their size.  Not
 * atomic: whoever calls this keeps what was there until it has returned. */
bool qm_file_overwrite(const char *path, uint64_t at, const void *src, size_t n, qm_err *e);

#endif
