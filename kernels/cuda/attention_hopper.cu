/* attention_hopper.cu - attention_prefill.cu's job on the warpgroup instructions of sm_90a, for
 * head_dim 64 and 128.
 *
 * Formula, arguments, items, jobs and tolerance are attention_prefill.cu's, and so is what a row
 * may depend on: its own q and the keys it sees, tile by tile from position 0 (tiles are of 128
 * keys here, at multiples of 128).
 *
 * Work: a block of three warpgroups on each multiprocessor takes jobs, heaviest first, forth and
 * back. Warpgroup 0 loads: q of a job, two jobs deep, and the tiles of K and V, two deep each, by
 * cp.async; a lane looks up the page of one key of a tile, one tile ahead, and hands it to those
 * that copy the row. Whole boxes by the tensor copy engine would need a page of at least eight
 * tokens, and could not fill with zeros what no row sees. Warpgroups 1 and 2 compute, 64 rows each,
 * and give back a tile's K and V as soon as their products are done.
 *
 * A computing warpgroup has the scores [64][128] and the output [64][head_dim] in registers.
 * S = q Kᵀ takes both operands from shared memory, K-major. The probabilities, rounded, are the
 * register operand of the second product, with V from shared memory as it lies, MN-major: a row is
 * a key, k of this product, and its columns are n (wgmma.cuh derives the descriptors). S of the
 * next tile and P V of this one are issued together, and the softmax of the next runs beside P V
 * of this. The two warpgroups take turns at issuing, so that the softmax of one runs beside the
 * products of the other: exp2 of 128 × 128 scores takes a multiprocessor half as long as the
 * products do.
 *
 * Layout in shared memory: q [2 jobs][head_dim / 64 strips][128 rows][128 bytes], K and V likewise
 * [2 stages][strips][128 keys][128 bytes], swizzled as wgmma.cuh says; then rows of the output on
 * their way out, in q's place.
 *
 * Cost: FLOP as there; K and V are read once for each job over them, 2 · 128 · head_dim elements
 * for 128 × 128 scores, mostly from the second-level cache. Shared memory at head_dim 128: 193 KiB.
 *
 * Compiled for anything but sm_90a the kernel has no body; cuda_hopper_open() finds out. */
#include <math.h>

#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace {

enum {
    KEYS = 128,                      /* of a key tile */
    STAGES = 2,                      /* tiles of K, and of V, in shared memory */
    SLOTS = 2,                       /* jobs there */
    GROUPS = 2,                      /* warpgroups that compute */
    GROUP_ROWS = 64,                 /* rows of each: m of wgmma */
    COMPUTERS = GROUPS * WARPGROUP,  /* threads */
    THREADS = WARPGROUP + COMPUTERS, /* the first warpgroup loads */
    COMPUTE_WARPS = COMPUTERS / 32,  /* arrivals that empty a stage */
    LOADER_REGISTERS = 56,           /* of a thread; what the kernel begins with is 168 */
    COMPUTE_REGISTERS = 224,         /* a block's 504 × 128 are shared out anew */
    STEP = 16,                       /* k of wgmma */
    BARRIER_TURN = 1,                /* + group: named barriers; 0 is __syncthreads() */
    BARRIER_GROUP = BARRIER_TURN + GROUPS,
};
static_assert(int(ROWS) == int(GROUPS) * GROUP_ROWS,
              "a job's rows are shared out among the warpgroups");
static_assert(int(KEYS) == int(WARPGROUP), "a loading thread looks up the page of one key");
static_assert(LOADER_REGISTERS + GROUPS * COMPUTE_REGISTERS <= 168 * (1 + GROUPS),
              "no more registers than the block has");

/* Barriers, each of 8 bytes, and jobs. The only shared memory that is not dynamic. */
struct desk {
    uint64_t q_full[SLOTS], q_empty[SLOTS];
    uint64_t k_full[STAGES], k_empty[STAGES];
    uint64_t v_full[STAGES], v_empty[STAGES];
    struct job job[SLOTS]; /* rows == 0: there are no more */
    float pin[COMPUTERS];  /* written, never read: compute() */
};

