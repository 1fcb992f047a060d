/* codec.c: which kernel encodes or decodes what; see cuda.h. */
#include <string.h>

#include "../core/double_quant.h"
#include "../core/formats/fp4.h"
#include "../core/formats/nf4.h"
#include "../core/formats/table.h"
#include "internal.h"
#include "kernels.h"

static bool is(const qm_format *f, const char *name) { return !f->made && strcmp(f->name, name) == 0; }

static bool aligned(const void *p, uintptr_t to) { return (uintptr_t)p % to == 0; }

static bool known_values(const qm_cuda *d, qm_dtype dtype, qm_err *e)
{
    if (dtype == QM_F32 || dtype == QM_F16 || dtype == QM_BF16)
        return true;
    return qm_fail(e, QM_EUNSUPPORTED, "%s: values must be f32, f16 or bf16, not %s", d->device.name,
                   qm_dtypes[dtype].name);
}

/* ---- every format -------------------------------------------------------------------------------- */

enum {
    SINGLE_VALUES = 64,          /* formats without groups: as many at once to a thread */
    SHARED_STAGE = 48 << 10,     /* bytes; every GPU has as much */
    LARGEST_GROUP = 16 << 20,    /* values; one thread has to go through them */
    FAR_STAGE = 256 << 20,       /* bytes of the GPU's memory, when groups are too large for shared memory */
    BLOCKS_A_MULTIPROCESSOR = 16 /* of threads: enough to fill it */
};

typedef struct run {
    const qm_format *format;
    qm_codec codec;
    void *values;
    qm_dtype dtype;
    uint64_t n;
    uint8_t *plane[QM_MAX_PLANES];
} run;

static uint32_t group_of(const run *r) { return r->format->block == 1 ? SINGLE_VALUES : r->codec.block; }

static const char *kernel_name(const qm_format *f) { return f->table ? "codebook" : f->name; }

bool qm_cuda_can_code(const qm_format *f, const qm_codec *c)
{
    return (!f->made || f->table) && c->block <= LARGEST_GROUP;
}

/* Whether columns that differ in importance are encoded differently. */
static bool by_importance(const run *r) { return r->codec.importance && r->format->encode_important; }

static bool can_run(const qm_cuda *d, const run *r, qm_err *e)
{
    const qm_format *f = r->format;
    if (f->made && !f->table)
        return qm_fail(e, QM_EUNSUPPORTED, "%s: format %s is made of functions, which run on the CPU only",
                       d->device.name, f->name);
    if (group_of(r) > LARGEST_GROUP)
        return qm_fail(e, QM_EUNSUPPORTED,
                       "%s: groups of %u values are more than one thread should go through; the CPU can",
                       d->device.name, group_of(r));
    return known_values(d, r->dtype, e);
}

/* How many groups are staged together, and by how many blocks of threads. */
static unsigned plan(const qm_cuda *d, const run *r, qm_generic *g)
{
    uint64_t row = (uint64_t)g->stride * sizeof(float), together = SHARED_STAGE / row;
    uint64_t most = (uint64_t)d->info.multiprocessors * BLOCKS_A_MULTIPROCESSOR;
    bool far = together == 0;
    if (far) {
        most = (uint64_t)d->info.multiprocessors < FAR_STAGE / row ? (uint64_t)d->info.multiprocessors
                                                                   : FAR_STAGE / row;
        together = FAR_STAGE / row / most;
    }
    g->together = together > QM_GENERIC_THREADS ? QM_GENERIC_THREADS : (uint32_t)together;
    for (int i = 0; i < qm_format_planes(r->format); i++)
        g->bytes[i] = (uint32_t)qm_plane_size(r->format, &r->codec, i, g->block);
    uint64_t blocks = (g->groups + g->together - 1) / g->together;
    return (unsigned)(blocks < most ? blocks : most);
}

