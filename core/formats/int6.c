/* int6: 6-bit integers from -31 to 31.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int6, 6, "6-bit integers -31 to 31 times the group's largest magnitude over 31");
