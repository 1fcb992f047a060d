/* wide_weights.cuh: how matrix_wide.cu makes f16 of codes and scales. */
#ifndef QM_WIDE_WEIGHTS_CUH
#define QM_WIDE_WEIGHTS_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- scales -------------------------------------------------------------------------------------- */

/* What a lane has of an item's scales: as they lie there, and each as two f16 whose sum it is.  Of PARTS 2, a part has every other
 * unit's. */
template <qm_scale_type S, int GROUP, int PARTS> struct item_scales {
    static constexpr int PER_ROW = 128 / GROUP, COUNT = 2 * PER_ROW;
    static constexpr int BYTES = COUNT * (S == QM_SCALE_F32 ? 4 : S == QM_SCALE_F16 ? 2 : 1);
    static constexpr int SKIP = GROUP < 128 ? PER_ROW / 2 : 0; /* from an even unit's to an odd one's */
    static constexpr int OWN_PER_ROW = PARTS == 2 ? PER_ROW - SKIP : PER_ROW, OWN = 2 * OWN_PER_ROW;
    uint32_t word[(BYTES + 3) / 4];
    float super[2][2]; /* nested absmax of both rows' groups; a block of 256 groups may end between two */

    __device__ void load(const uint8_t *at) { load_words<BYTES>(word, at); }
    __device__ void load_shared(uint32_t at)
    {
        if constexpr (BYTES >= 16) {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                const uint4 v = shared_vector(at + 16 * i);
                word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
            }
        } else if constexpr (BYTES == 8) {
            asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(at));
        } else if constexpr (BYTES == 4) {
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word[0]) : "r"(at));
        } else {
            asm volatile("{ .reg .b16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h; }" : "=r"(word[0]) : "r"(at));
        }
    }

    /* row: the lane's first, the other 8 on; at: the first group. */
    __device__ void load_nested(const wide_part &p, uint32_t row, uint32_t at, uint32_t groups)
    {
        if constexpr (S == QM_SCALE_NESTED)
            load_super<PER_ROW>(super, p.nested, p.rows, row, at, groups);
    }

    /* The part's as two f16, after `by`; or as f32. */
    template <bool F32> __device__ void decode(uint32_t to[OWN], uint32_t part, float by, float offset, const float *dynamic) const
    {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int k = i / OWN_PER_ROW * PER_ROW + i % OWN_PER_ROW, odd = PARTS == 2 ? k + SKIP : k; /* of an even, an odd part */
            float s;
            if constexpr (S == QM_SCALE_F32)
                s = __uint_as_float(part ? word[odd] : word[k]);
            else if constexpr (S == QM_SCALE_F16) {
                const uint32_t w = part ? word[odd / 2] : word[k / 2];
                const __half2 two = *(const __half2 *)&w;
                s = k % 2 ? __high2float(two) : __low2float(two);
                static_assert(SKIP % 2 == 0, "the same half of a word");
            } else {
                uint32_t e = (part ? word[odd / 4] >> 8 * (odd % 4) : word[k / 4] >> 8 * (k % 4)) & 255;
                if constexpr (S == QM_SCALE_E8M0)
                    s = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
                else {
                    constexpr int EACH = (PER_ROW + 1) / 2;
                    const float most = part ? super[odd / PER_ROW][odd % PER_ROW / EACH] : super[k / PER_ROW][k % PER_ROW / EACH];
                    s = __fadd_rn(__fmul_rn(dynamic[e], most), offset);
                }
            }
            if constexpr (F32) {
                to[i] = __float_as_uint(s);
                continue;
            }
            s *= by;
            const __half high = __float2half_rn(s);
            const __half2 both = __halves2half2(high, __float2half_rn(s - __half2float(high)));
            to[i] = *(const uint32_t *)&both;
        }
    }
};

/* What brings scales of which the largest is `most` into f16's range. */
__device__ inline float scales_by(float most)
{
    int e = (int)(__float_as_uint(most) >> 23 & 255) - 127;
    return e < -100 || e == 128 ? 1.0f : __uint_as_float((uint32_t)(13 - e + 127) << 23);
}

/* ---- weights ------------------------------------------------------------------------------------- */

__device__ inline uint32_t times(uint32_t pair, uint32_t high, uint32_t low)
{
    __half2 level = *(__half2 *)&pair, v = __hfma2(level, *(__half2 *)&high, __hmul2(level, *(__half2 *)&low));
    return *(uint32_t *)&v;
}

