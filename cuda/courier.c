/* courier.c: a GPU's couriers (core/courier.h).  All that a chunk needs is put on the courier's stream at once:
 *
 *     pinned memory -> source | decode, round | steps, round | encode every sink, add up errors | -> pinned memory
 *
 * A source of plain values that nothing changes is encoded from as it lies. */
#include <stdlib.h>
#include <string.h>

#include "../core/codebook.h"
#include "../core/courier.h"
#include "../core/tensor.h"
#include "extras.h"
#include "internal.h"
#include "steps.h"

/* Memory that grows and is kept. */
typedef struct room {
    uint8_t *at;
    uint64_t size;
} room;

typedef struct courier {
    qm_courier courier; /* first */
    qm_cuda_stream stream;
    cudaEvent_t done;
    room in_here, in, x, y, heads, scratch, out,
        out_here; /* "here": pinned; heads: rows as they lie in the file */
} courier;

/* ---- memory --------------------------------------------------------------------------------------- */

/* Nothing that uses it is under way. */
static bool make_room(courier *l, room *r, uint64_t size, bool pinned, qm_err *e)
{
    qm_cuda *d = l->stream.gpu;
    if (size <= r->size)
        return true;
    pinned ? qm_cuda_pinned_free(d, r->at) : qm_cuda_unscratch(r->at, l->stream.handle);
    *r = (room){0};
    r->at = pinned ? qm_cuda_pinned_alloc(d, size, e) : qm_cuda_scratch(d, l->stream.handle, size, e);
    r->size = r->at ? size : 0;
    return r->at != NULL;
}

/* What comes back, in one piece: planes of all sinks one behind another, sums of groups, errors of parts. */
typedef struct out_layout {
    uint64_t first_nonfinite, moved, error[QM_MAX_SINKS];
    uint64_t plane[QM_MAX_SINKS][QM_MAX_PLANES], group[QM_MAX_SINKS], total;
} out_layout;

static bool has_errors(const qm_job *job, int k) { return job->want_errors || job->sink[k].double_quant; }

static out_layout layout_of(const qm_job *job, uint64_t n, uint64_t each)
{
    out_layout o = {.total = 0};
    uint64_t parts = each ? (n + each - 1) / each : 0;
    o.first_nonfinite = qm_courier_place(&o.total, sizeof(uint64_t));
    o.moved = qm_courier_place(&o.total, job->nstep ? parts * sizeof(qm_errsum) : 0);
    for (int k = 0; k < job->nsink; k++) {
        const qm_sink *s = &job->sink[k];
        for (int i = 0; i < qm_format_planes(s->format); i++)
            o.plane[k][i] = qm_courier_place(&o.total, qm_plane_size(s->format, &s->codec, i, n));
        if (has_errors(job, k))
            o.error[k] = qm_courier_place(&o.total, parts * sizeof(qm_errsum));
        if (s->double_quant)
            o.group[k] = qm_courier_place(&o.total,
                                          (n + s->codec.block - 1) / s->codec.block * sizeof(qm_groupsum));
    }
    return o;
}

static uint64_t source_size(const qm_source *s, uint64_t n)
{
    uint64_t total = 0;
    for (int i = 0; i < qm_format_planes(s->format); i++)
        qm_courier_place(&total, qm_plane_size(s->format, &s->codec, i, n));
    if (s->double_quant) /* codes and nested scales beside the scales */
        qm_courier_place(&total, (n / s->codec.block + 1) * 2);
    return total;
}

enum {
    SCRATCH = 16 << 20, /* what codecs take for a while */
    LEAST_PART =
        16 << 10 /* values: parts are hardly ever shorter, so this counts more of them than there are */
};

uint64_t qm_cuda_courier_memory(const qm_job *job, uint64_t n, uint64_t *pinned)
{
    int64_t rows = job->source.cols ? (int64_t)n / job->source.cols : 0;
    uint64_t in = source_size(&job->source, n) + qm_extras_size(job, -1, rows);
    uint64_t heads = job->source.interleaved_heads ? n * sizeof(float) : 0;
    uint64_t out = layout_of(job, n, n < LEAST_PART ? n : LEAST_PART).total;
    *pinned = in + out;
    return in + out + heads + 2 * n * sizeof(float)
           + qm_steps_errors_scratch(n, n < LEAST_PART ? n : LEAST_PART) + SCRATCH;
}

static uint8_t *memory(qm_courier *base, uint64_t size, qm_err *e)
{
    courier *l = (courier *)base;
    qm_cuda_enter(l->stream.gpu);
    return make_room(l, &l->in_here, size, true, e) ? l->in_here.at : NULL;
}

