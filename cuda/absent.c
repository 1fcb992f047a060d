/* absent.c: what cuda.h has in a build without CUDA. */
#include "cuda.h"

static bool absent(qm_err *e)
{
    return qm_fail(e, QM_EUNSUPPORTED, "this build has no CUDA; build it where nvcc is (make CUDA=1)");
}

int qm_cuda_count(qm_err *e)
{
    absent(e);
    return -1;
}

qm_cuda *qm_cuda_open(int index, qm_err *e)
{
    (void)index;
    absent(e);
    return NULL;
}

/* Nothing below is ever reached: there is no qm_cuda to call it with. */

qm_device *qm_cuda_device(qm_cuda *d) { return (qm_device *)d; }

qm_cuda *qm_cuda_of(qm_device *d)
{
    (void)d;
    return NULL;
}

const qm_cuda_info *qm_cuda_get_info(const qm_cuda *d)
{
    (void)d;
    return NULL;
}

bool qm_cuda_memory(qm_cuda *d, uint64_t *free, uint64_t *total, qm_err *e)
{
    (void)d, (void)free, (void)total;
    return absent(e);
}

bool qm_cuda_used(qm_cuda *d, uint64_t *used, uint64_t *most, uint64_t *held, qm_err *e)
{
    (void)d, (void)used, (void)most, (void)held;
    return absent(e);
}

void *qm_cuda_alloc(qm_cuda *d, uint64_t size, qm_err *e)
{
    (void)d, (void)size;
    absent(e);
    return NULL;
}

void qm_cuda_free(qm_cuda *d, void *p) { (void)d, (void)p; }

void *qm_cuda_pinned_alloc(qm_cuda *d, uint64_t size, qm_err *e) { return qm_cuda_alloc(d, size, e); }

void qm_cuda_pinned_free(qm_cuda *d, void *p) { (void)d, (void)p; }

qm_cuda_stream *qm_cuda_stream_new(qm_cuda *d, qm_err *e)
{
    (void)d;
    absent(e);
    return NULL;
}

void qm_cuda_stream_free(qm_cuda_stream *s) { (void)s; }

bool qm_cuda_wait(qm_cuda_stream *s, qm_err *e)
{
    (void)s;
    return absent(e);
}

bool qm_cuda_copy(qm_cuda_stream *s, void *to, const void *from, uint64_t size, qm_err *e)
{
    (void)s, (void)to, (void)from, (void)size;
    return absent(e);
}

bool qm_cuda_upload(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e)
{
    (void)d, (void)to, (void)from, (void)size;
    return absent(e);
}

bool qm_cuda_download(qm_cuda *d, void *to, const void *from, uint64_t size, qm_err *e)
{
    (void)d, (void)to, (void)from, (void)size;
    return absent(e);
}

bool qm_cuda_encode(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n, const qm_cuda_coded *to,
                    qm_err *e)
{
    (void)s, (void)x, (void)dtype, (void)n, (void)to;
    return absent(e);
}

bool qm_cuda_decode(qm_cuda_stream *s, const qm_cuda_coded *from, uint64_t n, void *y, qm_dtype dtype,
                    qm_err *e)
{
    (void)s, (void)from, (void)n, (void)y, (void)dtype;
    return absent(e);
}

bool qm_cuda_encode_double(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n,
                           const qm_cuda_coded *to, bool offset_given, float *offset, qm_err *e)
{
    (void)s, (void)x, (void)dtype, (void)n, (void)to, (void)offset_given, (void)offset;
    return absent(e);
}

bool qm_cuda_measure(qm_cuda_stream *s, qm_codec *codec, const qm_format *f, const void *x, qm_dtype dtype,
                     uint64_t n, qm_err *e)
{
    (void)s, (void)codec, (void)f, (void)x, (void)dtype, (void)n;
    return absent(e);
}

bool qm_cuda_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b, uint64_t n,
                    qm_errsum *sum, qm_err *e)
{
    (void)s, (void)x, (void)dtype, (void)b, (void)n, (void)sum;
    return absent(e);
}

qm_cuda_step *qm_cuda_step_new(qm_cuda *d, struct qm_kv *kv, bool program,
                               bool (*record)(void *arg, qm_err *e), void *arg, qm_err *e)
{
    (void)d, (void)kv, (void)program, (void)record, (void)arg;
    absent(e);
    return NULL;
}

void qm_cuda_step_free(qm_cuda_step *s) { (void)s; }

int qm_cuda_step_programs(const qm_cuda_step *s)
{
    (void)s;
    return 0;
}

bool qm_cuda_step_run(qm_cuda_step *s, int32_t id, int n, int32_t *ids, qm_err *e)
{
    (void)s, (void)id, (void)n, (void)ids;
    return absent(e);
}

const char *qm_cuda_op_name(int i)
{
    (void)i;
    return NULL;
}

void qm_cuda_generic_only(qm_cuda *d, bool yes) { (void)d, (void)yes; }