/* From the front, a multiple of STRIP_EIGHT: q, K, V. */
template <int D> struct shared {
    static constexpr uint32_t PIECES = D / PIECE;
    static constexpr uint32_t STRIP_PIECES = STRIP_ROW / 16;
    static constexpr uint32_t STRIPS = PIECES / STRIP_PIECES;
    static constexpr uint32_t Q_STRIP = ROWS * STRIP_ROW, KEY_STRIP = KEYS * STRIP_ROW;
    static constexpr uint32_t Q_BYTES = STRIPS * Q_STRIP, KEY_BYTES = STRIPS * KEY_STRIP;
    static constexpr uint32_t K = SLOTS * Q_BYTES;
    static constexpr uint32_t V = K + STAGES * KEY_BYTES;
    static constexpr uint32_t BYTES = V + STAGES * KEY_BYTES + STRIP_EIGHT; /* to align */

    /* Byte of a piece of a row of q, or of a key. */
    static __device__ __forceinline__ uint32_t at(uint32_t row, uint32_t piece) {
        static_assert(Q_STRIP == KEY_STRIP, "as many rows as keys");
        return piece / STRIP_PIECES * Q_STRIP + strip_at(row, piece % STRIP_PIECES);
    }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* The parity of the phase in which use `number` of a ring of two is filled; it is emptied for it in
 * the phase before, whose parity is the other. */
__device__ __forceinline__ uint32_t full_parity(uint32_t number) {
    static_assert(SLOTS == 2 && STAGES == 2, "rings of two");
    return number / 2 % 2;
}
__device__ __forceinline__ uint32_t empty_parity(uint32_t number) {
    return full_parity(number) ^ 1;
}

/* ---- the loading warpgroup ---------------------------------------------------------------- */

/* q of the job's rows; rows past the end are zeros. */
template <typename T, int D>
__device__ __forceinline__ void load_q(const struct params &p, const struct job &job, uint32_t to) {
    constexpr uint32_t PIECES = shared<D>::PIECES;
    const T *q = static_cast<const T *>(p.qkv);
#pragma unroll 4
    for (uint32_t i = 0; i < ROWS * PIECES / WARPGROUP; i++) {
        uint32_t index = threadIdx.x + i * WARPGROUP, row = index / PIECES, piece = index % PIECES;
        uint32_t token = row_token(job, row), head = job.head_begin + row - token * job.heads;
        bool valid = row < job.rows;
        const T *from = q + static_cast<uint64_t>(job.token_begin + token) * p.qkv_cols + head * D;
        copy_async_16(to + shared<D>::at(row, piece), (valid ? from : q) + piece * PIECE, valid);
    }
}

/* K, or V with `offset` from K to V, of the tile of keys from `key_begin` on; `page`: of the key of
 * this thread. A warp copies the rows of its own 32 keys. Keys that no row sees are zeros: what
 * lies there was maybe never written, and a probability of 0 does not undo a NaN. */
template <int D>
__device__ __forceinline__ void load_keys(const struct params &p, const struct job &job,
                                          uint32_t key_begin, uint32_t page, uint32_t offset,
                                          uint32_t to) {
    constexpr uint32_t PIECES = shared<D>::PIECES, AT_ONCE = 32 / PIECES; /* rows */
    const uint32_t lane = threadIdx.x % 32, piece = lane % PIECES;
#pragma unroll
    for (uint32_t i = 0; i < 32 / AT_ONCE; i++) {
        uint32_t of = i * AT_ONCE + lane / PIECES, row = threadIdx.x / 32 * 32 + of;
        uint32_t key = key_begin + row, key_in = __shfl_sync(0xffffffffu, page, of);
        const char *from = reinterpret_cast<const char *>(key_row<D>(p, job, key, key_in));
        copy_async_16(to + shared<D>::at(row, piece), from + offset + piece * 16,
                      key_seen(job, key));
    }
}

/* The job's tiles, in the order in which they are wanted: K 0, K 1, V 0, K 2, V 1 … `number`: of
 * the first among all of the block. Returns the number after the last. */
template <int D>
__device__ __forceinline__ uint32_t load_tiles(const struct params &p, const struct job &job,
                                               struct desk *desk, uint32_t base, uint32_t number) {
    const uint32_t v_offset = (p.kv_heads * D * ELEM_BYTES) << p.page_shift;
    const uint32_t begin = job.first / KEYS * KEYS;
    uint32_t before = 0, page = key_page(p, job, begin + threadIdx.x);
    for (uint32_t key = begin;; key += KEYS, number++) {
        const bool more = key <= job.last;
        const uint32_t after = key_page(p, job, key + KEYS + threadIdx.x);
        if (more) {
            const uint32_t stage = number % STAGES;
            mbarrier_wait(shared_address(&desk->k_empty[stage]), empty_parity(number));
            load_keys<D>(p, job, key, page, 0, base + shared<D>::K + stage * shared<D>::KEY_BYTES);
            mbarrier_arrive_copied(shared_address(&desk->k_full[stage]));
        }
        if (key > begin) {
            const uint32_t last = number - 1, stage = last % STAGES;
            mbarrier_wait(shared_address(&desk->v_empty[stage]), empty_parity(last));
            load_keys<D>(p, job, key - KEYS, before, v_offset,
                         base + shared<D>::V + stage * shared<D>::KEY_BYTES);
            mbarrier_arrive_copied(shared_address(&desk->v_full[stage]));
        }
        if (!more) {
            return number;
        }
        before = page;
        page = after;
    }
}

template <typename T, int D>
__device__ __forceinline__ void load_jobs(const struct params &p, struct desk *desk,
                                          uint32_t base) {
    struct cursor at = {0, 0, 0}; /* every warp finds the jobs for itself */
    for (uint32_t tiles = 0;;) {
        const uint32_t turn = at.turn++, slot = turn % SLOTS;
        const uint32_t place = turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
        const uint32_t number = turn * gridDim.x + place;
        struct job job = {};
        if (job_find(p, number, &at)) {
            job = job_of<D>(p, at.items, number - at.jobs);
        }
        const uint32_t full = shared_address(&desk->q_full[slot]);
        mbarrier_wait(shared_address(&desk->q_empty[slot]), empty_parity(turn));
        if (threadIdx.x == 0) {
            desk->job[slot] = job;
            mbarrier_arrive(full);
        }
        if (job.rows == 0) {
            mbarrier_arrive_copied(full);
            break;
        }
        load_q<T, D>(p, job, base + slot * shared<D>::Q_BYTES);
        mbarrier_arrive_copied(full);
        tiles = load_tiles<D>(p, job, desk, base, tiles);
    }
    copy_async_commit();
    copy_async_wait<0>();
}

/* ---- a computing warpgroup ---------------------------------------------------------------- */

/* A lane has of its warp's 16 rows lane / 4 and lane / 4 + 8, called 0 and 1 below. */
template <int D> struct rows {
    float out[D / 8][4];
    float top[2];    /* what exponents are taken from: the maximum so far, or a little less */
    float sum[2];    /* of this lane's columns */
    float factor[2]; /* what is to be applied to `out`, once that may be touched */
    uint32_t probability[KEYS / STEP][4];
};

/* This warp is done with what the barrier guards. */
__device__ __forceinline__ void release(const uint64_t *bar) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(shared_address(bar));
    }
}