/* The levels of operand A of one product of a unit, and they times their scales: of row g, then of row g + 8. */
template <int J> __device__ inline void look_up(uint32_t level[4], const uint4 &w, uint32_t pairs)
{
    const uint32_t first = J < 2 ? w.x : w.y, second = J < 2 ? w.z : w.w;
    constexpr int BYTE = 2 * (J % 2);
    level[0] = pair_of<BYTE>(first, pairs), level[1] = pair_of<BYTE>(second, pairs);
    level[2] = pair_of<BYTE + 1>(first, pairs), level[3] = pair_of<BYTE + 1>(second, pairs);
}

/* Those of all four. */
__device__ inline void look_up(uint32_t level[4][4], const uint4 &w, uint32_t pairs)
{
    look_up<0>(level[0], w, pairs), look_up<1>(level[1], w, pairs);
    look_up<2>(level[2], w, pairs), look_up<3>(level[3], w, pairs);
}

__device__ inline void scale_up(uint32_t a[4], const uint32_t level[4], const uint32_t scale[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t high = __byte_perm(scale[r], 0, 0x1010), low = __byte_perm(scale[r], 0, 0x3232);
        a[r] = times(level[r], high, low), a[2 + r] = times(level[2 + r], high, low);
    }
}

/* A unit's four products with operand A in registers, 64 rows and TOKENS tokens.  Of an item's scales, COUNT to a lane, it finds those of
 * row g, then of row g + 8, and multiplies the weights by them, */
template <int TOKENS, int GROUP, bool SUMS> struct scaled {
    static constexpr int SOME = 1;
    uint32_t own[4][2];

    /* pair: of the item's units; parity: of the unit, 0 or else. */
    template <int COUNT> __device__ void find(const uint32_t (&scale)[COUNT], uint32_t pair, int parity)
    {
        constexpr int IN_UNIT = GROUP < 64 ? 64 / GROUP : 1;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int k = GROUP < 128 ? parity % 2 * IN_UNIT + i * IN_UNIT / 4 : 0;
            if (i * IN_UNIT % 4 == 0) {
                own[i][0] = __shfl_sync(~0u, scale[k], pair, 4);
                own[i][1] = __shfl_sync(~0u, scale[COUNT / 2 + k], pair, 4);
            } else {
                own[i][0] = own[i - 1][0], own[i][1] = own[i - 1][1];
            }
        }
    }
    __device__ void weights(uint32_t a[4][4], const uint32_t level[4][4]) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            scale_up(a[i], level[i], own[i]);
    }
    __device__ void multiply(float *sum, float *, const uint32_t a[4][4], uint32_t x) const
    {
#pragma unroll
        for (int k = 0; k < 4; k++)
            product<TOKENS>(sum, a[k], x | 2 * k, true);
    }
    __device__ void add_up(float *, float *) const {}
};

/* or the sums of their groups, `some`, when the products are done. */
template <int TOKENS, int GROUP> struct scaled<TOKENS, GROUP, true> {
    static constexpr int GROUPS = GROUP < 64 ? 64 / GROUP : 1, EACH = 4 / GROUPS, SOME = GROUPS * TOKENS / 2;
    float own[GROUPS][2];

    template <int COUNT> __device__ void find(const uint32_t (&scale)[COUNT], uint32_t pair, int parity)
    {
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            const int k = GROUP < 128 ? parity % 2 * GROUPS + i : 0;
            own[i][0] = __uint_as_float(__shfl_sync(~0u, scale[k], pair, 4));
            own[i][1] = __uint_as_float(__shfl_sync(~0u, scale[COUNT / 2 + k], pair, 4));
        }
    }
    __device__ void multiply(float *, float *some, const uint32_t a[4][4], uint32_t x) const
    {
#pragma unroll
        for (int k = 0; k < 4; k++)
            product<TOKENS>(some + k / EACH * (TOKENS / 2), a[k], x | 2 * k, k % EACH != 0);
    }
    __device__ void add_up(float *sum, float *some) const
    {
        settle<SOME>(some);
#pragma unroll
        for (int i = 0; i < SOME; i++)
            sum[i % (TOKENS / 2)] = __fmaf_rn(some[i], own[i / (TOKENS / 2)][i / 2 % 2], sum[i % (TOKENS / 2)]);
    }
};

#endif
#endif
