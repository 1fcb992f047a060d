/* safetensors.h: the header of a safetensors file, checked at the door.
 *
 *   | u64 N little-endian | N bytes of JSON | data: tensors back to back, no holes |
 *
 * After qm_st_read has returned true, every offset lies in the file, shapes and sizes agree,
 * nothing overlaps and nothing is hidden between or behind the tensors.
 * Source: huggingface/safetensors, format description and reference reader.
 */
#ifndef QM_SAFETENSORS_H
#define QM_SAFETENSORS_H

#include "../file.h"
#include "../qm.h"

#define QM_ST_HEADER_MAX 100000000u

typedef struct qm_st_tensor {
    char *name;
    qm_dtype dtype;
    qm_shape shape;
    uint64_t at;   /* from the start of the file */
    uint64_t size; /* bytes */
} qm_st_tensor;

typedef struct qm_st_header {
    qm_st_tensor *tensor; /* in order of offset */
    size_t count;
    char **meta;  /* key, value, key, value … of __metadata__ */
    size_t nmeta; /* pairs */
} qm_st_header;

bool qm_st_read(qm_st_header *h, const qm_infile *f, qm_err *e);
void qm_st_free(qm_st_header *h);

/* Dtype of a safetensors name ("BF16"), or -1. */
int qm_st_dtype(const char *name);

#endif
