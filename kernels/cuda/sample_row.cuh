/* sample_row.cuh - what sampling does with one row of logits: walks it, weighs it, finds borders.
 *
 * A row belongs to a team: one block, or a cluster of blocks of which each walks its part and the
 * first, the leader, gathers what they found in its shared memory. All sums are of integers, so no
 * result depends on the team's size, on the order of atomics or on the row's place.
 *
 * A weight is e^((logit − greatest) / temperature) with the bits of the CPU device's AVX2 table
 * (kernels/cpu/lanes.h); in sums it counts in units of 2⁻⁴⁴, rounded down. */
#ifndef LORRY_KERNELS_CUDA_SAMPLE_ROW_CUH
#define LORRY_KERNELS_CUDA_SAMPLE_ROW_CUH

#include <cooperative_groups.h>

#include "kernels/cuda/common.cuh"

enum {
    SAMPLE_THREADS = 256,
    SAMPLE_WARPS = SAMPLE_THREADS / 32,
    SAMPLE_TEAM_MAX = 8,
    SAMPLE_VOCAB_MAX = 1 << 19, /* keeps sums in 64 bits */
    SAMPLE_FRACTION_BITS = 44,
    SAMPLE_LIST = 8192, /* entries of the list of candidates */
    SAMPLE_SEEN = 16384,
    SAMPLE_SEGMENT_QUADS = 32, /* four ids each; a segment is what a warp loads at once */
    SAMPLE_SEGMENTS = SAMPLE_VOCAB_MAX / (4 * SAMPLE_SEGMENT_QUADS),
    SAMPLE_BINS_THREAD = 6,
    SAMPLE_BINS = SAMPLE_BINS_THREAD * SAMPLE_THREADS,
    SAMPLE_BINS_UNIT = 16, /* a bin is 1/16 of a temperature: weights are zero beyond 87 of them */
    RADIX_BITS = 8,
    RADIX_BINS = 1 << RADIX_BITS,
    SAMPLE_LOADS = 4,      /* of 16 bytes in flight per thread, in most walks */
    SAMPLE_LOADS_MOST = 8, /* where it compares */
    SAMPLE_LOADS_LEAST = 1,
};

/* What turns a logit into a weight. */
struct sample_scale {
    float max, temperature;
    float rate; /* 1 / temperature, finite */
    float bins; /* bins per 1, finite */
};

/* What stays. */
struct sample_cuts {
    struct sample_scale scale;
    float min_p;         /* weights below go */
    uint32_t logit_key;  /* float_order(): logits below go */
    uint32_t weight_key; /* bits: weights below go, and of equal ones ids above last_id */
    uint32_t last_id;
};

struct sample_entry {
    uint32_t id;
    float logit;
};

/* A block's shared memory. */
struct sample_room {
    union {
        struct sample_entry list[SAMPLE_LIST]; /* in no order */
        uint64_t segments[SAMPLE_SEGMENTS];    /* what each weighs */
        uint32_t seen[SAMPLE_SEEN];            /* of a slice of ids, as kern_penalties_cpu()'s */
    };
    uint32_t bins[SAMPLE_BINS]; /* how many logits lie so far below the greatest */
    uint32_t radix_low[RADIX_BINS], radix_high[RADIX_BINS];
    uint64_t warps[SAMPLE_WARPS];   /* of block-wide sums */
    uint64_t best[SAMPLE_TEAM_MAX]; /* leader: each block's greatest */
    uint32_t total_low, total_high; /* leader: what all weigh */
    uint32_t limit;                 /* leader: the last bin that is listed */
    uint32_t listed, list_count;    /* leader: whether there is a list; its length */
    uint32_t picked;
    uint64_t picked_above, picked_here;
    double log_all;          /* leader: logarithm of the sum of e^logit */
    struct sample_cuts cuts; /* leader */
};

struct sample_team {
    uint32_t rank, size;
    struct sample_room *lead; /* the leader's */
    float *logits;            /* the row, 16-byte aligned */
    uint32_t vocab;           /* at most SAMPLE_VOCAB_MAX */
};

extern __shared__ __align__(16) unsigned char sample_shared[];

/* This block's. */
static __device__ __forceinline__ struct sample_room *sample_own() {
    return reinterpret_cast<struct sample_room *>(sample_shared);
}

