/* half.h: 16-bit floats, one value at a time, the same on every machine and under nvcc.
 *
 *   f16   s eeeee mmmmmmmmmm        bias 15, subnormals kept
 *   bf16  s eeeeeeee mmmmmmm        the upper half of an f32
 *
 * Narrowing rounds to nearest, ties to even; |x| >= 65520 becomes an infinite f16; a NaN
 * stays a NaN and turns quiet (payload dropped for f16 as ggml does, kept for bf16).
 */
#ifndef QM_HALF_H
#define QM_HALF_H

#include <stdint.h>
#include <string.h>

/* Functions and tables that formats are made of.  nvcc compiles the same text, for the GPU alone. */
#ifdef __CUDACC__
#define QM_FN    static __device__ inline
#define QM_TABLE static __device__ const
#else
#define QM_FN    static inline
#define QM_TABLE static const
#endif

QM_FN uint32_t qm_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

QM_FN float qm_bits_f32(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* The bits of a result, in which a NaN that arithmetic has made is x86's negative one, on a GPU too: NVIDIA's
 * is positive, and all ones.  (A NaN that was in an operand x86 passes on and NVIDIA does not: there the two
 * differ.) */
QM_FN uint32_t qm_result_bits(float x)
{
    uint32_t u = qm_f32_bits(x);
#ifdef __CUDACC__
    u = (u & 0x7fffffffu) == 0x7fffffffu ? u ^ 0x803fffffu : u;
#endif
    return u;
}

QM_FN float qm_bf16_to_f32(uint16_t h) { return qm_bits_f32((uint32_t)h << 16); }

QM_FN uint16_t qm_f32_to_bf16(float x)
{
    uint32_t u = qm_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 64);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

QM_FN float qm_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31, man = h & 0x3ffu;
    if (exp == 31)
        return qm_bits_f32(sign | 0x7f800000u | (man << 13));
    if (exp == 0) { /* man * 2^-24 is exact in f32 */
        float v = (float)man * 5.9604644775390625e-8f;
        return qm_bits_f32(sign | qm_f32_bits(v));
    }
    return qm_bits_f32(sign | ((exp + 112) << 23) | (man << 13));
}

QM_FN uint16_t qm_f32_to_f16(float x)
{
    uint32_t u = qm_result_bits(x), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (u >= 0x477ff000u) /* 65520 and up */
        return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) { /* below 2^-14: subnormal, rounded by the f32 adder itself */
        float v = qm_bits_f32(u) + 0.5f;
        return (uint16_t)(sign | (qm_f32_bits(v) - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

#endif