/* ---- values ----------------------------------------------------------------------------------------- */

static bool keeps(qm_round r, qm_dtype d)
{
    return r == QM_ROUND_NONE || (r == QM_ROUND_F16 && d == QM_F16) || (r == QM_ROUND_BF16 && d == QM_BF16);
}

/* Whether sinks can be encoded from the source's own values. */
static bool is_direct(const qm_job *job)
{
    qm_dtype d = qm_cuda_plain_type(job->source.format);
    return d != QM_DTYPE_COUNT && job->nstep == 0 && !job->source.interleaved_heads && keeps(job->round, d)
           && keeps(job->source.round, d);
}

static qm_cuda_coded source_there(const courier *l, const qm_parcel *c)
{
    const qm_source *s = &c->job->source;
    qm_cuda_coded coded = {.format = s->format, .codec = s->codec};
    for (int i = 0; i < qm_format_planes(s->format); i++)
        coded.plane[i] = l->in.at + c->at[i];
    return coded;
}

static bool decode(courier *l, const qm_parcel *c, room *to, qm_err *e)
{
    const qm_source *source = &c->job->source;
    const int64_t heads = source->interleaved_heads;
    qm_cuda_coded coded = source_there(l, c);
    float *values = (float *)(void *)(heads ? &l->heads : to)->at;
    if (!qm_cuda_decode(&l->stream, &coded, c->n, values, QM_F32, e))
        return false;
    cudaError_t r = qm_steps_round(source->round, values, c->n, l->stream.handle);
    if (!r && heads)
        r = qm_steps_part_heads(values, (float *)(void *)to->at, (uint64_t)c->rows, (uint64_t)source->cols,
                                (uint64_t)(source->rows / heads), l->stream.handle);
    return qm_cuda_check(l->stream.gpu, r, "rounding", e);
}

/* Errors of y, or of x itself, against x, to where they come back from. */
static bool add_errors(courier *l, const qm_parcel *c, const void *x, qm_dtype dtype, const float *y,
                       uint64_t at, qm_err *e)
{
    cudaError_t r = qm_steps_errors(x, dtype, y, c->n, c->each, l->scratch.at,
                                    (qm_errsum *)(void *)(l->out.at + at), l->stream.handle);
    return qm_cuda_check(l->stream.gpu, r, "adding up errors", e);
}

/* ---- steps ------------------------------------------------------------------------------------------- */

static bool take_steps(courier *l, const qm_parcel *c, const out_layout *o, qm_err *e)
{
    const qm_job *job = c->job;
    cudaError_t r = qm_extras_steps(c, l->in.at, (float *)(void *)l->x.at, l->stream.handle);
    if (!qm_cuda_check(l->stream.gpu, r, "merging", e) || !job->want_errors || !job->nstep)
        return r == cudaSuccess;
    return decode(l, c, &l->y, e)
           && add_errors(l, c, l->y.at, QM_F32, (const float *)(void *)l->x.at, o->moved, e);
}

/* ---- sinks ------------------------------------------------------------------------------------------- */

/* In runs of rows of one matrix, as core/stream.c does it. */
static bool encode_by_importance(courier *l, const qm_parcel *c, int sink, qm_cuda_coded coded,
                                 const void *values, qm_dtype dtype, qm_err *e)
{
    const qm_sink *s = &c->job->sink[sink];
    const int64_t cols = c->job->source.cols, last = c->row + c->rows;
    const float *importance = qm_extras_importance(c, sink, l->in.at);
    coded.codec.cols = (uint32_t)cols;
    for (int64_t row = c->row, next; row < last; row = next) {
        const int64_t matrix = row / s->importance_rows, end = (matrix + 1) * s->importance_rows;
        next = end < last ? end : last;
        const uint64_t n = (uint64_t)((next - row) * cols), done = (uint64_t)((row - c->row) * cols);
        qm_cuda_coded run = coded;
        run.codec.importance = importance + (matrix - c->row / s->importance_rows) * cols;
        for (int i = 0; i < qm_format_planes(s->format); i++)
            run.plane[i] += qm_plane_size(s->format, &s->codec, i, done);
        if (!qm_cuda_encode(&l->stream, (const char *)values + done * (qm_dtypes[dtype].bits / 8), dtype, n,
                            &run, e))
            return false;
    }
    return true;
}

