/* sample.cu: drawing a token from a row of logits, as core/ops/sample.c does and with the same bits.
 *
 * Weights are whole numbers (core/draw.h), so that sums of them come out the same in any order.  Candidates lie in the
 * order of their logits, largest first, equal ones by id; every question is then "at which of them does the sum of
 * weights, or their number, pass a place":
 *
 *     top_k    the sum up to number top_k                       draw     the candidate at a place below the sum
 *     top_p    the sum up to the candidate at its share
 *
 * Kernels: the largest logit; sums of weights and numbers in 2048 bins of like logits.  Then, for each question, one block of
 * threads finds the bin that a place is in, many collect what is in that bin, which are few, and the next one block sorts those
 * and knows the answer.
 *
 * Compiled without fused multiply-adds, as draw.h wants it. */
#include <cuda_fp16.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "ops.h"

#include "../core/draw.h"
#include "launch.cuh"
#include "mma.cuh"
#include "order.cuh"

enum { TOP_THREADS = 256, TOP_BLOCKS = 128, WEIGH_THREADS = 512, WEIGH_BLOCKS = 64, ASK_THREADS = 1024, BINS_A_NAT = 64 };

/* Where a place was found: which bin or digit, and what comes before it. */
struct found {
    uint32_t at, number; /* number: how many are in it */
    unsigned long long weight_before, count_before;
};

/* What lies at qm_draw.sums. */
struct draw_sums {
    unsigned long long weight[QM_DRAW_BINS], top; /* top: in_order_at of the largest */
    uint32_t count[QM_DRAW_BINS];

    /* The question that is being answered, or none: then all of the candidates are kept. */
    bool asked;
    unsigned long long all, place; /* all: of the weights that are kept so far */
    found here;
    uint32_t some; /* candidates in the bin: qm_draw.some */
};
typedef enum { NO_QUESTION, TOP_K, TOP_P, DRAW } question;
static_assert(sizeof(draw_sums) <= QM_DRAW_SUMS, "ops.h says how much there is");

__device__ inline float top_of(const draw_sums *s) { return of_order((uint32_t)(s->top >> 32)); }

/* Larger logits come first.  Weights end 28 nats below the top, long before the last bin. */
__device__ inline uint32_t bin_of(float logit, float top, float by)
{
    float at = (top - logit) * by;
    return at < QM_DRAW_BINS - 1 ? (uint32_t)at : at == at ? QM_DRAW_BINS - 1 : 0; /* a NaN: 0 times infinity */
}
__device__ inline float bins_by(const qm_draw &j) { return (float)(BINS_A_NAT / j.temperature); }

/* f(logit, its number) for all of a row, whose threads are numbered through; AT_ONCE of them are under way at a time. */
template <int AT_ONCE, class F> __device__ inline void each_logit(const qm_draw &j, uint32_t thread, uint32_t threads, F f)
{
    for (uint32_t first = thread; first < j.n; first += AT_ONCE * threads) {
        float v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            v[k] = first + k * threads < j.n ? j.logits[first + k * threads] : 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (first + k * threads < j.n)
                f(v[k], first + k * threads);
    }
}

/* ---- the largest, and the bins ------------------------------------------------------------------------- */

__global__ void __launch_bounds__(TOP_THREADS) find_top(const __grid_constant__ qm_draw j)
{
    let_next_begin();
    wait_for_previous();
    unsigned long long mine = 0;
    each_logit<4>(j, blockIdx.x * TOP_THREADS + threadIdx.x, gridDim.x * TOP_THREADS, [&](float logit, uint32_t i) {
        unsigned long long v = in_order_at(logit, i);
        mine = v > mine ? v : mine;
    });
    mine = most_in_warp(mine);
    if (threadIdx.x % 32 == 0)
        atomicMax(&((draw_sums *)j.sums)->top, mine);
}

