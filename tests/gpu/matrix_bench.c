/* matrix_bench.c: the speed of multiplying by 4-bit matrices, beside reading as many bytes.
 *
 * Launches are edges of one graph; matrices go round over copies of SPREAD bytes in all, so that the
 * second-level cache does not serve them, and nothing writes in between.  Codes, scales and x are random.
 * Each figure is the median of RUNS replays, divided by the launches; the results of the first copy are
 * compared with a sum in double. */
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../core/half.h"
#include "../../cuda/matrix.h"

enum { RUNS = 9, LAUNCHES = 20, CHECKED_ROWS = 48 };
#define SPREAD 600e6

static const float nf4[16] = {
    -1.0f,       -0.69619280f, -0.52507305f, -0.39491749f, -0.28444138f, -0.18477343f, -0.09105004f, 0.0f,
    0.07958030f, 0.16093020f,  0.24611230f,  0.33791524f,  0.44070983f,  0.56261700f,  0.72295684f,  1.0f};

static void must(cudaError_t r, const char *what)
{
    if (r == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(r));
    exit(1);
}

static uint64_t state = 1;
static uint32_t rnd(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static cudaStream_t stream;
static float *dynamic_map, *nested;

typedef struct matrix {
    qm_matrix w;
    uint8_t *here;
    uint64_t size;
} matrix;

/* Random items: codes of any kind, scales 0.02 ... 0.05. */
static matrix random_matrix(uint32_t rows, uint32_t cols, qm_scale_type type, uint32_t group)
{
    matrix m = {.w = {.rows = rows,
                      .cols = cols,
                      .group = group,
                      .scale = type,
                      .factor = 1,
                      .offset = 0.035f,
                      .nested = nested,
                      .dynamic = dynamic_map}};
    memcpy(m.w.level, nf4, sizeof nf4);
    m.size = qm_matrix_items(type, group, rows, cols);
    m.here = malloc(m.size);
    uint32_t item = qm_item_bytes(type, group), codes = QM_ITEM_UNITS * QM_UNIT_BYTES;
    for (uint64_t at = 0; at < m.size; at += item) {
        for (uint32_t i = 0; i < codes; i += 4) {
            uint32_t r = rnd();
            memcpy(m.here + at + i, &r, 4);
        }
        for (uint32_t i = codes; i < item; i += qm_scale_bytes(type)) {
            float f = 0.02f + 0.03f * (float)(rnd() >> 8) / 16777216.0f;
            uint16_t h = qm_f32_to_f16(f);
            if (type == QM_SCALE_F32)
                memcpy(m.here + at + i, &f, 4);
            else if (type == QM_SCALE_F16)
                memcpy(m.here + at + i, &h, 2);
            else
                m.here[at + i] = type == QM_SCALE_E8M0 ? (uint8_t)(120 + rnd() % 4) : (uint8_t)rnd();
        }
    }
    return m;
}

/* A matrix laid out on the GPU, several times over: more than its caches hold. */
static uint8_t **copies_there(const matrix *m, int copies)
{
    uint8_t **items = malloc((size_t)copies * sizeof *items);
    for (int i = 0; i < copies; i++) {
        must(cudaMalloc((void **)&items[i], qm_matrix_bytes(m->w.scale, m->w.group, m->w.rows, m->w.cols)),
             "memory");
        must(cudaMemcpy(items[i], i ? items[0] : m->here, m->size, cudaMemcpyDefault), "upload");
        must(qm_matrix_measure(&m->w, items[i], stream), "measuring");
    }
    return items;
}

static void free_copies(uint8_t **items, int copies)
{
    for (int i = 0; i < copies; i++)
        cudaFree(items[i]);
    free(items);
}

/* Scale of a row's group, as the layout says. */
static double scale_at(const matrix *m, uint32_t row, uint32_t col, const float *dyn)
{
    const qm_matrix *w = &m->w;
    uint32_t tile = row / 16, slice = col / 512, slices = qm_matrix_slices(w->cols),
             item = qm_item_bytes(w->scale, w->group);
    uint32_t per_row = 128 / w->group, t = col % 512 / 128, i = col % 128 / w->group, g = row % 8,
             r = row % 16 / 8;
    uint32_t lane_bytes = 2 * per_row * qm_scale_bytes(w->scale);
    const uint8_t *p = m->here + ((uint64_t)tile * slices + slice) * item + 4096 + (4 * g + t) * lane_bytes
                       + (r * per_row + i) * qm_scale_bytes(w->scale);
    float f;
    uint16_t h;
    switch (w->scale) {
    case QM_SCALE_F32:
        memcpy(&f, p, 4);
        return (double)f;
    case QM_SCALE_F16:
        memcpy(&h, p, 2);
        return (double)qm_f16_to_f32(h);
    case QM_SCALE_E8M0:
        return ldexp(1, *p - 128);
    default:
        return (double)dyn[*p] * 0.01 + (double)w->offset;
    }
}

static int code_at(const matrix *m, uint32_t row, uint32_t col)
{
    const qm_matrix *w = &m->w;
    uint32_t tile = row / 16, slice = col / 512, slices = qm_matrix_slices(w->cols),
             item = qm_item_bytes(w->scale, w->group);
    uint32_t unit = col % 512 / 64, in = col % 64, width = w->group < 64 ? w->group : 64, run = width / 4;
    uint32_t group = in / width, t = in % width / run,
             k = group * run + in % run; /* the lane's k-th of 16 codes */
    const uint8_t *p = m->here + ((uint64_t)tile * slices + slice) * item + unit * 512
                       + (4 * (row % 8) + t) * 16 + row % 16 / 8 * 8;
    return k % 2 ? p[k / 2] & 15 : p[k / 2] >> 4;
}

static double error_of(const matrix *m, const float *y, const uint16_t *x, uint32_t tokens, const float *dyn)
{
    double num = 0, den = 0;
    for (uint32_t i = 0; i < CHECKED_ROWS; i++) {
        uint32_t row = (uint32_t)((uint64_t)i * 7919 * 13 % m->w.rows);
        for (uint32_t t = 0; t < tokens; t++) {
            double sum = 0;
            for (uint32_t k = 0; k < m->w.cols; k++)
                sum += (double)nf4[code_at(m, row, k)] * scale_at(m, row, k, dyn)
                       * (double)qm_f16_to_f32(x[t * m->w.cols + k]);
            double d = (double)y[t * m->w.rows + row] - sum;
            num += d * d, den += sum * sum;
        }
    }
    return sqrt(num / den);
}

static double replay(cudaGraphExec_t g)
{
    cudaEvent_t a, b;
    double each[RUNS];
    cudaEventCreate(&a), cudaEventCreate(&b);
    for (int i = -2; i < RUNS; i++) {
        float ms;
        cudaEventRecord(a, stream);
        must(cudaGraphLaunch(g, stream), "graph");
        cudaEventRecord(b, stream);
        must(cudaEventSynchronize(b), "running");
        cudaEventElapsedTime(&ms, a, b);
        if (i >= 0)
            each[i] = 1e3 * (double)ms;
    }
    qsort(each, RUNS, sizeof *each, ascending);
    return each[RUNS / 2];
}

static double graph_time(void (*work)(void *), void *arg)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    work(arg);
    must(cudaStreamEndCapture(stream, &graph), "end of capture");
    must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    double us = replay(exec);
    cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
    return us;
}

