/* five_bits.h: 32 codes of five bits as q5_0 and q5_1 pack them.
 *
 *   fifth: 32 bits, lowest first: bit i is bit 4 of code i
 *   pair:  16 bytes, the low four bits of code j in the low nibble, of code j + 16 in the high
 */
#ifndef QM_FIVE_BITS_H
#define QM_FIVE_BITS_H

#include "numeric.h"

QM_FN void qm_five_bits_pack(const uint8_t code[32], uint8_t fifth[4], uint8_t pair[16])
{
    memset(fifth, 0, 4);
    for (int i = 0; i < 32; i++)
        fifth[i / 8] = (uint8_t)(fifth[i / 8] | (code[i] >> 4 & 1) << i % 8);
    for (int j = 0; j < 16; j++)
        pair[j] = (uint8_t)((code[j] & 15) | (code[j + 16] & 15) << 4);
}

QM_FN void qm_five_bits_unpack(const uint8_t fifth[4], const uint8_t pair[16], uint8_t code[32])
{
    for (int j = 0; j < 16; j++) {
        code[j] = pair[j] & 15;
        code[j + 16] = pair[j] >> 4;
    }
    for (int i = 0; i < 32; i++)
        code[i] = (uint8_t)(code[i] | (fifth[i / 8] >> i % 8 & 1) << 4);
}

#endif