static bool encode_sink(courier *l, const qm_parcel *c, int k, const out_layout *o, const void *values,
                        qm_dtype dtype, qm_err *e)
{
    const qm_sink *s = &c->job->sink[k];
    qm_cuda_coded coded = {.format = s->format, .codec = s->codec};
    for (int i = 0; i < qm_format_planes(s->format); i++)
        coded.plane[i] = l->out.at + o->plane[k][i];
    if (qm_by_importance(s) ? !encode_by_importance(l, c, k, coded, values, dtype, e)
                            : !qm_cuda_encode(&l->stream, values, dtype, c->n, &coded, e))
        return false;
    if (!has_errors(c->job, k))
        return true;
    float *y = (float *)(void *)l->y.at;
    if (!qm_cuda_decode(&l->stream, &coded, c->n, y, QM_F32, e)
        || !add_errors(l, c, values, dtype, y, o->error[k], e))
        return false;
    return !s->double_quant
           || qm_cuda_check(l->stream.gpu,
                            qm_steps_group_sums(values, dtype, y, c->n, s->codec.block,
                                                (qm_groupsum *)(void *)(l->out.at + o->group[k]),
                                                l->stream.handle),
                            "adding up groups", e);
}

static void results(courier *l, qm_parcel *c, const out_layout *o)
{
    for (int k = 0; k < c->job->nsink; k++) {
        for (int i = 0; i < qm_format_planes(c->job->sink[k].format); i++)
            c->plane[k][i] = l->out_here.at + o->plane[k][i];
        c->group[k] = (const qm_groupsum *)(void *)(l->out_here.at + o->group[k]);
        c->error[k] = (const qm_errsum *)(void *)(l->out_here.at + o->error[k]);
    }
    c->moved = c->job->nstep && c->job->want_errors ? (const qm_errsum *)(void *)(l->out_here.at + o->moved)
                                                    : NULL;
    uint64_t first;
    memcpy(&first, l->out_here.at + o->first_nonfinite, sizeof first);
    c->first_nonfinite = first < c->n ? first : c->n;
}

/* The value at fault is fetched only when there is one. */
static bool fetch_nonfinite(courier *l, qm_parcel *c, const void *values, qm_dtype dtype, qm_err *e)
{
    uint32_t bits = 0, size = qm_dtypes[dtype].bits / 8;
    if (c->first_nonfinite == c->n)
        return true;
    cudaError_t r = cudaMemcpyAsync(&bits, (const char *)values + c->first_nonfinite * size, size,
                                    cudaMemcpyDeviceToHost, l->stream.handle);
    cudaError_t last = cudaStreamSynchronize(l->stream.handle);
    c->nonfinite = dtype == QM_F32   ? qm_bits_f32(bits)
                   : dtype == QM_F16 ? qm_f16_to_f32((uint16_t)bits)
                                     : qm_bf16_to_f32((uint16_t)bits);
    return qm_cuda_check(l->stream.gpu, r ? r : last, "looking for values that are not finite", e);
}

/* Sleeps until the stream is done: other threads read and write meanwhile. */
static cudaError_t wait_for(courier *l)
{
    cudaError_t r = cudaEventRecord(l->done, l->stream.handle);
    return r ? r : cudaEventSynchronize(l->done);
}

static bool rooms_for(courier *l, const qm_parcel *c, const out_layout *o, uint64_t in, bool direct,
                      qm_err *e)
{
    bool decoded = c->job->want_errors;
    for (int k = 0; k < c->job->nsink; k++)
        decoded = decoded || c->job->sink[k].double_quant;
    return make_room(l, &l->in, in, false, e) && make_room(l, &l->out, o->total, false, e)
           && make_room(l, &l->out_here, o->total, true, e)
           && (direct || make_room(l, &l->x, c->n * sizeof(float), false, e))
           && (!c->job->source.interleaved_heads || make_room(l, &l->heads, c->n * sizeof(float), false, e))
           && (!decoded
               || (make_room(l, &l->y, c->n * sizeof(float), false, e)
                   && make_room(l, &l->scratch, qm_steps_errors_scratch(c->n, c->each), false, e)));
}

/* The source's bytes with what steps and sinks need behind them: pinned memory may have to move for that. */
static bool bring_extras(courier *l, const qm_parcel *c, uint64_t in, qm_err *e)
{
    if (in > l->in_here.size) {
        room larger = {0};
        if (!make_room(l, &larger, in, true, e))
            return false;
        memcpy(larger.at, l->in_here.at, c->raw);
        qm_cuda_pinned_free(l->stream.gpu, l->in_here.at);
        l->in_here = larger;
    }
    qm_extras_bring(c, l->in_here.at);
    return true;
}

