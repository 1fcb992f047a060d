/* uint2: 2-bit integers from 0 to 3, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint2, 2, "2-bit integers 0 to 3, a scale and a zero point for every group");