static __device__ __forceinline__ struct sample_team sample_team_of(uint32_t vocab) {
    struct sample_team t = {};
    t.size = 1;
    t.lead = sample_own();
    t.vocab = vocab;
#if __CUDA_ARCH__ >= 900
    cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    t.rank = cluster.block_rank();
    t.size = cluster.num_blocks();
    if (t.size > 1) {
        t.lead = cluster.map_shared_rank(sample_own(), 0);
    }
#endif
    return t;
}

/* A barrier of the team, also for what its blocks wrote to the row. */
static __device__ __forceinline__ void sample_team_sync(const struct sample_team &t) {
#if __CUDA_ARCH__ >= 900
    if (t.size > 1) {
        cooperative_groups::this_cluster().sync();
        return;
    }
#endif
    __syncthreads();
}

/* The leader with the whole row to itself. */
static __device__ __forceinline__ struct sample_team sample_solo(struct sample_team t) {
    t.rank = 0;
    t.size = 1;
    return t;
}

/* ---- numbers ------------------------------------------------------------------------------ */

/* An integer that orders as the float does. */
static __device__ __forceinline__ uint32_t float_order(float value) {
    uint32_t bits = __float_as_uint(value + 0.0f); /* −0 becomes +0: they tie */
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/* Orders by logit, then the lowest id first; and back. */
static __device__ __forceinline__ uint64_t logit_rank(uint32_t id, float logit) {
    return (uint64_t)float_order(logit) << 32 | (0xffffffffu - id);
}
static __device__ __forceinline__ uint32_t rank_id(uint64_t rank) {
    return 0xffffffffu - (uint32_t)rank;
}
static __device__ __forceinline__ float rank_logit(uint64_t rank) {
    uint32_t bits = (uint32_t)(rank >> 32);
    return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

/* eˣ for x ≤ 0, zero below −87: lanes_exp() operation by operation, fused where AVX2's is. */
static __device__ __forceinline__ float exp_as_cpu(float x) {
    const float magic = 12582912.0f; /* 1.5 · 2²³ */
    float y = x < -87.0f ? 0.0f : x;
    float shifted = __fmaf_rn(y, 1.44269504f, magic);
    float n = __fsub_rn(shifted, magic);
    float r = __fmaf_rn(-n, 0.693359375f, y);
    r = __fmaf_rn(-n, -2.12194440e-4f, r);
    float p = __fmaf_rn(1.0f / 5040, r, 1.0f / 720);
    p = __fmaf_rn(p, r, 1.0f / 120);
    p = __fmaf_rn(p, r, 1.0f / 24);
    p = __fmaf_rn(p, r, 1.0f / 6);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fadd_rn(__fmaf_rn(__fmul_rn(p, r), r, r), 1.0f);
    uint32_t exponent = __float_as_uint(shifted) - __float_as_uint(magic);
    float power = __uint_as_float((exponent + 127) << 23);
    return x < -87.0f ? 0.0f : __fmul_rn(p, power);
}

static __device__ __forceinline__ struct sample_scale sample_scale_of(float max,
                                                                      float temperature) {
    const float rate = fminf(__frcp_rn(temperature), FLT_MAX);
    return {max, temperature, rate, fminf(SAMPLE_BINS_UNIT * rate, FLT_MAX)};
}

/* e^((logit − max) / temperature). The quotient is the correctly rounded one, by two corrections of
 * a product, where it matters: that is, where it is neither below −87 nor too small to change 1. */
static __device__ __forceinline__ float weigh(const struct sample_scale &s, float logit) {
    const float below = __fsub_rn(logit, s.max);
    const float product = __fmul_rn(below, s.rate);
    float y = __fmaf_rn(__fmaf_rn(-product, s.temperature, below), s.rate, product);
    y = __fmaf_rn(__fmaf_rn(-y, s.temperature, below), s.rate, y);
    return exp_as_cpu(product < -88.0f ? -88.0f : y); /* y may be a NaN there */
}

/* Never falls from one logit to a lower one. SAMPLE_BINS: it weighs nothing. */
static __device__ __forceinline__ uint32_t bin_of(const struct sample_scale &s, float logit) {
    return (uint32_t)fminf(__fmul_rn(__fsub_rn(s.max, logit), s.bins), (float)SAMPLE_BINS);
}

/* A weight, at most 1 and no NaN, in units of 2⁻⁴⁴. */
static __device__ __forceinline__ uint64_t weight_units(float weight) {
    uint32_t bits = __float_as_uint(weight);
    uint64_t one = (uint64_t)((bits & 0x7fffffu) | 0x800000u) << (SAMPLE_FRACTION_BITS - 23);
    uint32_t shift = 127 - (bits >> 23);
    return shift < 64 ? one >> shift : 0;
}

/* Word 0 of kern_random(seed, position, 0). */
static __device__ uint32_t random_word(uint64_t seed, uint32_t position) {
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

/* ---- block-wide --------------------------------------------------------------------------- */

static __device__ __forceinline__ uint64_t warp_prefix(uint64_t v) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        uint64_t other = __shfl_up_sync(0xffffffffu, v, offset);
        v += (int)(threadIdx.x % 32) >= offset ? other : 0;
    }
    return v;
}

/* The sum up to and with this thread's; `total` of all. Ends with a barrier. */
static __device__ uint64_t block_prefix(struct sample_room *room, uint64_t v, uint64_t *total) {
    const uint32_t warp = threadIdx.x / 32;
    uint64_t sum = warp_prefix(v), all = 0;
    if (threadIdx.x % 32 == 31) {
        room->warps[warp] = sum;
    }
    __syncthreads();
    for (uint32_t i = 0; i < SAMPLE_WARPS; i++) {
        sum += i < warp ? room->warps[i] : 0;
        all += room->warps[i];
    }
    __syncthreads();
    *total = all;
    return sum;
}

static __device__ __forceinline__ uint64_t block_total(struct sample_room *room, uint64_t v) {
    uint64_t total;
    (void)block_prefix(room, v, &total);
    return total;
}

static __device__ uint64_t block_max(struct sample_room *room, uint64_t v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        uint64_t other = __shfl_xor_sync(0xffffffffu, v, offset);
        v = other > v ? other : v;
    }
    if (threadIdx.x % 32 == 0) {
        room->warps[threadIdx.x / 32] = v;
    }
    __syncthreads();
    for (uint32_t i = 0; i < SAMPLE_WARPS; i++) {
        v = room->warps[i] > v ? room->warps[i] : v;
    }
    __syncthreads();
    return v;
}

