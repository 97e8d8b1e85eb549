/* lora_norm.cu - x += scale · (v Bᵀ + bias), rounded once, then normed = x · w / √(mean(x²) + ε) of
 * the rounded x, for pieces of rows, each with its own adapter or none: expand of o and down with
 * the norm behind it, in one pass. sm_90; elsewhere, and of rows of more than 8,192 columns,
 * lora_expand.cu and blocks.cu do it one after the other, with the same bits.
 *
 * x and normed [rows][hidden] elements; v: shrink's partial sums; B in tiles in pages
 * (lora_expand.cuh); w [hidden] f32. Rows without an adapter, and adapters that leave the
 * projection alone, give bits as cuda_norm_rows() does; the order of the squares is in norm.cuh.
 *
 * Work: a unit is a piece of ≤ 16 or 32 rows. A cluster of up to 8 blocks takes a unit, a block 512
 * of its columns (1,024 where rows are longer than 4,096), a warp a tile of 64 of them (or two), so
 * that a cluster reads B once. Persistent clusters walk the units. While a unit is multiplied the x
 * of the next one comes to shared memory, each lane fetching what it will itself work on; while
 * the cluster's row sums come together, B and v of the next do. The sums go from block to block by
 * stores that count at an mbarrier of the block they reach.
 *
 * Bytes: 6 × rows × hidden; of B rank × hidden × 2 a piece, of v 4 × splits × rows × rank a block.
 * FLOPs: 2 × rows × rank × hidden, times two for v's parts. Sums are f32; x as lora_expand.cu says.
 *
 * H200, bf16, hidden 4096, behind shrink, expand and norm apart against this (November 2026), µs:
 * 8,192 rows of 8 adapters 118 and 74 (rank 16), 177 and 105 (rank 64); 1,024 rows of 8 adapters 20
 * and 14.6, of 200 adapters 38 and 31 (memory alone: 48, 49, 6.2, 12.2); 16 rows 6.7 and 6.2.
 * Tried, of the first and third: a barrier of the cluster for the sums, whose release waits for all
 * stores to x: 83 and 16.4. 4 blocks a multiprocessor, which spills registers: 101 and 20. Of the
 * first: 16 rows a unit, 3 blocks: 84. Units of 16 rows of whatever adapters (32 in mixed steps), 2
 * blocks: what o's and down's adapters add, shrink included, 59 and 101 in place of 73 and 106
 * (256 decode rows of as many adapters), 95 and 176 of 113 and 226 (512), but of one adapter 17 and
 * 28 of 14 and 24 (512), and 114 and 139 of 82 and 117 at 8,192 rows; no gain in whole steps. v of
 * the projections that read normed next made here too, so that two of a layer's four x Aᵀ are no
 * kernels: decode steps of 1, 64 and 256 rows 5.39, 8.48 and 17.28 ms in place of 5.56, 8.55 and
 * 17.33, of 600 the same. */
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/lora_expand.cuh"
#include "kernels/cuda/norm.cuh"

enum {
    WARPS = 8, /* each has a tile of the columns, or two */
    THREADS = 32 * WARPS,
    CLUSTER_MAX = 8,
    HALVES = 2, /* rows l / 4 and l / 4 + 8 of a lane */
    SPANS = 2,  /* of a tile */
    BLOCKS_MAX = KERN_RANK_MAX / KERN_BLOCK_RANKS,
    TURNS = 2, /* units whose x is in shared memory: one at work, one on its way */
};

struct norm_args {
    const float *w;
    void *normed;
    float eps;
    uint32_t clusters; /* that work; those behind only fetch */
    struct cuda_ahead ahead;
};

