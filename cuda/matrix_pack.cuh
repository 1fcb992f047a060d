/* matrix_pack.cuh: from the planes of a format into the layout of matrix.h, and back. */
#ifndef QM_MATRIX_PACK_CUH
#define QM_MATRIX_PACK_CUH

/* ---- where things are in the planes --------------------------------------------------------------- */

__device__ inline uint32_t source_code(const qm_matrix_source &s, uint32_t row, uint32_t col)
{
    uint64_t i = (uint64_t)row * s.cols + col;
    if (!s.block_bytes) /* flat: two codes a byte, the first in the high nibble */
        return i % 2 ? s.codes[i / 2] & 15 : s.codes[i / 2] >> 4;
    uint32_t byte = s.codes[i / 32 * s.block_bytes + (s.block_bytes - 16) + i % 16];
    return i % 32 < 16 ? byte & 15 : byte >> 4;
}

__device__ inline void set_source_pair(const qm_matrix_source &s, uint64_t i, uint32_t first, uint32_t second)
{
    if (s.block_bytes) /* elements i and i + 16 of a block */
        s.codes[i / 32 * s.block_bytes + (s.block_bytes - 16) + i % 16] = (uint8_t)(first | second << 4);
    else
        s.codes[i / 2] = (uint8_t)(first << 4 | second);
}

/* A scale's bytes, as they are, in the low ones. */
template <int BYTES> __device__ inline uint8_t *source_scale(const qm_matrix_source &s, uint32_t row, uint32_t col)
{
    uint64_t i = (uint64_t)row * s.cols + col;
    return s.block_bytes ? s.codes + i / 32 * s.block_bytes : s.scales + i / s.block * BYTES;
}

/* ---- where things are in the items ---------------------------------------------------------------- */

struct place {
    uint64_t code, scale; /* bytes from the beginning */
    bool high;            /* nibble */
};

__device__ inline uint64_t item_of(const qm_matrix &m, uint32_t row, uint32_t col)
{
    uint32_t slices = qm_matrix_slices(m.cols);
    return ((uint64_t)(row / QM_TILE_ROWS) * slices + col / QM_ITEM_COLS) * qm_item_bytes(m.scale, m.group);
}

__device__ inline place place_of(const qm_matrix &m, uint32_t row, uint32_t col)
{
    uint32_t g = row % 8, half = row % QM_TILE_ROWS / 8, in = col % QM_UNIT_COLS;
    uint32_t width = m.group < QM_UNIT_COLS ? m.group : QM_UNIT_COLS, run = width / 4;
    uint32_t t = in % width / run, k = in / width * run + in % run;
    uint32_t unit = col % QM_ITEM_COLS / QM_UNIT_COLS, per_row = 128 / m.group, bytes = qm_scale_bytes(m.scale);
    uint64_t item = item_of(m, row, col);
    place p;
    p.code = item + unit * QM_UNIT_BYTES + (4 * g + t) * 16 + half * 8 + k / 2;
    p.high = k % 2 == 0;
    p.scale = item + QM_ITEM_UNITS * QM_UNIT_BYTES
              + ((4 * g + unit / 2) * 2 * per_row + half * per_row + col % 128 / m.group) * bytes;
    return p;
}

/* ---- there --------------------------------------------------------------------------------------- */

/* A thread makes two codes, one byte of an item; rows and columns that there are not are zero. */
__global__ void pack_codes(const __grid_constant__ qm_matrix m, uint8_t *items, const __grid_constant__ qm_matrix_source s,
                           uint64_t pairs, uint32_t padded)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs)
        return;
    uint32_t row = (uint32_t)(2 * i / padded), col = (uint32_t)(2 * i % padded);
    bool there = row < m.rows && col < m.cols;
    uint32_t first = there ? source_code(s, row, col) : 0, second = there ? source_code(s, row, col + 1) : 0;
    items[place_of(m, row, col).code] = (uint8_t)(first << 4 | second);
}

template <int BYTES>
__global__ void pack_scales(const __grid_constant__ qm_matrix m, uint8_t *items, const __grid_constant__ qm_matrix_source s,
                            uint64_t groups, uint32_t padded)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= groups)
        return;
    uint32_t row = (uint32_t)(i * m.group / padded), col = (uint32_t)(i * m.group % padded);
    bool there = row < m.rows && col < m.cols;
    const uint8_t *from = there ? source_scale<BYTES>(s, row, col) : NULL;
    uint8_t *to = items + place_of(m, row, col).scale;
