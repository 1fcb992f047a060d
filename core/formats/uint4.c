/* uint4: 4-bit integers from 0 to 15, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint4, 4, "4-bit integers 0 to 15, a scale and a zero point for every group");
