/* walk.cuh: the kernel that walks through a program (program.h). */
#ifndef QM_WALK_CUH
#define QM_WALK_CUH

enum { WALK_THREADS = 512, WALK_WARPS = WALK_THREADS / 32, WALK_SLOTS = 8, WALK_AHEAD = 5, WALK_GROUP = 8, WALK_KEYS = 16 };

/* Shared memory: pairs, the map of nested scales, phases with the block's plan of each, what is known (walk_known, attend_range,
 * sines and cosines), rows (row_end), the scales under way, and what a phase has for itself. */
static constexpr uint32_t WALK_SLOT = QM_PHASE_BYTES + sizeof(qm_block_plan);
static constexpr uint32_t WALK_MAP = PAIRS_BYTES, WALK_PHASES = WALK_MAP + 1024, WALK_KNOWN = WALK_PHASES + (uint32_t)WALK_SLOTS * WALK_SLOT,
                          WALK_RANGE = WALK_KNOWN + 16 + WALK_WARPS * 4, WALK_TURNS = WALK_RANGE + 64, WALK_ROWS = WALK_TURNS + 128 / 2 * 8,
                          WALK_OWN = WALK_ROWS + WALK_THREADS * 16;

static_assert(sizeof(qm_phase) <= QM_PHASE_BYTES && QM_PHASE_BYTES % 16 == 0 && sizeof(qm_block_plan) % 16 == 0, "a phase has its place");

/* threadIdx.x and blockIdx.x, asked for anew every time: registers are short, and what is spilled comes back from the second-level cache,
 * because waiting for other blocks empties the first. */
__device__ inline uint32_t thread()
{
    uint32_t t;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t));
    return t;
}

__device__ inline uint32_t block()
{
    uint32_t b;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
    return b;
}

struct walk_job {
    qm_program p;
    uint32_t never; /* 0 */
};

/* What a block knows from one phase to the next. */
struct walk_known {
    int32_t passed;
    uint32_t parts;     /* that the last attention was left in; 0: it is whole */
    uint32_t took_part; /* blocks, in the last phase */
    float factor;       /* of a norm */
    uint32_t held[WALK_WARPS]; /* the phase whose first item a warp has asked for, or QM_NO_PHASE */
};

__device__ inline walk_known &known()
{
    extern __shared__ uint4 shared[];
    return *(walk_known *)((uint8_t *)shared + WALK_KNOWN);
}

/* Phase n and the block's plan of it, while they are in shared memory: from WALK_AHEAD phases before it on. */
__device__ inline const qm_phase &phase_at(uint32_t n)
{
    extern __shared__ uint4 shared[];
    return *(const qm_phase *)((const uint8_t *)shared + WALK_PHASES + n % WALK_SLOTS * WALK_SLOT);
}
__device__ inline const qm_block_plan &plan_at(uint32_t n) { return *(const qm_block_plan *)((const uint8_t *)&phase_at(n) + QM_PHASE_BYTES); }

/* ---- waiting for each other ---------------------------------------------------------------------- */

/* After the block's threads have met. */
__device__ inline void arrive(uint32_t *counter, uint32_t take_part)
{
    if (thread() != 0)
        return;
    known().took_part = take_part;
    if (block() < take_part)
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

/* Until all have that took part in the phase before this one; and the block's threads meet. */
__device__ inline void wait_for(const uint32_t *arrived, uint32_t phase)
{
    if (thread() == 0 && phase > 0) {
        uint32_t here;
        do
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(arrived + phase - 1) : "memory");
        while (here < known().took_part);
    }
    __syncthreads();
}

/* ---- halves -------------------------------------------------------------------------------------- */

/* The inverse of a power of two. */
__device__ inline float inverse_power(float v) { return __uint_as_float(0x7f000000u - __float_as_uint(v)); }

/* Of 16 lanes, each with one of 16 values in a row, or 0: as f16, with their power of two. */
__device__ inline void store_sixteen(const qm_sixteens &h, uint32_t n, float v, bool writes)
{
    float most = fabsf(v);
#pragma unroll
    for (int i = 8; i; i /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, i));
    const float by = to_half_range(most);
    if (writes)
        ((__half *)h.half)[n] = __float2half_rn(v * by);
    if (writes && n % 16 == 0)
        h.scale[n / 16] = inverse_power(by);
}

/* Of 8 lanes, each with two of them. */
__device__ inline void store_pairs(const qm_sixteens &h, uint32_t n, float2 v)
{
    float most = fmaxf(fabsf(v.x), fabsf(v.y));
#pragma unroll
    for (int i = 4; i; i /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, i));
    const float by = to_half_range(most);
    *(__half2 *)((__half *)h.half + n) = __floats2half2_rn(v.x * by, v.y * by);
    if (n % 16 == 0)
        h.scale[n / 16] = inverse_power(by);
}

