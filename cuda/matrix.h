/* matrix.h: 4-bit weight matrices on a GPU, laid out for multiplication, and the kernels that multiply them.
 *
 *     y[m][n] = sum over k of  x[m][k] * level[code[n][k]] * scale[n][k / group]
 *
 * for any 16 levels: NF4, FP4, INT4, Q4_0, IQ4_NL, MXFP4 and a user's codebook are the same thing here.
 *
 * A matrix is cut into tiles of 16 rows, a tile into items of 512 columns, an item into units of 64.  Items lie
 * one after the other, those of a tile together, so that a block of threads reads one stream:
 *
 *     item    | unit 0: 512 bytes | ... | unit 7 | scales: 32 lanes x `scales` |
 *     unit    | lane 0: 16 bytes | ... | lane 31 |
 *     lane    l = 4 g + t   | 8 bytes: codes of row g | 8 bytes: codes of row g + 8 |
 *             codes are two a byte, the first in the high nibble; of each group of the unit, lane t has
 *             the t-th quarter (group 64: columns 16 t ... 16 t + 15 of the unit)
 *     scales  those of row g, then of row g + 8: for each the groups of units 2 t and 2 t + 1, in order
 *
 * That is how mma.sync has its operands: a lane's bytes are its part of the 16 x 16 matrix A, and the order of the
 * columns does not matter to a sum as long as x is taken in the same.  Rows and columns are filled up with zero
 * scales.  Groups of more than 128 repeat their scale every 128 columns.  (gpu-experiment, section 4.)
 *
 * Behind the items lie 16 bytes, the first four of which are the largest magnitude of all scales, as f32.
 */
#ifndef QM_MATRIX_H
#define QM_MATRIX_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define QM_BOTH static __host__ __device__ inline /* here and there */
#else
#define QM_BOTH static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { QM_TILE_ROWS = 16, QM_ITEM_COLS = 512, QM_UNIT_COLS = 64, QM_ITEM_UNITS = 8, QM_UNIT_BYTES = 512 };

typedef enum qm_scale_type {
    QM_SCALE_F32,
    QM_SCALE_F16,
    QM_SCALE_E8M0,   /* 2^(e - 128), MXFP4's halved */
    QM_SCALE_NESTED, /* one byte, decoded by the dynamic map, nested absmax and offset */
} qm_scale_type;

typedef struct qm_matrix {
    const uint8_t *items;
    uint32_t rows, cols;
    uint32_t group; /* 16, 32, 64 or 128 columns to a scale */
    qm_scale_type scale;
    const float *most;    /* the largest scale, behind the items; of a part of a matrix, that of the whole */
    const float *nested;  /* QM_SCALE_NESTED: one f32 for 256 groups of the unpadded matrix, */
    const float *dynamic; /* and the 256 values of the map */
    float offset;
    float level[16]; /* times 1 / factor, so that f16 holds them well; none above 2 */
    float factor;
} qm_matrix;

/* Activations as the tensor cores take them: f16, with a power of two for every 64 values of a token, which brings the
 * largest of them into 2^14 ... 2^15, so that neither range nor small values are lost.
 *
 *     half    [tokens][stride]: stride is a multiple of 64; what is beyond the columns is zero
 *     scale   [tokens / 8][stride / 64][8]: of eight tokens together; value = half * scale */
typedef struct qm_half {
    void *half;
    float *scale;
    uint32_t stride, tokens;
} qm_half;

enum { QM_HALF_TOKENS = 8, QM_HALF_RUN = 64 };

/* Bytes of both parts, `half` first; both begin on 256 bytes. */
QM_BOTH uint64_t qm_half_scales_at(uint32_t tokens, uint32_t cols)
{
    uint64_t stride = (cols + 63u) / 64 * 64;
    return (tokens * stride * 2 + 255) / 256 * 256;
}
QM_BOTH uint64_t qm_half_bytes(uint32_t tokens, uint32_t cols)
{
    uint64_t units = (cols + 63u) / 64, eights = (tokens + 7u) / 8;
    return qm_half_scales_at(tokens, cols) + (eights * units * 8 * 4 + 255) / 256 * 256;
}
QM_BOTH qm_half qm_half_at(void *p, uint32_t tokens, uint32_t cols)
{
    qm_half h = {p, (float *)(void *)((char *)p + qm_half_scales_at(tokens, cols)), (cols + 63u) / 64 * 64,
                 tokens};
    return h;
}