__global__ void __launch_bounds__(WEIGH_THREADS) weigh(const __grid_constant__ qm_draw j)
{
    __shared__ unsigned long long weight[QM_DRAW_BINS];
    __shared__ uint32_t count[QM_DRAW_BINS];
    let_next_begin();
    for (uint32_t i = threadIdx.x; i < QM_DRAW_BINS; i += WEIGH_THREADS)
        weight[i] = 0, count[i] = 0;
    wait_for_previous();
    __syncthreads();
    draw_sums *sums = (draw_sums *)j.sums;
    const float top = top_of(sums), by = bins_by(j);
    if ((uint32_t)(sums->top >> 32) >= ORDER_OF_INFINITY)
        return;
    each_logit<4>(j, blockIdx.x * WEIGH_THREADS + threadIdx.x, gridDim.x * WEIGH_THREADS, [&](float logit, uint32_t) {
        unsigned long long w = qm_draw_weight(logit, top, j.temperature);
        uint32_t bin = bin_of(logit, top, by);
        if (w) {
            atomicAdd(weight + bin, w);
            atomicAdd(count + bin, 1u);
        }
    });
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < QM_DRAW_BINS; i += WEIGH_THREADS)
        if (count[i]) {
            atomicAdd(sums->weight + i, weight[i]);
            atomicAdd(sums->count + i, count[i]);
        }
}

/* ---- collecting ------------------------------------------------------------------------------------------ */

/* Candidates as whole numbers in their order: ~in_order(logit), id. */
__global__ void __launch_bounds__(WEIGH_THREADS) collect(const __grid_constant__ qm_draw j)
{
    let_next_begin();
    wait_for_previous();
    draw_sums *sums = (draw_sums *)j.sums;
    if (!sums->asked)
        return;
    const float top = top_of(sums), by = bins_by(j), from = (float)sums->here.at, to = from + 1;
    each_logit<4>(j, blockIdx.x * WEIGH_THREADS + threadIdx.x, gridDim.x * WEIGH_THREADS, [&](float logit, uint32_t i) {
        const float at = (top - logit) * by; /* as bin_of; a NaN is in the first bin, the only one there is then */
        if (!(at < from) && !(at >= to))
            j.some[atomicAdd(&sums->some, 1u)] = (unsigned long long)~in_order(logit) << 32 | i;
    });
}

/* ---- asking and answering --------------------------------------------------------------------------------- */

struct asking {
    unsigned long long weight[QM_DRAW_BINS];
    uint32_t count[QM_DRAW_BINS];
    union {
        struct {
            unsigned long long weight[256];
            uint32_t count[256];
        } digit;
        unsigned long long sorted[ASK_THREADS];
    };
    unsigned long long warp_weight[32], warp_count[32];
    found here;
    uint32_t some;
    unsigned long long only, sum; /* the candidate that was asked for, and the weights up to and with its own */
};

__device__ inline uint64_t weight_of(unsigned long long v, float top, const qm_draw &j)
{
    return qm_draw_weight(of_order(~(uint32_t)(v >> 32)), top, j.temperature);
}

__device__ inline unsigned long long sum_in_warp(unsigned long long v)
{
#pragma unroll
    for (int i = 16; i; i /= 2)
        v += __shfl_xor_sync(~0u, v, i);
    return v;
}

/* Sum over the threads before this one, and this one. */
__device__ inline unsigned long long sums_to(unsigned long long v, unsigned long long *warps)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
        unsigned long long before = __shfl_up_sync(~0u, v, i);
        v += lane >= (uint32_t)i ? before : 0;
    }
    if (lane == 31)
        warps[warp] = v;
    __syncthreads();
    return v + sum_in_warp(lane < warp ? warps[lane] : 0);
}

/* Into c.here the first of n bins, no more than twice the threads, at which the sum of weights (or numbers) is beyond
 * `place`.  Sums begin at those of c.here. */