#pragma unroll
    for (int b = 0; b < BYTES; b++)
        to[b] = from ? from[b] : 0;
}

/* ---- and back ------------------------------------------------------------------------------------ */

__device__ inline uint32_t packed_code(const qm_matrix &m, uint64_t i)
{
    place p = place_of(m, (uint32_t)(i / m.cols), (uint32_t)(i % m.cols));
    return p.high ? m.items[p.code] >> 4 : m.items[p.code] & 15;
}

__global__ void unpack_codes(const __grid_constant__ qm_matrix m, const __grid_constant__ qm_matrix_source s, uint64_t pairs)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs)
        return;
    uint64_t first = s.block_bytes ? i / 16 * 32 + i % 16 : 2 * i;
    set_source_pair(s, first, packed_code(m, first), packed_code(m, first + (s.block_bytes ? 16 : 1)));
}

template <int BYTES>
__global__ void unpack_scales(const __grid_constant__ qm_matrix m, const __grid_constant__ qm_matrix_source s, uint64_t scales)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x, at = i * s.block;
    if (i >= scales)
        return;
    uint32_t row = (uint32_t)(at / m.cols), col = (uint32_t)(at % m.cols);
    uint8_t *to = source_scale<BYTES>(s, row, col);
    const uint8_t *from = m.items + place_of(m, row, col).scale;
#pragma unroll
    for (int b = 0; b < BYTES; b++)
        to[b] = from[b];
}

__device__ inline float packed_scale(const qm_matrix &m, uint32_t row, uint32_t col)
{
    const uint8_t *at = m.items + place_of(m, row, col).scale;
    switch (m.scale) {
    case QM_SCALE_F32: return *(const float *)at;
    case QM_SCALE_F16: return __half2float(*(const __half *)at);
    case QM_SCALE_E8M0: return __uint_as_float(*at < 2 ? 0x00200000u << *at : (uint32_t)(*at - 1) << 23);
    case QM_SCALE_NESTED: break;
    }
    uint64_t group = ((uint64_t)row * m.cols + col) / m.group;
    return __fadd_rn(__fmul_rn(m.dynamic[*at], m.nested[group / 256]), m.offset);
}

__global__ void largest_scale(const __grid_constant__ qm_matrix m, uint32_t *most, uint64_t groups, uint32_t per_row)
{
    float v = 0;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < groups; i += (uint64_t)gridDim.x * blockDim.x)
        v = fmaxf(v, fabsf(packed_scale(m, (uint32_t)(i / per_row), (uint32_t)(i % per_row) * m.group)));
    for (int i = 16; i; i /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, i));
    if (threadIdx.x % 32 == 0)
        atomicMax(most, __float_as_uint(v));
}

/* Rows of f16, row-major, for a library's matrix product: level * scale, rounded once more.  A thread has what a lane of
 * the other kernels has of one row: 16 columns of a unit, in runs.  cols is a multiple of 16. */
template <int GROUP>
__global__ void unpack_values(const __grid_constant__ qm_matrix m, __half *y, uint32_t first, uint64_t threads)
{
    constexpr int WIDTH = GROUP < QM_UNIT_COLS ? GROUP : QM_UNIT_COLS, RUN = WIDTH / 4;
    __shared__ float level[16];
    if (threadIdx.x < 16)
        level[threadIdx.x] = m.level[threadIdx.x] * m.factor;
    __syncthreads();
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= threads)
        return;
    const uint32_t t = i % 4, units = (m.cols + QM_UNIT_COLS - 1) / QM_UNIT_COLS;
    const uint32_t unit = (uint32_t)(i / 4 % units), r = (uint32_t)(i / 4 / units), row = first + r;
    const uint8_t *at = m.items + item_of(m, row, unit * QM_UNIT_COLS) + unit % QM_ITEM_UNITS * QM_UNIT_BYTES
                        + (4 * (row % 8) + t) * 16 + row % QM_TILE_ROWS / 8 * 8;
    const uint2 codes = *(const uint2 *)at;
