/* rcp.c: see rcp.h. */
#include "rcp.h"

float qm_rcp(float a) { return qm_rcp_by(qm_rcp_deltas, a); }
