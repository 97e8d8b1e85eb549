/* linear_wide.cu - the linears of many rows on sm_90a, with what follows from a product alone:
 *
 *   qkv   y = x Wᵀ + Δ            o, down   y += x Wᵀ + Δ
 *   gate, up   act = silu(x Wgᵀ + Δg) · (x Wuᵀ + Δu), which are never written
 *
 * x [rows][in], W [out][in], y [rows][columns] elements; in steps with LoRA Δ = scale · (v Bᵀ +
 * bias) of each row's adapter (linear_wide_lora.cuh), else nothing. Sums are f32, from the first
 * column of x to the last rank, and rounded once. Any shape whose columns are multiples of 8: what
 * lies beyond a matrix is read as zeros and not written. A row's bits depend on the row alone.
 *
 * Work: a cluster of two blocks takes a tile of 256 rows × 256 columns of W's rows, 128 rows each
 * (gate, up: 128 columns of both, so that the two of an element meet in a thread). Tiles are dealt
 * out in turn, first over eight such row tiles, then over columns: what neighbours share is in the
 * second-level cache. A stage is 64 columns of x and W: a block brings its own rows of x and half
 * of W's, the latter to both blocks at once (TMA, strips of wgmma.cuh), by one thread, four stages
 * deep; it goes on with the next tile while the last is stored, and W's first stages are on their
 * way before the kernel in front has ended. Two warpgroups multiply 64 rows × 256 columns each, one
 * batch of products behind the other; a stage is empty when both warpgroups of both blocks say so.
 * In the end four lanes swap words, so that each has 16 bytes of a row.
 *
 * Bytes: of x rows × in × 2 for each 8 or so column tiles, W once for each 2,048 rows, y; from the
 * second-level cache 32 KiB for 128 × 256 × 64 products. FLOPs: 2 × rows × in × out. Against f64:
 * one rounding and in × 2⁻²⁴ of Σ|x w|; of gate and up two.
 *
 * Measured (H200, November 2026, Llama 3.1 8B's shape, bf16, W not in the caches; µs, by turns with
 * the fastest of cuBLASLt's suggestions, gate_up's with the activation behind it; runs of a second,
 * in which power is the limit):
 *
 *               8,192 rows            1,024 rows
 *   gate_up   2,916  (2,903)          369  (388)
 *   down      1,462  (1,498)          184  (180)
 *   qkv         636    (605)           96   (83)
 *   o           445    (428)           57   (56)
 *
 * LoRA's part at 8,192 rows of 8 adapters, rank 16, in short runs: gate_up + 70, down + 7, qkv +
 * 10, o + 8; at 1,000 rows of 200 adapters + 106, + 14, + 24, + 12.
 *
 * In whole runs (Llama 3.1 8B's shape, rank 16; steps with prefill, ms in the median): B1 of 8
 * adapters 193.2 (197.4 without), B2 of 8 202.9 (208.4), C2 217.7 (219.4); LoRA's part for all four
 * linears of such steps, whatever measures faster: 190.6, 204.0, 217.4.
 *
 * Tried: a release of cluster scope at each arrival is a fence of the whole GPU: 600 in place of
 * 780 TFLOP/s; y that is added to, loaded as it is used: o 16% slower; turns of 4 or 16 row tiles:
 * alike, of 2 or 32 up to 10% slower. */
#include <stdlib.h>

#include "kernels/cuda/linear_wide_lora.cuh"