static bool run_generic(qm_cuda_stream *s, bool encode, const run *r, qm_err *e)
{
    qm_cuda *d = s->gpu;
    if (!can_run(d, r, e))
        return false;
    if (r->n == 0)
        return true;
    qm_generic g = {
        .values = r->values, .dtype = r->dtype, .n = r->n, .block = group_of(r), .codec = r->codec};
    g.groups = (r->n + g.block - 1) / g.block;
    g.stride = g.block | 1;
    memcpy(g.plane, r->plane, sizeof g.plane);
    unsigned grid = plan(d, r, &g);
    uint64_t stage = (uint64_t)g.together * g.stride * sizeof(float),
             rows = by_importance(r) ? r->n / r->codec.cols : 0;
    void *table = NULL;
    float *power = NULL;
    bool ok = true;
    if (stage > SHARED_STAGE)
        ok = (g.stage = qm_cuda_scratch(d, s->handle, stage * grid, e)) != NULL;
    if (ok && r->format->table) {
        ok = (table = qm_cuda_scratch(d, s->handle, sizeof(qm_table), e))
             && qm_cuda_check(d,
                              cudaMemcpyAsync(table, r->format->table, sizeof(qm_table),
                                              cudaMemcpyHostToDevice, s->handle),
                              "copying a codebook", e);
        g.codec.table = table;
    }
    if (ok && encode && rows && r->format->row_power) {
        ok = (power = qm_cuda_scratch(d, s->handle, rows * sizeof *power, e))
             && qm_cuda_check(d, qm_generic_power(r->values, r->dtype, rows, r->codec.cols, power, s->handle),
                              "encoding", e);
        g.power = power;
    }
    if (ok) {
        const char *name = kernel_name(r->format);
        cudaError_t x = !encode ? qm_generic_decode(name, &g, grid, s->handle)
                        : rows  ? qm_generic_encode_important(name, &g, grid, s->handle)
                                : qm_generic_encode(name, &g, grid, s->handle);
        ok = qm_cuda_check(d, x, encode ? "encoding" : "decoding", e);
    }
    qm_cuda_unscratch(power, s->handle);
    qm_cuda_unscratch(g.stage, s->handle);
    qm_cuda_unscratch(table, s->handle);
    return ok;
}

/* ---- encoding ------------------------------------------------------------------------------------ */

/* What is left of r behind the first `done` values, which are whole groups. */
static run rest_of(const run *r, uint64_t done)
{
    run rest = *r;
    rest.n -= done;
    rest.values = (char *)r->values + done * qm_dtypes[r->dtype].bits / 8;
    for (int i = 0; i < qm_format_planes(r->format); i++)
        rest.plane[i] += qm_plane_size(r->format, &r->codec, i, done);
    return rest;
}

/* Whether there are kernels for this format's two codes a byte, and for which kind. */
static bool nibble_kind(const qm_format *f, qm_nibble_kind *kind)
{
    static const struct {
        const char *name;
        qm_nibble_kind kind;
    } known[] = {{"nf4", QM_NIBBLES_NF4},
                 {"fp4", QM_NIBBLES_FP4},
                 {"int4", QM_NIBBLES_INT4},
                 {"uint4", QM_NIBBLES_UINT4}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is(f, known[i].name)) {
            *kind = known[i].kind;
            return true;
        }
    *kind = QM_NIBBLES_TABLE;
    return f->table && f->table->bits == 4;
}

/* The search tree of a codebook, back in order; see table.h.  Where both sides of a threshold mean the same code, it is
 * left out. */
static void ranks_of_table(const qm_table *t, qm_nibble_ranks *ranks)
{
    ranks->code[0] = t->code[0];
    for (uint32_t r = 1; r < t->count; r++) {
        uint32_t node = (1u << t->bits | r)
                        >> 1; /* between rank r and the one below: the lowest node above both */
        for (uint32_t k = r; k % 2 == 0; k /= 2)
            node /= 2;
        if (t->code[r] == ranks->code[ranks->thresholds])
            continue;
        ranks->threshold[ranks->thresholds++] = t->tree[node];
        ranks->code[ranks->thresholds] = t->code[r];
    }
}

