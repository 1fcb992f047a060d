/* order.cuh: floats as whole numbers that are in the same order, for finding the largest of many. */
#ifndef QM_ORDER_CUH
#define QM_ORDER_CUH

#include <stdint.h>

enum : uint32_t { ORDER_OF_NAN = 0xffffffffu, ORDER_OF_INFINITY = 0xff800000u, ORDER_OF_NOTHING = 0x007fffffu /* -infinity */ };

/* A NaN, of any sign, is the most; the two zeros are the same. */
__device__ inline uint32_t in_order(float v)
{
    uint32_t u = v == 0 ? 0 : __float_as_uint(v);
    return v != v ? ORDER_OF_NAN : u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ inline float of_order(uint32_t k) { return __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k); }

/* Of equal values the first is the most. */
__device__ inline unsigned long long in_order_at(float v, uint32_t i) { return (unsigned long long)in_order(v) << 32 | (uint32_t)~i; }

__device__ inline unsigned long long most_in_warp(unsigned long long v)
{
#pragma unroll
    for (int i = 16; i; i /= 2) {
        unsigned long long other = __shfl_xor_sync(~0u, v, i);
        v = other > v ? other : v;
    }
    return v;
}

#endif
