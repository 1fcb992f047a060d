/* uint5: 5-bit integers from 0 to 31, one of which means 0.  See integers.h. */
#include "integers.h"

QM_ASYMMETRIC(uint5, 5, "5-bit integers 0 to 31, a scale and a zero point for every group");
