/* importance.h: how much each weight of a group counts when the importance of its column is known
 * (llama.cpp's importance matrix: the mean square of what the column is multiplied by). */
#ifndef QM_IMPORTANCE_H
#define QM_IMPORTANCE_H

#include <math.h>

#include "numeric.h"

QM_FN float qm_sum_squares(const float *x, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

/* A large weight counts more than a small one; `power` is what keeps the small ones from counting nothing. */
QM_FN void qm_importance(const float *x, const float *column, float power, int n, float *w)
{
    for (int i = 0; i < n; i++)
        w[i] = column[i] * sqrtf(power + x[i] * x[i]);
}

QM_FN float qm_sum(const float *x, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

#endif