/* 64 bits in two words: each thread that wraps the low one carries. */
static __device__ __forceinline__ void atomic_add_64(uint32_t *low, uint32_t *high, uint64_t v) {
    uint32_t part = (uint32_t)v;
    uint32_t before = atomicAdd(low, part);
    uint32_t rest = (uint32_t)(v >> 32) + (before + part < before ? 1 : 0);
    if (rest != 0) {
        atomicAdd(high, rest);
    }
}

/* ---- walks -------------------------------------------------------------------------------- */

/* Stays where it stands: the compiler would move a plain load down to its use. */
static __device__ __forceinline__ float4 load_quad(const float4 *from) {
    float4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

/* LOADS quads of the row from `quad` on, each `step` after the one before, as they are. No branch
 * stands between the loads: behind the row's end it is the last quad again. */
template <uint32_t LOADS>
static __device__ __forceinline__ void row_load(const struct sample_team &t, uint32_t quad,
                                                uint32_t step, float4 v[LOADS]) {
    const float4 *from = reinterpret_cast<const float4 *>(t.logits);
    const uint32_t last = (t.vocab - 1) / 4;
#pragma unroll
    for (uint32_t i = 0; i < LOADS; i++) {
        v[i] = load_quad(from + min(quad + i * step, last));
    }
}

/* A NaN is −∞, and so is what lies behind the vocabulary. */
static __device__ __forceinline__ float4 row_numbers(const struct sample_team &t, uint32_t quad,
                                                     float4 v) {
    const uint32_t id = 4 * quad;
    return make_float4(id < t.vocab ? fmaxf(v.x, -INFINITY) : -INFINITY,
                       id + 1 < t.vocab ? fmaxf(v.y, -INFINITY) : -INFINITY,
                       id + 2 < t.vocab ? fmaxf(v.z, -INFINITY) : -INFINITY,
                       id + 3 < t.vocab ? fmaxf(v.w, -INFINITY) : -INFINITY);
}

/* take(id, logit) for this thread's share of the row, ids ascending; some ids behind the vocabulary
 * come too, at −∞. */
template <uint32_t LOADS = SAMPLE_LOADS, class F>
static __device__ __forceinline__ void row_each(const struct sample_team &t, F take) {
    const uint32_t quads = (t.vocab + 3) / 4, step = t.size * SAMPLE_THREADS;
#pragma unroll 1
    for (uint32_t at = t.rank * SAMPLE_THREADS + threadIdx.x; at < quads; at += LOADS * step) {
        float4 v[LOADS];
        row_load<LOADS>(t, at, step, v);
#pragma unroll
        for (uint32_t i = 0; i < LOADS; i++) {
            const uint32_t id = 4 * (at + i * step);
            const float4 x = row_numbers(t, at + i * step, v[i]);
            take(id, x.x);
            take(id + 1, x.y);
            take(id + 2, x.z);
            take(id + 3, x.w);
        }
    }
}

/* The same by the leader alone: of its list where there is one, else of the row. */
template <class F>
static __device__ __forceinline__ void candidates_each(const struct sample_team &t, F take) {
    if (sample_own()->listed != 0) {
        const uint32_t count = sample_own()->list_count;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
            const struct sample_entry e = sample_own()->list[i];
            take(e.id, e.logit);
        }
    } else {
        row_each<SAMPLE_LOADS_LEAST>(sample_solo(t), take);
    }
}

