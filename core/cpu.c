/* cpu.c: see cpu.h. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "cpu.h"

const char *const qm_simd_names[QM_SIMD_COUNT] = {"scalar", "avx2", "avx512"};

/* The one variable: tests and benchmarks lower it. */
static atomic_int lid = QM_AVX512;

#ifdef __x86_64__
/* What not every compiler's run-time tables know: f16c and lzcnt. */
static bool more_of_avx2(void)
{
    static atomic_int known = -1; /* a virtual machine takes tens of microseconds for each of these */
    unsigned a, b, c, d, extended;
    int has = atomic_load_explicit(&known, memory_order_relaxed);
    if (has < 0) {
        has = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0
              && __get_cpuid(0x80000001, &a, &b, &extended, &d) && (extended & bit_LZCNT) != 0;
        atomic_store_explicit(&known, has, memory_order_relaxed);
    }
    return has;
}
#endif

/* The compiler's run-time tables count an instruction set only when the system saves its registers too. */
static qm_simd usable(void)
{
#ifdef __x86_64__
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && more_of_avx2();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                  && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                  && __builtin_cpu_supports("avx512vbmi");
    return avx512 ? QM_AVX512 : avx2 ? QM_AVX2 : QM_SCALAR;
#else
    return QM_SCALAR;
#endif
}

qm_simd qm_cpu_simd(void)
{
    qm_simd best = usable(), highest = (qm_simd)atomic_load_explicit(&lid, memory_order_relaxed);
    return best < highest ? best : highest;
}

void qm_cpu_limit(qm_simd highest) { atomic_store_explicit(&lid, (int)highest, memory_order_relaxed); }

bool qm_cpu_vnni(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

int qm_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN); /* more than 1024 processors do not fit a cpu_set_t */
    return n > 0 ? (int)n : 1;
}
