/* matrix_item.cuh: an item of a 4-bit matrix (matrix.h) as operand A of the tensor cores: codes, levels and scales. */
#ifndef QM_MATRIX_ITEM_CUH
#define QM_MATRIX_ITEM_CUH

/* Matrices that are multiplied together have their tiles numbered through. */
struct decode_part {
    const float *nested;
    float offset;
    uint32_t rows, first_tile;
    float factor;
    qm_product p;
};

/* Groups and scales that there are kernels for. */
#define MATRIX_KINDS                                                                                         \
    KIND(64, QM_SCALE_F32)                                                                                   \
    KIND(64, QM_SCALE_NESTED)                                                                                \
    KIND(32, QM_SCALE_F32)                                                                                   \
    KIND(32, QM_SCALE_F16)                                                                                   \
    KIND(32, QM_SCALE_E8M0)                                                                                  \
    KIND(32, QM_SCALE_NESTED)                                                                                \
    KIND(128, QM_SCALE_F32)                                                                                  \
    KIND(128, QM_SCALE_NESTED)                                                                               \
    KIND(16, QM_SCALE_F32)

/* ---- scales -------------------------------------------------------------------------------------- */

/* What a lane has of an item's scales. */
template <qm_scale_type S, int GROUP> struct lane_scales {
    static constexpr int PER_ROW = 128 / GROUP, COUNT = 2 * PER_ROW;
    static constexpr int BYTES = COUNT * (S == QM_SCALE_F32 ? 4 : S == QM_SCALE_F16 ? 2 : 1);
    static constexpr int WORDS = BYTES / 4 > 0 ? BYTES / 4 : 1;

    __device__ static void decode(float scale[COUNT], const uint32_t word[WORDS])
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if constexpr (S == QM_SCALE_F32)
                scale[i] = __uint_as_float(word[i]);
            else if constexpr (S == QM_SCALE_F16) {
                __half2 two = *(const __half2 *)&word[i / 2];
                scale[i] = i % 2 ? __high2float(two) : __low2float(two);
            } else {
                uint32_t e = word[i / 4] >> 8 * (i % 4) & 255;
                scale[i] = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
            }
        }
    }
};

/* The scales of a warp's next item, in shared memory until it is their turn: the compiler moves what it has loaded into
 * registers, and a move waits for memory.
 *
 *     space  | scales of the item |
 *            nested: | absmax of 16 rows, of the block of 256 groups that the slice begins in and of the next: 2 f32 each
 *                    | how many groups of the slice lie in the first, of 16 rows | offset | */
template <int GROUP, qm_scale_type S> struct item_scales {
    using scales = lane_scales<S, GROUP>;
    static constexpr bool NESTED = S == QM_SCALE_NESTED;
    static constexpr uint32_t OWN = 32 * scales::BYTES, FIRST = OWN + QM_TILE_ROWS * 8, OFFSET = FIRST + QM_TILE_ROWS * 4,
                              SPACE = NESTED ? OFFSET + 16 : OWN;

    /* from: the item's; tile: of the part P; cols: of the matrix.  All lanes, after all have taken those before. */
    template <class P>
    __device__ static void ask(const P &part, uint32_t cols, uint32_t tile, uint32_t slice, const uint8_t *from, uint8_t *space, uint32_t lane)
    {
        const uint32_t to = (uint32_t)__cvta_generic_to_shared(space);
        if constexpr (scales::BYTES >= 16) {
#pragma unroll
            for (int i = 0; i < scales::BYTES / 16; i++)
                copy_async(to + lane * scales::BYTES + 16 * i, from + lane * scales::BYTES + 16 * i, true);
        } else if (lane < OWN / 16) {
            copy_async(to + lane * 16, from + lane * 16, true);
        }
        if constexpr (NESTED) {
            constexpr uint32_t EACH = QM_ITEM_COLS / GROUP;
            const uint32_t groups = cols / GROUP, row = tile * QM_TILE_ROWS + lane / 2, next = lane % 2;
            const uint64_t k = (uint64_t)row * groups + slice * EACH;
            const uint32_t first = 256 - ((uint32_t)k & 255);
            const bool there = row < part.rows && (!next || (first < EACH && slice * EACH + first < groups));
            copy_async_4(to + OWN + lane * 4, part.nested + (there ? (k >> 8) + next : 0), there);
            ((uint32_t *)(space + FIRST))[lane / 2] = first;
            *(float *)(space + OFFSET) = part.offset;
        }
    }

    /* Waits for all that this thread has asked for. */
    __device__ static void take(float scale[scales::COUNT], const uint8_t *space, const float *dynamic, uint32_t lane)
    {
        uint32_t word[scales::WORDS];
        copies_done<0>();
        __syncwarp();
        if constexpr (scales::BYTES >= 4) {
#pragma unroll
            for (int i = 0; i < scales::WORDS; i++)
                word[i] = *(const uint32_t *)(space + lane * scales::BYTES + 4 * i);
        } else {
            word[0] = *(const uint16_t *)(space + lane * scales::BYTES);
        }
        if constexpr (NESTED) {
            const uint32_t g = lane / 4, t = lane % 4;
            const float offset = *(const float *)(space + OFFSET);
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                const float2 absmax = ((const float2 *)(space + OWN))[g + 8 * r];
                const uint32_t first = ((const uint32_t *)(space + FIRST))[g + 8 * r];
#pragma unroll
                for (uint32_t i = 0; i < scales::PER_ROW; i++) {
                    const uint32_t n = r * scales::PER_ROW + i, e = word[n / 4] >> 8 * (n % 4) & 255;
                    scale[n] = __fadd_rn(__fmul_rn(dynamic[e], t * scales::PER_ROW + i < first ? absmax.x : absmax.y), offset);
                }
            }
        } else {
            scales::decode(scale, word);
        }
    }
};