namespace {

enum {
    TILE_ROWS = 128, /* of a block of threads; a cluster has twice as many */
    TILE_COLUMNS = 256,
    DEPTH = 64, /* of a step: a strip's */
    STEP = 16,  /* k of wgmma */
    CLUSTER = 2,
    STAGES = 4,
    TURN = 8,   /* row tiles of a cluster that are walked together */
    GROUPS = 2, /* warpgroups that multiply */
    GROUP_ROWS = 64,
    THREADS = (1 + GROUPS) * WARPGROUP,
    X_BYTES = TILE_ROWS * STRIP_ROW, /* of a stage */
    W_BYTES = TILE_COLUMNS * STRIP_ROW,
    HALF_BYTES = W_BYTES / CLUSTER, /* that a block brings for both */
    STAGE_BYTES = X_BYTES + W_BYTES,
    BLOCKS = TILE_COLUMNS / 8, /* of 8 columns */
    LOADER_REGISTERS = 72,
    COMPUTE_REGISTERS = 216,
    RING_BYTES = STAGES * STAGE_BYTES,
    SHARED_BYTES = RING_BYTES + STRIP_EIGHT, /* to align */
    COMPUTE_WARPS = GROUPS * WARPGROUP / 32,
};
static_assert(int(TILE_ROWS) == int(CUDA_LORA_TILE_ROWS), "lora_plan.c's tiles");
static_assert(int(TILE_COLUMNS) == int(SLOT_COLUMNS), "a slot has a tile's columns");

/* What is done with the sums. */
enum wide_end { WIDE_STORE, WIDE_ADD, WIDE_ACT };

struct params {
    uint32_t rows, columns; /* of y */
    uint32_t steps;
    uint32_t row_tiles, column_tiles; /* of a cluster */
    uint32_t turn;                    /* row tiles that are walked together */
    uint32_t w_stride, w_half;        /* rows of W from tile to tile, and between its halves */
    void *y;
    uint32_t y_row;
    struct lora_call lora; /* where there is LoRA */
    const uint4 *packed;   /* likewise: lora_pack.cuh */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct desk {
    uint64_t full[STAGES], empty[STAGES];
    struct slot_desk slots;
};

struct place {
    uint32_t row, column; /* tiles of a cluster */
};

/* Tiles side by side share what they read while it is in the second-level cache. */
__device__ __forceinline__ struct place place_of(const struct params &p, uint32_t tile) {
    const uint32_t turn = tile / (p.turn * p.column_tiles);
    const uint32_t first = turn * p.turn, in = tile - first * p.column_tiles;
    const uint32_t rows = min(p.turn, p.row_tiles - first);
    return {first + in % rows, in / rows};
}

/* ---- the loader ---------------------------------------------------------------------------- */

struct ring {
    uint32_t base, slot, phase;
};
__device__ __forceinline__ void ring_next(struct ring &r) {
    r.slot++;
    if (r.slot == STAGES) {
        r.slot = 0;
        r.phase ^= 1;
    }
}

__device__ __forceinline__ void load(const struct params &p, const CUtensorMap *x,
                                     const CUtensorMap *w, struct desk &desk, struct ring r) {
    const uint32_t rank = cluster_rank(), clusters = gridDim.x / CLUSTER;
    constexpr uint16_t BOTH = (1 << CLUSTER) - 1;
    uint32_t ahead = min((uint32_t)STAGES, p.steps); /* W's of the first stages do not wait */
    struct place at = place_of(p, blockIdx.x / CLUSTER);
    for (uint32_t s = 0; s < ahead; s++) {
        const uint32_t full = shared_address(&desk.full[s]), to = r.base + s * STAGE_BYTES;
        mbarrier_expect(full, STAGE_BYTES);
        copy_box_shared(to + X_BYTES + rank * HALF_BYTES, w, s * DEPTH,
                        at.column * p.w_stride + rank * p.w_half, full, BOTH);
    }
    launch_wait();
    for (uint32_t tile = blockIdx.x / CLUSTER; tile < p.row_tiles * p.column_tiles;
         tile += clusters) {
        at = place_of(p, tile);
        const uint32_t x_row = (at.row * CLUSTER + rank) * TILE_ROWS;
        const uint32_t w_row = at.column * p.w_stride + rank * p.w_half;
        for (uint32_t s = 0; s < p.steps; s++, ring_next(r)) {
            const uint32_t full = shared_address(&desk.full[r.slot]);
            const uint32_t to = r.base + r.slot * STAGE_BYTES;
            if (ahead != 0) {
                ahead--;
            } else {
                mbarrier_wait(shared_address(&desk.empty[r.slot]), r.phase ^ 1);
                mbarrier_expect(full, STAGE_BYTES);
                copy_box_shared(to + X_BYTES + rank * HALF_BYTES, w, s * DEPTH, w_row, full, BOTH);
            }
            copy_box(to, x, s * DEPTH, x_row, full);
        }
    }
    launch_next();
}

/* A second warp: LoRA's slots of all tiles. */
template <typename T, bool PAIR>
__device__ __forceinline__ void fill(const struct params &p, struct desk &desk,
                                     struct slot_ring slots) {
    const uint32_t rank = cluster_rank(), clusters = gridDim.x / CLUSTER;
    for (uint32_t tile = blockIdx.x / CLUSTER; tile < p.row_tiles * p.column_tiles;
         tile += clusters) {
        const struct place at = place_of(p, tile);
        const struct slot_view v = {(at.row * CLUSTER + rank) * TILE_ROWS, TILE_ROWS,
                                    at.column * p.w_stride};
        fill_tile<T, PAIR>(p.lora, v, desk.slots, slots);
    }
    launch_wait();
    copy_async_wait<0>();
}

/* ---- the warpgroups that multiply ----------------------------------------------------------- */

/* Word j of lane i of four becomes word i of lane j. */
__device__ __forceinline__ void quad_transpose(uint32_t (&w)[4]) {
    const uint32_t lane = threadIdx.x % 4;
    const bool odd = lane % 2 != 0, high = lane / 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? got : w[i];
        w[i + 1] = odd ? w[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
        w[i] = high ? got : w[i];
        w[i + 2] = high ? w[i + 2] : got;
    }
}

/* Where the lane's part of y is, four blocks of 8 columns after the other: a lane has 8 adjacent
 * columns of each row, so that four lanes read and write 64 bytes of it. */
template <typename T> struct y_place {
    T *at;
    uint32_t row, column;
};

template <typename T>
__device__ __forceinline__ struct y_place<T> y_place_of(const struct params &p, uint32_t row,
                                                        uint32_t column) {
    struct y_place<T> y;
    y.row = row;
    y.column = column + threadIdx.x % 4 * 8;
    y.at = static_cast<T *>(p.y) + ((uint64_t)row * p.y_row + y.column);
    return y;
} template <typename T>
__device__ __forceinline__ bool y_there(const struct params &p, const struct y_place<T> &y,
                                        uint32_t four, uint32_t half) {
    return y.row + half * 8 < p.rows && y.column + four * 32 < p.columns;
}
template <typename T>
__device__ __forceinline__ uint4 *y_words(const struct params &p, const struct y_place<T> &y,
                                          uint32_t four, uint32_t half) {
    return reinterpret_cast<uint4 *>(y.at + (uint64_t)(half * 8) * p.y_row + four * 32);
}

/* What y holds, in fours BEGIN … of blocks, on its way. */
template <typename T, int BEGIN, int END_FOUR, int FOURS>
__device__ __forceinline__ void y_load(const struct params &p, const struct y_place<T> &y,
                                       uint4 (&old)[FOURS][2]) {
#pragma unroll
    for (uint32_t four = BEGIN; four < END_FOUR; four++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (y_there(p, y, four, half)) {
                old[four][half] = *y_words(p, y, four, half);
            }
        }
    }
    asm volatile("" ::: "memory"); /* not later */
}

/* d [64 × 256] + old → y, of fours FROM …. */
template <typename T, enum wide_end END, int FROM, int TO, int FOURS>
__device__ __forceinline__ void y_store(const struct params &p, const struct y_place<T> &y,
                                        const float (&d)[BLOCKS][4], const uint4 (&old)[FOURS][2]) {
#pragma unroll
    for (uint32_t four = FROM; four < TO; four++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint4 &held = old[four][half];
            uint32_t words[4], before[4] = {held.x, held.y, held.z, held.w};
            if (END == WIDE_ADD) {
                quad_transpose(before);
            }
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const uint32_t j = four * 4 + k;
                float a = d[j][half * 2], b = d[j][half * 2 + 1];
                if (END == WIDE_ACT) { /* rounded as if they were stored: the library's bits */
                    const float(&u)[4] = d[j + BLOCKS / 2];
                    const float2 gate = pair_floats<T>(pair_bits<T>(a, b));
                    const float2 up = pair_floats<T>(pair_bits<T>(u[half * 2], u[half * 2 + 1]));
                    a = silu(gate.x) * up.x;
                    b = silu(gate.y) * up.y;
                }
                if (END == WIDE_ADD) {
                    const float2 v = pair_floats<T>(before[k]);
                    a += v.x;
                    b += v.y;
                }
                words[k] = pair_bits<T>(a, b);
            }
            quad_transpose(words);
            if (y_there(p, y, four, half)) {
                *y_words(p, y, four, half) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
}

/* Fetches the tile's y into the second-level cache, where it is to be added to. */
__device__ __forceinline__ void y_fetch(const struct params &p, uint32_t row, uint32_t column,
                                        uint32_t thread) {
    constexpr uint32_t LINE = 64, LINES = TILE_COLUMNS / LINE; /* elements; of a row */
    for (uint32_t i = thread; i < GROUP_ROWS * LINES; i += WARPGROUP) {
        const uint32_t at = column + i % LINES * LINE;
        if (row + i / LINES < p.rows && at < p.columns) {
            prefetch_l2(static_cast<const uint16_t *>(p.y) +
                        ((uint64_t)(row + i / LINES) * p.y_row + at));
        }
    }
}

/* d (+)= a stage; HALVES_APART: instructions of one width in a kernel, where LoRA has some of 128
 * columns, or the compiler would need room to move d about. Not waited for. */
template <typename T, bool HALVES_APART>
__device__ __forceinline__ void multiply(float (&d)[BLOCKS][4], uint64_t x, uint64_t w, bool add) {
    constexpr uint32_t UNITS = STEP * 2 / 16; /* of a descriptor, from 16 columns to the next */
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / STEP; k++) {
        const uint64_t xk = x + k * UNITS, wk = w + k * UNITS;
        if (HALVES_APART) {
            wide_shared_half<T, 0>(d, xk, wk, add || k != 0);
            wide_shared_half<T, 16>(d, xk, wk + HALF_BYTES / 16, add || k != 0);
        } else {
            wide_shared<T>(d, xk, wk, add || k != 0);
        }
    }
    wgmma_commit();
}

/* The warpgroup is done with a stage: both blocks must know, whose halves of W it had. */
__device__ __forceinline__ void stage_empty(struct desk &desk, uint32_t slot, uint32_t thread) {
    if (thread < CLUSTER) {
        mbarrier_arrive_at(shared_address(&desk.empty[slot]), thread);
    }
}

template <typename T, enum wide_end END, bool LORA>
__device__ __forceinline__ void compute(const struct params &p, struct desk &desk, struct ring r,
                                        struct slot_ring slots) {
    constexpr uint32_t COLUMNS = END == WIDE_ACT ? TILE_COLUMNS / 2 : TILE_COLUMNS;
    const uint32_t rank = cluster_rank(), clusters = gridDim.x / CLUSTER;
    /* the same for all lanes, as the compiler must know of what goes into operands */
    const uint32_t group = __shfl_sync(0xffffffffu, threadIdx.x / WARPGROUP - 1, 0);
    const uint32_t thread = threadIdx.x % WARPGROUP;
    const uint32_t group_row = group * GROUP_ROWS + thread / 32 * 16; /* of the tile; the warp's */
    launch_wait();
    float d[BLOCKS][4];
    struct slot_rows<END == WIDE_ACT> v = {};
    v.key = NO_KEY;
    for (uint32_t tile = blockIdx.x / CLUSTER; tile < p.row_tiles * p.column_tiles;
         tile += clusters) {
        const struct place at = place_of(p, tile);
        const uint32_t first_row = (at.row * CLUSTER + rank) * TILE_ROWS;
        uint32_t before = 0;
        if (END == WIDE_ADD) {
            y_fetch(p, first_row + group * GROUP_ROWS, at.column * COLUMNS, thread);
        }
        for (uint32_t s = 0; s < p.steps; s++, ring_next(r)) {
            mbarrier_wait(shared_address(&desk.full[r.slot]), r.phase);
            const uint32_t stage = r.base + r.slot * STAGE_BYTES;
            const uint64_t x =
                wgmma_operand(stage + group * (GROUP_ROWS * STRIP_ROW), 16, STRIP_EIGHT);
            const uint64_t w = wgmma_operand(stage + X_BYTES, 16, STRIP_EIGHT);
            multiply<T, LORA && END == WIDE_ACT>(d, x, w, s != 0);
            if (s != 0) {
                wgmma_wait<1>();
                stage_empty(desk, before, thread);
            }
            before = r.slot;
            if (LORA && s == p.steps / 2) { /* v is there when it is wanted */
                rows_ahead(p.lora, p.packed, first_row + group_row, desk.slots, slots, v);
            }
        }
        const struct y_place<T> y =
            y_place_of<T>(p, first_row + group_row + thread % 32 / 4, at.column * COLUMNS);
        constexpr int FOURS = COLUMNS / 32, AHEAD = LORA ? FOURS / 2 : FOURS; /* as there is room */
        uint4 old[FOURS][2] = {};
        if (END == WIDE_ADD) {
            y_load<T, 0, AHEAD>(p, y, old);
        }
        if (LORA) {
            const struct slot_place slot_place = {p.packed, first_row, group_row};
            add_slots<T>(p.lora, slot_place, desk.slots, slots, v, d,
                         [&]() { stage_empty(desk, before, thread); });
        } else {
            wgmma_wait<0>();
            wgmma_hold(d);
            stage_empty(desk, before, thread);
        }
        if (END == WIDE_ADD && LORA) { /* loads ahead of stores, as many as there is room for */
            constexpr int MORE = AHEAD + 2;
            y_load<T, AHEAD, MORE>(p, y, old);
            y_store<T, END, 0, AHEAD>(p, y, d, old);
            y_load<T, MORE, FOURS>(p, y, old);
            y_store<T, END, AHEAD, FOURS>(p, y, d, old);
        } else {
            y_store<T, END, 0, FOURS>(p, y, d, old);
        }
    }
}

#endif

template <typename T, enum wide_end END, bool LORA>
__global__ void __launch_bounds__(THREADS, 1)
    linear_wide_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                       const __grid_constant__ struct params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint4 wide_shared_memory[];
    __shared__ struct desk desk;
    if (threadIdx.x == 0) {
        map_prefetch(&x);
        map_prefetch(&w);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(shared_address(&desk.full[i]), 1);
            mbarrier_init(shared_address(&desk.empty[i]), GROUPS * CLUSTER);
        }
        if (LORA) {
            slots_init(desk.slots, COMPUTE_WARPS);
        }
        mbarriers_publish();
    }
    cluster_meet();
    struct ring r = {};
    r.base = (shared_address(wide_shared_memory) + STRIP_EIGHT - 1) / STRIP_EIGHT * STRIP_EIGHT;
    struct slot_ring slots = {r.base + RING_BYTES, 0, 0};
    if (threadIdx.x < WARPGROUP) {
        registers_fewer<LOADER_REGISTERS>();
        if (threadIdx.x == 0) {
            load(p, &x, &w, desk, r);
        } else if (LORA && threadIdx.x / 32 == 1) {
            fill<T, END == WIDE_ACT>(p, desk, slots);
        } else {
            launch_wait();
        }
    } else {
        registers_more<COMPUTE_REGISTERS>();
        compute<T, END, LORA>(p, desk, r, slots);
    }
    __syncwarp();
    cluster_meet(); /* the other block still arrives at barriers here */
