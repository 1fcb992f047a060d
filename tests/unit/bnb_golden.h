/* bnb_golden.h: digests of what bitsandbytes' CUDA kernels write for golden.h's values, from their arithmetic
 * run on an H200: the first 16 digits of the SHA-256 of the raw bytes. */
#ifndef QM_BNB_GOLDEN_H
#define QM_BNB_GOLDEN_H

#include "../../core/qm.h"

typedef struct golden {
    qm_dtype dtype;
    const char *format;
    uint32_t block;
    const char *codes, *absmax, *decoded;
} golden;

static const golden bnb[] = {
    {QM_F32, "dynamic8", 64, "77c55ef1d869c4f4", "45fe7dbb3df21951", "7fd9e1bfcfaf9cad"},
    {QM_F32, "dynamic8", 256, "dab09986307e5501", "3cd8519b27bdbcfb", "8ab58e2fcd5b2658"},
    {QM_F32, "dynamic8", 4096, "bba513706d5796de", "ce3075909f56dfdf", "5cdd8d9377b10550"},
    {QM_F32, "fp4", 64, "5342a19d00dcc670", "45fe7dbb3df21951", "a842c4faae199374"},
    {QM_F32, "fp4", 256, "be820503025318f9", "3cd8519b27bdbcfb", "571f223a3aeb9d3a"},
    {QM_F32, "fp4", 4096, "99e85b0a07021b4b", "ce3075909f56dfdf", "e825b1a34d260810"},
    {QM_F32, "nf4", 64, "b53e16e52f6f44bb", "45fe7dbb3df21951", "02b773367bab1e8f"},
    {QM_F32, "nf4", 256, "28b08b3da3b8ebba", "3cd8519b27bdbcfb", "4181fe0c99dc0d2d"},
    {QM_F32, "nf4", 4096, "7253f5e64b0fd99d", "ce3075909f56dfdf", "34336e65b74b6a57"},
    {QM_BF16, "dynamic8", 64, "23a6d87410dcb9e4", "f918b66bf614149b", "a20d8329e65b27bc"},
    {QM_BF16, "dynamic8", 256, "7c14b69a6010f02f", "7c25bd4b5251f29a", "0e9df5733102a07a"},
    {QM_BF16, "dynamic8", 4096, "1db0fad2a090a693", "2fcef1dd8c5138d9", "8b6feb9bd7407f08"},
    {QM_BF16, "fp4", 64, "550353fef8718654", "f918b66bf614149b", "141251b6d08f6c54"},
    {QM_BF16, "fp4", 256, "989b9182844c7f59", "7c25bd4b5251f29a", "b0367c8a06d1dbed"},
    {QM_BF16, "fp4", 4096, "60f5f448ecb71126", "2fcef1dd8c5138d9", "9dc3d566aecf7a0c"},
    {QM_BF16, "nf4", 64, "ce868b17450b5ef4", "f918b66bf614149b", "d033e01f5893ff96"},
    {QM_BF16, "nf4", 256, "927ed0af64816a02", "7c25bd4b5251f29a", "0e4ff3c0268d0e71"},
    {QM_BF16, "nf4", 4096, "6f5280986540b2be", "2fcef1dd8c5138d9", "b7e9fad5fbc6a9c5"},
    {QM_F16, "dynamic8", 64, "4a23693916153809", "11868886ec8d32f4", "2dd1493813d4b355"},
    {QM_F16, "dynamic8", 256, "bd9b620197bd300e", "14a9acb6dcfcc6ca", "baef0d273a904306"},
    {QM_F16, "dynamic8", 4096, "08cd88e54eb0c715", "bedd7e5fdaae7374", "31d69e72743289ba"},
    {QM_F16, "fp4", 64, "1e1eba57487fca5a", "11868886ec8d32f4", "615306321488ea31"},
    {QM_F16, "fp4", 256, "9fdb88ad5e241ffd", "14a9acb6dcfcc6ca", "431fca4bdcc1a3b3"},
    {QM_F16, "fp4", 4096, "ac2987f547c496e3", "bedd7e5fdaae7374", "c891e2ed383444c0"},
    {QM_F16, "nf4", 64, "40c5ac3572df9475", "11868886ec8d32f4", "072d2e082b2b9685"},
    {QM_F16, "nf4", 256, "f3d3fc3e5c42043c", "14a9acb6dcfcc6ca", "a7969d4388201853"},
    {QM_F16, "nf4", 4096, "21af30847142988a", "bedd7e5fdaae7374", "b67e01099b0e9e9d"},
};

/* Second level over the absmax of nf4, block 64; the decoded column is before the offset is added. */
static const golden bnb_double[] = {
    {QM_F32, "nf4", 64, "814b4b0da5b64c78", "be4555d1975a6e78", "2a4a725955aa888d"},
    {QM_BF16, "nf4", 64, "d7f4d243ef1c9efd", "e0cfb1394bc18a27", "4ff71fe2930280d8"},
    {QM_F16, "nf4", 64, "cdbc4c6e3b672aaf", "ad5d3963da8f188a", "d0c7d60e595d45ab"},
};

#endif
