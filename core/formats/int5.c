/* int5: 5-bit integers from -15 to 15.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int5, 5, "5-bit integers -15 to 15 times the group's largest magnitude over 15");
