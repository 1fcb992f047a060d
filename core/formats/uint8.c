/* uint8: 8-bit integers from 0 to 255, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint8, 8, "8-bit integers 0 to 255, a scale and a zero point for every group");
