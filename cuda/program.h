/* program.h: what a decoder does for one token as a list of phases, which one kernel walks through.
 *
 * All blocks of threads work on a phase together and wait for each other before the next.  A matrix does not depend on
 * what is multiplied by it: every warp asks for its first part of the next one before it waits, so that memory is busy
 * meanwhile, and nothing is launched, filled or looked up anew.
 *
 * Between phases x is f16 with a power of two for 16 values, which a tile's 16 rows can have at once.  A norm is spread
 * over the phases at its two sides: the one that makes x leaves x * weight and the sums of squares of 16 values each, and
 * the product that follows has its results multiplied, at last, by 1 / sqrt(mean of squares + eps).
 *
 * Who may read what:
 *
 * - Everything a phase reads of another block was written in a phase before it.  The block that wrote met in a barrier, one of its
 *   threads counted it with red.release.gpu; one thread of the block that reads saw all counted with ld.acquire.gpu, and met the
 *   others in a barrier.  Barriers order a block's threads, and release and acquire are cumulative.
 * - Before a block waits it reads what no phase writes: matrices, weights of norms, biases, and of a cache the positions before
 *   this one, which a step before has written.  No result lies where another one was: a step's memory is given out once.
 * - Blocks that have nothing of an attention neither wait for the phase before it nor are counted in it.  What they have not
 *   waited for they see all the same after the next wait: the blocks that they wait for then had waited for it themselves.
 * - Inside a phase blocks meet only in attention to many positions: who is last of a unit, by atom.acq_rel.gpu, joins its parts.
 * - All blocks are there at once (a cooperative launch, one of each multiprocessor), so waiting ends.
 * - Sums have one order, which shapes and positions fix: the bits are the same every time. */
#ifndef QM_CUDA_PROGRAM_H
#define QM_CUDA_PROGRAM_H

#include "matrix.h"
#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qm_phase_kind { QM_PHASE_HALF, QM_PHASE_PRODUCT, QM_PHASE_ATTEND } qm_phase_kind;

/* value = half * scale[i / 16] */
typedef struct qm_sixteens {
    void *half;
    float *scale;
} qm_sixteens;

/* y = x / sqrt(mean of x^2 + eps) * (weight + add) */
typedef struct qm_norm {
    const float *x, *weight; /* weight NULL: there is none */
    float *y;                /* written by the product that comes after */
    float add, eps;
    qm_sixteens half; /* x * (weight + add) */
    float *squares;   /* sum of x^2 of 16 values each */
} qm_norm;

typedef struct qm_phase_part {
    const uint8_t *items;
    const float *nested;
    float offset, factor;
    uint32_t rows, first_tile;
    qm_product p;
} qm_phase_part;

/* Attention's result in two or three parts, each of some of the positions, which the product that follows puts together:
 * [part][head][dimension], each part of weight 1, and [part][head] the largest score, times log2 e, and the sum of weights.  Where the
 * positions are few, or many, it is whole: the first part. */
enum { QM_OPEN_PARTS = 3 };
typedef struct qm_open {
    qm_sixteens half; /* .half NULL: x is no such thing */
    const float *stats;
    float *y;                 /* the whole goes here */
    uint32_t heads, dim_bits; /* 2^dim_bits: a head's dimensions */
} qm_open;

/* x W^T of up to QM_TOGETHER matrices, their tiles numbered through or, under a gate, by turns. */
typedef struct qm_product_phase {
    qm_phase_part part[QM_TOGETHER];
    uint32_t cols, tiles, slices;
    uint32_t each, rest; /* tiles (under a gate, pairs) of a block; so many blocks have one more */
    uint32_t warp_by, more_tiles,
        more_slices; /* 65536 / slices, rounded up; from one item of a warp to its next */
    uint32_t next;   /* the next product among the phases, or QM_NO_PHASE */
    qm_sixteens x;
    qm_open open;          /* or this */
    qm_norm before, after; /* of x; and of the last part's sum or, where nothing is added, result */
    qm_gate gate;          /* of two parts with as many rows: gate(first) * second goes into */
    float *gated;
    qm_sixteens gated_half;
} qm_product_phase;

/* x as f16, or the beginning of a norm. */
typedef struct qm_half_phase {
    const float *x;
    uint32_t cols;
    qm_sixteens half;
    qm_norm after;
} qm_half_phase;

/* Attention of one token to an f16 cache, after the turn of q and k. */
typedef struct qm_attend_phase {
    qm_attention a;   /* tokens is 1 */
    qm_sixteens half; /* as in qm_open: room for QM_OPEN_PARTS */
    float *stats;
    bool open;            /* a product takes it in parts, and writes a.y then */
    const float *inverse; /* frequencies of all pairs, or NULL: no turn */
    float turn;           /* what sine and cosine are multiplied with */
    bool neox;
    bool anew;    /* positions, heads or turns are not those of the attention before */
    float *q, *k; /* where q and k go, turned */

    /* Of qm_program_share: query heads of a key head; eights of them; these of all key heads; how many blocks there are for
     * each. */
    uint32_t group, rounds, units, most;
} qm_attend_phase;

typedef struct qm_phase {
    qm_phase_kind kind;
    union {
        qm_half_phase half;
        qm_product_phase product;
        qm_attend_phase attend;
    };
} qm_phase;

/* The tiles of a product that one block multiplies, by turns the items of each: tile t is of part (t >= bound[0]) + (t >= bound[1]),
 * and there number t + tile[part]; item i of the block is at item[part] + i times an item's bytes.  Under a gate the tiles of the
 * first matrix come first. */
typedef struct qm_block_plan {
    uint64_t item[QM_TOGETHER];
    uint32_t tile[QM_TOGETHER], bound[QM_TOGETHER - 1];
    uint32_t tiles, items;
    uint32_t unused[3];
} qm_block_plan;

/* Phases whose matrices are of one kind.  Between two products there are no more than two others. */
typedef struct qm_program {
    const qm_phase *phases;     /* on the GPU, QM_PHASE_BYTES each */
    const qm_block_plan *plans; /* [phase][block], of products */
    uint32_t count, head_dim;
    uint32_t first; /* product among the phases */
    uint32_t group;
    qm_scale_type scale;
    float level[16];
    const float *dynamic;
    const int32_t *passed; /* of all attention's positions */
    uint32_t
        sums; /* floats that a block needs of its shared memory: qm_program_sums, the most of all phases */
    uint32_t *arrived; /* one for a phase, zero before */
} qm_program;

enum { QM_PHASE_BYTES = 640, QM_NO_PHASE = -1 };

/* Blocks of threads that walk together on this GPU; 0: it cannot. */
uint32_t qm_program_blocks(void);
/* Divides a product whose parts are known among the blocks: divisions take long on a GPU. */
void qm_program_divide(qm_product_phase *p, uint32_t blocks);
/* What a block has of it; item_bytes: qm_item_bytes of the matrices. */
void qm_program_plan(const qm_product_phase *p, uint32_t block, uint32_t item_bytes, qm_block_plan *plan);
void qm_program_share(qm_attend_phase *a, uint32_t blocks);      /* the same for attention */
uint32_t qm_program_sums(const qm_product_phase *p);             /* of one that is divided */
bool qm_program_takes(uint32_t sums, uint32_t head_dim);         /* head_dim 0: no attention */
uint64_t qm_program_partial(uint32_t blocks, uint32_t head_dim); /* bytes for attention's parts */
cudaError_t qm_program_run(const qm_program *p, cudaStream_t s);

#ifdef __cplusplus
}
#endif

#endif
