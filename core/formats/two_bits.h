/* two_bits.h: 256 codes of two bits as q2_k and q3_k pack them: byte 32h + l (h < 2, l < 32) holds, from its
 * lowest bits up, codes l, l + 32, l + 64 and l + 96 of half h. */
#ifndef QM_TWO_BITS_H
#define QM_TWO_BITS_H

#include "numeric.h"

QM_FN void qm_two_bits_pack(const uint8_t *code, uint8_t packed[64])
{
    for (int h = 0; h < 2; h++, code += 128, packed += 32)
        for (int l = 0; l < 32; l++)
            packed[l] = (uint8_t)((code[l] & 3) | (code[l + 32] & 3) << 2 | (code[l + 64] & 3) << 4
                                  | (code[l + 96] & 3) << 6);
}

QM_FN void qm_two_bits_unpack(const uint8_t packed[64], uint8_t *code)
{
    for (int h = 0; h < 2; h++, code += 128, packed += 32)
        for (int l = 0; l < 32; l++)
            for (int q = 0; q < 4; q++)
                code[l + 32 * q] = packed[l] >> 2 * q & 3;
}

#endif
