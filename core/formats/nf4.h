/* nf4.h: NF4's two tables. */
#ifndef QM_NF4_H
#define QM_NF4_H

#include "../half.h"

/* Quantiles of a normal distribution, scaled to [-1, 1]: eight positive levels, zero, seven
 * negative ones (QLoRA, arXiv 2305.14314, appendix E).  Index = code. */
QM_TABLE float qm_nf4_value[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

/* v above threshold i has a code above i.  These are the constants in bitsandbytes' CUDA code; those
 * marked lie one unit in the last place off the midpoint of their neighbours. */
QM_TABLE float qm_nf4_threshold[15] = {
    -0x1.b239b2p-1f, /* off */
    -0x1.38a4e0p-1f, -0x1.d70900p-2f, -0x1.5bd4ecp-2f, -0x1.e079d8p-3f,
    -0x1.1a7178p-3f, -0x1.74f0e2p-5f, 0x1.45f5fep-5f,  0x1.ec90c6p-4f, /* off */
    0x1.a0cfc0p-3f,  0x1.2b05a8p-2f,  0x1.8ea7f2p-2f,  0x1.00da06p-1f, /* off */
    0x1.491b5ep-1f,  0x1.b913b2p-1f,                                   /* off */
};

#endif