__device__ inline float sum_of_sixteen(float v)
{
#pragma unroll
    for (int i = 8; i; i /= 2)
        v += __shfl_xor_sync(~0u, v, i);
    return v;
}

/* Of 16 lanes as well: the first part of a norm. */
__device__ inline void begin_norm(const qm_norm &norm, uint32_t n, float v, float weight, bool writes)
{
    store_sixteen(norm.half, n, v * weight, writes);
    const float square = sum_of_sixteen(v * v);
    if (writes && n % 16 == 0)
        norm.squares[n / 16] = square;
}

__device__ inline void walk_half(const qm_half_phase &f)
{
    for (uint32_t i = block() * WALK_THREADS + thread(); i - thread() % 32 < f.cols; i += gridDim.x * WALK_THREADS) {
        const bool there = i < f.cols;
        const float v = there ? f.x[i] : 0;
        if (f.after.weight)
            begin_norm(f.after, i, v, there ? f.after.weight[i] + f.after.add : 0, there);
        else
            store_sixteen(f.half, i, v, there);
    }
}

#include "walk_attend.cuh"
#include "walk_product.cuh"

static_assert(WALK_RANGE - WALK_KNOWN == sizeof(walk_known) && sizeof(attend_range) <= WALK_TURNS - WALK_RANGE && sizeof(row_end) == 16, "what is known has its place");

/* ---- the kernel ---------------------------------------------------------------------------------- */

__device__ inline void fetch_phase(const qm_program &p, uint32_t n)
{
    constexpr uint32_t OF_PHASE = QM_PHASE_BYTES / 16, OF_BOTH = WALK_SLOT / 16;
    if (n < p.count && thread() < OF_BOTH) {
        const uint8_t *phase = (const uint8_t *)p.phases + (uint64_t)n * QM_PHASE_BYTES, *plan = (const uint8_t *)(p.plans + (uint64_t)n * gridDim.x + block());
        copy_async((uint32_t)__cvta_generic_to_shared(&phase_at(n)) + thread() * 16, thread() < OF_PHASE ? phase + thread() * 16 : plan + (thread() - OF_PHASE) * 16, true);
    }
    copies_begun();
}

template <int GROUP, qm_scale_type S, int DIM> __global__ void __launch_bounds__(WALK_THREADS, 1) walk(const __grid_constant__ walk_job j)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint4 shared[];
    uint8_t *memory = (uint8_t *)shared, *own = memory + WALK_OWN + item_scales<GROUP, S>::SPACE * WALK_WARPS;
    float *dynamic = (float *)(memory + WALK_MAP);
    const qm_program &program = j.p;
    const uint32_t lane = kept(thread() % 32), g = lane / 4, t = kept(lane % 4), never = j.never;
    attend_range *range = (attend_range *)(memory + WALK_RANGE);
    for (uint32_t n = 0; n < WALK_AHEAD; n++)
        fetch_phase(program, n);
    fill_pairs((uint32_t *)memory, program.level, WALK_THREADS);
    if (S == QM_SCALE_NESTED)
        for (uint32_t i = thread(); i < 256; i += WALK_THREADS)
            dynamic[i] = __ldg(program.dynamic + i);
    if (thread() == 0)
        known().passed = program.passed ? __ldcg(program.passed) : 0, known().parts = known().took_part = 0;
    copies_done<0>();
    __syncthreads();
    const uint32_t pairs = (uint32_t)__cvta_generic_to_shared(memory) + 4 * lane;
    walk_item<GROUP, S> item;
    const walk_place first = first_place(program.first, WALK_AHEAD);
    item.load_all(item.next(first, lane));
    if (lane == 0)
        known().held[thread() / 32] = first.phase;
    for (uint32_t p = 0; p < program.count; p++) {
        const qm_phase &f = phase_at(p);
        fetch_phase(program, p + WALK_AHEAD);
        uint32_t takes_part = gridDim.x;
        if (f.kind == QM_PHASE_PRODUCT) {
            const walk_turn turn(p, f.product, plan_at(p), known().parts);
            wait_for(program.arrived, p);
            walk_product<GROUP, S>(p, turn, item, (float *)own, pairs, dynamic, lane, g, t, never);
        } else if (f.kind == QM_PHASE_ATTEND) {
            if (f.attend.anew) {
                if (thread() == 0)
                    *range = attend_range(f.attend, known().passed);
                make_turns<DIM>(f.attend, f.attend.a.at.first + known().passed, (float2 *)(memory + WALK_TURNS));
                __syncthreads();
            }
            takes_part = range->blocks;
            if (block() < takes_part) {
                begin_attend<DIM>(f.attend, *range, own, lane);
                wait_for(program.arrived, p);
                walk_attend<DIM>(f.attend, *range, (const float2 *)(memory + WALK_TURNS), own, lane);
            }
            if (thread() == 0)
                known().parts = f.attend.open ? range->open : 0;
        } else {
            wait_for(program.arrived, p);
            walk_half(f.half);
        }
        if (f.kind == QM_PHASE_PRODUCT)
            copies_done<1>(); /* phase p + WALK_AHEAD is there; what was asked for last are scales */
        else
            copies_done<0>();
        __syncthreads();
        arrive(program.arrived + p, takes_part);
    }
