/* kernels.h: what the C side of cuda/ launches; defined in kernels.cu.
 *
 * Each call puts its work on the stream and returns what launching gave.  Addresses are of the GPU's memory.
 * Element types are QM_F32, QM_F16 and QM_BF16.
 */
#ifndef QM_KERNELS_H
#define QM_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "../core/format.h"
#include "../core/vec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What all kernels rely on; once for every GPU that is opened.  Compares the GPU's approximate reciprocal with
 * the table (core/rcp.h), and leaves the table for qm_rcp to use where they differ.  Waits. */
cudaError_t qm_kernels_prepare(const uint8_t *deltas, bool *own_rcp, cudaStream_t s);

/* ---- generic.cuh: every format ------------------------------------------------------------------ */

enum { QM_GENERIC_THREADS = 128 };

typedef struct qm_generic {
    void *values;
    qm_dtype dtype;
    uint64_t n, groups;
    uint32_t block;    /* values a group */
    uint32_t stride;   /* floats a group takes where it is staged: odd, so that threads keep to their banks */
    uint32_t together; /* groups staged at once by one block of threads, <= QM_GENERIC_THREADS */
    float *stage;      /* NULL: shared memory; else grid x together x stride floats */
    uint8_t *plane[QM_MAX_PLANES];
    uint32_t bytes[QM_MAX_PLANES]; /* of one group */
    qm_codec codec;                /* importance: on the GPU */
    const float *power;            /* with importance: qm_generic_power of every row, or NULL for 0 */
} qm_generic;

/* name: of a format of the folder core/formats, or "codebook".  cudaErrorInvalidValue when there is none. */
cudaError_t qm_generic_encode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s);
cudaError_t qm_generic_decode(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s);

/* With g->codec.importance, for formats that have an encode_important; groups lie in rows of g->codec.cols. */
cudaError_t qm_generic_encode_important(const char *name, const qm_generic *g, unsigned grid, cudaStream_t s);
/* The mean square of every row. */
cudaError_t qm_generic_power(const void *x, qm_dtype dtype, uint64_t rows, uint32_t cols, float *power,
                             cudaStream_t s);

/* ---- plain.cuh: between f32, f16 and bf16; n values on 16 bytes -------------------------------- */

cudaError_t qm_convert(const void *x, qm_dtype from, uint64_t n, void *y, qm_dtype to, cudaStream_t s);

/* ---- nibbles.cuh: two codes a byte -------------------------------------------------------------- */

typedef enum {
    QM_NIBBLES_NF4,
    QM_NIBBLES_FP4, /* ranks are of magnitudes */
    QM_NIBBLES_INT4,
    QM_NIBBLES_UINT4,    /* has zeros, one byte a group */
    QM_NIBBLES_TABLE,    /* a codebook of up to 16 levels */
    QM_NIBBLES_ANY_TABLE /* the same, in any order; which of the two it is, is found out here */
} qm_nibble_kind;

/* By rank, that is how many of these ascending thresholds a value exceeds, its code. */
typedef struct qm_nibble_ranks {
    int thresholds; /* <= 15 */
    float threshold[15];
    uint8_t code[16];
} qm_nibble_ranks;

/* How many of n values the encoder takes: the rest is for the generic kernel.  0 when it does not know that
 * block; addresses must be multiples of 16. */
uint64_t qm_nibbles_encodes(uint32_t block, uint64_t n);

/* ranks: NULL for integers.  cudaErrorNotSupported for a table whose thresholds lie too close to each other. */
cudaError_t qm_nibbles_encode(qm_nibble_kind kind, const qm_nibble_ranks *ranks, const void *x,
                              qm_dtype dtype, uint64_t n, uint32_t block, bool exact_zero, uint8_t *codes,
                              float *scales, uint8_t *zeros, cudaStream_t s);

/* Four-bit codes, two a byte, of any table of 16. */
typedef struct qm_nibbles {
    const uint8_t *codes;
    const void *scales;   /* f32, or with nested one byte a group */
    const float *nested;  /* or NULL */
    const uint8_t *zeros; /* or NULL: level less zero, one byte a group, times scale */
    float offset;
    uint32_t block; /* a power of two, >= 32 */
    bool flush;     /* products are of flush-to-zero arithmetic, as bitsandbytes has them */
    float level[16];
} qm_nibbles;