/* A block's shared memory. In x each lane has places of its own: it fetches what it works on. */
template <typename T, int SUBTILES, int TILES> struct norm_shared {
    uint4 x[TURNS][TILES][SUBTILES][SPANS][HALVES][THREADS];
    stage<T, SUBTILES> v;
    float4 w[TILES][SPANS][WARPS][4][2]; /* of the norm: [lane % 4]'s 8 columns */
    float tile_sum[TILES][SUBTILES * 16][WARPS];
    float group_sum[TURNS][CLUSTER_MAX * TILES][SUBTILES * 16]; /* of all blocks of the cluster */
    uint64_t told[TURNS];                                       /* that they are there */
};

/* A piece and what its adapter has for this projection. */
struct norm_unit {
    uint32_t adapter, row, rows;
    uint32_t rank, begin, bias; /* rank 0: nothing is added */
    float scale;
};

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/* ---- a unit --------------------------------------------------------------------------------- */

static __device__ __forceinline__ struct norm_unit unit_of(const struct lora_call &c,
                                                           const struct cuda_lora_piece &piece) {
    struct norm_unit u = {piece.adapter, piece.row, piece.rows, 0, 0, 0, 0};
    if (piece.adapter != KERN_BASE) {
        const struct kern_lora *lora = lora_entry(c, piece.adapter, 0);
        u.rank = lora->rank;
        u.scale = lora->scale;
        u.begin = (uint32_t)lora->b;
        u.bias = (uint32_t)lora->bias;
    }
    return u;
}

static __device__ __forceinline__ uint32_t block_ranks(const struct norm_unit &u, uint32_t block) {
    return min(u.rank - block * KERN_BLOCK_RANKS, (uint32_t)KERN_BLOCK_RANKS);
}

/* Where a tile lies, as soon as the page's number has come. */
struct norm_place {
    uint32_t page, element, bytes; /* bytes 0: nowhere */
};

static __device__ __forceinline__ const uint32_t *unit_pages(const struct lora_call &c,
                                                             const struct norm_unit &u) {
    return c.tables.adapter_pages + (uint64_t)u.adapter * c.tables.adapter_page_row;
}

/* Rank block l % BLOCKS_MAX of this warp's tile l / BLOCKS_MAX, in lane l. */
template <typename T, int TILES>
static __device__ __forceinline__ struct norm_place
place_ask(const struct lora_call &c, const struct norm_unit &u, uint32_t first_tile) {
    const uint32_t block = threadIdx.x % BLOCKS_MAX, i = threadIdx.x % 32 / BLOCKS_MAX;
    const uint32_t tile = first_tile + i * WARPS, tiles = lora_tiles(c.out[0]);
    struct norm_place p = {};
    if (i < TILES && tile < tiles && block * KERN_BLOCK_RANKS < u.rank) {
        lora_place(lora_run_of(c.page_elems, u.begin, u.rank, tiles, block), tile, &p.page,
                   &p.element);
        p.page = unit_pages(c, u)[p.page];
        p.bytes = block_ranks(u, block) * KERN_TILE_COLUMNS * (uint32_t)sizeof(T);
    }
    return p;
}

/* Asks the second-level cache to have it, too. */
template <typename T>
static __device__ __forceinline__ const T *place_at(const struct lora_call &c, const T *plane,
                                                    const struct norm_place &p) {
    if (p.bytes == 0) {
        return nullptr;
    }
    const T *at = plane + (uint64_t)p.page * c.page_elems + p.element;
    fetch_l2(at, p.bytes);
    return at;
}

/* B of a unit, as a warp has it. */
template <typename T> struct norm_b {
    const T *place;    /* place_at() of each lane */
    uint4 first[1][4]; /* the span that is multiplied next */
};

/* What lane `lane` has found. */
template <typename T>
static __device__ __forceinline__ const T *place_of(const T *place, uint32_t lane) {
    return reinterpret_cast<const T *>(
        __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(place), lane));
}

