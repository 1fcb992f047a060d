/* functions.cuh: functions of one value that several kernels have. */
#ifndef QM_FUNCTIONS_CUH
#define QM_FUNCTIONS_CUH

__device__ inline float silu(float x) { return x / (1 + expf(-x)); }

__device__ inline float gelu_tanh(float x)
{
    return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/* 2^(14 - e) for the exponent e of v, which brings it into f16's range; 1 for what has none to speak of. */
__device__ inline float to_half_range(float v)
{
    int e = (int)(__float_as_uint(v) >> 23 & 255) - 127;
    return e < -100 || e == 128 ? 1.0f : __uint_as_float((uint32_t)(14 - e + 127) << 23);
}

/* 2^v, to 22 bits. */
__device__ inline float power_of_two(float v)
{
    float p;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v));
    return p;
}

#endif
