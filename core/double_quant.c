/* double_quant.c: see double_quant.h. */
#include "double_quant.h"

#include <string.h>

#include "format.h"

extern const qm_format qm_format_dynamic8;

static const qm_codec codec = {.block = QM_DOUBLE_QUANT_BLOCK};

/* The sum of QM_DOUBLE_QUANT_BLOCK values; they are overwritten. */
static double fold(double *v)
{
    for (size_t half = QM_DOUBLE_QUANT_BLOCK / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            v[i] += v[i + half];
    return v[0];
}

/* A number in base 256, a digit being sums that still wait to be folded. */
enum { LEVELS = 5 };

typedef struct folded {
    double sum[LEVELS][QM_DOUBLE_QUANT_BLOCK];
    size_t count[LEVELS];
} folded;

static void add(folded *f, double v)
{
    for (int level = 0; level < LEVELS; level++) {
        f->sum[level][f->count[level]++] = v;
        if (f->count[level] < QM_DOUBLE_QUANT_BLOCK)
            return;
        v = fold(f->sum[level]);
        f->count[level] = 0;
    }
}

/* What is left on the lower levels is filled up and carried. */
static double finish(folded *f)
{
    double v = 0;
    for (int level = 0; level < LEVELS; level++) {
        if (level)
            f->sum[level][f->count[level]++] = v;
        for (size_t i = f->count[level]; i < QM_DOUBLE_QUANT_BLOCK; i++)
            f->sum[level][i] = 0;
        v = fold(f->sum[level]);
    }
    return v;
}

float qm_double_quant_offset(const float *absmax, size_t n)
{
    folded f;
    memset(f.count, 0, sizeof f.count);
    for (size_t i = 0; i < n; i++)
        add(&f, absmax[i]);
    return n ? qm_bf16_to_f32(qm_f32_to_bf16((float)(finish(&f) / (double)n))) : 0.0f;
}

void qm_double_quant(const float *absmax, size_t n, float offset, uint8_t *codes, float *nested_absmax)
{
    float moved[QM_DOUBLE_QUANT_BLOCK];
    for (size_t at = 0; at < n; at += QM_DOUBLE_QUANT_BLOCK) {
        size_t m = n - at < QM_DOUBLE_QUANT_BLOCK ? n - at : QM_DOUBLE_QUANT_BLOCK;
        for (size_t i = 0; i < m; i++)
            moved[i] = absmax[at + i] - offset;
        uint8_t *plane[] = {codes + at, (uint8_t *)(nested_absmax + at / QM_DOUBLE_QUANT_BLOCK)};
        qm_encode(&qm_format_dynamic8, moved, m, &codec, plane);
    }
}

void qm_double_dequant(const uint8_t *codes, const float *nested_absmax, size_t n, float offset,
                       float *absmax)
{
    const uint8_t *plane[] = {codes, (const uint8_t *)nested_absmax};
    qm_decode(&qm_format_dynamic8, plane, n, &codec, absmax);
    for (size_t i = 0; i < n; i++)
        absmax[i] += offset;
}
