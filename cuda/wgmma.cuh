/* wgmma.cuh: what Hopper (sm_90a) has beyond mma.cuh: copies that shared memory reports the end of, and products of four
 * warps together.  Names without a body elsewhere: matrix_wide.cu and attention_wide.cu use them, and only there. */
#ifndef QM_WGMMA_CUH
#define QM_WGMMA_CUH

#include <stdint.h>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- barriers in shared memory: 8 bytes, at the address `at` ------------------------------------------ */

__device__ inline void barrier_init(uint32_t at, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ inline void barriers_are_set() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive(uint32_t at)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(at) : "memory");
}
/* Arrives, and says how many bytes of copies are to come. */
__device__ inline void barrier_expect(uint32_t at, uint32_t bytes)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(at), "r"(bytes) : "memory");
}
/* Until the phase of that parity is over. */
__device__ inline void barrier_wait(uint32_t at, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(at),
                 "r"(parity)
                 : "memory");
}

/* Whether it is, without waiting. */
__device__ inline bool barrier_is_over(uint32_t at, uint32_t parity)
{
    uint32_t over;
    asm volatile("{ .reg .pred done; mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
                 : "=r"(over)
                 : "r"(at), "r"(parity)
                 : "memory");
    return over;
}

/* By one lane of a warp, all of which come with the same: copies of other lanes, too, would be a loop over them.  bytes: a multiple
 * of 16, as are both addresses. */