#endif
}

/* ---- launching ----------------------------------------------------------------------------------- */

uint32_t qm_program_blocks(void)
{
    return of_device(cudaDevAttrComputeCapabilityMajor) >= 9 && of_device(cudaDevAttrCooperativeLaunch) ? multiprocessors() : 0;
}

void qm_program_divide(qm_product_phase *f, uint32_t blocks)
{
    const uint32_t sets = f->gate ? f->tiles / 2 : f->tiles;
    f->each = sets / blocks, f->rest = sets % blocks;
    f->warp_by = 65536 / f->slices + 1;
    f->more_tiles = WALK_WARPS / f->slices, f->more_slices = WALK_WARPS % f->slices;
}

void qm_program_share(qm_attend_phase *f, uint32_t blocks)
{
    f->group = f->a.heads / f->a.kv_heads;
    f->rounds = (f->group + WALK_GROUP - 1) / WALK_GROUP, f->units = f->a.kv_heads * f->rounds;
    f->most = blocks / f->units;
}

void qm_program_plan(const qm_product_phase *f, uint32_t block, uint32_t item_bytes, qm_block_plan *plan)
{
    const uint32_t first = block * f->each + (block < f->rest ? block : f->rest), sets = f->each + (block < f->rest);
    *plan = qm_block_plan{};
    plan->tiles = f->gate ? 2 * sets : sets, plan->items = plan->tiles * f->slices;
    for (uint32_t k = 0; k < QM_TOGETHER; k++) {
        const uint32_t of_part = f->part[k].first_tile;
        if (k)
            plan->bound[k - 1] = f->gate ? k * sets : of_part > first ? of_part - first : 0;
        plan->tile[k] = f->gate ? first - k * sets : first - of_part;
        plan->item[k] = (uint64_t)(uintptr_t)f->part[k].items + (uint64_t)((int64_t)(int32_t)plan->tile[k] * f->slices * item_bytes);
    }
}

uint32_t qm_program_sums(const qm_product_phase *f)
{
    return (f->each + (f->rest != 0)) * (f->gate ? 2 : 1) * f->slices * QM_TILE_ROWS;
}

static uint32_t shared_for(uint32_t sums, uint32_t head_dim)
{
    const uint32_t scales = item_scales<16, QM_SCALE_F32>::SPACE * (uint32_t)WALK_WARPS; /* the most there are */
    const uint32_t attend = head_dim == 64 ? attend_space<64>::END : attend_space<128>::END, own = sums * (uint32_t)sizeof(float);
    return WALK_OWN + scales + (head_dim && attend > own ? attend : own);
}

bool qm_program_takes(uint32_t sums, uint32_t head_dim)
{
    return (head_dim == 0 || head_dim == 64 || head_dim == 128) && sums < 1 << 20
           && shared_for(sums, head_dim) <= (uint32_t)of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

uint64_t qm_program_partial(uint32_t blocks, uint32_t head_dim) { return (uint64_t)blocks * WALK_GROUP * (head_dim + 2) * sizeof(float); }

template <int GROUP, qm_scale_type S, int DIM> static cudaError_t launch_walk(const qm_program *p, cudaStream_t s)
{
    static constexpr auto kernel = walk<GROUP, S, DIM>;
    const size_t shared = shared_for(p->sums, p->head_dim);
    cudaError_t r = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (r)
        return r;
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(qm_program_blocks()), c.blockDim = dim3(WALK_THREADS), c.dynamicSmemBytes = shared, c.stream = s;
    c.attrs = &together, c.numAttrs = 1;
    const walk_job j = {*p, 0};
    return cudaLaunchKernelEx(&c, kernel, j);
}

cudaError_t qm_program_run(const qm_program *p, cudaStream_t s)
{
#define KIND(group_size, type)                                                                               \
    if (p->group == group_size && p->scale == type)                                                          \
        return p->head_dim == 64 ? launch_walk<group_size, type, 64>(p, s) : launch_walk<group_size, type, 128>(p, s);
    MATRIX_KINDS
#undef KIND
    return cudaErrorInvalidValue;
}

#endif