/* x of a unit, to the places of the lanes that will work on it. */
template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void
x_fetch(const struct lora_call &c, uint32_t first_row, uint32_t rows, uint32_t first_tile,
        uint4 (&to)[TILES][SUBTILES][SPANS][HALVES][THREADS]) {
    const uint32_t row = threadIdx.x % 32 / 4;
    const T *x = static_cast<const T *>(c.y) + (uint64_t)first_row * c.y_row;
#pragma unroll
    for (int i = 0; i < TILES * SUBTILES * SPANS * HALVES; i++) {
        const int half = i % HALVES, span = i / HALVES % SPANS, m = i / (HALVES * SPANS) % SUBTILES,
                  tile = i / (HALVES * SPANS * SUBTILES);
        const uint32_t r = row + m * 16 + half * 8;
        const uint32_t column =
            (first_tile + tile * WARPS) * KERN_TILE_COLUMNS + span * SPAN + threadIdx.x % 4 * 8;
        const bool there = r < rows && column < c.out[0];
        copy_async_16(shared_address(&to[tile][m][span][half][threadIdx.x]),
                      there ? x + (r * c.y_row + column) : x, there);
    }
}

/* scale · Σ splits of ranks [from, from + STAGE_RANKS) of all rows of the unit, as fill_stage()
 * makes it. Between two barriers. */
template <int AT_ONCE, typename T, int SUBTILES>
static __device__ __forceinline__ void v_fill(const struct lora_call &c, const struct norm_unit &u,
                                              uint32_t from, stage<T, SUBTILES> &stage) {
    if (u.rank == 0) {
        return;
    }
    const uint32_t quads = min(u.rank - from, (uint32_t)STAGE_RANKS) / 4;
    const uint32_t log2 = 32 - __clz(quads - 1), rows = (u.rows + 15) / 16 * 16; /* quads ≥ 2 */
    const uint64_t stride = (uint64_t)c.rows * KERN_RANK_MAX;
    for (uint32_t i = threadIdx.x; i < rows << log2; i += THREADS) {
        const uint32_t row = i >> log2, r = (i & ((1u << log2) - 1)) * 4;
        if (r >= quads * 4) {
            continue;
        }
        float sum[4] = {};
        if (row < u.rows) {
            const float *v = lora_v(c, 0, u.row + row, 0) + from + r;
            for (uint32_t split = 0; split < c.splits; split += AT_ONCE) {
                float4 part[AT_ONCE];
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    const float *p = v + (split + k) * stride;
                    part[k] = split + k < c.splits ? *reinterpret_cast<const float4 *>(p)
                                                   : make_float4(0, 0, 0, 0);
                }
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    sum[0] += part[k].x;
                    sum[1] += part[k].y;
                    sum[2] += part[k].z;
                    sum[3] += part[k].w;
                }
            }
        }
        stage_put(stage, row, r, u.scale, sum);
    }
}

template <typename T>
static __device__ __forceinline__ void tile_load(const T *at, uint32_t ranks, uint32_t span,
                                                 uint4 (&b)[4]) {
    WITH_RANKS(KERN_BLOCK_RANKS, ranks, b_span<RANKS, load_tile>(at + span * SPAN * RANKS, b));
}

