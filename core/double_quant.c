/* double_quant.c: see double_quant.h. */
#include "double_quant.h"
#include "format.h"

extern const qm_format qm_format_dynamic8;

static const qm_codec codec = {.block = QM_DOUBLE_QUANT_BLOCK};

float qm_double_quant_offset(const float *absmax, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += absmax[i];
    return n ? qm_bf16_to_f32(qm_f32_to_bf16((float)(sum / (double)n))) : 0.0f;
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