typedef struct turns {
    const qm_matrix *w, *up;
    int copies, launches;
    qm_product p;
    qm_half x;
    uint8_t **items, **up_items;
    uint64_t size;
    qm_panel panel, to;
    float *by;
    void *join;
} turns;

static void many(void *arg)
{
    const turns *t = arg;
    for (int i = 0; i < t->launches; i++) {
        qm_matrix w = *t->w;
        w.items = t->items[i % t->copies];
        must(qm_matrix_decode(&w, &t->p, 1, &t->x, stream), "decode");
    }
}

/* Eight tokens of `cols` values, a multiple of 64, that need no powers of two. */
static void upload_half(void *to, const uint16_t *x, uint32_t cols)
{
    qm_half h = qm_half_at(to, 8, cols);
    float *ones = malloc(cols / 8 * sizeof *ones);
    for (uint32_t i = 0; i < cols / 8; i++)
        ones[i] = 1;
    must(cudaMemcpy(h.half, x, 16 * cols, cudaMemcpyDefault), "upload");
    must(cudaMemcpy(h.scale, ones, cols / 8 * sizeof *ones, cudaMemcpyDefault), "upload");
    free(ones);
}

/* How fast as many bytes can be read at all, by kernels that are launched in the same way. */
static void read_many(void *arg)
{
    const turns *t = arg;
    for (int i = 0; i < t->launches; i++)
        must(qm_read_only(t->items[i % t->copies], t->size, t->p.y, stream), "reading");
}