__device__ inline void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier)
{
    asm volatile("{ .reg .pred one; elect.sync _|one, 0xffffffff;\n"
                 "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3]; }" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* A box of a tensor of three dimensions, which `map` (CUtensorMap, a parameter of the kernel) describes: from element x of row `row` of
 * matrix z on, zeros where there are none; row may be below 0. */
__device__ inline void copy_box(uint32_t to, const void *map, int32_t x, int32_t row, int32_t z, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(map), "r"(x), "r"(row), "r"(z), "r"(barrier)
                 : "memory");
}
__device__ inline void map_is_near(const void *map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

/* ---- registers, vectors ------------------------------------------------------------------------------- */

/* Registers that a group of four warps leaves to the others of its block, or takes over. */
template <int N> __device__ inline void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ inline void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

__device__ inline uint4 shared_vector(uint32_t at)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

/* ---- products ------------------------------------------------------------------------------------------
 *
 * c += a b for 64 rows and N columns, 16 deep: a as mma.cuh has it, warp w of the four rows 16 w ... 16 w + 15; c as there,
 * for one run of 8 columns after the other; b in shared memory, 64 deep: a column is 128 bytes, whose sixteenths are
 * exchanged (piece p of column n lies at p ^ n % 8), 8 columns are 1024 bytes, and begin on as many.  b is its address
 * over 16, plus 2 for every 16 of depth.
 *
 * CHUNK: b is turned, a row of 64 columns is 128 bytes (piece p of row k at p ^ k % 8), and the next 64 columns are CHUNK bytes on; 16
 * of depth are 2048 bytes. */

/* Before products, after registers of theirs were written. */
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ inline void products_done() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

#define C8(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b | (CHUNK ? CHUNK >> 4 : 1u) << 16), "r"(1u << 30 | 1024 >> 4), "r"((int)adds), "n"((int)(CHUNK > 0))
#define PRODUCT(n, registers, a0, a1, a2, a3, b0, b1, d, turned, ...)                                                              \
    asm volatile("{ .reg .pred add; .reg .b64 b; setp.ne.b32 add, " d ", 0; mov.b64 b, {" b0 "," b1 "};\n"           \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.f16.f16 {" registers "}, {" a0 "," a1 "," a2 "," a3 "}, b" \
                 ", add, 1, 1, " turned "; }\n"                                                                                  \
                 : __VA_ARGS__                                                                                          \
                 : OPERANDS)
#define R8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h

/* adds: or else c is forgotten. */
template <int N, uint32_t CHUNK = 0> __device__ inline void product(float *c, const uint32_t a[4], uint32_t b, bool adds)
{
    if constexpr (N == 16)
        PRODUCT("16",
                R8(0, 1, 2, 3, 4, 5, 6, 7),
                "%8", "%9", "%10", "%11", "%12", "%13", "%14", "%15",
                C8(0));
    else if constexpr (N == 32)
        PRODUCT("32",
                R8(0, 1, 2, 3, 4, 5, 6, 7) "," R8(8, 9, 10, 11, 12, 13, 14, 15),
                "%16", "%17", "%18", "%19", "%20", "%21", "%22", "%23",
                C8(0), C8(8));
    else if constexpr (N == 64)
        PRODUCT("64",
                R8(0, 1, 2, 3, 4, 5, 6, 7) "," R8(8, 9, 10, 11, 12, 13, 14, 15) "," R8(16, 17, 18, 19, 20, 21, 22, 23) "," R8(24, 25, 26, 27, 28, 29, 30, 31),
                "%32", "%33", "%34", "%35", "%36", "%37", "%38", "%39",
                C8(0), C8(8), C8(16), C8(24));
    else if constexpr (N == 128)
        PRODUCT("128",
                R8(0, 1, 2, 3, 4, 5, 6, 7) "," R8(8, 9, 10, 11, 12, 13, 14, 15) "," R8(16, 17, 18, 19, 20, 21, 22, 23) "," R8(24, 25, 26, 27, 28, 29, 30, 31) ","
                R8(32, 33, 34, 35, 36, 37, 38, 39) "," R8(40, 41, 42, 43, 44, 45, 46, 47) "," R8(48, 49, 50, 51, 52, 53, 54, 55) "," R8(56, 57, 58, 59, 60, 61, 62, 63),
                "%64", "%65", "%66", "%67", "%68", "%69", "%70", "%71",
                C8(0), C8(8), C8(16), C8(24), C8(32), C8(40), C8(48), C8(56));
    else if constexpr (N == 192)
        PRODUCT("192",
                R8(0, 1, 2, 3, 4, 5, 6, 7) "," R8(8, 9, 10, 11, 12, 13, 14, 15) "," R8(16, 17, 18, 19, 20, 21, 22, 23) "," R8(24, 25, 26, 27, 28, 29, 30, 31) ","
                R8(32, 33, 34, 35, 36, 37, 38, 39) "," R8(40, 41, 42, 43, 44, 45, 46, 47) "," R8(48, 49, 50, 51, 52, 53, 54, 55) "," R8(56, 57, 58, 59, 60, 61, 62, 63) ","
                R8(64, 65, 66, 67, 68, 69, 70, 71) "," R8(72, 73, 74, 75, 76, 77, 78, 79) "," R8(80, 81, 82, 83, 84, 85, 86, 87) "," R8(88, 89, 90, 91, 92, 93, 94, 95),
                "%96", "%97", "%98", "%99", "%100", "%101", "%102", "%103",
                C8(0), C8(8), C8(16), C8(24), C8(32), C8(40), C8(48), C8(56),
                C8(64), C8(72), C8(80), C8(88));
    else
        PRODUCT("256",
                R8(0, 1, 2, 3, 4, 5, 6, 7) "," R8(8, 9, 10, 11, 12, 13, 14, 15) "," R8(16, 17, 18, 19, 20, 21, 22, 23) "," R8(24, 25, 26, 27, 28, 29, 30, 31) ","
                R8(32, 33, 34, 35, 36, 37, 38, 39) "," R8(40, 41, 42, 43, 44, 45, 46, 47) "," R8(48, 49, 50, 51, 52, 53, 54, 55) "," R8(56, 57, 58, 59, 60, 61, 62, 63) ","
                R8(64, 65, 66, 67, 68, 69, 70, 71) "," R8(72, 73, 74, 75, 76, 77, 78, 79) "," R8(80, 81, 82, 83, 84, 85, 86, 87) "," R8(88, 89, 90, 91, 92, 93, 94, 95) ","
                R8(96, 97, 98, 99, 100, 101, 102, 103) "," R8(104, 105, 106, 107, 108, 109, 110, 111) "," R8(112, 113, 114, 115, 116, 117, 118, 119) "," R8(120, 121, 122, 123, 124, 125, 126, 127),
                "%128", "%129", "%130", "%131", "%132", "%133", "%134", "%135",
                C8(0), C8(8), C8(16), C8(24), C8(32), C8(40), C8(48), C8(56),
                C8(64), C8(72), C8(80), C8(88), C8(96), C8(104), C8(112), C8(120));
}

#undef R8
#undef PRODUCT
#undef OPERANDS
#undef C8

/* What products left in registers may be read from here on. */
template <int N> __device__ inline void settle(float *c)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(c[i])::"memory");
}

#endif
#endif
