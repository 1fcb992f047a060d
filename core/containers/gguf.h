/* gguf.h: the header of a GGUF v2/v3 file, checked at the door.
 *
 *   | "GGUF" | u32 version | u64 tensors | u64 pairs | pairs: key, type, value | infos | pad | data |
 *
 * After qm_gguf_read has returned true every tensor lies in the file, offsets are the running sum of
 * padded sizes, names and keys are unique, and rows hold whole blocks.
 * Source: ggml-org/llama.cpp, gguf format description and reader.
 */
#ifndef QM_GGUF_H
#define QM_GGUF_H

#include "../file.h"
#include "../format.h"
#include "../qm.h"

typedef enum {
    QM_GGUF_U8,
    QM_GGUF_I8,
    QM_GGUF_U16,
    QM_GGUF_I16,
    QM_GGUF_U32,
    QM_GGUF_I32,
    QM_GGUF_F32,
    QM_GGUF_BOOL,
    QM_GGUF_STRING,
    QM_GGUF_ARRAY,
    QM_GGUF_U64,
    QM_GGUF_I64,
    QM_GGUF_F64,
    QM_GGUF_KIND_COUNT
} qm_gguf_kind;

/* A value where it lies in the file's map: valid as long as the file is open. */
typedef struct qm_gguf_value {
    qm_gguf_kind kind; /* of the value, or of the elements when count is of an array */
    bool array;
    uint64_t count;    /* elements; 1 for a scalar */
    const uint8_t *at; /* first element; a string is u64 length + bytes */
    uint64_t size;     /* bytes of all elements */
} qm_gguf_value;

typedef struct qm_gguf_pair {
    const char *key; /* not NUL-terminated */
    uint64_t key_length;
    qm_gguf_value value;
} qm_gguf_pair;

typedef struct qm_gguf_tensor {
    char *name;
    int type;                /* ggml type id */
    const qm_format *format; /* NULL when this build has no such format: the bytes can be copied, not read */
    qm_shape shape;          /* torch order: the row length last (GGUF stores it first) */
    uint64_t at, size;       /* from the start of the file; bytes */
} qm_gguf_tensor;

typedef struct qm_gguf_header {
    uint32_t version, alignment;
    qm_gguf_pair *pair;
    size_t npair;
    qm_gguf_tensor *tensor;
    size_t count;
} qm_gguf_header;

bool qm_gguf_read(qm_gguf_header *h, const qm_infile *f, qm_err *e);
void qm_gguf_free(qm_gguf_header *h);

/* Name, block and bytes of any ggml type id that files may hold, known format or not: needed to check sizes
 * and to name what cannot be decoded.  False for an id that is none. */
bool qm_gguf_type_info(int type, const char **name, unsigned *block, unsigned *bytes);

#endif
