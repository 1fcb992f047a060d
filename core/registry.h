/* registry.h: the fast variants beside qm_formats[], same index; written by core/registry.sh. */
#ifndef QM_REGISTRY_H
#define QM_REGISTRY_H

#include "cpu.h"
#include "format.h"

extern const qm_fast *const qm_fasts[][QM_SIMD_COUNT];

#endif