static const char *const type_names[] = {"f32", "f16", "e8m0", "dq"};

/* ---- many tokens --------------------------------------------------------------------------------- */

/* cuBLAS, where it is installed: what f16 weights would take. */
typedef struct dense {
    void *handle, *w, *x, *y;
    int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int,
                const void *, void *, int, int, int, int);
    uint32_t rows, cols, tokens;
    int copies, launches;
} dense;

static bool open_dense(dense *d)
{
    void *l = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    l = l ? l : dlopen("libcublas.so.12", RTLD_NOW | RTLD_LOCAL);
    int (*create)(void **), (*set_stream)(void *, cudaStream_t);
    if (!l)
        return false;
    *(void **)&create = dlsym(l, "cublasCreate_v2");
    *(void **)&set_stream = dlsym(l, "cublasSetStream_v2");
    *(void **)&d->gemm = dlsym(l, "cublasGemmEx");
    return create && set_stream && d->gemm && create(&d->handle) == 0 && set_stream(d->handle, stream) == 0;
}

/* f16 between -1 and 1: a million of them, over and over. */
static void random_halves(void *to, uint64_t size)
{
    enum { PERIOD = 1 << 20 };
    uint16_t *h = malloc(PERIOD * sizeof *h);
    for (int i = 0; i < PERIOD; i++)
        h[i] = qm_f32_to_f16((float)(rnd() >> 8) / 8388608.0f - 1);
    for (uint64_t at = 0; at < size; at += PERIOD * sizeof *h)
        must(cudaMemcpy((char *)to + at, h, size - at < PERIOD * sizeof *h ? size - at : PERIOD * sizeof *h,
                        cudaMemcpyDefault),
             "upload");
    free(h);
}

static void dense_many(void *arg)
{
    enum { OP_N, OP_T, F16 = 2, COMPUTE_F32 = 68, ANY = -1 };
    const dense *d = arg;
    const float one = 1, zero = 0;
    for (int i = 0; i < d->launches; i++) {
        const char *w = (const char *)d->w + (uint64_t)(i % d->copies) * d->rows * d->cols * 2;
        if (d->gemm(d->handle, OP_T, OP_N, (int)d->rows, (int)d->tokens, (int)d->cols, &one, w, F16,
                    (int)d->cols, d->x, F16, (int)d->cols, &zero, d->y, F16, (int)d->rows, COMPUTE_F32, ANY))
            exit(1);
    }
}

static void wide_many(void *arg)
{
    const turns *t = arg;
    for (int i = 0; i < t->launches; i++) {
        qm_matrix w[2] = {*t->w};
        const float *const none[2] = {NULL};
        w[0].items = t->items[i % t->copies];
        w[0].most = qm_matrix_most(&w[0]);
        if (t->up) {
            w[1] = *t->up;
            w[1].items = t->up_items[i % t->copies];
            w[1].most = qm_matrix_most(&w[1]);
            must(qm_matrix_glu(w, none, QM_GATE_SILU, &t->panel, &t->to, t->by, t->join, stream), "gated");
        } else {
            must(qm_matrix_wide(w, &t->p, 1, &t->panel, t->join, stream), "wide");
        }
    }
}

/* The sum of a row times a token, and what its terms come to. */
static double sum_of(const matrix *m, uint32_t row, const float *x, const float *dyn, double *terms)
{
    double sum = 0;
    for (uint32_t c = 0; c < m->w.cols; c++) {
        double term = (double)nf4[code_at(m, row, c)] * scale_at(m, row, c, dyn) * (double)x[c];
        sum += term, *terms += term * term;
    }
    return sum;
}

