/* int3: 3-bit integers from -3 to 3.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int3, 3, "3-bit integers -3 to 3 times the group's largest magnitude over 3");
