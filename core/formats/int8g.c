/* int8g: 8-bit integers from -127 to 127, in groups.  See integers.h. */
#include "integers.h"

QM_SYMMETRIC(int8g, 8, "8-bit integers -127 to 127 times the group's largest magnitude over 127");