static bool put_on_stream(courier *l, const qm_parcel *c, const out_layout *o, uint64_t in, bool direct,
                          qm_err *e)
{
    const qm_job *job = c->job;
    const void *values = direct ? l->in.at + c->at[0] : l->x.at;
    qm_dtype dtype = direct ? qm_cuda_plain_type(job->source.format) : QM_F32;
    qm_cuda *d = l->stream.gpu;
    cudaStream_t h = l->stream.handle;
    uint64_t *first = (uint64_t *)(void *)(l->out.at + o->first_nonfinite);
    cudaError_t r = cudaMemcpyAsync(l->in.at, l->in_here.at, in, cudaMemcpyHostToDevice, h);
    if (!r)
        r = cudaMemsetAsync(first, 0xff, sizeof *first, h);
    if (!qm_cuda_check(d, r, "copying to it", e))
        return false;
    if (!direct
        && !(decode(l, c, &l->x, e) && take_steps(l, c, o, e)
             && qm_cuda_check(d, qm_steps_round(job->round, (float *)(void *)l->x.at, c->n, h), "rounding",
                              e)))
        return false;
    if (!job->keep_nonfinite
        && !qm_cuda_check(d, qm_steps_nonfinite(values, dtype, c->n, first, h), "looking", e))
        return false;
    for (int k = 0; k < job->nsink; k++)
        if (!encode_sink(l, c, k, o, values, dtype, e))
            return false;
    r = cudaMemcpyAsync(l->out_here.at, l->out.at, o->total, cudaMemcpyDeviceToHost, h);
    return qm_cuda_check(d, r, "copying from it", e);
}

static bool run(qm_courier *base, qm_parcel *c, qm_err *e)
{
    courier *l = (courier *)base;
    out_layout o = layout_of(c->job, c->n, c->each);
    uint64_t in = qm_courier_aligned(c->raw) + qm_extras_size(c->job, c->row, c->rows);
    bool direct = is_direct(c->job);
    qm_cuda_enter(l->stream.gpu);
    bool ok = bring_extras(l, c, in, e) && rooms_for(l, c, &o, in, direct, e)
              && put_on_stream(l, c, &o, in, direct, e);
    cudaError_t r = wait_for(l);
    if (!ok || !qm_cuda_check(l->stream.gpu, r, "work", e))
        return false;
    results(l, c, &o);
    return fetch_nonfinite(l, c, direct ? l->in.at + c->at[0] : l->x.at,
                           direct ? qm_cuda_plain_type(c->job->source.format) : QM_F32, e);
}

/* ---- to stay there ----------------------------------------------------------------------------------- */

/* Where a plane of a part lies once the courier's memory is copied. */
static uint8_t *there(const courier *l, const qm_slice *plane)
{
    return plane->data ? l->in.at + (plane->data - l->in_here.at) : NULL;
}

/* The values of a part, as they lie or decoded into l->x. */
static bool part_values(courier *l, const qm_tensor *part, uint64_t n, const void **values, qm_dtype *dtype,
                        qm_err *e)
{
    *dtype = qm_cuda_plain_type(part->format);
    *values = there(l, &part->plane[0]);
    if (*dtype != QM_DTYPE_COUNT && keeps(part->round, *dtype))
        return true;
    *dtype = QM_F32;
    qm_cuda_coded c = qm_cuda_coded_of(part);
    for (int i = 0; i < QM_MAX_PLANES; i++)
        c.plane[i] = there(l, &part->plane[i]);
    c.nested = part->double_quant ? (float *)(void *)c.plane[2] : NULL;
    if (!make_room(l, &l->x, n * sizeof(float), false, e))
        return false;
    *values = l->x.at;
    return qm_cuda_decode(&l->stream, &c, n, l->x.at, QM_F32, e)
           && qm_cuda_check(l->stream.gpu,
                            qm_steps_round(part->round, (float *)(void *)l->x.at, n, l->stream.handle),
                            "rounding", e);
}