/* ---- borders ------------------------------------------------------------------------------ */

struct sample_border {
    uint32_t key;
    uint64_t above, here; /* what lies above the key weighs, and what has it */
};

/* Warp 0: the greatest bin from which on, up to the last, bins weigh `target`; else bin 0. */
static __device__ void radix_pick(struct sample_room *room, uint64_t target) {
    enum { LANE_BINS = RADIX_BINS / 32 };
    const uint32_t lane = threadIdx.x;
    uint64_t bins[LANE_BINS], sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < LANE_BINS; i++) {
        uint32_t bin = RADIX_BINS - 1 - (lane * LANE_BINS + i);
        bins[i] = (uint64_t)room->radix_high[bin] << 32 | room->radix_low[bin];
        sum += bins[i];
    }
    const uint64_t through = warp_prefix(sum);
    uint32_t reached = __ballot_sync(0xffffffffu, through >= target);
    uint32_t first = reached != 0 ? (uint32_t)__ffs((int)reached) - 1 : 31;
    if (lane == first) {
        uint64_t above = through - sum;
        bool found = false;
#pragma unroll
        for (uint32_t i = 0; i < LANE_BINS; i++) {
            if (!found && (above + bins[i] >= target || i == LANE_BINS - 1)) {
                room->picked = RADIX_BINS - 1 - (lane * LANE_BINS + i);
                room->picked_above = above;
                room->picked_here = bins[i];
                found = true;
            }
            above += bins[i];
        }
    }
}

/* The greatest key such that all candidates from it up weigh `target` (1 or more) or more.
 * mass(id, logit, &key) weighs one and tells its key, below 2^(shift + 8); `shift` is 24, 16 or 8.
 * Leader only. Every thread gets the border. */
template <class M>
static __device__ struct sample_border key_reaching(const struct sample_team &t, int shift,
                                                    uint64_t target, M mass) {
    struct sample_room *room = sample_own();
    struct sample_border border = {};
    uint32_t mask = 0;
#pragma unroll 1
    for (; shift >= 0; shift -= RADIX_BITS) {
        if (threadIdx.x < RADIX_BINS) {
            room->radix_low[threadIdx.x] = 0;
            room->radix_high[threadIdx.x] = 0;
        }
        __syncthreads();
        candidates_each(t, [&](uint32_t id, float logit) {
            uint32_t key;
            uint64_t m = mass(id, logit, &key);
            if (m != 0 && (key & mask) == border.key) {
                uint32_t bin = key >> shift & (RADIX_BINS - 1);
                atomic_add_64(&room->radix_low[bin], &room->radix_high[bin], m);
            }
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            radix_pick(room, target - border.above);
        }
        __syncthreads();
        border.key |= room->picked << shift;
        border.above += room->picked_above;
        border.here = room->picked_here;
        mask |= (uint32_t)(RADIX_BINS - 1) << shift;
    }
    return border;
}

enum { ID_SHIFT = 16 }; /* keys of ids have 24 bits */

/* Lower ids have greater keys; and back. */
static __device__ __forceinline__ uint32_t id_key(uint32_t id) {
    return (1u << (ID_SHIFT + RADIX_BITS)) - 1 - id;
}

#endif