/* NULL for integers. */
static const qm_nibble_ranks *ranks_of(const qm_format *f, qm_nibble_kind kind, qm_nibble_ranks *ranks)
{
    *ranks = (qm_nibble_ranks){0};
    switch (kind) {
    case QM_NIBBLES_NF4:
        ranks->thresholds = 15;
        memcpy(ranks->threshold, qm_nf4_threshold, sizeof qm_nf4_threshold);
        for (int i = 0; i < 16; i++)
            ranks->code[i] = (uint8_t)i;
        return ranks;
    case QM_NIBBLES_FP4:
        ranks->thresholds = 7;
        memcpy(ranks->threshold, qm_fp4_threshold, sizeof qm_fp4_threshold);
        memcpy(ranks->code, qm_fp4_code, sizeof qm_fp4_code);
        return ranks;
    case QM_NIBBLES_TABLE:
        ranks_of_table(f->table, ranks);
        return ranks;
    default:
        return NULL;
    }
}

static bool encode_nibbles(qm_cuda_stream *s, qm_nibble_kind kind, const run *r, qm_err *e)
{
    qm_nibble_ranks ranks;
    uint64_t done = aligned(r->plane[0], 4) ? qm_nibbles_encodes(r->codec.block, r->n) : 0;
    cudaError_t x = qm_nibbles_encode(kind, ranks_of(r->format, kind, &ranks), r->values, r->dtype, done,
                                      r->codec.block, r->codec.exact_zero, r->plane[0],
                                      (float *)(void *)r->plane[1], r->plane[2], s->handle);
    if (x == cudaErrorNotSupported)
        done = 0;
    run rest = rest_of(r, done);
    return (x == cudaErrorNotSupported || qm_cuda_check(s->gpu, x, "encoding", e))
           && run_generic(s, true, &rest, e);
}

static bool encode_run(qm_cuda_stream *s, const run *r, qm_err *e)
{
    const qm_format *f = r->format;
    uint32_t cols = r->codec.block;
    cudaError_t x;
    bool fast = !s->gpu->generic_only && !by_importance(r) && !r->codec.nearest && aligned(r->values, 16)
                && known_values(s->gpu, r->dtype, &(qm_err){0});
    qm_nibble_kind kind;
    if (fast && r->n && nibble_kind(f, &kind) && aligned(r->plane[1], 4))
        return encode_nibbles(s, kind, r, e);
    if (fast && r->n && is(f, "int8") && cols % 8 == 0 && r->n / cols <= INT32_MAX && aligned(r->plane[0], 8))
        x = qm_int8_encode(r->values, r->dtype, r->n / cols, cols, r->plane[0], (float *)(void *)r->plane[1],
                           s->handle);
    else if (fast && r->n && is(f, "q8_0") && aligned(r->plane[0], 16))
        x = qm_q8_0_encode(r->values, r->dtype, r->n, r->plane[0], s->handle);
    else if (fast && r->n && is(f, "q4_0") && aligned(r->plane[0], 16))
        x = qm_q4_0_encode(r->values, r->dtype, r->n, r->plane[0], s->handle);
    else if (fast && r->n && qm_cuda_plain_type(f) != QM_DTYPE_COUNT && aligned(r->plane[0], 16))
        x = qm_convert(r->values, r->dtype, r->n, r->plane[0], qm_cuda_plain_type(f), s->handle);
    else
        return run_generic(s, true, r, e);
    return qm_cuda_check(s->gpu, x, "encoding", e);
}

bool qm_cuda_encode(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n, const qm_cuda_coded *to,
                    qm_err *e)
{
    run r = {
        .format = to->format, .codec = to->codec, .values = (void *)(uintptr_t)x, .dtype = dtype, .n = n};
    memcpy(r.plane, to->plane, sizeof r.plane);
    qm_cuda_enter(s->gpu);
    return encode_run(s, &r, e);
}

static uint64_t groups_of(const qm_codec *c, uint64_t n) { return (n + c->block - 1) / c->block; }

bool qm_cuda_encode_scales(qm_cuda_stream *s, const float *absmax, uint64_t groups, const qm_cuda_coded *to,
                           bool offset_given, float *offset, qm_err *e)
{
    qm_cuda *d = s->gpu;
    double *scratch = qm_cuda_scratch(d, s->handle, qm_nested_scratch(groups) * sizeof *scratch, e);
    if (!scratch)
        return false;
    cudaError_t x = offset_given ? cudaMemcpyAsync(offset, &to->offset, sizeof *offset,
                                                   cudaMemcpyHostToDevice, s->handle)
                                 : qm_nested_offset(absmax, groups, scratch, offset, s->handle);
    if (!x)
        x = qm_nested_encode(absmax, groups, offset, to->plane[1], to->nested, s->handle);
    qm_cuda_unscratch(scratch, s->handle);
    return qm_cuda_check(d, x, "double quantisation", e);
}