/* Adds scale · bias of a lane's 8 columns to its sums. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void bias_add(const struct lora_call &c, const T *plane,
                                                const struct norm_unit &u, uint32_t column,
                                                float (&sum)[1][SUBTILES][4][4]) {
    if (u.bias == 0 || column >= c.out[0]) {
        return;
    }
    const uint32_t at = u.bias + column, page = at / c.page_elems;
    const T *from = plane + (uint64_t)unit_pages(c, u)[page] * c.page_elems;
    float bias[8];
    eight_floats<T>(lora_load_16(from + (at - page * c.page_elems)), bias);
#pragma unroll
    for (int i = 0; i < SUBTILES * HALVES * 8; i++) {
        const int m = i / (HALVES * 8), half = i / 8 % HALVES, k = i % 8;
        sum[0][m][k / 2][half * 2 + k % 2] += __fmul_rn(bias[k], u.scale);
    }
}

/* Adds a span's delta to x, stores it, and adds up its squares. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void
span_update(const struct lora_call &c, const struct norm_unit &u, uint32_t column,
            const float (&sum)[1][SUBTILES][4][4], uint4 (*x)[SPANS][HALVES][THREADS],
            float (&square)[SUBTILES][HALVES]) {
    T *y = static_cast<T *>(c.y) + (uint64_t)u.row * c.y_row + column;
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            uint4 &place = x[m][0][half][threadIdx.x];
            uint4 bits = place;
            if (u.rank != 0 && column < c.out[0]) { /* else the sign of a zero might change */
                const uint32_t row = m * 16 + half * 8 + threadIdx.x % 32 / 4;
                float v[8];
                eight_floats<T>(bits, v);
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    v[k] += sum[0][m][k / 2][half * 2 + k % 2];
                }
                bits = eight_bits<T>(v);
                place = bits;
                if (row < u.rows) {
                    *reinterpret_cast<uint4 *>(y + row * c.y_row) = bits;
                }
            }
            square[m][half] += norm_square<T>(bits);
        }
    }
}

/* The delta of all rows and this warp's tiles. All threads of the block. `b` is the first span of
 * the first rank block, v's first 64 ranks are there. */
template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void
unit_add(const struct lora_call &c, const T *plane, const struct norm_unit &u, uint32_t first_tile,
         norm_b<T> &b, uint32_t turn, norm_shared<T, SUBTILES, TILES> &shared) {
    const uint32_t blocks = (u.rank + KERN_BLOCK_RANKS - 1) / KERN_BLOCK_RANKS;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
    for (uint32_t i = 0; i < TILES; i++) {
        const uint32_t tile = first_tile + i * WARPS;
        float square[SUBTILES][HALVES] = {};
#pragma unroll 1
        for (uint32_t span = 0; span < SPANS; span++) {
            float sum[1][SUBTILES][4][4] = {};
#pragma unroll 1
            for (uint32_t block = 0; block < blocks; block++) {
                uint4 now[1][4];
#pragma unroll
                for (int g = 0; g < 4; g++) {
                    now[0][g] = b.first[0][g];
                }
                /* what is next, on its way */
                const bool wraps = block + 1 == blocks;
                const uint32_t next = wraps ? 0 : block + 1, next_span = (span + wraps) % SPANS;
                const uint32_t next_tile = i + (wraps && next_span == 0);
                const T *from = place_of(b.place, (next_tile * BLOCKS_MAX + next) % 32);
                if (next_tile < TILES && from != nullptr) {
                    tile_load(from, block_ranks(u, next), next_span, b.first[0]);
                }
                if (blocks > STAGE_BLOCKS && block % STAGE_BLOCKS == 0 && i + span + block > 0) {
                    __syncthreads();
                    v_fill<1>(c, u, block * KERN_BLOCK_RANKS, shared.v);
                    __syncthreads();
                }
                WITH_RANKS(KERN_BLOCK_RANKS, block_ranks(u, block),
                           multiply<RANKS>(sum, now, shared.v, block % STAGE_BLOCKS, u.rows));
            }
            const uint32_t column = tile * KERN_TILE_COLUMNS + span * SPAN + lane % 4 * 8;
            bias_add(c, plane, u, column, sum);
            span_update<T>(
                c, u, column, sum,
                reinterpret_cast<uint4(*)[SPANS][HALVES][THREADS]>(&shared.x[turn][i][0][span]),
                square);
        }
#pragma unroll
        for (int m = 0; m < SUBTILES; m++) {
#pragma unroll
            for (int half = 0; half < HALVES; half++) { /* as norm.cuh says */
                float s = square[m][half];
                s += __shfl_xor_sync(0xffffffffu, s, 1);
                s += __shfl_xor_sync(0xffffffffu, s, 2);
                if (lane % 4 == 0) {
                    shared.tile_sum[i][m * 16 + half * 8 + lane / 4][warp] = s;
                }
            }
        }
    }
}

