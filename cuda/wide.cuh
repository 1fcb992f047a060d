/* wide.cuh: what there is to do for matrix_wide.cu, who does it, and what lies where. */
#ifndef QM_WIDE_CUH
#define QM_WIDE_CUH

#include "matrix.h"

enum {
    WIDE_ROWS = 128, /* of a block's tile */
    WIDE_TILES = WIDE_ROWS / (int)QM_TILE_ROWS,
    GROUP_THREADS = 128, /* four warps, which multiply 64 rows */
    GROUP_ROWS = 64,
    GROUP_TILES = GROUP_ROWS / (int)QM_TILE_ROWS,
    OUT_STRIDE = GROUP_ROWS + 4, /* floats of a token on their way out, so that four tokens' are in different banks */
    MOST_WIDE_TOKENS = 256,      /* of a tile */
};

/* A block for tiles of TOKENS tokens. */
template <int TOKENS> struct wide {
    static constexpr bool GATES = TOKENS >= QM_GLU_TOKENS; /* may be under a gate */
    static constexpr int PARTS = TOKENS <= 64 ? 2 : 1; /* of the columns: pairs of groups, of which each has every other unit */
    static constexpr int PAIRS = PARTS == 2 ? 4 : 1;   /* of units in one turn of the loop; tiles are dealt out in as many */
    static constexpr int UNITS = PAIRS * 2 / PARTS;    /* of a group in one turn */
    static constexpr int GROUPS = 2 * PARTS, CONSUMERS = GROUPS * GROUP_THREADS, THREADS = CONSUMERS + 128;
    static constexpr int REGISTERS = PARTS == 1 ? 232 : 112, FEW_REGISTERS = PARTS == 1 ? 40 : 24;
    static constexpr int OWN = TOKENS / PARTS; /* tokens whose results a group makes */
    static constexpr int OUT_TOKENS = OWN < 16 ? OWN : OWN <= 64 ? 16 : 64; /* that pass through shared memory at once */
    static constexpr uint32_t OUT = OUT_TOKENS * OUT_STRIDE * sizeof(float); /* of a group */
    static constexpr uint32_t TOKEN_SCALES = (OWN + GROUP_THREADS - 1) / GROUP_THREADS * GROUP_THREADS; /* of a group */
};

/* Its shared memory, where an item has SCALES bytes of scales.  A stage of the ring of x, and of that of codes, has a unit for each part;
 * scales of whole items have SLOTS, which are filled and free with the stages of their codes. */
template <int TOKENS, uint32_t SCALES> struct wide_memory : wide<TOKENS> {
    using shape = wide<TOKENS>;
    static constexpr int X_STAGES = TOKENS <= 32 ? 8 : TOKENS == 128 ? 6 : 4;
    static constexpr int STAGES = TOKENS == 16 ? (SCALES > 1024 ? 8 : 12) : TOKENS <= 64 ? (SCALES > 1024 ? 4 : 8) : TOKENS == 256 ? 6 : 8;
    static constexpr int SLOTS = shape::PARTS == 2 ? STAGES / 4 + 1 : 0; /* an item more than there are codes of */
    static constexpr uint32_t X_BYTES = TOKENS * 128, X = shape::PARTS * X_BYTES, CODES = WIDE_TILES * shape::PARTS * QM_UNIT_BYTES;
    static constexpr uint32_t SLOT = WIDE_TILES * SCALES;
    /* Both rings, the table of pairs, results, scales of tokens, the map of nested scales, a gate's biases, scales, barriers. */
    static constexpr uint32_t CODES_AT = X_STAGES * X, TABLE_AT = CODES_AT + STAGES * CODES, OUT_AT = TABLE_AT + PAIRS_BYTES;
    static constexpr uint32_t FLOATS = shape::GROUPS * shape::TOKEN_SCALES + 256 + (shape::GATES ? 2 * GROUP_ROWS : 0);
    static constexpr uint32_t SLOTS_AT = OUT_AT + shape::GROUPS * shape::OUT + FLOATS * sizeof(float);
    static constexpr uint32_t BARRIERS_AT = SLOTS_AT + SLOTS * SLOT, SHARED = 1024 + BARRIERS_AT + 2 * (X_STAGES + STAGES) * 8;
    static_assert(SHARED <= 227 * 1024, "shared memory of a block");
};

template <int GROUP, qm_scale_type S>
static constexpr uint32_t scale_bytes = 32 * 2 * (128 / GROUP) * (S == QM_SCALE_F32 ? 4 : S == QM_SCALE_F16 ? 2 : 1); /* of an item */

/* Whether sums are multiplied by scales, not weights. */
template <int TOKENS, int GROUP> static constexpr bool sums_scaled = TOKENS <= 32 && GROUP >= 32;

/* Matrices that are multiplied together have their tiles numbered through. */
struct wide_part {
    const uint8_t *items;
    const float *nested, *most;
    float offset, factor;
    uint32_t rows, first;
    qm_product p;
};

struct wide_job {
    wide_part part[QM_TOGETHER];
    qm_gate gate; /* or: a tile is 64 rows of the first part and the same of the second, and a chunk of */
    qm_panel to;
    float *by; /* [chunk][token]: what a token's values were multiplied by */
    qm_panel x;
    const float *dynamic;
    float level[16];
    uint32_t cols, slices, tiles, token_tiles;
    uint32_t blocks, whole; /* turns in which each has a whole tile */
    uint32_t pairs, each, dealt; /* pairs of units of a tile; how many are dealt out at once, and how often */
    float4 *sums;
    uint32_t *left; /* [block][group]: whether its sums are there */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Of which part a group has rows of a tile, and which is the first; GATES: there may be a gate. */
template <bool GATES> __device__ inline const wide_part &part_of(const wide_job &j, uint32_t row_tile, uint32_t group, uint32_t &row)
{
    const bool gate = GATES && j.gate;
    const wide_part &part = j.part[gate ? group : (row_tile >= j.part[1].first) + (row_tile >= j.part[2].first)];
    row = gate ? row_tile * GROUP_ROWS : (row_tile - part.first) * WIDE_ROWS + group * GROUP_ROWS;
    return part;
}

/* Where a block's share of what is dealt out begins. */
__device__ inline uint32_t share(const wide_job &j, uint32_t block) { return (uint32_t)((uint64_t)j.dealt * block / j.blocks) * j.each; }

/* Pairs of units from ... to - 1 of a tile. */
struct piece {
    uint32_t tile, from, to;
};

/* A block's pieces in their order. */
struct walk {
    uint32_t block, turn, at, end;

    __device__ walk(const wide_job &j, uint32_t block) : block(block), turn(0), at(share(j, block)), end(share(j, block + 1)) {}
    __device__ bool next(const wide_job &j, piece &p)
    {
        if (turn < j.whole) {
            p = {turn++ * j.blocks + block, 0, j.pairs};
            return p.tile < j.tiles;
        }
        const uint32_t tile = at / j.pairs, from = at - tile * j.pairs, left = end - at;
        p = {j.whole * j.blocks + tile, from, left < j.pairs - from ? from + left : j.pairs};
        at += p.to - from;
        return left > 0;
    }
};

/* Which stage of a ring is next for those who fill or use it, STEP at a time, and how often, modulo 2, it has been round. */
template <int STAGES, int STEP = 1> struct turn {
    static_assert(STAGES % STEP == 0, "whole steps");
    uint32_t stage = 0, round = 0;

    __device__ void next()
    {
        stage += STEP;
        if (stage == STAGES)
            stage = 0, round ^= 1;
    }
};

#endif
#endif
