/* wide.cuh: what there is to do for matrix_wide.cu, who does it, and what lies where. */
#ifndef QM_WIDE_CUH
#define QM_WIDE_CUH

#include "matrix.h"

enum {
    WIDE_ROWS = 128, /* of a block's tile */
    WIDE_TILES = WIDE_ROWS / (int)QM_TILE_ROWS,
    WIDE_CONSUMERS = 256, /* threads that multiply, in two groups of four warps, 64 rows each */
    WIDE_THREADS = WIDE_CONSUMERS + 128,
    GROUP_THREADS = 128,
    GROUP_ROWS = 64,
    GROUP_TILES = GROUP_ROWS / (int)QM_TILE_ROWS,
    OUT_STRIDE = GROUP_ROWS + 4, /* floats of a token on their way out, so that four tokens' are in different banks */
    MOST_WIDE_TOKENS = 256,      /* of a tile */
};

/* Tiles of TOKENS tokens.  A stage of the ring in shared memory has UNITS units of 64 columns: x, then codes. */
template <int TOKENS> struct wide {
    static constexpr bool GATES = TOKENS >= QM_GLU_TOKENS; /* may be under a gate */
    static constexpr int BLOCKS = TOKENS <= 64 ? 2 : 1; /* a multiprocessor */
    static constexpr int UNITS = TOKENS <= 32 ? 2 : 1;
    static constexpr int STAGES = TOKENS == 32 ? 4 : TOKENS <= 64 ? 5 : TOKENS == 128 ? 7 : TOKENS == 192 ? 5 : 4;
    static constexpr int OUT_TOKENS = TOKENS <= 64 ? 16 : 64; /* that pass through shared memory at once */
    static constexpr int REGISTERS = BLOCKS == 1 ? 232 : 104, FEW_REGISTERS = BLOCKS == 1 ? 40 : 24;
    static constexpr uint32_t X_BYTES = TOKENS * 128, CODES = UNITS * X_BYTES, STAGE = CODES + WIDE_TILES * UNITS * QM_UNIT_BYTES;
    static constexpr uint32_t RING = STAGES * STAGE, OUT = 2 * OUT_TOKENS * OUT_STRIDE * sizeof(float);
    static constexpr uint32_t TOKEN_SCALES = 2 * (TOKENS < GROUP_THREADS ? GROUP_THREADS : 256);
    /* In shared memory: the ring, the table of pairs, results, scales of tokens, the map of nested scales, a gate's biases, barriers. */
    static constexpr uint32_t OUT_AT = RING + PAIRS_BYTES, BARRIERS_AT = OUT_AT + OUT + (TOKEN_SCALES + 256 + 2 * GROUP_ROWS) * sizeof(float);
    static constexpr uint32_t SHARED = 1024 + BARRIERS_AT + 2 * STAGES * 8;
    static_assert((SHARED + 1024) * BLOCKS <= 228 * 1024, "shared memory of a multiprocessor");
};

/* Whether sums are multiplied by scales, not weights. */
template <int TOKENS, int GROUP> static constexpr bool sums_scaled = TOKENS == 16 && GROUP >= 32;

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
    uint32_t pairs, dealt;  /* pairs of units of a tile, and of all the tiles that are dealt out */
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
__device__ inline uint32_t share(const wide_job &j, uint32_t block) { return (uint32_t)((uint64_t)j.dealt * block / j.blocks); }

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

/* Which stage of the ring is next for those who fill or use it, and how often, modulo 2, it has been round. */
template <int STAGES> struct turn {
    uint32_t stage = 0, round = 0;

    __device__ void next()
    {
        stage++;
        if (stage == STAGES)
            stage = 0, round ^= 1;
    }
    __device__ uint32_t before() const { return stage ? stage - 1 : STAGES - 1; }
};

#endif
#endif
