/* cuda.h: NVIDIA GPUs, as much of them as the rest of the program needs to know.
 *
 * Two sets of objects have these functions: cuda/device.c and its neighbours, or cuda/absent.c, in which
 * each fails with one line.  The Makefile chooses; nobody asks with #ifdef.
 *
 * A qm_cuda is one GPU, opened.  It is used by one thread at a time; several may be open, of one GPU or of
 * several.  Addresses are of that GPU's memory unless said otherwise.  What is put on a stream is done in
 * order and not waited for; failures that only show when it runs are reported by the next wait.  Out of memory
 * (QM_ENOFIT) leaves everything usable.
 */
#ifndef QM_CUDA_H
#define QM_CUDA_H

#include "../core/device.h"
#include "../core/format.h"
#include "../core/vec.h"

typedef struct qm_cuda qm_cuda;
typedef struct qm_cuda_stream qm_cuda_stream;

typedef struct qm_cuda_info {
    int index;
    char name[256];
    int major, minor; /* compute capability */
    int multiprocessors;
    uint64_t memory, l2;
    int driver, runtime; /* 13000 is CUDA 13.0 */
    bool own_rcp;        /* its approximate reciprocal is core/rcp.h's; else that is looked up */
} qm_cuda_info;

/* GPUs there are; -1, and why, when there is no driver or none that answers. */
int qm_cuda_count(qm_err *e);

qm_cuda *qm_cuda_open(int index, qm_err *e);
qm_device *qm_cuda_device(qm_cuda *d); /* what tensors know it as; holds the references of d */
qm_cuda *qm_cuda_of(qm_device *d);     /* NULL when it is not a GPU */

const qm_cuda_info *qm_cuda_get_info(const qm_cuda *d);
bool qm_cuda_memory(qm_cuda *d, uint64_t *free, uint64_t *total, qm_err *e); /* bytes */

/* Bytes that are in use, and the most that were since this was last asked; held: with what its pool keeps, the most. */
bool qm_cuda_used(qm_cuda *d, uint64_t *used, uint64_t *most, uint64_t *held, qm_err *e);

/* ---- memory and streams ------------------------------------------------------------------------- */

void *qm_cuda_alloc(qm_cuda *d, uint64_t size, qm_err *e);
void qm_cuda_free(qm_cuda *d, void *p); /* nothing on any stream uses it any more; NULL is fine */

/* Memory of this machine that the GPU reads and writes at full speed while the CPU does other things. */
void *qm_cuda_pinned_alloc(qm_cuda *d, uint64_t size, qm_err *e);
void qm_cuda_pinned_free(qm_cuda *d, void *p);

qm_cuda_stream *qm_cuda_stream_new(qm_cuda *d, qm_err *e); /* the GPU stays open as long as it lives */
void qm_cuda_stream_free(qm_cuda_stream *s);               /* waits; NULL is fine */
bool qm_cuda_wait(qm_cuda_stream *s, qm_err *e);

/* Either address may be the GPU's or pinned memory's. */
bool qm_cuda_copy(qm_cuda_stream *s, void *to, const void *from, uint64_t size, qm_err *e);

/* Between ordinary memory and the GPU, through pinned memory, waiting for the end. */
bool qm_cuda_upload(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e);
bool qm_cuda_download(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e);

/* ---- codecs ------------------------------------------------------------------------------------- */

/* A quantised tensor on the GPU.  Double quantisation: plane 1 has one byte a group, nested one f32 per
 * QM_DOUBLE_QUANT_BLOCK groups. */
typedef struct qm_cuda_coded {
    const qm_format *format;
    qm_codec codec;
    uint8_t *plane[QM_MAX_PLANES];
    bool double_quant;
    float *nested;
    float offset;
} qm_cuda_coded;

/* A tensor, or a part of one, whose planes are on the GPU. */
struct qm_tensor;
qm_cuda_coded qm_cuda_coded_of(const struct qm_tensor *t);

/* As qm_encode and qm_decode, and the same bytes; values are f32, f16 or bf16 (`dtype`), n of them; importances lie
 * on the GPU.  Where a group holds a NaN, scales and codes that follow from it may differ (see qm_result_bits), and so
 * may the sign and payload of a NaN that is decoded. */
bool qm_cuda_encode(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n, const qm_cuda_coded *to,
                    qm_err *e);
bool qm_cuda_decode(qm_cuda_stream *s, const qm_cuda_coded *from, uint64_t n, void *y, qm_dtype dtype,
                    qm_err *e);

/* With a second level for the scales, whose offset, to->offset when that is given, is also put into *offset, on
 * the GPU. */
bool qm_cuda_encode_double(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n,
                           const qm_cuda_coded *to, bool offset_given, float *offset, qm_err *e);

/* Sets codec->factor, as qm_codec_measure does; waits. */
bool qm_cuda_measure(qm_cuda_stream *s, qm_codec *codec, const qm_format *f, const void *x, qm_dtype dtype,
                     uint64_t n, qm_err *e);

/* Error sums of `b`, decoded, against x, without storing what b decodes to; waits.  The order of summation
 * depends on n alone: every GPU gives the same bits. */
bool qm_cuda_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b, uint64_t n,
                    qm_errsum *sum, qm_err *e);

/* ---- inference ---------------------------------------------------------------------------------- */

/* The step from one token to the next as a graph.  `record` calls ops for one token: embedding of any one id (the step's
 * own is taken instead), a forward pass that appends to kv, argmax or sample.  kv lies on the GPU and outlives the step.
 * program: ops that can be become one kernel (program.h; from Hopper on) instead of a launch each: their results are those of
 * launches but for rounding, and the same bits every time. */
typedef struct qm_cuda_step qm_cuda_step;
struct qm_kv;
qm_cuda_step *qm_cuda_step_new(qm_cuda *d, struct qm_kv *kv, bool program,
                               bool (*record)(void *arg, qm_err *e), void *arg, qm_err *e);
void qm_cuda_step_free(qm_cuda_step *s); /* NULL is fine */

/* Kernels of a step that walk through several ops; 0: every op is launched by itself, because that was asked for, the GPU is
 * older than Hopper, or no op was one that they know. */
int qm_cuda_step_programs(const qm_cuda_step *s);

/* n steps, the first from `id`; ids receives what each chose. */
bool qm_cuda_step_run(qm_cuda_step *s, int32_t id, int n, int32_t *ids, qm_err *e);

/* The ops of core/ops that run on a GPU, by number from 0; NULL behind the last, and in a build without CUDA. */
const char *qm_cuda_op_name(int i);

/* Tests and benchmarks: only the kernel that serves every format, none of those made for one. */
void qm_cuda_generic_only(qm_cuda *d, bool yes);

#endif