/* Of CHECKED_ROWS rows, and of the first and the last eight tokens; up: y is silu(m x) * (up x), or NULL. */
static double wide_error(const matrix *m, const matrix *up, const float *y, const float *x, uint32_t tokens,
                         const float *dyn)
{
    double num = 0, den = 0;
    for (uint32_t i = 0; i < CHECKED_ROWS; i++) {
        uint32_t row = i == 1 ? m->w.rows - 1 : (uint32_t)((uint64_t)i * 7919 * 13 % m->w.rows);
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t token = (k < 8 ? k % tokens : tokens - (16 - k) % tokens) % tokens;
            const float *of = x + (uint64_t)token * m->w.cols;
            double terms = 0, sum = sum_of(m, row, of, dyn, &terms);
            if (up) {
                sum *= sum_of(up, row, of, dyn, &terms) / (1 + exp(-sum));
                terms = sum * sum;
            }
            double d = (double)y[(uint64_t)token * m->w.rows + row] - sum;
            num += d * d, den += terms;
        }
    }
    return sqrt(num / den);
}

/* How many tokens at once: other numbers when they are asked for. */
enum { MOST_COUNTS = 16 };
static uint32_t counts[MOST_COUNTS] = {9, 16, 32, 64, 128, 256, 512, 1024, 2048}, count_of_counts = 9;

static void ask_for(char *list)
{
    count_of_counts = 0;
    for (char *p = strtok(list, ","); p && count_of_counts < MOST_COUNTS; p = strtok(NULL, ","))
        counts[count_of_counts++] = (uint32_t)strtoul(p, NULL, 10);
}

/* A panel's values, or results as they are. */
static void download(const turns *t, uint32_t rows, float *y)
{
    const uint32_t tokens = t->panel.tokens, padded = qm_panel_tokens(tokens);
    if (!t->up) {
        must(cudaMemcpy(y, t->p.y, (uint64_t)tokens * rows * sizeof *y, cudaMemcpyDefault), "download");
        return;
    }
    const uint64_t size = qm_panel_bytes(tokens, rows);
    uint8_t *here = malloc(size);
    const qm_panel p = qm_panel_at(here, tokens, rows, 64);
    must(cudaMemcpy(here, t->to.half, size, cudaMemcpyDefault), "download");
    for (uint32_t chunk = 0; chunk < rows / 64; chunk++)
        for (uint32_t token = 0; token < tokens; token++)
            for (uint32_t k = 0; k < 64; k++) {
                const uint64_t piece = ((uint64_t)chunk * padded + token) * 8 + (k / 8 ^ token % 8);
                y[(uint64_t)token * rows + chunk * 64 + qm_panel_column(k / 2 * 2, 64) + k % 2] =
                    qm_f16_to_f32(((const uint16_t *)p.half)[piece * 8 + k % 8]) * p.scale[token];
            }
    free(here);
}