/* Issues score = q Kᵀ. */
template <typename T, int D>
__device__ __forceinline__ void scores_begin(float (&score)[KEYS / 8][4], uint32_t q, uint32_t k) {
    constexpr uint32_t STEPS = STRIP_ROW / ELEM_BYTES / STEP; /* of a strip */
    const uint64_t a = wgmma_operand(q, 16, STRIP_EIGHT), b = wgmma_operand(k, 16, STRIP_EIGHT);
    wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < D / STEP; step++) {
        uint32_t in = step % STEPS * STEP * ELEM_BYTES, strip = step / STEPS;
        wgmma_shared<T>(score, a + (strip * shared<D>::Q_STRIP + in) / 16,
                        b + (strip * shared<D>::KEY_STRIP + in) / 16, step != 0);
    }
    wgmma_commit();
}

/* Issues out += probabilities · V. */
template <typename T, int D>
__device__ __forceinline__ void weigh_begin(struct rows<D> &r, uint32_t v) {
    const uint64_t b = wgmma_operand(v, shared<D>::KEY_STRIP, STRIP_EIGHT);
    wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < KEYS / STEP; step++) {
        wgmma_registers<T>(r.out, r.probability[step], b + step * STEP * STRIP_ROW / 16);
    }
    wgmma_commit();
}