/* Where a product goes: token m's results are at y + m * y_stride. */
typedef struct qm_product {
    const float *bias; /* one a row, or NULL */
    float *y;
    const float *add; /* as y, or NULL; then y + add goes into sum */
    float *sum;
    uint32_t y_stride;
} qm_product;

QM_BOTH uint32_t qm_matrix_tiles(uint32_t rows) { return (rows + QM_TILE_ROWS - 1) / QM_TILE_ROWS; }
QM_BOTH uint32_t qm_matrix_slices(uint32_t cols) { return (cols + QM_ITEM_COLS - 1) / QM_ITEM_COLS; }

QM_BOTH uint32_t qm_scale_bytes(qm_scale_type t) { return t == QM_SCALE_F32 ? 4 : t == QM_SCALE_F16 ? 2 : 1; }
QM_BOTH uint32_t qm_item_bytes(qm_scale_type t, uint32_t group)
{
    return QM_ITEM_UNITS * QM_UNIT_BYTES + 32 * 2 * (128 / group) * qm_scale_bytes(t);
}
QM_BOTH uint64_t qm_matrix_items(qm_scale_type t, uint32_t group, uint32_t rows, uint32_t cols)
{
    return (uint64_t)qm_matrix_tiles(rows) * qm_matrix_slices(cols) * qm_item_bytes(t, group);
}
QM_BOTH const float *qm_matrix_most(const qm_matrix *m)
{
    return (const float *)(const void *)(m->items + qm_matrix_items(m->scale, m->group, m->rows, m->cols));
}
QM_BOTH uint64_t qm_matrix_bytes(qm_scale_type t, uint32_t group, uint32_t rows, uint32_t cols)
{
    return qm_matrix_items(t, group, rows, cols) + 16;
}

/* A matrix in the planes of its format.  Flat ones (block_bytes 0): codes two a byte over row ends, the first in the high
 * nibble, and a plane of scales, one for `block` values (NF4, FP4, INT4, codebooks of 9 to 16 levels).  Others lie in blocks of 32:
 * a scale, then 16 bytes with element j in the low and j + 16 in the high nibble (Q4_0, IQ4_NL, MXFP4). */
typedef struct qm_matrix_source {
    uint8_t *codes, *scales;
    uint32_t cols, block, block_bytes;
} qm_matrix_source;

/* Into m's layout at `items` (m->items is not looked at), and back; every byte comes back as it was.  cols is a multiple
 * of m->group, which is `block` or, where that is larger, 128. */
cudaError_t qm_matrix_pack(const qm_matrix *m, uint8_t *items, const qm_matrix_source *from, cudaStream_t s);
cudaError_t qm_matrix_unpack(const qm_matrix *m, const qm_matrix_source *to, cudaStream_t s);

/* Leaves the largest scale behind the items, which are all there; before qm_matrix_wide. */
cudaError_t qm_matrix_measure(const qm_matrix *m, uint8_t *items, cudaStream_t s);

/* `rows` rows from `first` on as f16, row-major: for products with many tokens. */
cudaError_t qm_matrix_values(const qm_matrix *m, void *y, uint32_t first, uint32_t rows, cudaStream_t s);

enum { QM_TOGETHER = 3 };

/* f(first product) * second. */
typedef enum qm_gate { QM_GATE_NONE, QM_GATE_SILU, QM_GATE_GELU_TANH } qm_gate;

/* y = x W^T for up to 8 tokens, and up to QM_TOGETHER matrices of one kind and as many columns at once.  Waits for the
 * launch before it on the stream only when it needs x (programmatic dependent launch, on GPUs that have it), so the
 * matrices must have been written earlier than that. */
cudaError_t qm_matrix_decode(const qm_matrix *w, const qm_product *p, int n, const qm_half *x,
                             cudaStream_t s);

/* One expert of a mixture: its matrix, as the others' but for these. */
typedef struct qm_expert {
    const void *values; /* a qm_matrix's items; or a plain matrix, row-major */
    const float *nested;
    float offset;
} qm_expert;

/* Tokens as their experts take them: a slot is up to `each` tokens of one expert, which its matrices are read once for.  All on
 * the GPU, which alone knows how many there are (experts.cuh). */
typedef struct qm_slots {
    uint32_t most, each; /* most: as many as there may be; each: 2, 4 or 8 */
    int32_t *count;      /* slots */
    int32_t *expert;     /* [slots] */
    int32_t *token;      /* [slots][each]; -1: none */
} qm_slots;

/* y[i][slot][token][row] = x W^T for n matrices, one or two, of each slot's expert, which experts[i] has.  kind: what they
 * have in common.  x has a row for each token of a slot, eight together, or, when `shared`, one for all. */
