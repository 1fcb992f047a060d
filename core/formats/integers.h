/* integers.h: integers with one scale a group, as papers and AWQ, GPTQ and compressed-tensors have them.
 *
 *   symmetric, int2 ... int7 and int8g      value = code * scale, scale = absmax / most
 *     codes    b bits, holding code + 2^(b-1); code is -most ... most, most = 2^(b-1) - 1
 *     scales   one f32 a group
 *
 *   asymmetric, uint2 ... uint8             value = (code - zero) * scale, scale = (high - low) / most
 *     codes    b bits, 0 ... most, most = 2^b - 1
 *     scales   one f32 a group
 *     zeros    one u8 a group: the code that means 0
 *
 * Codes are packed as bits.h says; a group begins on a byte.  Rounding is to nearest, halves to even.  The
 * range low ... high always takes in 0, so that 0 stays 0 and a group of one sign is not shifted.  Groups run
 * over row ends, and where rows are a multiple of the group they are the groups of rows that GPTQ and AWQ
 * mean.  "int8" is the name of LLM.int8()'s format, which rounds to f16 first; int8g has groups.
 */
#ifndef QM_INTEGERS_H
#define QM_INTEGERS_H

#include "../format.h"
#include "bits.h"
#include "numeric.h"

/* NaN becomes 0. */
QM_FN int32_t qm_integer_of(float v, int32_t low, int32_t high)
{
    v = v > (float)high ? (float)high : v;
    v = v < (float)low ? (float)low : v;
    return v == v ? qm_nearest_int(v) : 0;
}

QM_FN void qm_symmetric_encode(const float *x, uint32_t n, unsigned bits, uint8_t *const plane[])
{
    const int32_t most = (1 << (bits - 1)) - 1;
    qm_bits_out codes = {.at = plane[0]};
    float absmax = 0;
    for (uint32_t i = 0; i < n; i++)
        absmax = qm_abs(x[i]) > absmax ? qm_abs(x[i]) : absmax;
    float scale = absmax / (float)most;
    memcpy(plane[1], &scale, sizeof scale);
    for (uint32_t i = 0; i < n; i++)
        qm_bits_put(&codes, (uint32_t)(qm_integer_of(x[i] / scale, -most, most) + most + 1), bits);
    qm_bits_end(&codes);
}

QM_FN void qm_symmetric_decode(const uint8_t *const plane[], uint32_t n, unsigned bits, float *y)
{
    const int32_t zero = 1 << (bits - 1);
    qm_bits_in codes = {.at = plane[0]};
    float scale;
    memcpy(&scale, plane[1], sizeof scale);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (float)((int32_t)qm_bits_get(&codes, bits) - zero) * scale;
}

QM_FN void qm_asymmetric_encode(const float *x, uint32_t n, unsigned bits, uint8_t *const plane[])
{
    const int32_t most = (1 << bits) - 1;
    qm_bits_out codes = {.at = plane[0]};
    float low = 0, high = 0;
    for (uint32_t i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    float scale = (high * 0.5f - low * 0.5f) / (float)most * 2; /* halves: high - low may be infinite */
    int32_t zero = qm_integer_of(-low / scale, 0, most);
    memcpy(plane[1], &scale, sizeof scale);
    plane[2][0] = (uint8_t)zero;
    for (uint32_t i = 0; i < n; i++)
        qm_bits_put(&codes, (uint32_t)(qm_integer_of(x[i] / scale, -zero, most - zero) + zero), bits);
    qm_bits_end(&codes);
}

QM_FN void qm_asymmetric_decode(const uint8_t *const plane[], uint32_t n, unsigned bits, float *y)
{
    qm_bits_in codes = {.at = plane[0]};
    float scale;
    memcpy(&scale, plane[1], sizeof scale);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (float)((int32_t)qm_bits_get(&codes, bits) - (int32_t)plane[2][0]) * scale;
}

/* Largest group: as many values as a codec counts. */
#define QM_INTEGERS_LONGEST (1u << 30)

/* A whole format file. */
#define QM_SYMMETRIC(id, width, text)                                    \
    QM_INTEGERS_CODE(symmetric, width)                                   \
    const qm_format qm_format_##id = {                                   \
        QM_INTEGERS_SHARED(#id, text),                                   \
        .plane = {{"codes", QM_U8, width, 0}, {"scales", QM_F32, 0, 4}}, \
        .bound = 0.5001 / ((1 << (width - 1)) - 1), /* half a step */    \
        .encode = encode,                                                \
        .decode = decode,                                                \
    }

#define QM_ASYMMETRIC(id, width, text)                                                           \
    QM_INTEGERS_CODE(asymmetric, width)                                                          \
    const qm_format qm_format_##id = {                                                           \
        QM_INTEGERS_SHARED(#id, text),                                                           \
        .plane = {{"codes", QM_U8, width, 0}, {"scales", QM_F32, 0, 4}, {"zeros", QM_U8, 0, 1}}, \
        .bound = 1.0002 / ((1 << width) - 1), /* half a step of twice the absmax */              \
        .encode = encode,                                                                        \
        .decode = decode,                                                                        \
    }

#define QM_INTEGERS_SHARED(id, text)                                                            \
    .name = id, .doc = text, .source = "ours, after AWQ and GPTQ", .block = 64, .block_min = 1, \
    .block_max = QM_INTEGERS_LONGEST, .any_block = true, .over_rows = true, .gguf_type = -1

#define QM_INTEGERS_CODE(kind, width)                                                        \
    QM_FN void encode(const float *x, uint32_t n, const qm_codec *c, uint8_t *const plane[]) \
    {                                                                                        \
        (void)c;                                                                             \
        qm_##kind##_encode(x, n, width, plane);                                              \
    }                                                                                        \
    QM_FN void decode(const uint8_t *const plane[], uint32_t n, const qm_codec *c, float *y) \
    {                                                                                        \
        (void)c;                                                                             \
        qm_##kind##_decode(plane, n, width, y);                                              \
    }

#endif
