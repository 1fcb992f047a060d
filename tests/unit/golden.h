/* golden.h: the values that golden digests of formats were made from. */
#ifndef QM_GOLDEN_H
#define QM_GOLDEN_H

#include <stdint.h>
#include <string.h>

enum { COUNT = 65573, EVEN = 65536 };

/* What the goldens are made from: about normal, sigma 0.02, all exact in f32, one block of zeros. */
static inline void golden_values(float *x)
{
    uint32_t s = 12345;
    for (int i = 0; i < COUNT; i++) {
        uint32_t sum = 0;
        for (int j = 0; j < 4; j++) {
            s = s * 1664525u + 1013904223u;
            sum += s >> 10;
        }
        x[i] = (float)((int32_t)sum - (1 << 23)) * 0x1p-28f;
    }
    memset(x + 192, 0, 64 * sizeof *x);
}

#endif