/* This block's groups of all rows, to all blocks of the cluster. A block without others stores them
 * itself, for only in a cluster may an address be one of a cluster. */
template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void sums_put(uint32_t turn,
                                                norm_shared<T, SUBTILES, TILES> &shared) {
    constexpr uint32_t ROWS = SUBTILES * 16;
    const uint32_t size = cluster_size(), rank = cluster_rank();
    if (size > 1 && threadIdx.x == 0) {
        told_expect(&shared.told[turn], ROWS * TILES * size * (uint32_t)sizeof(float));
    }
    for (uint32_t i = threadIdx.x; i < ROWS * TILES * size; i += THREADS) {
        const uint32_t row = i % ROWS, group = i / ROWS % TILES, to = i / (ROWS * TILES);
        const float *t = shared.tile_sum[group][row];
        const float sum = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
        float *place = &shared.group_sum[turn][rank * TILES + group][row];
        if (size > 1) {
            told_put(place, &shared.told[turn], to, sum);
        } else {
            *place = sum;
        }
    }
}

/* Until those of all blocks are here. */
template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void sums_wait(uint32_t turn, uint32_t phase,
                                                 norm_shared<T, SUBTILES, TILES> &shared) {
    if (cluster_size() > 1) {
        told_wait(&shared.told[turn], phase);
    } else {
        __syncthreads();
    }
}

/* The norm of a unit, when the cluster's sums are there. */
template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void
unit_norm(const struct lora_call &c, const struct norm_args &a, const struct norm_unit &u,
          uint32_t first_tile, uint32_t turn, uint32_t phase,
          norm_shared<T, SUBTILES, TILES> &shared) {
    constexpr uint32_t MINE = SUBTILES * HALVES; /* rows of a lane; the four of a row share them */
    static_assert(MINE <= 4, "a lane makes one scale");
    const uint32_t lane = threadIdx.x % 32, groups = cluster_size() * TILES;
    sums_wait(turn, phase, shared);
    float total = 0;
    for (uint32_t g = 0; g < groups; g++) {
        total += shared.group_sum[turn][g][lane % MINE * 8 + lane / 4];
    }
    const float scale = norm_scale(total, c.out[0], a.eps);
    float scales[MINE];
#pragma unroll
    for (int k = 0; k < (int)MINE; k++) {
        scales[k] = __shfl_sync(0xffffffffu, scale, (lane & 28) + k);
    }
    T *normed = static_cast<T *>(a.normed) + (uint64_t)u.row * c.y_row;
#pragma unroll 1
    for (uint32_t i = 0; i < TILES * SPANS; i++) {
        const uint32_t tile = i / SPANS, span = i % SPANS;
        const uint32_t column =
            (first_tile + tile * WARPS) * KERN_TILE_COLUMNS + span * SPAN + lane % 4 * 8;
        const float4 *w = shared.w[tile][span][threadIdx.x / 32][lane % 4];
        const struct norm_factors factors = {w[0], w[1]};
#pragma unroll
        for (int k = 0; k < (int)MINE; k++) {
            const uint32_t row = k * 8 + lane / 4;
            if (row < u.rows && column < c.out[0]) {
                const uint4 x = shared.x[turn][tile][k / HALVES][span][k % HALVES][threadIdx.x];
                *reinterpret_cast<uint4 *>(normed + (row * c.y_row + column)) =
                    norm_eight<T>(x, scales[k], factors);
            }
        }
    }
}

/* The norm's factors of this warp's columns; each lane fetches what its quad reads. */
template <int TILES>
static __device__ __forceinline__ void w_fetch(const struct lora_call &c, const float *from,
                                               uint32_t first_tile,
                                               float4 (&to)[TILES][SPANS][WARPS][4][2]) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < TILES * SPANS * 4) {
        const uint32_t tile = lane / (SPANS * 4), span = lane / 4 % SPANS;
        const uint32_t column =
            (first_tile + tile * WARPS) * KERN_TILE_COLUMNS + span * SPAN + lane % 4 * 8;
        const bool there = column < c.out[0];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            copy_async_16(shared_address(&to[tile][span][threadIdx.x / 32][lane % 4][k]),
                          from + (there ? column + k * 4 : 0), there);
        }
    }
}

