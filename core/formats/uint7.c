/* uint7: 7-bit integers from 0 to 127, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint7, 7, "7-bit integers 0 to 127, a scale and a zero point for every group");