bool qm_cuda_encode_double(qm_cuda_stream *s, const void *x, qm_dtype dtype, uint64_t n,
                           const qm_cuda_coded *to, bool offset_given, float *offset, qm_err *e)
{
    uint64_t groups = groups_of(&to->codec, n);
    qm_cuda_enter(s->gpu);
    if (n == 0)
        return qm_cuda_check(s->gpu, cudaMemsetAsync(offset, 0, sizeof *offset, s->handle),
                             "double quantisation", e);
    uint8_t *absmax = qm_cuda_scratch(s->gpu, s->handle, groups * sizeof(float), e);
    if (!absmax)
        return false;
    qm_cuda_coded single = *to;
    single.plane[1] = absmax;
    bool ok = qm_cuda_encode(s, x, dtype, n, &single, e)
              && qm_cuda_encode_scales(s, (const float *)(void *)absmax, groups, to, offset_given, offset, e);
    qm_cuda_unscratch(absmax, s->handle);
    return ok;
}

bool qm_cuda_measure(qm_cuda_stream *s, qm_codec *codec, const qm_format *f, const void *x, qm_dtype dtype,
                     uint64_t n, qm_err *e)
{
    float most = 0;
    qm_cuda_enter(s->gpu);
    if (f->tensor_range == 0) {
        codec->factor = 0;
        return true;
    }
    if (!aligned(x, 16))
        return qm_fail(e, QM_EFAIL, "%s: measuring values that do not begin on 16 bytes",
                       s->gpu->device.name);
    uint32_t *largest = known_values(s->gpu, dtype, e)
                            ? qm_cuda_scratch(s->gpu, s->handle, sizeof *largest, e)
                            : NULL;
    if (!largest)
        return false;
    cudaError_t r = cudaMemsetAsync(largest, 0, sizeof *largest, s->handle);
    if (!r)
        r = qm_largest(x, dtype, n, largest, s->handle);
    if (!r)
        r = cudaMemcpyAsync(&most, largest, sizeof most, cudaMemcpyDeviceToHost, s->handle);
    qm_cuda_unscratch(largest, s->handle);
    cudaError_t last = cudaStreamSynchronize(s->handle);
    codec->factor = qm_format_factor(f, most);
    return qm_cuda_check(s->gpu, r ? r : last, "measuring", e);
}

/* ---- decoding ------------------------------------------------------------------------------------ */

/* Whether this can be read by the kernels for two codes a byte, and how. */
static bool as_nibbles(const qm_cuda *d, const qm_cuda_coded *c, qm_nibbles *q)
{
    const qm_format *f = c->format;
    qm_nibble_kind kind;
    uint32_t block = c->codec.block;
    if (d->generic_only || !nibble_kind(f, &kind) || block < 32 || (block & (block - 1))
        || !aligned(c->plane[0], 4) || (!c->double_quant && !aligned(c->plane[1], 4)))
        return false;
    *q = (qm_nibbles){.codes = c->plane[0], .scales = c->plane[1], .block = block};
    q->flush = kind == QM_NIBBLES_NF4 || kind == QM_NIBBLES_FP4;
    q->zeros = kind == QM_NIBBLES_UINT4 ? c->plane[2] : NULL;
    const float *level = kind == QM_NIBBLES_NF4 ? qm_nf4_value : kind == QM_NIBBLES_FP4 ? qm_fp4_value : NULL;
    for (int i = 0; i < 16; i++)
        q->level[i] = level      ? level[i]
                      : f->table ? f->table->level[i]
                                 : (float)(kind == QM_NIBBLES_INT4 ? i - 8 : i);
    if (c->double_quant) {
        q->nested = c->nested;
        q->offset = c->offset;
    }
    return true;
}