__device__ inline void find_bin(asking &c, const unsigned long long *weight, const uint32_t *count, uint32_t n, bool numbers,
                                unsigned long long place)
{
    const found before = c.here;
    const uint32_t first = threadIdx.x * 2;
    unsigned long long w[2] = {0, 0}, k[2] = {0, 0};
    for (uint32_t i = 0; i < 2 && first + i < n; i++)
        w[i] = weight[first + i], k[i] = count[first + i];
    unsigned long long weights = sums_to(w[0] + w[1], c.warp_weight) - w[0] - w[1] + before.weight_before;
    unsigned long long counts = sums_to(k[0] + k[1], c.warp_count) - k[0] - k[1] + before.count_before;
    __syncthreads(); /* everybody has read c.here and the sums of the warps */
    for (uint32_t i = 0; i < 2; i++) {
        unsigned long long from = numbers ? counts : weights, more = numbers ? k[i] : w[i];
        if (from <= place && place < from + more)
            c.here = {first + i, (uint32_t)k[i], weights, counts};
        weights += w[i], counts += k[i];
    }
    __syncthreads();
}

/* Digits, from the first on, of the candidate at a place among some, until few enough have them: what is known of it, and
 * where its digits are. */
__device__ inline void narrow(asking &c, const qm_draw &j, float top, bool numbers, unsigned long long place, uint32_t some,
                              unsigned long long *known, unsigned long long *beyond)
{
    for (int digit = 7; digit >= 0 && c.here.number > ASK_THREADS; digit--) {
        for (uint32_t i = threadIdx.x; i < 256; i += ASK_THREADS)
            c.digit.weight[i] = 0, c.digit.count[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < some; i += ASK_THREADS) {
            unsigned long long v = j.some[i];
            if ((v & *beyond) != *known)
                continue;
            uint32_t d = (uint32_t)(v >> 8 * digit) & 255;
            atomicAdd(c.digit.weight + d, (unsigned long long)weight_of(v, top, j));
            atomicAdd(c.digit.count + d, 1u);
        }
        __syncthreads();
        find_bin(c, c.digit.weight, c.digit.count, 256, numbers, place);
        *known |= (unsigned long long)c.here.at << 8 * digit;
        *beyond |= 255ull << 8 * digit;
    }
}

/* Smallest first (a bitonic network); n is a power of two, up to the number of threads. */
__device__ inline void sort(unsigned long long *v, uint32_t n)
{
    for (uint32_t run = 2; run <= n; run *= 2)
        for (uint32_t apart = run / 2; apart; apart /= 2) {
            const uint32_t i = threadIdx.x, other = i ^ apart;
            if (i < n && other > i && (v[i] > v[other]) == !(i & run)) {
                unsigned long long was = v[i];
                v[i] = v[other], v[other] = was;
            }
            __syncthreads();
        }
}

/* The candidate that was asked for, among those that were collected: into c.only and c.sum. */
__device__ inline void answer(asking &c, const qm_draw &j, const draw_sums *sums, float top, bool numbers)
{
    const uint32_t some = sums->some;
    const unsigned long long place = sums->place;
    if (threadIdx.x == 0) {
        c.here = sums->here;
        c.here.number = some; /* with those that weigh nothing, which come last */
        c.some = 0;
    }
    __syncthreads();
    unsigned long long known = 0, beyond = 0;
    narrow(c, j, top, numbers, place, some, &known, &beyond);
    const found before = c.here;
    uint32_t n = 2;
    while (n < before.number)
        n *= 2;
    __syncthreads();
    if (threadIdx.x < n)
        c.sorted[threadIdx.x] = ~0ull; /* behind all */
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < some; i += ASK_THREADS)
        if ((j.some[i] & beyond) == known)
            c.sorted[atomicAdd(&c.some, 1u)] = j.some[i];
    __syncthreads();
    sort(c.sorted, n);
    const bool there = threadIdx.x < before.number;
    const unsigned long long own = there ? c.sorted[threadIdx.x] : 0, weight = there ? weight_of(own, top, j) : 0;
    const unsigned long long to = sums_to(weight, c.warp_weight) + before.weight_before;
    const unsigned long long at = numbers ? before.count_before + threadIdx.x : to - weight, past = numbers ? at + 1 : to;
    if (there && at <= place && place < past)
        c.only = own, c.sum = to;
    __syncthreads();
}

