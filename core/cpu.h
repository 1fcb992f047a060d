/* cpu.h: which instructions this CPU has, found once, and a lid for tests and benchmarks. */
#ifndef QM_CPU_H
#define QM_CPU_H

#include <stdbool.h>

typedef enum {
    QM_SCALAR, /* any x86-64 (or any other machine) */
    QM_AVX2,   /* AVX2 + F16C + BMI */
    QM_AVX512, /* AVX-512 F, BW, VL, DQ, VBMI */
    QM_SIMD_COUNT
} qm_simd;

extern const char *const qm_simd_names[QM_SIMD_COUNT];

qm_simd qm_cpu_simd(void);          /* best usable level, no higher than the lid */
void qm_cpu_limit(qm_simd highest); /* the bytes written never depend on it */
bool qm_cpu_vnni(void);             /* AVX-512's products of bytes, which go with QM_AVX512 */
int qm_cpu_count(void);             /* processors this process may run on */

#endif