/* glu: of two matrices, and their gate. */
static void wide_shape(uint32_t rows, uint32_t cols, qm_scale_type type, uint32_t group, bool glu, dense *d)
{
    uint32_t most = 0;
    for (unsigned i = 0; i < count_of_counts; i++)
        most = counts[i] > most ? counts[i] : most;
    if (!qm_matrix_takes_wide())
        return;
    matrix m = random_matrix(rows, cols, type, group), up = {0};
    int copies = (int)(SPREAD / (double)m.size) + 1;
    uint8_t **items = copies_there(&m, copies), **up_items = NULL;
    void *to = NULL;
    float *by = NULL;
    if (glu) {
        must(cudaMalloc(&to, qm_panel_bytes(most, rows)), "memory");
        must(cudaMalloc((void **)&by, qm_glu_bytes(most, rows)), "memory");
        up = random_matrix(rows, cols, type, group);
        up_items = copies_there(&up, copies);
    }
    float dyn[256];
    cudaMemcpy(dyn, dynamic_map, sizeof dyn, cudaMemcpyDeviceToHost);
    float *x = malloc((uint64_t)most * cols * sizeof *x), *y = malloc((uint64_t)most * rows * sizeof *y),
          *again = malloc((uint64_t)most * rows * sizeof *y), *dx, *dy;
    for (uint64_t i = 0; i < (uint64_t)most * cols; i++)
        x[i] = ((float)(rnd() >> 8) / 8388608.0f - 1) * 2;
    void *panel, *join;
    must(cudaMalloc((void **)&dx, (uint64_t)most * cols * sizeof *x), "memory");
    must(cudaMemcpy(dx, x, (uint64_t)most * cols * sizeof *x, cudaMemcpyDefault), "upload");
    must(cudaMalloc((void **)&dy, (uint64_t)most * rows * sizeof *y), "memory");
    must(cudaMalloc(&panel, qm_panel_bytes(most, cols)), "memory");
    must(cudaMalloc(&join, qm_matrix_join_bytes()), "memory");
    must(cudaMemset(join, 0, qm_matrix_join_bytes()), "memory");
    if (d->handle) {
        d->rows = rows, d->cols = cols;
        d->copies = (int)(SPREAD / (2.0 * rows * cols)) + 1;
        must(cudaMalloc(&d->w, 2ull * rows * cols * (uint64_t)d->copies), "memory");
        must(cudaMalloc(&d->x, 2ull * most * cols), "memory");
        must(cudaMalloc(&d->y, 2ull * most * rows), "memory");
        random_halves(d->w, 2ull * rows * cols * (uint64_t)d->copies);
        random_halves(d->x, 2ull * most * cols);
    }
    for (unsigned i = 0; i < count_of_counts; i++) {
        uint32_t tokens = counts[i];
        if (glu && tokens < QM_GLU_TOKENS)
            continue;
        must(cudaMemset(dy, 255, (uint64_t)most * rows * sizeof *y), "poison");
        if (glu)
            must(cudaMemset(to, 255, qm_panel_bytes(most, rows)), "poison");
        turns t = {.w = &m.w,
                   .up = glu ? &up.w : NULL,
                   .copies = copies,
                   .launches = copies > LAUNCHES ? copies : LAUNCHES,
                   .p = {.y = dy, .y_stride = rows},
                   .items = items,
                   .up_items = up_items,
                   .size = m.size,
                   .panel = qm_panel_at(panel, tokens, cols, group),
                   .to = qm_panel_at(to, tokens, rows, 64),
                   .by = by,
                   .join = join};
        must(qm_to_panel(dx, &t.panel, stream), "panel");
        double us = graph_time(wide_many, &t) / t.launches, blas = 0;
        uint64_t bytes = (uint64_t)tokens * rows * sizeof *y;
        download(&t, rows, y);
        must(cudaMemset(dy, 255, bytes), "poison");
        wide_many(&t);
        download(&t, rows, again);
        if (d->handle) {
            d->tokens = tokens, d->launches = d->copies > LAUNCHES ? d->copies : LAUNCHES;
            blas = graph_time(dense_many, d) / d->launches;
        }
        printf("%s%6u x %-6u %4s g%-3u M=%-5u %8.2f us %6.0f GB/s %6.1f TFLOP/s  error %.2e",
               glu ? "glu of 2 x" : "", rows, cols, type_names[type], group, tokens, us,
               (double)(m.size + up.size) / us * 1e-3, (glu ? 4e-6 : 2e-6) * rows * cols * tokens / us,
               wide_error(&m, glu ? &up : NULL, y, x, tokens, dyn));
        if (d->handle)
            printf("  cuBLAS, f16 weights %8.2f us", blas);
        if (memcmp(y, again, bytes) != 0)
            printf("  NOT THE SAME TWICE");
        printf("\n");
        fflush(stdout);
    }
    free_copies(items, copies);
    if (glu)
        free_copies(up_items, copies), free(up.here), cudaFree(to), cudaFree(by);
    if (d->handle)
        cudaFree(d->w), cudaFree(d->x), cudaFree(d->y);
    cudaFree(dx), cudaFree(dy), cudaFree(panel), cudaFree(join), free(x), free(y), free(again), free(m.here);
}