/* −∞ where a row does not see a key. `row`: this lane's first. */
__device__ __forceinline__ void mask(float (&score)[KEYS / 8][4], const struct params &p,
                                     const struct job &job, uint32_t row, uint32_t key_begin) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t last = job.position + row_token(job, row + 8 * half);
        const uint32_t first = position_first(p, last), seen = last - first;
        const uint32_t key = key_begin + 2 * (threadIdx.x % 4) - first;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (key + 8 * n + i > seen) {
                    score[n][2 * half + i] = -INFINITY;
                }
            }
        }
    }
}

/* Scores → exp2(scale · (score − top)); adds them to the sums; moves tops where the maximum has
 * grown by more than LAG. Whether one of the warp's did: then `out` is to be scaled. */
template <int D>
__device__ __forceinline__ bool probabilities(float (&score)[KEYS / 8][4], struct rows<D> &r,
                                              float scale) {
    bool moved = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = fmaxf(score[0][2 * half], score[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < KEYS / 8; n++) {
            most = fmaxf(most, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float top = r.top[half];
        const bool move = (most - top) * scale > LAG; /* −∞ − −∞ is a NaN: no */
        r.factor[half] = move ? exp2_fast((top - most) * scale) : 1.0f;
        r.top[half] = move ? most : top;
        moved |= move;
        /* a row that has seen no key yet: all its scores are −∞, and 0 is as good as any top */
        const float from = r.top[half] == -INFINITY ? 0.0f : r.top[half] * scale;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                score[n][i] = exp2_fast(__fmaf_rn(score[n][i], scale, -from));
                sum += score[n][i];
            }
        }
        r.sum[half] = r.sum[half] * r.factor[half] + sum;
    }
    return __any_sync(0xffffffffu, moved);
}

/* Scores, by now probabilities, as the operand of the second product. */
template <typename T, int D>
__device__ __forceinline__ void round_scores(const float (&score)[KEYS / 8][4], struct rows<D> &r) {
#pragma unroll
    for (int step = 0; step < KEYS / STEP; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = &score[2 * step + i / 2][2 * (i % 2)];
            r.probability[step][i] = pair_bits<T>(pair[0], pair[1]);
        }
    }
}

/* Divides by the sums and writes the rows, by way of q's shared memory so that whole pieces are
 * written. `row`: the warp's first. */
template <typename T, int D>
__device__ __forceinline__ void store(const struct params &p, const struct job &job,
                                      const struct rows<D> &r, char *q, uint32_t row) {
    constexpr uint32_t PIECES = shared<D>::PIECES;
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const float share = 1.0f / sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float *pair = &r.out[n][2 * half];
            uint32_t at = shared<D>::at(row + 8 * half + lane / 4, n) + 4 * (lane % 4);
            *reinterpret_cast<uint32_t *>(q + at) = pair_bits<T>(pair[0] * share, pair[1] * share);
        }
    }
    __syncwarp();
    T *attended = static_cast<T *>(p.attended);
#pragma unroll
    for (uint32_t i = 0; i < 16 * PIECES / 32; i++) {
        uint32_t index = lane + 32 * i, at = row + index / PIECES, piece = index % PIECES;
        if (at < job.rows) {
            uint32_t token = row_token(job, at), head = job.head_begin + at - token * job.heads;
            T *to = attended + static_cast<uint64_t>(job.token_begin + token) * p.q_cols + head * D;
            *reinterpret_cast<uint4 *>(to + piece * PIECE) =
                *reinterpret_cast<const uint4 *>(q + shared<D>::at(at, piece));
        }
    }
}

/* Masks where a border crosses the tile; then as probabilities(). `row`: the warp's first. */
template <int D>
__device__ __forceinline__ bool softmax(float (&score)[KEYS / 8][4], struct rows<D> &r,
                                        const struct params &p, const struct job &job, uint32_t row,
                                        uint32_t key) {
    const uint32_t all_last = job.position + row_token(job, row); /* that all the warp's rows see */
    const uint32_t all_first = position_first(p, job.position + row_token(job, row + 15));
    if (key + KEYS - 1 > all_last || key < all_first) {
        mask(score, p, job, row + threadIdx.x % 32 / 4, key);
    }
    return probabilities<D>(score, r, p.scale);
}

