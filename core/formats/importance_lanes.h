/* importance_lanes.h: importance.h with a group to a lane; included after wide.h. */
#ifndef QM_IMPORTANCE_LANES_H
#define QM_IMPORTANCE_LANES_H

#include "importance.h"

/* w holds the columns' importance and becomes that of each weight. */
static inline void importance_of(const lanes *x, lanes power, int n, lanes *w)
{
    for (int i = 0; i < n; i++)
        w[i] *= lanes_sqrt(power + x[i] * x[i]);
}

/* The sum of squares of each of up to LANES blocks of n values, n a multiple of 4. */
static inline void block_squares(const float *x, size_t blocks, size_t n, float sum[LANES])
{
    const float *row[LANES];
    lanes total = lanes_of(0), column[4];
    lanes_rows(x, blocks, n, row);
    for (size_t i = 0; i < n; i += 4) {
        lanes_turn4(row, i, column);
        for (int j = 0; j < 4; j++)
            total += column[j] * column[j];
    }
    lanes_store(sum, total);
}

#endif