/* c with f32 scales in *scratch instead of a second level; nothing is done where there is none. */
static bool undo_double(qm_cuda_stream *s, qm_cuda_coded *c, uint64_t n, void **scratch, qm_err *e)
{
    uint64_t groups = groups_of(&c->codec, n);
    *scratch = NULL;
    if (!c->double_quant || n == 0)
        return true;
    float *absmax = *scratch = qm_cuda_scratch(s->gpu, s->handle, groups * sizeof *absmax, e);
    if (!absmax)
        return false;
    cudaError_t x = qm_nested_decode(c->plane[1], c->nested, groups, c->offset, absmax, s->handle);
    c->plane[1] = (uint8_t *)absmax;
    c->double_quant = false;
    return qm_cuda_check(s->gpu, x, "double quantisation", e);
}

bool qm_cuda_decode(qm_cuda_stream *s, const qm_cuda_coded *from, uint64_t n, void *y, qm_dtype dtype,
                    qm_err *e)
{
    qm_nibbles q;
    qm_cuda_coded c = *from;
    void *scales;
    qm_cuda_enter(s->gpu);
    if (!known_values(s->gpu, dtype, e))
        return false;
    if (aligned(y, 16) && as_nibbles(s->gpu, &c, &q))
        return qm_cuda_check(s->gpu, qm_nibbles_decode(&q, n, y, dtype, s->handle), "decoding", e);
    cudaError_t x = cudaErrorNotSupported;
    bool fast = !s->gpu->generic_only && n && aligned(y, 16);
    if (fast && is(c.format, "int8") && c.codec.block % 8 == 0 && aligned(c.plane[0], 8))
        x = qm_int8_decode(c.plane[0], (const float *)(void *)c.plane[1], n / c.codec.block, c.codec.block, y,
                           dtype, s->handle);
    else if (fast && is(c.format, "q8_0") && aligned(c.plane[0], 2))
        x = qm_q8_0_decode(c.plane[0], n, y, dtype, s->handle);
    else if (fast && is(c.format, "q4_0") && aligned(c.plane[0], 2))
        x = qm_q4_0_decode(c.plane[0], n, y, dtype, s->handle);
    else if (fast && qm_cuda_plain_type(c.format) != QM_DTYPE_COUNT && aligned(c.plane[0], 16))
        x = qm_convert(c.plane[0], qm_cuda_plain_type(c.format), n, y, dtype, s->handle);
    if (x != cudaErrorNotSupported)
        return qm_cuda_check(s->gpu, x, "decoding", e);
    bool ok = undo_double(s, &c, n, &scales, e);
    run r = {.format = c.format, .codec = c.codec, .values = y, .dtype = dtype, .n = n};
    memcpy(r.plane, c.plane, sizeof r.plane);
    ok = ok && run_generic(s, false, &r, e);
    qm_cuda_unscratch(scales, s->handle);
    return ok;
}

/* ---- errors -------------------------------------------------------------------------------------- */

enum {
    SUMS_CHUNK = 1 << 23
}; /* values decoded at once: in the second-level cache when they are read again */

/* Of values first ... first + n - 1 of c, by way of `values`, which holds SUMS_CHUNK and two groups. */
static bool chunk_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *c,
                         uint64_t first, uint64_t n, uint64_t all, float *values, void *partial, qm_err *e)
{
    qm_cuda_coded part = *c;
    uint64_t block = c->format->block == 1 ? 1 : c->codec.block, start = first / block * block;
    uint64_t end = (first + n + block - 1) / block * block;
    for (int i = 0; i < qm_format_planes(c->format); i++)
        part.plane[i] += qm_plane_size(c->format, &c->codec, i, start);
    values += (4 - (first - start) % 4) % 4; /* so that value `first` lies on 16 bytes */
    if (!qm_cuda_decode(s, &part, (end < all ? end : all) - start, values, QM_F32, e))
        return false;
    cudaError_t r = qm_sums_plain((const char *)x + first * qm_dtypes[dtype].bits / 8, dtype,
                                  values + (first - start), QM_F32, n, qm_sums_at(partial, first), s->handle);
    return qm_cuda_check(s->gpu, r, "adding up errors", e);
}