template <typename T, int SUBTILES, int TILES>
static __device__ __forceinline__ void norm_units(const struct lora_call &c,
                                                  const struct norm_args &a,
                                                  norm_shared<T, SUBTILES, TILES> &shared) {
    const uint32_t pieces = c.list->all, cluster = blockIdx.x / cluster_size();
    if (cluster >= pieces) { /* all blocks of it */
        return;
    }
    if (threadIdx.x < TURNS) {
        told_init(&shared.told[threadIdx.x]);
    }
    cluster_arrive();
    const uint32_t first_tile = cluster_rank() * TILES * WARPS + threadIdx.x / 32;
    const T *plane = static_cast<const T *>(c.meta->planes) + c.layer * c.meta->plane_elems;
    struct norm_unit unit = {}, next = unit_of(c, c.list->pieces[cluster]);
    struct cuda_lora_piece piece = c.list->pieces[min(cluster + a.clusters, pieces - 1)];
    norm_b<T> b = {};
    w_fetch(c, a.w, first_tile, shared.w);
    /* The first round only begins, the last only ends. */
    for (uint32_t index = cluster, done = UINT32_MAX;; index += a.clusters, done++) {
        const uint32_t turn = done % TURNS;
        const bool first = index == cluster, more = index < pieces;
        const bool moves = more && (first || next.adapter != unit.adapter);
        struct norm_place asked = {};
        if (moves) {
            asked = place_ask<T, TILES>(c, next, first_tile);
        }
        if (!first) {
            if (more) {
                x_fetch<T>(c, next.row, next.rows, first_tile, shared.x[turn ^ 1]);
            }
            copy_async_commit();
            copy_async_wait<1>();
            __syncthreads(); /* v is there */
            unit_add(c, plane, unit, first_tile, b, turn, shared);
            __syncthreads();
            sums_put(turn, shared);
        }
        struct norm_unit after = next;
        if (more) { /* while the cluster's sums come together */
            if (moves) {
                b.place = place_at(c, plane, asked);
            }
            const T *from = place_of(b.place, 0);
            if (from != nullptr) {
                tile_load(from, block_ranks(next, 0), 0, b.first[0]);
            }
            if (first) {
                launch_wait();
                x_fetch<T>(c, next.row, next.rows, first_tile, shared.x[0]);
                copy_async_commit();
                cluster_wait();
            }
            v_fill<8>(c, next, 0, shared.v);
            after = unit_of(c, piece);
            piece = c.list->pieces[min(index + 2 * a.clusters, pieces - 1)];
        }
        if (!first) {
            unit_norm(c, a, unit, first_tile, turn, done / TURNS % 2, shared);
        }
        if (!more) {
            return;
        }
        unit = next;
        next = after;
    }
}
#endif

template <typename T, int SUBTILES, int TILES, int BLOCKS>
static __global__ __launch_bounds__(THREADS, BLOCKS) void lora_norm_kernel(
    const __grid_constant__ struct lora_call c, const __grid_constant__ struct norm_args a) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint4 shared_memory[];
    if (blockIdx.x / cluster_size() >= a.clusters) { /* as in norm_kernel() */
        const uint32_t first = a.clusters * cluster_size();
        ahead_fetch(a.ahead, (blockIdx.x - first) * THREADS + threadIdx.x,
                    (gridDim.x - first) * THREADS);
        return;
    }
    norm_units(c, a, *reinterpret_cast<norm_shared<T, SUBTILES, TILES> *>(shared_memory));
#endif
}

/* ---- host --------------------------------------------------------------------------------- */