#endif
}

} // namespace

/* ---- maps and launches ---------------------------------------------------------------------- */

enum { WIDE_LINEARS = CUDA_DOWN + 1 };

struct cuda_wide {
    CUtensorMap x[WIDE_LINEARS];
    CUtensorMap w[][WIDE_LINEARS]; /* [layers] */
};

namespace {

struct linear_shape {
    const void *x;
    uint32_t in, out; /* of W */
    void *y;
    uint32_t y_row;
    enum wide_end end;
};

struct linear_shape shape_of(const struct kern_device *d, enum cuda_linear which) {
    const uint32_t hidden = d->shape.hidden, intermediate = d->shape.intermediate;
    switch (which) {
    case CUDA_QKV:
        return {d->normed, hidden, d->qkv_cols, d->qkv, d->qkv_cols, WIDE_STORE};
    case CUDA_O:
        return {d->attended, d->q_cols, hidden, d->x, hidden, WIDE_ADD};
    case CUDA_GATE_UP:
        return {d->normed, hidden, 2 * intermediate, d->act, intermediate, WIDE_ACT};
    default:
        return {d->act, intermediate, hidden, d->x, hidden, WIDE_ADD};
    }
}

bool maps_make(struct kern_device *d) {
    bool made = true;
    for (int i = 0; i < WIDE_LINEARS; i++) {
        const enum cuda_linear which = static_cast<enum cuda_linear>(i);
        const struct linear_shape s = shape_of(d, which);
        made = made && boxes_map(d, &d->wide->x[i], s.x, d->rows_max, s.in, TILE_ROWS);
        for (uint32_t l = 0; l < d->shape.layers; l++) {
            made = made && boxes_map(d, &d->wide->w[l][i], cuda_layer_matrix(&d->layers[l], which),
                                     s.out, s.in, TILE_COLUMNS / CLUSTER);
        }
    }
    return made;
}

constexpr size_t shared_bytes(bool lora) {
    return SHARED_BYTES + (lora ? SLOT_BYTES : 0);
}

template <typename T, enum wide_end END, bool LORA>
void launch_as(struct kern_device *d, enum cuda_linear which, uint32_t layer,
               const struct params &p) {
    const uint32_t most = (uint32_t)d->sm_count / CLUSTER;
    const uint32_t clusters = min(p.row_tiles * p.column_tiles, most);
    cuda_launch_early(d, "linear_wide", linear_wide_kernel<T, END, LORA>,
                      cuda_shape{dim3(clusters * CLUSTER), THREADS, shared_bytes(LORA), CLUSTER},
                      d->wide->x[which], d->wide->w[layer][which], p);
}

template <typename T, enum wide_end END>
void launch(struct kern_device *d, enum cuda_linear which, uint32_t layer, const struct params &p) {
    if (d->lora_rows) {
        launch_as<T, END, true>(d, which, layer, p);
    } else {
        launch_as<T, END, false>(d, which, layer, p);
    }
}

} // namespace

