/* elements.cuh: f32, f16 and bf16 values in registers, eight at a time. */
#ifndef QM_ELEMENTS_CUH
#define QM_ELEMENTS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* Eight values as they lie in memory. */
template <qm_dtype D> struct eight {
    static constexpr int PARTS = D == QM_F32 ? 2 : 1;
    uint4 part[PARTS];
};

template <qm_dtype D> __device__ inline eight<D> load_eight(const void *x, uint64_t i)
{
    eight<D> v;
    const uint4 *p = (const uint4 *)x + i * eight<D>::PARTS;
    for (int k = 0; k < eight<D>::PARTS; k++)
        v.part[k] = __ldg(p + k);
    return v;
}

__device__ inline float2 pair_of(eight<QM_BF16> v, int i)
{
    uint32_t w = (&v.part[0].x)[i];
    return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
}

__device__ inline float2 pair_of(eight<QM_F16> v, int i)
{
    uint32_t w = (&v.part[0].x)[i];
    return __half22float2(*(const __half2 *)&w);
}

__device__ inline float2 pair_of(eight<QM_F32> v, int i)
{
    const uint4 p = v.part[i / 2];
    return i % 2 ? make_float2(__uint_as_float(p.z), __uint_as_float(p.w))
                 : make_float2(__uint_as_float(p.x), __uint_as_float(p.y));
}

template <qm_dtype D> __device__ inline void unpack(eight<D> v, float x[8])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 p = pair_of(v, i);
        x[2 * i] = p.x;
        x[2 * i + 1] = p.y;
    }
}

/* Rounded to nearest, ties to even. */
template <qm_dtype D> __device__ inline uint32_t pack_pair(float low, float high)
{
    if constexpr (D == QM_BF16) {
        __nv_bfloat162 p = __floats2bfloat162_rn(low, high);
        return *(uint32_t *)&p;
    } else {
        __half2 p = __floats2half2_rn(low, high);
        return *(uint32_t *)&p;
    }
}

/* One value, rounded and converted as core/half.h does. */
__device__ inline float load_one(const void *x, qm_dtype d, uint64_t i)
{
    if (d == QM_F32)
        return ((const float *)x)[i];
    uint16_t h = ((const uint16_t *)x)[i];
    return d == QM_F16 ? qm_f16_to_f32(h) : qm_bf16_to_f32(h);
}

__device__ inline void store_one(void *y, qm_dtype d, uint64_t i, float v)
{
    if (d == QM_F32)
        ((float *)y)[i] = v;
    else
        ((uint16_t *)y)[i] = d == QM_F16 ? qm_f32_to_f16(v) : qm_f32_to_bf16(v);
}

/* A product in flush-to-zero arithmetic: bnb.h's qm_bnb_times as one instruction. */
__device__ inline float times_ftz(float x, float y)
{
    float p;
    asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(p) : "f"(x), "f"(y));
    return p;
}

/* ---- largest magnitudes --------------------------------------------------------------------------
 *
 * of_eight, then joined; NaN is passed over, and is what comes out of nothing but NaN.  Two 16-bit values
 * are compared at once where the GPU can. */

template <qm_dtype D> struct magnitude;

template <> struct magnitude<QM_F32> {
    float most;
    __device__ static magnitude of_eight(eight<QM_F32> v)
    {
        float x[8];
        unpack(v, x);
        float m = fmaxf(fabsf(x[0]), fabsf(x[1]));
#pragma unroll
        for (int i = 2; i < 8; i++)
            m = fmaxf(m, fabsf(x[i]));
        return {m};
    }
    __device__ magnitude join(magnitude o) const { return {fmaxf(most, o.most)}; }
    __device__ magnitude other_lane(int mask) const { return {__shfl_xor_sync(~0u, most, mask)}; }
    __device__ float value() const { return most; }
};

template <class P> struct packed_magnitude {
    P most;
    __device__ static packed_magnitude of_words(uint4 w)
    {
        P a = __habs2(*(P *)&w.x), b = __habs2(*(P *)&w.y), c = __habs2(*(P *)&w.z), d = __habs2(*(P *)&w.w);
        return {__hmax2(__hmax2(a, b), __hmax2(c, d))};
    }
    __device__ packed_magnitude join(packed_magnitude o) const { return {__hmax2(most, o.most)}; }
    __device__ packed_magnitude other_lane(int mask) const
    {
        uint32_t w = __shfl_xor_sync(~0u, *(const uint32_t *)&most, mask);
        return {*(P *)&w};
    }
};

