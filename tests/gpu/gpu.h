/* gpu.h: what the tests on a GPU share: one GPU, one stream, and planes of both sides between guards. */
#ifndef QM_TEST_GPU_H
#define QM_TEST_GPU_H

#include <stdlib.h>
#include <string.h>

#include "../../core/format.h"
#include "../../cuda/cuda.h"
#include "../unit/test.h"

/* The first one; without it the program ends. */
qm_cuda *gpu(void);
qm_cuda_stream *gpu_stream(void);

/* QMOON_GPU_TEST=small, for compute-sanitizer, under which a kernel takes a thousand times as long: few cases and small ones. */
bool gpu_test_small(void);

/* Both fail the test and say why when they cannot. */
void *gpu_copy_of(const void *data, size_t size);
void gpu_fetch(void *to, const void *from, size_t size);

/* Planes for n values in memory, and on the GPU, with bytes around them that must stay. */
typedef struct planes {
    const qm_format *format;
    size_t size[QM_MAX_PLANES];
    uint8_t *here[QM_MAX_PLANES], *there[QM_MAX_PLANES];
    uint8_t *whole[QM_MAX_PLANES]; /* of there */
} planes;

planes planes_new(const qm_format *f, const qm_codec *c, size_t n);
void planes_upload(planes *p); /* here -> there */
/* The first group whose bytes differ, or -1.  Of groups that hold a NaN among `values` (or NULL), what is asked is
 * only that nothing crashed. */
int64_t planes_differing(const planes *p, const qm_codec *c, size_t n, const float *values);
bool planes_guarded(const planes *p); /* nothing was written around there */
void planes_free(planes *p);

qm_cuda_coded coded_there(const planes *p, const qm_codec *c);

/* n values as elements of a type, which may be f32. */
void *elements_of(qm_dtype t, const float *x, size_t n);
void values_of_elements(qm_dtype t, const void *e, size_t n, float *x);

static const qm_dtype value_types[] = {QM_F32, QM_F16, QM_BF16};

/* Equal bits, or NaN both. */
bool same_elements(qm_dtype t, const void *a, const void *b, size_t n);

#endif
