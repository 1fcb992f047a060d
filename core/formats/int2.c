/* int2: 2-bit integers from -1 to 1.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int2, 2, "2-bit integers -1 to 1 times the group's largest magnitude over 1");
