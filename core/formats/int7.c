/* int7: 7-bit integers from -63 to 63.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int7, 7, "7-bit integers -63 to 63 times the group's largest magnitude over 63");