template <int D> __device__ __forceinline__ void rescale(struct rows<D> &r) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            r.out[n][i] *= r.factor[i / 2];
        }
    }
}

/* The rows of this warpgroup of the job in `slot`; tiles are numbered from `number` on. */
template <typename T, int D>
__device__ __forceinline__ void compute(const struct params &p, struct desk *desk, char *room,
                                        uint32_t slot, uint32_t number) {
    const struct job &job = desk->job[slot];
    const uint32_t group = threadIdx.x / WARPGROUP - 1;
    const uint32_t row = threadIdx.x / 32 * 16 - GROUP_ROWS; /* the warp's first */
    const uint32_t base = shared_address(room), k = base + shared<D>::K, v = base + shared<D>::V;
    const uint32_t q = base + slot * shared<D>::Q_BYTES + group * GROUP_ROWS * STRIP_ROW;
    const bool turns = job.rows > GROUP_ROWS; /* else the other warpgroup has no rows */
    const uint32_t last = job.last;
    uint32_t key = job.first / KEYS * KEYS;

    struct rows<D> r = {};
    float score[KEYS / 8][4] = {};
    r.top[0] = r.top[1] = -INFINITY;

    mbarrier_wait(shared_address(&desk->k_full[number % STAGES]), full_parity(number));
    fence_async_proxy();
    scores_begin<T, D>(score, q, k + number % STAGES * shared<D>::KEY_BYTES);
    wgmma_wait<0>();
    wgmma_hold(score);
    release(&desk->k_empty[number % STAGES]);
    softmax<D>(score, r, p, job, row, key); /* `out` is zeros: nothing to rescale */
    round_scores<T, D>(score, r);

    for (key += KEYS; key <= last; key += KEYS, number++) {
        const uint32_t next = number + 1, stage = number % STAGES, next_stage = next % STAGES;
        mbarrier_wait(shared_address(&desk->k_full[next_stage]), full_parity(next));
        mbarrier_wait(shared_address(&desk->v_full[stage]), full_parity(number));
        fence_async_proxy();
        if (turns) {
            barrier_sync(BARRIER_TURN + group, COMPUTERS);
        }
        scores_begin<T, D>(score, q, k + next_stage * shared<D>::KEY_BYTES);
        weigh_begin<T, D>(r, v + stage * shared<D>::KEY_BYTES);
        if (turns) {
            barrier_arrive(BARRIER_TURN + 1 - group, COMPUTERS);
        }
        wgmma_wait<1>();
        wgmma_hold(score);
        release(&desk->k_empty[next_stage]);
        const bool moved = softmax<D>(score, r, p, job, row, key);
        /* The softmax is to run beside P V. ptxas 13.0 moves the wait ahead of it, but not ahead of
         * a store, and this one needs all of it. */
        *static_cast<volatile float *>(&desk->pin[threadIdx.x - WARPGROUP]) = r.sum[0] + r.sum[1];
        wgmma_wait<0>();
        wgmma_hold(r.out);
        wgmma_hold(r.probability);
        release(&desk->v_empty[stage]);
        if (moved) {
            rescale<D>(r);
        }
        round_scores<T, D>(score, r);
    }
    mbarrier_wait(shared_address(&desk->v_full[number % STAGES]), full_parity(number));
    fence_async_proxy();
    weigh_begin<T, D>(r, v + number % STAGES * shared<D>::KEY_BYTES);
    wgmma_wait<0>();
    wgmma_hold(r.out);
    release(&desk->v_empty[number % STAGES]);
    barrier_sync(BARRIER_GROUP + group, WARPGROUP); /* q is read no more */
    store<T, D>(p, job, r, room + slot * shared<D>::Q_BYTES, row);
}

