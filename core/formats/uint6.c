/* uint6: 6-bit integers from 0 to 63, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint6, 6, "6-bit integers 0 to 63, a scale and a zero point for every group");