template <> struct magnitude<QM_BF16> : packed_magnitude<__nv_bfloat162> {
    __device__ magnitude(packed_magnitude<__nv_bfloat162> m) : packed_magnitude(m) {}
    __device__ static magnitude of_eight(eight<QM_BF16> v) { return of_words(v.part[0]); }
    __device__ float value() const { return fmaxf(__low2float(most), __high2float(most)); }
};

template <> struct magnitude<QM_F16> : packed_magnitude<__half2> {
    __device__ magnitude(packed_magnitude<__half2> m) : packed_magnitude(m) {}
    __device__ static magnitude of_eight(eight<QM_F16> v) { return of_words(v.part[0]); }
    __device__ float value() const { return fmaxf(__low2float(most), __high2float(most)); }
};

/* The larger; NaN when one is. */
__device__ inline float max_or_nan(float a, float b)
{
#if __CUDA_ARCH__ >= 800
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
#else
    return a > b || a != a ? a : b;
#endif
}

/* ---- ranges -----------------------------------------------------------------------------------------
 *
 * Both ends of a range of values, of_eight and then joined; NaN where there is one among them. */

template <qm_dtype D> struct range;

template <> struct range<QM_F32> {
    float high, low; /* the lower end negated */
    __device__ static range of_eight(eight<QM_F32> v)
    {
        float x[8];
        unpack(v, x);
        range r = {x[0], -x[0]};
#pragma unroll
        for (int i = 1; i < 8; i++)
            r = r.join({x[i], -x[i]});
        return r;
    }
    __device__ range join(range o) const { return {max_or_nan(high, o.high), max_or_nan(low, o.low)}; }
    __device__ range other_lane(int mask) const
    {
        return {__shfl_xor_sync(~0u, high, mask), __shfl_xor_sync(~0u, low, mask)};
    }
    __device__ float top() const { return high; }
    __device__ float bottom() const { return -low; }
};

template <class P> struct packed_range {
    P high, low;
    __device__ static packed_range of_words(uint4 w)
    {
        P a = *(P *)&w.x, b = *(P *)&w.y, c = *(P *)&w.z, d = *(P *)&w.w;
        return {__hmax2_nan(__hmax2_nan(a, b), __hmax2_nan(c, d)), __hmin2_nan(__hmin2_nan(a, b), __hmin2_nan(c, d))};
    }
    __device__ packed_range join(packed_range o) const { return {__hmax2_nan(high, o.high), __hmin2_nan(low, o.low)}; }
    __device__ packed_range other_lane(int mask) const
    {
        uint32_t h = __shfl_xor_sync(~0u, *(const uint32_t *)&high, mask), l = __shfl_xor_sync(~0u, *(const uint32_t *)&low, mask);
        return {*(P *)&h, *(P *)&l};
    }
    __device__ float top() const { return max_or_nan(__low2float(high), __high2float(high)); }
    __device__ float bottom() const { return -max_or_nan(-__low2float(low), -__high2float(low)); }
};

template <> struct range<QM_BF16> : packed_range<__nv_bfloat162> {
    __device__ range(packed_range<__nv_bfloat162> r) : packed_range(r) {}
    __device__ static range of_eight(eight<QM_BF16> v) { return of_words(v.part[0]); }
};

template <> struct range<QM_F16> : packed_range<__half2> {
    __device__ range(packed_range<__half2> r) : packed_range(r) {}
    __device__ static range of_eight(eight<QM_F16> v) { return of_words(v.part[0]); }
};

/* The range of what is not NaN. */
struct number_range {
    float high, low;

    __device__ number_range join(number_range o) const { return {fmaxf(high, o.high), fminf(low, o.low)}; }
    __device__ number_range other_lane(int mask) const
    {
        return {__shfl_xor_sync(~0u, high, mask), __shfl_xor_sync(~0u, low, mask)};
    }
};

/* The largest of 2, 4, 8, 16 or 32 neighbouring lanes, in all of them. */
template <class M> __device__ inline M among_lanes(M m, int lanes)
{
    for (int mask = lanes / 2; mask; mask /= 2)
        m = m.join(m.other_lane(mask));
    return m;
}

#endif