static bool decoded_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b,
                           uint64_t n, void *partial, qm_err *e)
{
    qm_cuda_coded c = *b;
    void *scales;
    uint64_t chunk = n < SUMS_CHUNK ? n : SUMS_CHUNK;
    bool ok = undo_double(s, &c, n, &scales, e);
    float *values = ok ? qm_cuda_scratch(s->gpu, s->handle,
                                         (chunk + 2 * (uint64_t)c.codec.block + 4) * sizeof *values, e)
                       : NULL;
    ok = values != NULL;
    for (uint64_t at = 0; ok && at < n; at += SUMS_CHUNK)
        ok = chunk_errors(s, x, dtype, &c, at, n - at < SUMS_CHUNK ? n - at : SUMS_CHUNK, n, values, partial,
                          e);
    qm_cuda_unscratch(values, s->handle);
    qm_cuda_unscratch(scales, s->handle);
    return ok;
}

static bool partial_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b,
                           uint64_t n, void *partial, qm_err *e)
{
    qm_nibbles q;
    qm_dtype other = qm_cuda_plain_type(b->format);
    cudaError_t r;
    if (as_nibbles(s->gpu, b, &q) && q.block <= QM_SUMS_NIBBLES_BLOCK)
        r = qm_sums_nibbles(x, dtype, &q, n, partial, s->handle);
    else if (!s->gpu->generic_only && is(b->format, "int8") && b->codec.block % 8 == 0
             && b->codec.block <= QM_SUMS_INT8_COLS && aligned(b->plane[0], 8))
        r = qm_sums_int8(x, dtype, b->plane[0], (const float *)(void *)b->plane[1], b->codec.block, n,
                         partial, s->handle);
    else if (!s->gpu->generic_only && is(b->format, "q8_0") && aligned(b->plane[0], 2))
        r = qm_sums_q8_0(x, dtype, b->plane[0], n, partial, s->handle);
    else if (!s->gpu->generic_only && is(b->format, "q4_0") && aligned(b->plane[0], 2))
        r = qm_sums_q4_0(x, dtype, b->plane[0], n, partial, s->handle);
    else if (other != QM_DTYPE_COUNT && aligned(b->plane[0], 16))
        r = qm_sums_plain(x, dtype, b->plane[0], other, n, partial, s->handle);
    else
        return decoded_errors(s, x, dtype, b, n, partial, e);
    return qm_cuda_check(s->gpu, r, "adding up errors", e);
}

bool qm_cuda_errors_start(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b,
                          uint64_t n, qm_errsum *there, qm_err *e)
{
    qm_cuda *d = s->gpu;
    if (!known_values(d, dtype, e))
        return false;
    if (!aligned(x, 16))
        return qm_fail(e, QM_EFAIL, "%s: errors of values that do not begin on 16 bytes", d->device.name);
    if (n == 0)
        return qm_cuda_check(d, cudaMemsetAsync(there, 0, sizeof *there, s->handle), "adding up errors", e);
    void *partial = qm_cuda_scratch(d, s->handle, qm_sums_scratch(n), e);
    bool ok = partial && partial_errors(s, x, dtype, b, n, partial, e)
              && qm_cuda_check(d, qm_sums_finish(partial, n, there, s->handle), "adding up errors", e);
    qm_cuda_unscratch(partial, s->handle);
    return ok;
}

bool qm_cuda_errors(qm_cuda_stream *s, const void *x, qm_dtype dtype, const qm_cuda_coded *b, uint64_t n,
                    qm_errsum *sum, qm_err *e)
{
    qm_cuda *d = s->gpu;
    qm_cuda_enter(d);
    qm_errsum *there = qm_cuda_scratch(d, s->handle, sizeof *there, e);
    if (!there)
        return false;
    bool ok = qm_cuda_errors_start(s, x, dtype, b, n, there, e);
    cudaError_t r = cudaMemcpyAsync(sum, there, sizeof *sum, cudaMemcpyDeviceToHost, s->handle);
    qm_cuda_unscratch(there, s->handle);
    cudaError_t last = cudaStreamSynchronize(s->handle);
    return ok && qm_cuda_check(d, r ? r : last, "adding up errors", e);
}
