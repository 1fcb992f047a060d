/* zip.h: the members of a zip archive.  Nothing is decompressed.
 *
 *   | local header, name, extra, data | …  | central directory | zip64 end, locator | end |
 *
 * A zip says everything twice.  After qm_zip_read has returned true both agree, no member is encrypted, lies
 * in another or outside the file, and names are plain, unique and sorted. Source: PKWARE's APPNOTE.TXT 6.3,
 * sections 4.3 to 4.5.
 */
#ifndef QM_ZIP_H
#define QM_ZIP_H

#include "../file.h"

typedef struct qm_zip_member {
    const char *name; /* in the file's map, not NUL-terminated */
    size_t length;
    uint64_t header, at, size; /* its local header; its data, from the start of the file */
    bool packed;               /* compressed; size is then of what is in the file */
} qm_zip_member;

typedef struct qm_zip {
    qm_zip_member *member; /* by name */
    size_t count;
} qm_zip;

bool qm_zip_read(qm_zip *z, const qm_infile *f, qm_err *e);
void qm_zip_free(qm_zip *z);

const qm_zip_member *qm_zip_find(const qm_zip *z, const char *name, size_t length); /* or NULL */

#endif