/* Finds the bin of the next question's place, all being the weights that are kept. */
__device__ inline void pose(asking &c, const qm_draw &j, draw_sums *sums, question now, unsigned long long all)
{
    unsigned long long weights = 0, number = 0, place = 0;
    for (uint32_t i = threadIdx.x; i < QM_DRAW_BINS; i += ASK_THREADS) {
        c.weight[i] = sums->weight[i], c.count[i] = sums->count[i];
        weights += c.weight[i], number += c.count[i];
    }
    sums_to(weights, c.warp_weight), sums_to(number, c.warp_count);
    weights = sum_in_warp(c.warp_weight[threadIdx.x % 32]), number = sum_in_warp(c.warp_count[threadIdx.x % 32]);
    all = all ? all : weights;
    bool asked = true;
    if (now == TOP_K) {
        asked = j.top_k < number;
        place = j.top_k - 1;
    } else if (now == TOP_P) {
        place = qm_draw_share(j.top_p, all) - 1;
    } else {
        place = qm_draw_place(qm_random_bits(j.seed, j.step + (j.passed ? (uint64_t)__ldcg(j.passed) : 0)), all);
    }
    if (threadIdx.x == 0)
        c.here = {};
    __syncthreads();
    if (asked) /* the same in all threads */
        find_bin(c, c.weight, c.count, QM_DRAW_BINS, now == TOP_K, place);
    if (threadIdx.x == 0)
        sums->asked = asked, sums->all = all, sums->place = place, sums->here = c.here, sums->some = 0;
}

/* Answers the question before, and asks the next one; with none to ask, the answer is the token. */
__global__ void __launch_bounds__(ASK_THREADS) ask(const __grid_constant__ qm_draw j, question before, question now)
{
    __shared__ asking c;
    let_next_begin();
    wait_for_previous();
    draw_sums *sums = (draw_sums *)j.sums;
    const unsigned long long best = sums->top;
    const uint32_t order = (uint32_t)(best >> 32);
    int32_t id = order >= ORDER_OF_INFINITY ? QM_DRAW_NAN : order <= ORDER_OF_NOTHING ? QM_DRAW_NOTHING : (int32_t)~(uint32_t)best;
    unsigned long long all = before == NO_QUESTION ? 0 : sums->all;
    if (id >= 0 && before != NO_QUESTION && sums->asked) { /* the same in all threads */
        answer(c, j, sums, of_order(order), before == TOP_K);
        all = c.sum;
        id = before == DRAW ? (int32_t)(uint32_t)c.only : id;
    }
    __syncthreads(); /* everybody has read what is written now */
    if (now != NO_QUESTION) {
        if (id >= 0)
            pose(c, j, sums, now, all);
        return;
    }
    for (uint32_t i = threadIdx.x; i < QM_DRAW_SUMS / sizeof(uint64_t); i += ASK_THREADS)
        ((uint64_t *)j.sums)[i] = 0;
    if (threadIdx.x == 0)
        *j.id = id;
}

cudaError_t qm_draw_token(const qm_draw *j, cudaStream_t s)
{
    const bool draws = j->temperature > 0, asks[] = {false, draws && j->top_k, draws && j->top_p < 1, draws};
    question before = NO_QUESTION;
    cudaError_t r = launch(find_top, dim3(TOP_BLOCKS), TOP_THREADS, 0, s, *j);
    if (!r && draws)
        r = launch(weigh, dim3(WEIGH_BLOCKS), WEIGH_THREADS, 0, s, *j);
    for (int now = TOP_K; now <= DRAW && !r; now++)
        if (asks[now]) {
            r = launch(ask, dim3(1), ASK_THREADS, 0, s, *j, before, (question)now);
            if (!r)
                r = launch(collect, dim3(WEIGH_BLOCKS), WEIGH_THREADS, 0, s, *j);
            before = (question)now;
        }
    return r ? r : launch(ask, dim3(1), ASK_THREADS, 0, s, *j, before, NO_QUESTION);
}