cudaError_t qm_matrix_experts(const qm_matrix *kind, const qm_expert *const *experts, float *const *y, int n,
                              const qm_slots *slots, const qm_half *x, bool shared, cudaStream_t s);

/* Activations of many tokens as Hopper's tensor cores take them from shared memory: f16, times one power of two a token.
 *
 *     half    [chunk of 64 columns][token][64]; chunks: those of whole items; tokens: a multiple of 8; zero beyond both
 *             the values of a chunk stand in the order of the lanes that have the weights of those columns
 *             (qm_panel_column); a token's 128 bytes are 8 pieces, of which piece p lies at p ^ token % 8
 *     scale   [token]; value = half * scale */
typedef struct qm_panel {
    void *half;
    float *scale;
    uint32_t tokens, cols;
    uint32_t group; /* of the matrices that it is for: 16, 32, or 64 for all larger ones */
} qm_panel;

QM_BOTH uint32_t qm_panel_tokens(uint32_t tokens) { return (tokens + 7) / 8 * 8; }
QM_BOTH uint32_t qm_panel_chunks(uint32_t cols) { return qm_matrix_slices(cols) * QM_ITEM_UNITS; }
QM_BOTH uint64_t qm_panel_bytes(uint32_t tokens, uint32_t cols)
{
    return (uint64_t)qm_panel_tokens(tokens) * ((uint64_t)qm_panel_chunks(cols) * QM_UNIT_COLS * 2 + 4);
}
QM_BOTH qm_panel qm_panel_at(void *p, uint32_t tokens, uint32_t cols, uint32_t group)
{
    uint64_t halves = (uint64_t)qm_panel_tokens(tokens) * qm_panel_chunks(cols) * QM_UNIT_COLS * 2;
    qm_panel x = {p, (float *)(void *)((char *)p + halves), tokens, cols,
                  group < QM_UNIT_COLS ? group : QM_UNIT_COLS};
    return x;
}
/* Which column of a chunk is its k-th value; k is even, and k + 1 is the next column. */
QM_BOTH uint32_t qm_panel_column(uint32_t k, uint32_t group)
{
    uint32_t product = k / 16, t = k % 8 / 2,
             in = product * 4 + k % 16 / 8 * 2; /* the lane's in-th of 16 codes */
    return in / (group / 4) * group + t * (group / 4) + in % (group / 4);
}

/* x, [tokens, cols], as p has room for it; cols is a multiple of 16. */
cudaError_t qm_to_panel(const float *x, const qm_panel *p, cudaStream_t s);

/* Of a panel whose values were multiplied by by[chunk][token], powers of two: all of a token by one, the smallest, and its scale.
 * Chunks beyond the columns become zero. */
cudaError_t qm_settle_panel(const qm_panel *p, const float *by, cudaStream_t s);

/* y = x W^T for any number of tokens, and up to QM_TOGETHER matrices of one kind and as many columns at once, on GPUs that
 * have wgmma: qm_matrix_takes_wide says whether this is one.  Waits as qm_matrix_decode does.
 *
 * join: qm_matrix_join_bytes of memory, for sums of blocks that share a tile; all zero before the first launch, and by
 * itself so after each; for one launch at a time.  None, and NULL, on other GPUs. */
bool qm_matrix_takes_wide(void);
uint64_t qm_matrix_join_bytes(void);
cudaError_t qm_matrix_wide(const qm_matrix *w, const qm_product *p, int n, const qm_panel *x, void *join,
                           cudaStream_t s);

/* Panel `to` of f(x w[0]^T + bias[0]) * (x w[1]^T + bias[1]), for a product that follows: of QM_GLU_TOKENS tokens and more, by
 * matrices that qm_matrix_wide takes together, with as many rows, a multiple of 16.  No f32 are left.
 *
 * by: room for qm_glu_bytes; what each token's values were multiplied by, [chunk][token], until all have one power of two. */
enum { QM_GLU_TOKENS = 65 };
QM_BOTH uint64_t qm_glu_bytes(uint32_t tokens, uint32_t cols)
{
    return (uint64_t)qm_panel_tokens(tokens) * qm_panel_chunks(cols) * sizeof(float);
}
cudaError_t qm_matrix_glu(const qm_matrix *w, const float *const *bias, qm_gate f, const qm_panel *x,
                          const qm_panel *to, float *by, void *join, cudaStream_t s);

/* Benchmarks: reads `size` bytes, a multiple of 16, and does nothing with them. */
cudaError_t qm_read_only(const void *p, uint64_t size, float *nothing, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