static void shape(uint32_t rows, uint32_t cols, qm_scale_type type, uint32_t group, uint32_t most_tokens)
{
    matrix m = random_matrix(rows, cols, type, group);
    int copies = (int)(SPREAD / (double)m.size) + 1;
    uint8_t **items = copies_there(&m, copies);
    float dyn[256];
    cudaMemcpy(dyn, dynamic_map, sizeof dyn, cudaMemcpyDeviceToHost);
    uint16_t *x = malloc(8 * cols * sizeof *x);
    for (uint32_t i = 0; i < 8 * cols; i++)
        x[i] = qm_f32_to_f16(((float)(rnd() >> 8) / 8388608.0f - 1) * 2);
    float *y = malloc(8ull * rows * sizeof *y);
    void *dx;
    float *dy;
    must(cudaMalloc(&dx, qm_half_bytes(8, cols)), "memory");
    upload_half(dx, x, cols);
    must(cudaMalloc((void **)&dy, 8ull * rows * sizeof *y), "memory");
    for (uint32_t tokens = 1; tokens <= most_tokens; tokens *= 2) {
        cudaMemset(dy, 255, 8ull * rows * sizeof *y);
        turns t = {.w = &m.w,
                   .copies = copies,
                   .launches = copies > LAUNCHES ? copies : LAUNCHES,
                   .p = {.y = dy, .y_stride = rows},
                   .x = qm_half_at(dx, 8, cols),
                   .items = items,
                   .size = m.size};
        t.x.tokens = tokens;
        double us = graph_time(many, &t) / t.launches,
               roof = tokens == 1 ? graph_time(read_many, &t) / t.launches : 0;
        must(cudaMemcpy(y, dy, 8ull * rows * sizeof *y, cudaMemcpyDefault), "download");
        printf("%6u x %-6u %4s g%-3u M=%u %8.2f us %7.0f GB/s  error %.2e", rows, cols, type_names[type],
               group, tokens, us, (double)m.size / us * 1e-3, error_of(&m, y, x, tokens, dyn));
        if (roof > 0)
            printf("  reading alone %.2f us, %.0f GB/s", roof, (double)m.size / roof * 1e-3);
        printf("\n");
        fflush(stdout);
    }
    free_copies(items, copies);
    cudaFree(dx), cudaFree(dy), free(x), free(y), free(m.here);
}

/* All linear layers of a decoder in their order, every one with a matrix of its own. */
typedef struct chain {
    int layers, n;
    qm_matrix *w;
    void *x;
    float *y;
} chain;

static void run_chain(void *arg)
{
    const chain *c = arg;
    for (int i = 0; i < c->n; i++) {
        qm_product p = {.y = c->y, .y_stride = c->w[i].rows};
        qm_half x = qm_half_at(c->x, 1, c->w[i].cols);
        must(qm_matrix_decode(&c->w[i], &p, 1, &x, stream), "decode");
    }
}

static void whole(const char *name, int layers, const uint32_t (*shapes)[2], int each, uint32_t head_rows,
                  uint32_t head_cols, qm_scale_type type)
{
    chain c = {.layers = layers, .n = layers * each + (head_rows != 0)};
    double bytes = 0;
    c.w = malloc((size_t)c.n * sizeof *c.w);
    matrix big = random_matrix(40000, 4096, type, 64);
    for (int i = 0; i < c.n; i++) {
        uint32_t rows = i < layers * each ? shapes[i % each][0] : head_rows,
                 cols = i < layers * each ? shapes[i % each][1] : head_cols;
        c.w[i] = big.w;
        c.w[i].rows = rows, c.w[i].cols = cols;
        uint64_t size = qm_matrix_items(type, 64, rows, cols);
        uint8_t *items;
        must(cudaMalloc((void **)&items, size), "memory");
        for (uint64_t at = 0; at < size; at += big.size) /* items are all of one size */
            must(cudaMemcpyAsync(items + at, big.here, size - at < big.size ? size - at : big.size,
                                 cudaMemcpyDefault, stream),
                 "upload");
        c.w[i].items = items;
        bytes += (double)size;
    }
    must(cudaMalloc(&c.x, 1 << 18), "memory");
    cudaMemset(c.x, 0x3c, 1 << 18);
    must(cudaMalloc((void **)&c.y, 1 << 20), "memory");
    double us = graph_time(run_chain, &c);
    printf("%-32s %3d products %7.0f MB %9.1f us  %7.0f GB/s  %7.0f tokens/s\n", name, c.n, bytes * 1e-6, us,
           bytes / us * 1e-3, 1e6 / us);
    fflush(stdout);
    for (int i = 0; i < c.n; i++)
        cudaFree((void *)(uintptr_t)c.w[i].items);
    cudaFree(c.x), cudaFree(c.y), free(c.w), free(big.here);
}

