/* uint3: 3-bit integers from 0 to 7, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint3, 3, "3-bit integers 0 to 7, a scale and a zero point for every group");