template <typename T, int D>
__device__ __forceinline__ void compute_jobs(const struct params &p, struct desk *desk,
                                             char *room) {
    const uint32_t group = threadIdx.x / WARPGROUP - 1;
    if (group == GROUPS - 1) {
        barrier_arrive(BARRIER_TURN, COMPUTERS); /* the first turn is the first's */
    }
    uint32_t number = 0;
    for (uint32_t turn = 0;; turn++) {
        const uint32_t slot = turn % SLOTS;
        mbarrier_wait(shared_address(&desk->q_full[slot]), full_parity(turn));
        const uint32_t job_rows = desk->job[slot].rows;
        if (job_rows == 0) {
            break;
        }
        const uint32_t tiles = desk->job[slot].last / KEYS - desk->job[slot].first / KEYS + 1;
        if (group * GROUP_ROWS < job_rows) {
            compute<T, D>(p, desk, room, slot, number);
        } else {
            for (uint32_t n = number; n < number + tiles; n++) {
                mbarrier_wait(shared_address(&desk->k_full[n % STAGES]), full_parity(n));
                release(&desk->k_empty[n % STAGES]);
                mbarrier_wait(shared_address(&desk->v_full[n % STAGES]), full_parity(n));
                release(&desk->v_empty[n % STAGES]);
            }
        }
        number += tiles;
        mbarrier_arrive(shared_address(&desk->q_empty[slot])); /* every lane has read the job */
    }
}

__device__ __forceinline__ void desk_init(struct desk *desk) {
    for (int i = 0; i < SLOTS; i++) {
        mbarrier_init(shared_address(&desk->q_full[i]), WARPGROUP + 1); /* q, and the job */
        mbarrier_init(shared_address(&desk->q_empty[i]), COMPUTERS);
    }
    for (int i = 0; i < STAGES; i++) {
        mbarrier_init(shared_address(&desk->k_full[i]), WARPGROUP);
        mbarrier_init(shared_address(&desk->k_empty[i]), COMPUTE_WARPS);
        mbarrier_init(shared_address(&desk->v_full[i]), WARPGROUP);
        mbarrier_init(shared_address(&desk->v_empty[i]), COMPUTE_WARPS);
    }
}

#endif

template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
    hopper_kernel(const __grid_constant__ struct params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint4 hopper_shared[];
    __shared__ struct desk desk;
    const uint32_t begin = shared_address(hopper_shared);
    const uint32_t base = (begin + STRIP_EIGHT - 1) / STRIP_EIGHT * STRIP_EIGHT;
    char *room = reinterpret_cast<char *>(hopper_shared) + (base - begin);
    if (threadIdx.x == 0) {
        desk_init(&desk);
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_fewer<LOADER_REGISTERS>();
        load_jobs<T, D>(p, &desk, base);
    } else {
        registers_more<COMPUTE_REGISTERS>();
        compute_jobs<T, D>(p, &desk, room);
    }
#endif
}

/* ---- launcher ----------------------------------------------------------------------------- */

template <typename T, int D> void hopper_launch(struct kern_device *d, uint32_t layer) {
    struct params p = params_of(d, layer);
    unsigned grid = static_cast<unsigned>(d->sm_count);
    hopper_kernel<T, D><<<grid, THREADS, shared<D>::BYTES, d->stream>>>(p);
    CUDA_LAUNCHED(d, "attention_hopper");
}

template <typename T, int D> enum err hopper_open(struct kern_device *d, struct err_text *why) {
    cudaFuncAttributes found;
    CU_TRY(why, cudaFuncGetAttributes(&found, hopper_kernel<T, D>));
    d->hopper_attention = found.sharedSizeBytes != 0; /* else no body: not compiled for sm_90a */
    if (!d->hopper_attention) {
        return ERR_OK;
    }
    CU_TRY(why,
           cudaFuncSetAttribute(hopper_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(shared<D>::BYTES)));
    return ERR_OK;
}

} // namespace

extern "C" void cuda_attention_hopper(struct kern_device *d, uint32_t layer) {
    CUDA_WITH_ELEM(d, T, {
        if (d->shape.head_dim == 64) {
            return hopper_launch<T, 64>(d, layer);
        }
        return hopper_launch<T, 128>(d, layer);
    });
}

extern "C" enum err cuda_hopper_open(struct kern_device *d, struct err_text *why) {
    constexpr int HOPPER = 90;
    const uint32_t dim = d->shape.head_dim;
    d->hopper_attention = d->capability == HOPPER && (dim == 64 || dim == 128);
    if (!d->hopper_attention) {
        return ERR_OK;
    }
    CUDA_WITH_ELEM(
        d, T, { return dim == 64 ? hopper_open<T, 64>(d, why) : hopper_open<T, 128>(d, why); });
}