static bool encode_part(courier *l, const qm_tensor *part, uint64_t raw, qm_tensor *to,
                        const qm_tensor *target, qm_err *e)
{
    const void *values;
    qm_dtype dtype;
    uint64_t n = (uint64_t)qm_tensor_count(part);
    qm_cuda *d = l->stream.gpu;
    if (!make_room(l, &l->in, raw, false, e)
        || !qm_cuda_check(
            d, cudaMemcpyAsync(l->in.at, l->in_here.at, raw, cudaMemcpyHostToDevice, l->stream.handle),
            "copying to it", e)
        || !part_values(l, part, n, &values, &dtype, e)
        || (to->format->tensor_range != 0
            && !qm_cuda_measure(&l->stream, &to->codec, to->format, values, dtype, n, e)))
        return false; /* with a range for the tensor, it is one part */
    qm_cuda_coded c = qm_cuda_coded_of(target);
    c.codec.factor = to->codec.factor;
    return qm_cuda_encode(&l->stream, values, dtype, n, &c, e);
}

static bool copy_part(courier *l, const qm_tensor *part, const qm_tensor *target, qm_err *e)
{
    cudaError_t r = cudaSuccess;
    for (int i = 0; i <= QM_MAX_PLANES && !r; i++)
        if (part->plane[i].size)
            r = cudaMemcpyAsync((void *)(uintptr_t)target->plane[i].data, part->plane[i].data,
                                part->plane[i].size, cudaMemcpyHostToDevice, l->stream.handle);
    return qm_cuda_check(l->stream.gpu, r, "copying to it", e);
}

static bool bring(qm_courier *base, const qm_tensor *part, uint64_t raw, qm_tensor *to, int64_t first,
                  bool encode, qm_err *e)
{
    courier *l = (courier *)base;
    qm_tensor target = qm_tensor_part(to, first, qm_tensor_count(part));
    qm_cuda_enter(l->stream.gpu);
    bool ok = encode ? encode_part(l, part, raw, to, &target, e) : copy_part(l, part, &target, e);
    cudaError_t r = wait_for(l);
    return ok && qm_cuda_check(l->stream.gpu, r, "loading", e);
}

/* ---- opening and closing ----------------------------------------------------------------------------- */

/* Vectors are too short to come here, and so what is added to them (a bias, or gemma's norms) is not done here. */
static bool takes_step(const qm_step *s) { return s->kind != QM_STEP_ADD; }

static bool takes_sink(const qm_sink *s) { return s->add == 0 && qm_cuda_can_code(s->format, &s->codec); }

bool qm_cuda_courier_takes(const qm_job *job)
{
    bool ok = qm_cuda_can_code(job->source.format, &job->source.codec);
    for (int i = 0; i < job->nstep; i++)
        ok = ok && takes_step(&job->step[i]);
    for (int k = 0; k < job->nsink; k++)
        ok = ok && takes_sink(&job->sink[k]);
    return ok;
}

static void courier_free(qm_courier *base)
{
    courier *l = (courier *)base;
    qm_cuda *d = l->stream.gpu;
    room *there[] = {&l->in, &l->x, &l->y, &l->heads, &l->scratch, &l->out},
         *here[] = {&l->in_here, &l->out_here};
    qm_cuda_enter(d);
    if (l->stream.handle)
        cudaStreamSynchronize(l->stream.handle);
    for (size_t i = 0; i < sizeof there / sizeof *there; i++)
        qm_cuda_unscratch(there[i]->at, l->stream.handle);
    if (l->stream.handle) /* the pool has it back, for whoever asks next what is free */
        cudaStreamSynchronize(l->stream.handle);
    for (size_t i = 0; i < sizeof here / sizeof *here; i++)
        qm_cuda_pinned_free(d, here[i]->at);
    if (l->done)
        cudaEventDestroy(l->done);
    if (l->stream.handle)
        cudaStreamDestroy(l->stream.handle);
    qm_device_unref(&d->device);
    free(l);
}

qm_courier *qm_cuda_courier_new(qm_device *device, qm_err *e)
{
    qm_cuda *d = (qm_cuda *)device;
    courier *l = calloc(1, sizeof *l);
    if (!l) {
        qm_fail(e, QM_ENOFIT, "%s: out of memory for a courier", device->name);
        return NULL;
    }
    l->courier = (qm_courier){
        .device = qm_device_ref(device), .memory = memory, .run = run, .bring = bring, .free = courier_free};
    l->stream.gpu = d;
    qm_cuda_enter(d);
    if (qm_cuda_check(d, cudaStreamCreateWithFlags(&l->stream.handle, cudaStreamNonBlocking),
                      "making a stream", e)
        && qm_cuda_check(d,
                         cudaEventCreateWithFlags(&l->done, cudaEventDisableTiming | cudaEventBlockingSync),
                         "making an event", e))
        return &l->courier;
    courier_free(&l->courier);
    return NULL;
}