/* Variants by rows of a unit and tiles of a warp. */
enum { NORM_16, NORM_32, NORM_16_WIDE };

/* Blocks that share a row, with `tiles` a warp. */
static uint32_t cluster_blocks(uint32_t hidden, uint32_t tiles) {
    uint32_t size = 1;
    while (size < CLUSTER_MAX && size * WARPS * tiles < lora_tiles(hidden)) {
        size *= 2;
    }
    return size;
}

/* A launch of clusters; the attributes stay with the caller. */
static cudaLaunchConfig_t config_of(const struct kern_device *d, uint32_t clusters, uint32_t size,
                                    size_t bytes, cudaLaunchAttribute (&attributes)[2]) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = size;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(clusters * size);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes;
    config.stream = d->stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return config;
}

/* Clusters of the kernel that the device runs at once; 0: none. */
template <typename T, int SUBTILES, int TILES, int BLOCKS>
static uint32_t clusters_most(const struct kern_device *d) {
    auto kernel = lora_norm_kernel<T, SUBTILES, TILES, BLOCKS>;
    const size_t bytes = sizeof(norm_shared<T, SUBTILES, TILES>);
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config =
        config_of(d, 1, cluster_blocks(d->shape.hidden, TILES), bytes, attributes);
    int most = 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) !=
            cudaSuccess ||
        cudaOccupancyMaxActiveClusters(&most, kernel, &config) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return (uint32_t)most;
}

template <typename T, int SUBTILES, int TILES, int BLOCKS>
static void launch(struct kern_device *d, const struct lora_call &c, struct norm_args a,
                   uint32_t most) {
    const uint32_t size = cluster_blocks(d->shape.hidden, TILES);
    a.clusters = min(most, c.rows);
    const uint32_t fetch = a.ahead.rows > 0 ? ((uint32_t)d->sm_count + size - 1) / size : 0;
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config =
        config_of(d, a.clusters + fetch, size, sizeof(norm_shared<T, SUBTILES, TILES>), attributes);
    cuda_note(d, cudaLaunchKernelEx(&config, lora_norm_kernel<T, SUBTILES, TILES, BLOCKS>, c, a),
              "lora_norm_kernel");
}

template <typename T> static void clusters_ask(struct kern_device *d) {
    d->norm_clusters[NORM_16] = clusters_most<T, 1, 1, 3>(d);
    d->norm_clusters[NORM_32] = clusters_most<T, 2, 1, 2>(d);
    d->norm_clusters[NORM_16_WIDE] = clusters_most<T, 1, 2, 2>(d);
}

void cuda_lora_norm_open(struct kern_device *d) {
    const uint32_t tiles = lora_tiles(d->shape.hidden);
    if (d->launches_early && tiles <= 2 * CLUSTER_MAX * WARPS) {
        CUDA_WITH_ELEM(d, T, clusters_ask<T>(d));
    }
}

bool lora_norm_launch(struct kern_device *d, struct lora_call c, const float *w,
                      struct cuda_ahead ahead) {
    const bool wide = lora_tiles(d->shape.hidden) > CLUSTER_MAX * WARPS;
    const int variant = wide ? NORM_16_WIDE : d->mixed || d->rows > 1024 ? NORM_32 : NORM_16;
    const uint32_t most = d->norm_clusters[variant];
    if (most == 0) {
        return false;
    }
    c.list = &d->meta->lora.tokens[variant == NORM_32 ? CUDA_LORA_32 : CUDA_LORA_16];
    const struct norm_args a = {w, d->normed, d->shape.norm_eps, 0, ahead};
    CUDA_WITH_ELEM(d, T, {
        if (variant == NORM_16) {
            launch<T, 1, 1, 3>(d, c, a, most);
        } else if (variant == NORM_32) {
            launch<T, 2, 1, 2>(d, c, a, most);
        } else {
            launch<T, 1, 2, 2>(d, c, a, most);
        }
    });
    return true;
}