#pragma unroll
    for (int run = 0; run < 16 / RUN; run++) {
        const uint32_t col = unit * QM_UNIT_COLS + run * WIDTH + t * RUN;
        if (col >= m.cols)
            return;
        const float scale = packed_scale(m, row, col);
        uint32_t *to = (uint32_t *)(y + (uint64_t)r * m.cols + col);
#pragma unroll
        for (int k = 0; k < RUN / 2; k++) {
            int byte = run * RUN / 2 + k;
            uint32_t code = (byte < 4 ? codes.x >> 8 * byte : codes.y >> 8 * (byte - 4)) & 255;
            __half2 two = __floats2half2_rn(level[code >> 4] * scale, level[code & 15] * scale);
            to[k] = *(uint32_t *)&two;
        }
    }
}

/* ---- launching ----------------------------------------------------------------------------------- */

static unsigned blocks_for(uint64_t n) { return (unsigned)((n + 255) / 256); }

cudaError_t qm_matrix_pack(const qm_matrix *m, uint8_t *items, const qm_matrix_source *from, cudaStream_t s)
{
    uint32_t padded = qm_matrix_slices(m->cols) * QM_ITEM_COLS;
    uint64_t n = (uint64_t)qm_matrix_tiles(m->rows) * QM_TILE_ROWS * padded, groups = n / m->group;
    pack_codes<<<blocks_for(n / 2), 256, 0, s>>>(*m, items, *from, n / 2, padded);
    switch (qm_scale_bytes(m->scale)) {
    case 4: pack_scales<4><<<blocks_for(groups), 256, 0, s>>>(*m, items, *from, groups, padded); break;
    case 2: pack_scales<2><<<blocks_for(groups), 256, 0, s>>>(*m, items, *from, groups, padded); break;
    default: pack_scales<1><<<blocks_for(groups), 256, 0, s>>>(*m, items, *from, groups, padded); break;
    }
    return cudaGetLastError();
}

cudaError_t qm_matrix_measure(const qm_matrix *m, uint8_t *items, cudaStream_t s)
{
    qm_matrix here = *m;
    here.items = items;
    uint32_t *most = (uint32_t *)(items + qm_matrix_items(m->scale, m->group, m->rows, m->cols));
    uint32_t per_row = (m->cols + m->group - 1) / m->group;
    uint64_t groups = (uint64_t)m->rows * per_row;
    cudaError_t r = cudaMemsetAsync(most, 0, 16, s);
    if (r)
        return r;
    largest_scale<<<groups < 1 << 20 ? blocks_for(groups) : 4096, 256, 0, s>>>(here, most, groups, per_row);
    return cudaGetLastError();
}

cudaError_t qm_matrix_unpack(const qm_matrix *m, const qm_matrix_source *to, cudaStream_t s)
{
    uint64_t n = (uint64_t)m->rows * m->cols, scales = n / to->block;
    unpack_codes<<<blocks_for(n / 2), 256, 0, s>>>(*m, *to, n / 2);
    switch (qm_scale_bytes(m->scale)) {
    case 4: unpack_scales<4><<<blocks_for(scales), 256, 0, s>>>(*m, *to, scales); break;
    case 2: unpack_scales<2><<<blocks_for(scales), 256, 0, s>>>(*m, *to, scales); break;
    default: unpack_scales<1><<<blocks_for(scales), 256, 0, s>>>(*m, *to, scales); break;
    }
    return cudaGetLastError();
}

cudaError_t qm_matrix_values(const qm_matrix *m, void *y, uint32_t first, uint32_t rows, cudaStream_t s)
{
    uint64_t threads = (uint64_t)rows * ((m->cols + QM_UNIT_COLS - 1) / QM_UNIT_COLS) * 4;
    switch (m->group) {
    case 16: unpack_values<16><<<blocks_for(threads), 256, 0, s>>>(*m, (__half *)y, first, threads); break;
    case 32: unpack_values<32><<<blocks_for(threads), 256, 0, s>>>(*m, (__half *)y, first, threads); break;
    default: unpack_values<64><<<blocks_for(threads), 256, 0, s>>>(*m, (__half *)y, first, threads); break;
    }
    return cudaGetLastError();
}

#endif
