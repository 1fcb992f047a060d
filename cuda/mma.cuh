/* mma.cuh: the instructions that the C++ of CUDA has no words for. */
#ifndef QM_MMA_CUH
#define QM_MMA_CUH

#include "launch.cuh"

#include <stdint.h>

/* c += a b on the tensor cores: a is 16 x 16 f16, b 16 x 8 f16, c 16 x 8 f32.  Lane 4 g + t has
 *     a  rows g, g + 8, g, g + 8; columns 2 t and 2 t + 1, for the last two 8 on
 *     b  column g; rows 2 t and 2 t + 1, then 8 on           c  row g, then g + 8; columns 2 t and 2 t + 1 */
__device__ inline void mma(float c[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

/* A number that stays in its register instead of being found anew where it is used. */
__device__ inline uint32_t kept(uint32_t v)
{
    asm volatile("" : "+r"(v));
    return v;
}

/* Sixteen bytes that are read once and never written while kernels run. */
__device__ inline uint4 load_once(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

/* What an earlier kernel, perhaps one still running when this began, has written: not by way of the read-only cache. */
__device__ inline uint4 load_fresh(const void *p) { return *(const uint4 *)p; }

/* ---- shared memory -------------------------------------------------------------------------------
 *
 * 16 bytes from memory into shared memory while other things are done, or zeros where there is nothing. */

__device__ inline void copy_async(uint32_t to, const void *from, bool there)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
#else
    uint4 v = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}
/* The same by way of the first-level cache, for what others on the multiprocessor read as well. */
__device__ inline void copy_async_shared(uint32_t to, const void *from, bool there)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
#else
    copy_async(to, from, there);
#endif
}
/* The same with 8, and with 4. */
__device__ inline void copy_async_8(uint32_t to, const void *from, bool there)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(there ? 8 : 0) : "memory");
#else
    uint2 v = there ? *(const uint2 *)from : make_uint2(0, 0);
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
#endif
}
__device__ inline void copy_async_4(uint32_t to, const void *from, bool there)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0) : "memory");
#else
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(there ? *(const uint32_t *)from : 0) : "memory");
#endif
}
__device__ inline void copies_begun()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int LEFT> __device__ inline void copies_done()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

/* Four 8 x 8 matrices of f16: lanes 8 i ... 8 i + 7 give the addresses of matrix i's rows; lane 4 g + t receives row g,
 * columns 2 t and 2 t + 1, of each (turned: column g, rows 2 t and 2 t + 1). */
__device__ inline void load_matrices(uint32_t v[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at));
}
__device__ inline void load_matrices_turned(uint32_t v[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at));
}

/* ---- pairs ---------------------------------------------------------------------------------------
 *
 * A byte, two codes, becomes two f16 by one look-up: table[byte][lane], 32 KB, a copy for each lane in its own
 * bank of shared memory.  The address is one instruction: dp4a multiplies the byte it is told by 128 and adds. */

enum { PAIRS_BYTES = 256 * 32 * 4 };

/* threads: a multiple of 128.  A thread writes four lanes' copies at once, always with the same second level. */
__device__ inline void fill_pairs(uint32_t *pairs, const float *level, uint32_t threads)
{
    const float second = level[threadIdx.x / 8 % 16];
    for (uint32_t i = threadIdx.x; i < 256 * 32 / 4; i += threads) {
        const __half2 pair = __floats2half2_rn(level[i / 128], second);
        const uint32_t p = *(const uint32_t *)&pair;
        ((uint4 *)pairs)[i] = make_uint4(p, p, p, p);
    }
}

/* base: shared-memory address of pairs, plus 4 times the lane. */
template <int BYTE> __device__ inline uint32_t pair_of(uint32_t codes, uint32_t base)
{
    uint32_t at = __dp4a(codes, 0x80u << 8 * BYTE, base), pair;
    asm("ld.shared.u32 %0, [%1];" : "=r"(pair) : "r"(at));
    return pair;
}

/* ---- scales to registers --------------------------------------------------------------------------
 *
 * A lane's scales of an item (matrix.h), as they lie there: BYTES from `at` on, a power of two or more than 16. */
template <int BYTES> __device__ inline void load_words(uint32_t *word, const uint8_t *at)
{
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++) {
            uint4 v = load_once(at + 16 * i);
            word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
        }
    } else if constexpr (BYTES == 8) {
        uint2 v = __ldg((const uint2 *)at);
        word[0] = v.x, word[1] = v.y;
    } else if constexpr (BYTES == 4) {
        word[0] = __ldg((const uint32_t *)at);
    } else {
        word[0] = __ldg((const uint16_t *)at);
    }
}

/* The absmax of nested scales of PER_ROW groups from group `at` of `groups` on, of `row` and the one 8 below: blocks of 256
 * groups, of which one may end between two.  Zero for rows and groups that there are not. */
template <int PER_ROW>
__device__ inline void load_super(float super[2][2], const float *nested, uint32_t rows, uint32_t row, uint32_t at, uint32_t groups)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const bool there = row + 8 * r < rows;
        const uint64_t k = (uint64_t)(row + 8 * r) * groups + at;
        super[r][0] = there && at < groups ? __ldg(nested + (k >> 8)) : 0;
        if (PER_ROW > 1)
            super[r][1] = (k & 255) == 255 && there && at + 1 < groups ? __ldg(nested + (k >> 8) + 1) : super[r][0];
    }
}

#endif
