/* int4: 4-bit integers from -7 to 7.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int4, 4, "4-bit integers -7 to 7 times the group's largest magnitude over 7");