void cuda_linear_wide(struct kern_device *d, enum cuda_linear which, uint32_t layer) {
    const struct linear_shape s = shape_of(d, which);
    const bool act = s.end == WIDE_ACT;
    struct params p = {};
    p.rows = d->rows;
    p.columns = act ? s.out / 2 : s.out;
    p.steps = (s.in + DEPTH - 1) / DEPTH;
    p.w_stride = act ? TILE_COLUMNS / 2 : TILE_COLUMNS;
    p.w_half = act ? s.out / 2 : TILE_COLUMNS / 2;
    p.row_tiles = (p.rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS);
    p.column_tiles = (p.columns + p.w_stride - 1) / p.w_stride;
    p.turn = TURN;
    p.y = s.y;
    p.y_row = s.y_row;
    if (d->lora_rows) {
        static const enum cuda_group groups[] = {CUDA_GROUP_QKV, CUDA_GROUP_O, CUDA_GROUP_GATE_UP,
                                                 CUDA_GROUP_DOWN};
        p.lora = lora_group_call(d, layer, groups[which]);
        p.packed = static_cast<const uint4 *>(d->lora_packed);
    }
    CUDA_WITH_ELEM(d, T, {
        switch (s.end) {
        case WIDE_STORE:
            launch<T, WIDE_STORE>(d, which, layer, p);
            break;
        case WIDE_ADD:
            launch<T, WIDE_ADD>(d, which, layer, p);
            break;
        case WIDE_ACT:
            launch<T, WIDE_ACT>(d, which, layer, p);
            break;
        }
    });
}

