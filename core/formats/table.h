/* table.h: the format of every codebook: any 2 to 256 levels, data instead of code.
 *
 *   codes    bits a weight, as bits.h packs them      value = level[code] * absmax
 *   absmax   one f32 a group
 *
 * bits is the least that tells the levels apart.  A weight takes the code of the level nearest to
 * x / absmax, and halfway between two that of the lower one, as NF4 does; NaN takes the lowest level.  Codes
 * number the levels in the order they were given in; ranks number them from the lowest up.
 *
 * The rank of a value is the number of thresholds it exceeds.  They are kept as a search tree: node 1 is the
 * root, below node j lie 2j (v is not above) and 2j + 1, and past the last layer, at 2^bits + r, rank r.
 */
#ifndef QM_TABLE_H
#define QM_TABLE_H

#include <stdbool.h>

#include "../format.h"
#include "bits.h"
#include "numeric.h"

#define QM_MAX_LEVELS 256

typedef struct qm_table {
    uint32_t count, bits;
    bool ascending;             /* levels were given lowest first: code[r] == r */
    float level[QM_MAX_LEVELS]; /* by code; 0 for codes that stand for none */
    float tree[QM_MAX_LEVELS];  /* infinite above the highest level's threshold */
    uint8_t code[QM_MAX_LEVELS];
} qm_table;

QM_FN uint32_t qm_table_code(const qm_table *t, float v)
{
    uint32_t j = 1;
    for (uint32_t i = 0; i < t->bits; i++)
        j = 2 * j + (v > t->tree[j]);
    return t->code[j - (1u << t->bits)];
}

/* From here up, the reciprocal is finite. */
#define QM_TABLE_LEAST_ABSMAX 0x1p-126f

QM_FN float qm_table_absmax(const float *x, uint32_t n)
{
    float most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = qm_abs(x[i]) > most ? qm_abs(x[i]) : most;
    return most;
}

QM_FN float qm_table_scaled(float x, float absmax)
{
    if (absmax >= QM_TABLE_LEAST_ABSMAX)
        return x * (1 / absmax);
    return absmax > 0 ? x / absmax : 0;
}

QM_FN void qm_table_encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[])
{
    qm_bits_out codes = {.at = plane[0]};
    float absmax = qm_table_absmax(x, n);
    memcpy(plane[1], &absmax, sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        qm_bits_put(&codes, qm_table_code(c->table, qm_table_scaled(x[i], absmax)), c->table->bits);
    qm_bits_end(&codes);
}

QM_FN void qm_table_decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y)
{
    qm_bits_in codes = {.at = plane[0]};
    float absmax;
    memcpy(&absmax, plane[1], sizeof absmax);
    for (uint32_t i = 0; i < n; i++)
        y[i] = c->table->level[qm_bits_get(&codes, c->table->bits)] * absmax;
}

#endif