/* few, wide: only the products with few or with many tokens; wide or glu ROWS COLUMNS TOKENS,...: only those. */
int main(int count, char **args)
{
    float dyn[256];
    dense d = {0};
    must(cudaStreamCreate(&stream), "stream");
    for (int i = 0; i < 256; i++)
        dyn[i] = (float)(i - 128) / 128;
    must(cudaMalloc((void **)&dynamic_map, sizeof dyn), "memory");
    cudaMemcpy(dynamic_map, dyn, sizeof dyn, cudaMemcpyDefault);
    enum { NESTED = 1 << 16 };
    float *n = malloc(NESTED * sizeof *n);
    for (int i = 0; i < NESTED; i++)
        n[i] = 0.01f;
    must(cudaMalloc((void **)&nested, NESTED * sizeof *n), "memory");
    cudaMemcpy(nested, n, NESTED * sizeof *n, cudaMemcpyDefault);

    static const uint32_t shapes[][2] = {{4096, 4096},  {14336, 4096}, {4096, 14336}, {28672, 8192},
                                         {18944, 3584}, {3584, 18944}, {8960, 1536},  {1536, 8960}};
    if (count > 4) {
        ask_for(args[4]);
        wide_shape((uint32_t)atoi(args[2]), (uint32_t)atoi(args[3]), QM_SCALE_F32, 64,
                   strcmp(args[1], "glu") == 0, &d);
        return 0;
    }
    if (count < 2 || strcmp(args[1], "few") != 0) {
        if (!open_dense(&d))
            d.handle = NULL;
        for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++)
            wide_shape(shapes[i][0], shapes[i][1], QM_SCALE_F32, 64, false, &d);
        d.handle = NULL;
        wide_shape(4096, 4096, QM_SCALE_NESTED, 64, false, &d);
        wide_shape(4096, 4096, QM_SCALE_F16, 32, false, &d);
        wide_shape(4096, 4096, QM_SCALE_F32, 16, false, &d);
        wide_shape(18944, 3584, QM_SCALE_F32, 64, true, &d);
        wide_shape(14336, 4096, QM_SCALE_F32, 64, true, &d);
        if (count > 1)
            return 0;
    }
    for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++)
        shape(shapes[i][0], shapes[i][1], QM_SCALE_F32, 64, 8);
    for (unsigned i = 0; i < 4; i++)
        shape(shapes[i][0], shapes[i][1], QM_SCALE_NESTED, 64, 8);
    for (unsigned i = 1; i < 3; i++) {
        shape(shapes[i][0], shapes[i][1], QM_SCALE_F16, 32, 2);
        shape(shapes[i][0], shapes[i][1], QM_SCALE_E8M0, 32, 2);
        shape(shapes[i][0], shapes[i][1], QM_SCALE_F32, 32, 2);
        shape(shapes[i][0], shapes[i][1], QM_SCALE_F32, 128, 2);
        shape(shapes[i][0], shapes[i][1], QM_SCALE_F32, 16, 2);
    }
    shape(1000, 1536, QM_SCALE_F32, 64, 8);
    shape(17, 192, QM_SCALE_F32, 64, 8);
    static const uint32_t llama8[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
    static const uint32_t qwen7[][2] = {{4608, 3584}, {3584, 3584}, {37888, 3584}, {3584, 18944}};
    static const uint32_t qwen1[][2] = {{2048, 1536}, {1536, 1536}, {17920, 1536}, {1536, 8960}};
    whole("Llama-3-8B, f32 scales", 32, llama8, 4, 128256, 4096, QM_SCALE_F32);
    whole("Llama-3-8B, double quantised", 32, llama8, 4, 128256, 4096, QM_SCALE_NESTED);
    whole("Qwen2.5-7B, f32 scales", 28, qwen7, 4, 152064, 3584, QM_SCALE_F32);
    whole("Qwen2.5-1.5B, f32 scales", 28, qwen1, 4, 151936, 1536, QM_SCALE_F32);
    return 0;
}