namespace {

template <typename T, enum wide_end END, bool LORA> cudaError_t kernel_open(bool *there) {
    cudaFuncAttributes found;
    cudaError_t result = cudaFuncGetAttributes(&found, linear_wide_kernel<T, END, LORA>);
    *there = result == cudaSuccess && found.sharedSizeBytes != 0; /* else: not for sm_90a */
    if (*there) {
        result = cudaFuncSetAttribute(linear_wide_kernel<T, END, LORA>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared_bytes(LORA));
    }
    return result;
}

} // namespace

enum err cuda_wide_open(struct kern_device *d, struct err_text *why) {
    constexpr int HOPPER = 90;
    if (d->capability != HOPPER) {
        return ERR_OK;
    }
    bool there = false;
    CUDA_WITH_ELEM(d, T, {
        CU_TRY(why, (kernel_open<T, WIDE_STORE, false>(&there)));
        CU_TRY(why, (kernel_open<T, WIDE_ADD, false>(&there)));
        CU_TRY(why, (kernel_open<T, WIDE_ACT, false>(&there)));
        CU_TRY(why, (kernel_open<T, WIDE_STORE, true>(&there)));
        CU_TRY(why, (kernel_open<T, WIDE_ADD, true>(&there)));
        CU_TRY(why, (kernel_open<T, WIDE_ACT, true>(&there)));
    });
    if (!there || d->map_encode == nullptr) {
        return ERR_OK;
    }
    d->wide = static_cast<struct cuda_wide *>(aligned_alloc(
        alignof(CUtensorMap), sizeof(struct cuda_wide) + d->shape.layers * sizeof d->wide->w[0]));
    if (d->wide == nullptr) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the linears' maps");
    }
    if (!maps_make(d)) {
        cuda_wide_close(d);
    }
    return ERR_OK;
}

void cuda_wide_close(struct kern_device *d) {
    free(d->wide);
    d->wide = nullptr;
}