/* ---- one unit ------------------------------------------------------------------------------------ */

template <int J> __device__ inline void multiply(float c[4], const uint4 &w, const uint32_t b[8], uint32_t pairs)
{
    uint32_t first = J < 2 ? w.x : w.y, second = J < 2 ? w.z : w.w;
    constexpr int BYTE = 2 * (J % 2);
    mma(c, pair_of<BYTE>(first, pairs), pair_of<BYTE>(second, pairs), pair_of<BYTE + 1>(first, pairs),
        pair_of<BYTE + 1>(second, pairs), b[2 * J], b[2 * J + 1]);
}

/* sum[r][i]: row g + 8 r, the lane's token i.  scale(r, i): of row g + 8 r, group i of this unit; by[i]: of x, which with one
 * token is in the scale already. */
template <int M, int GROUP, class F>
__device__ inline void add_unit(float sum[2][2], const uint4 &w, const uint32_t b[8], uint32_t pairs, bool mine,
                                int column, const float by[2], F scale)
{
    constexpr int GROUPS = GROUP < 64 ? 64 / GROUP : 1, EACH = 4 / GROUPS;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        float c[4] = {0, 0, 0, 0};
        if (EACH * i <= 0 && 0 < EACH * (i + 1))
            multiply<0>(c, w, b, pairs);
        if (EACH * i <= 1 && 1 < EACH * (i + 1))
            multiply<1>(c, w, b, pairs);
        if (EACH * i <= 2 && 2 < EACH * (i + 1))
            multiply<2>(c, w, b, pairs);
        if (EACH * i <= 3 && 3 < EACH * (i + 1))
            multiply<3>(c, w, b, pairs);
        float s0 = scale(0, i), s1 = scale(1, i);
        if (!mine)
            continue;
        if (M == 1) {
            sum[0][0] = __fmaf_rn(s0, c[column], sum[0][0]);
            sum[1][0] = __fmaf_rn(s1, c[2 + column], sum[1][0]);
        } else {
            sum[0][0] = __fmaf_rn(s0, by[0] * c[0], sum[0][0]);
            sum[0][1] = __fmaf_rn(s0, by[1] * c[1], sum[0][1]);
            sum[1][0] = __fmaf_rn(s1, by[0] * c[2], sum[1][0]);
            sum[1][1] = __fmaf_rn(s1, by[1] * c[3], sum[1][1]);
        }
    }
}

/* Adds over the lanes of a row that share tokens, and leaves the sums of the item in part[token][row]. */
template <int M> __device__ inline void store_item(float *part, float sum[2][2], uint32_t g, uint32_t t)
{
    constexpr int EACH = M == 1 ? 1 : 2;
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float v = sum[r][i];
            if (M <= 2)
                v += __shfl_xor_sync(~0u, v, 1);
            if (M <= 4)
                v += __shfl_xor_sync(~0u, v, 2);
            uint32_t token = M <= 2 ? i : 2 * (M == 4 ? t % 2 : t) + i;
            bool writes = M <= 2 ? t == 0 : M == 4 ? t < 2 : true;
            if (writes)
                part[token * QM_TILE_ROWS + g + 8 * r] = v;
        }
}

/* ---- the order of loads ---------------------------------------------------------------------------- */

template <int OFFSET> __device__ inline void load_if(uint4 &v, const uint8_t *p, bool there)
{
    asm volatile("{ .reg .pred q; setp.ne.u32 q, %5, 0;\n\t"
                 "@q ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4+%6]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(p), "r"((uint32_t)there), "n"(OFFSET));
}

/* A loop that is never entered, which only the launch knows: what stands above it is issued above it.  ptxas otherwise
 * leaves all loads of the next item to the end of this one, and less is under way. */
__device__ inline void cut(uint32_t never)
{
    uint32_t again;
    asm volatile("mov.u32 %0, %1;" : "=r"(again) : "r"(never));
    while (again)
        asm volatile("membar.gl;\n\tmov.u32 %0, %1;" : "=r"(again) : "r"(never) : "memory");
}

#endif
