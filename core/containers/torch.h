/* torch.h: what torch.save wrote (.pt, .pth, .bin, .ckpt), as a list of tensors.
 *
 *   since 1.6   a zip:  ROOT/data.pkl  the objects, tensors naming storages by key
 *                       ROOT/data/KEY  each storage's bytes, stored
 *   before      | magic | 1001 | system | objects | keys | u64 count, bytes | u64 count, bytes | …
 *               each of the first five a pickle, the storages in the order of the keys
 *
 * Nothing in the file is ever called (see pickle.h), and after qm_torch_read has returned true every element
 * of every tensor lies in its own storage.  A tensor is a view of a storage: several may share one. Nested
 * dictionaries and lists become names with dots: {"model": {"fc.weight": t}} is "model.fc.weight". Source:
 * pytorch/pytorch, torch/serialization.py and torch/_utils.py.
 */
#ifndef QM_TORCH_H
#define QM_TORCH_H

#include "../strided.h"

typedef struct qm_torch_tensor {
    char *name;
    size_t group; /* of a nested one: bytes of the name that are the outermost key ("model" above) */
    qm_dtype dtype;
    qm_shape shape;
    uint64_t at;        /* first element, from the start of the file */
    uint64_t size;      /* bytes of all elements, however they lie */
    qm_strided strided; /* ndim 0: contiguous */
} qm_torch_tensor;

typedef struct qm_torch_header {
    qm_torch_tensor *tensor; /* in the order of the file */
    size_t count;
} qm_torch_header;

bool qm_torch_read(qm_torch_header *h, const qm_infile *f, qm_err *e);
void qm_torch_free(qm_torch_header *h);

#endif