cudaError_t qm_nibbles_decode(const qm_nibbles *q, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s);

/* ---- nested.cuh: double quantisation ------------------------------------------------------------ */

/* The offset of n scales (core/double_quant.h), into *offset; scratch: as many doubles as the second says. */
cudaError_t qm_nested_offset(const float *absmax, uint64_t n, double *scratch, float *offset, cudaStream_t s);
uint64_t qm_nested_scratch(uint64_t n);
cudaError_t qm_nested_encode(const float *absmax, uint64_t n, const float *offset, uint8_t *codes,
                             float *nested, cudaStream_t s);
cudaError_t qm_nested_decode(const uint8_t *codes, const float *nested, uint64_t n, float offset,
                             float *absmax, cudaStream_t s);

/* ---- rows.cuh: int8; cols a multiple of 8, values on 16 bytes, codes on 8 ----------------------- */

cudaError_t qm_int8_encode(const void *x, qm_dtype dtype, uint64_t rows, uint32_t cols, uint8_t *codes,
                           float *absmax, cudaStream_t s);

cudaError_t qm_int8_decode(const uint8_t *codes, const float *absmax, uint64_t rows, uint32_t cols, void *y,
                           qm_dtype dtype, cudaStream_t s);

/* ---- blocks32.cuh: q8_0 and q4_0; n a multiple of 32, addresses of 16 --------------------------- */

cudaError_t qm_q8_0_encode(const void *x, qm_dtype dtype, uint64_t n, uint8_t *blocks, cudaStream_t s);
cudaError_t qm_q4_0_encode(const void *x, qm_dtype dtype, uint64_t n, uint8_t *blocks, cudaStream_t s);
cudaError_t qm_q8_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s);
cudaError_t qm_q4_0_decode(const uint8_t *blocks, uint64_t n, void *y, qm_dtype dtype, cudaStream_t s);

/* ---- sums.cuh ----------------------------------------------------------------------------------- */

/* Sums for every QM_SUMS_RUN values begun go into `partial`, which holds qm_sums_scratch(n) bytes; those of
 * values that begin at i, a multiple of that, belong at qm_sums_at(partial, i).  qm_sums_finish adds them up. */
enum { QM_SUMS_RUN = 1 << 16 };

uint64_t qm_sums_scratch(uint64_t n);
void *qm_sums_at(void *partial, uint64_t i);
cudaError_t qm_sums_plain(const void *x, qm_dtype dtype, const void *y, qm_dtype other, uint64_t n,
                          void *partial, cudaStream_t s);
/* q->block at most QM_SUMS_NIBBLES_BLOCK. */
enum { QM_SUMS_NIBBLES_BLOCK = QM_SUMS_RUN };
cudaError_t qm_sums_nibbles(const void *x, qm_dtype dtype, const qm_nibbles *q, uint64_t n, void *partial,
                            cudaStream_t s);
cudaError_t qm_sums_int8(const void *x, qm_dtype dtype, const uint8_t *codes, const float *absmax,
                         uint32_t cols, uint64_t n, void *partial,
                         cudaStream_t s); /* cols as for qm_int8_decode, at most QM_SUMS_INT8_COLS */
enum { QM_SUMS_INT8_COLS = 1 << 18 };
cudaError_t qm_sums_q8_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial,
                         cudaStream_t s);
cudaError_t qm_sums_q4_0(const void *x, qm_dtype dtype, const uint8_t *blocks, uint64_t n, void *partial,
                         cudaStream_t s);
cudaError_t qm_sums_finish(const void *partial, uint64_t n, qm_errsum *sum, cudaStream_t s);

/* Largest magnitude of n values, which begin on 16 bytes, as the bits of an f32, NaN left out; *most was 0. */
cudaError_t qm_largest(const void *x, qm_dtype dtype, uint64_t n, uint32_t *most, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
