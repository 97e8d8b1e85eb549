/* lora_expand.cuh - scale · (v Bᵀ + bias) of a piece's rows: how v is staged, how tiles of B come
 * and how both are multiplied. For lora_expand.cu, which adds it to y, and for lora_act.cu and
 * lora_qkv.cu, which use y on the spot.
 *
 * v lies in shared memory, 64 ranks at a time, as two 16-bit parts, high and low: v = high + low to
 * 16 (bf16) or 22 bits (f16), so v is f32 for all that y can tell, at twice the products, which are
 * idle here anyway. Tiles go from memory to registers in runs that are operands of mma m16n8k16 as
 * they are: the instruction sums over 16 ranks in whatever order, so lane l may bring ranks
 * 8 (l % 4) … + 7 of a column, as long as it does so for v alike. Columns are dealt so that a lane
 * ends with 8 adjacent ones of y: instruction g of 4 has, as its column n, column 8 (n / 2) + 2 g +
 * n % 2 of 32. Sums are f32 over rank blocks in ascending order, high before low. */
#ifndef LORRY_KERNELS_CUDA_LORA_EXPAND_CUH
#define LORRY_KERNELS_CUDA_LORA_EXPAND_CUH

#include "kernels/cuda/lora.cuh"

enum {
    STAGE_BLOCKS = 2, /* rank blocks of v in shared memory */
    STAGE_RANKS = STAGE_BLOCKS * KERN_BLOCK_RANKS,
    PARTS = 2, /* of v: high, low */
    SPAN = 32, /* columns that four instructions make */
};

/* A piece's rows and one projection. */
struct expand_work {
    uint32_t adapter;   /* KERN_BASE: rank is 0 */
    uint32_t row, rows; /* of the piece */
    uint32_t projection;
    uint32_t rank, begin; /* of B; rank 0: nothing is added */
};

static __device__ __forceinline__ struct expand_work
work_of(const struct lora_call &c, const struct cuda_lora_piece &piece, uint32_t projection) {
    struct expand_work w = {piece.adapter, piece.row, piece.rows, projection, 0, 0};
    if (piece.adapter != KERN_BASE) {
        const struct kern_lora *lora = lora_entry(c, piece.adapter, projection);
        w.rank = lora->rank;
        w.begin = (uint32_t)lora->b;
    }
    return w;
}

/* v in shared memory. */
template <typename T, int SUBTILES> struct stage {
    T v[PARTS][STAGE_BLOCKS][SUBTILES * 16][KERN_BLOCK_RANKS];
};

/* Tiles that a block of threads reads once, tiles that it reads again for its next rows, and v. */
struct load_tile {
    static __device__ __forceinline__ uint4 of_16(const void *p) {
        return lora_load_16(p);
    }
    static __device__ __forceinline__ uint2 of_8(const void *p) {
        return lora_load_8(p);
    }
    static __device__ __forceinline__ uint32_t of_4(const void *p) {
        return lora_load_4(p);
    }
};
struct load_tile_again {
    static __device__ __forceinline__ uint4 of_16(const void *p) {
        return lora_load_again_16(p);
    }
    static __device__ __forceinline__ uint2 of_8(const void *p) {
        return lora_load_again_8(p);
    }
    static __device__ __forceinline__ uint32_t of_4(const void *p) {
        return lora_load_again_4(p);
    }
};
struct load_shared {
    static __device__ __forceinline__ uint4 of_16(const void *p) {
        return *static_cast<const uint4 *>(p);
    }
    static __device__ __forceinline__ uint2 of_8(const void *p) {
        return *static_cast<const uint2 *>(p);
    }
    static __device__ __forceinline__ uint32_t of_4(const void *p) {
        return *static_cast<const uint32_t *>(p);
    }
};

/* A lane's ranks of one column of B, or row of v, of a block of RANKS: words 0, 1 go with the first
 * 16 ranks, words 2, 3 with the rest. LOAD says where from. */
template <typename LOAD, int RANKS, typename T>
static __device__ __forceinline__ uint4 lane_ranks(const T *run) {
    const uint32_t t = threadIdx.x % 4;
    if (RANKS == 32) {
        return LOAD::of_16(run + 8 * t);
    }
    if (RANKS == 8) {
        return make_uint4(LOAD::of_4(run + 2 * t), 0, 0, 0);
    }
    uint2 two = LOAD::of_8(run + 4 * t);
    return make_uint4(two.x, two.y, RANKS == 24 ? LOAD::of_4(run + 16 + 2 * t) : 0, 0);
}

/* Calls the rest with RANKS as the ranks of a block, of at most MOST. */
#define WITH_RANKS(MOST, ranks, ...)                     \
    do {                                                 \
        if (ranks == 8) {                                \
            constexpr int RANKS = 8;                     \
            __VA_ARGS__;                                 \
        } else if (ranks == 16 || (MOST) == 16) {        \
            constexpr int RANKS = 16;                    \
            __VA_ARGS__;                                 \
        } else if (ranks == 24) {                        \
            constexpr int RANKS = (MOST) > 16 ? 24 : 16; \
            __VA_ARGS__;                                 \
        } else {                                         \
            constexpr int RANKS = (MOST) > 16 ? 32 : 16; \
            __VA_ARGS__;                                 \
        }                                                \
    } while (0)

/* scale · sum, ranks r … r + 3 of the stage, of a row, in two parts. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void stage_put(stage<T, SUBTILES> &stage, uint32_t row,
                                                 uint32_t r, float scale, const float (&sum)[4]) {
    uint32_t block = r / KERN_BLOCK_RANKS, at = r % KERN_BLOCK_RANKS;
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
        float a = sum[k] * scale, b = sum[k + 1] * scale;
        uint32_t high = pair_bits<T>(a, b);
        float2 rounded = pair_floats<T>(high);
        /* of what overflowed nothing is left */
        float a_low = isfinite(rounded.x) ? a - rounded.x : 0;
        float b_low = isfinite(rounded.y) ? b - rounded.y : 0;
        *reinterpret_cast<uint32_t *>(&stage.v[0][block][row][at + k]) = high;
        *reinterpret_cast<uint32_t *>(&stage.v[1][block][row][at + k]) = pair_bits<T>(a_low, b_low);
    }
}

/* scale · Σ splits of ranks [from, from + STAGE_RANKS) of all rows of the piece, in two parts, and
 * 0 for rows beyond it up to a multiple of 16. Between two barriers. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void fill_stage(const struct lora_call &c,
                                                  const struct expand_work &w, uint32_t from,
                                                  stage<T, SUBTILES> &stage) {
    const uint32_t quads = min(w.rank - from, (uint32_t)STAGE_RANKS) / 4;
    const float scale = lora_entry(c, w.adapter, w.projection)->scale;
    const uint64_t split_stride = (uint64_t)c.rows * c.projections * KERN_RANK_MAX;
    const uint32_t rows = (w.rows + 15) / 16 * 16;
    for (uint32_t i = threadIdx.x; i < rows * quads; i += LORA_THREADS) {
        uint32_t row = i / quads, r = i % quads * 4;
        float sum[4] = {};
        if (row < w.rows) {
            const float *v = lora_v(c, 0, w.row + row, w.projection) + from + r;
            for (uint32_t split = 0; split < c.splits; split++) {
                float4 part = *reinterpret_cast<const float4 *>(v + split * split_stride);
                sum[0] += part.x;
                sum[1] += part.y;
                sum[2] += part.z;
                sum[3] += part.w;
            }
        }
        stage_put(stage, row, r, scale, sum);
    }
}

/* Spans are numbered from the first of tile `tile` on, two a tile; then comes tile + 4. */
static __device__ __forceinline__ uint32_t span_column(uint32_t tile, uint32_t span) {
    return (tile + span / 2 * LORA_WARPS) * KERN_TILE_COLUMNS + span % 2 * SPAN;
}

/* A lane's part of a tile: the span that starts at `at`. */
template <int RANKS, typename LOAD, typename T>
static __device__ __forceinline__ void b_span(const T *at, uint4 (&b)[4]) {
    const uint32_t n = threadIdx.x % 32 / 4, column = n / 2 * 8 + n % 2;
#pragma unroll
    for (int g = 0; g < 4; g++) {
        b[g] = lane_ranks<LOAD, RANKS>(at + (column + g * 2) * RANKS);
    }
}

/* A lane's part of a block of B: SPANS spans from `span` on. */
template <int RANKS, typename T, int SPANS>
static __device__ __forceinline__ void
b_load(const struct lora_call &c, const struct expand_work &w, const struct lora_pages<T> &pages,
       const struct lora_run &run, uint32_t tile, uint32_t span, uint4 (&b)[SPANS][4]) {
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
        uint32_t at_tile = tile + (span + s) / 2 * LORA_WARPS;
        if (at_tile < lora_tiles(c.out[w.projection])) {
            const T *at = lora_tile(c, pages, run, at_tile);
            b_span<RANKS, load_tile>(at + (span + s) % 2 * SPAN * RANKS, b[s]);
        }
    }
}

/* sum [span][subtile][instruction] += v Bᵀ over block `block` of the stage, for `rows` rows from
 * row `first` of the piece on. */
template <int RANKS, typename T, int SUBTILES, int STAGE_SUBTILES, int SPANS>
static __device__ __forceinline__ void
multiply(float (&sum)[SPANS][SUBTILES][4][4], const uint4 (&b)[SPANS][4],
         const stage<T, STAGE_SUBTILES> &stage, uint32_t block, uint32_t rows,
         uint32_t first_row = 0) {
    const uint32_t row = first_row + threadIdx.x % 32 / 4;
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
        if (m * 16 < rows) {
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                const T *v = stage.v[part][block][m * 16 + row];
                uint4 low = lane_ranks<load_shared, RANKS>(v);
                uint4 high = lane_ranks<load_shared, RANKS>(v + 8 * KERN_BLOCK_RANKS);
                const uint32_t first[4] = {low.x, high.x, low.y, high.y};
                const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
                for (int s = 0; s < SPANS; s++) {
#pragma unroll
                    for (int g = 0; g < 4; g++) {
                        const uint32_t b_first[2] = {b[s][g].x, b[s][g].y};
                        mma_16816<T>(sum[s][m][g], first, b_first);
                        if (RANKS > 16) {
                            const uint32_t b_second[2] = {b[s][g].z, b[s][g].w};
                            mma_16816<T>(sum[s][m][g], second, b_second);
                        }
                    }
                }
            }
        }
    }
}

/* scale · bias of a lane's 8 columns from `column` on, of `out`; zeros where there is none. */
template <typename T>
static __device__ __forceinline__ void bias_load(const struct lora_call &c,
                                                 const struct expand_work &w, uint32_t column,
                                                 float (&bias)[8]) {
    const struct kern_lora *lora = lora_entry(c, w.adapter, w.projection);
    const uint32_t first = (uint32_t)lora->bias;
    if (first != 0 && column < c.out[w.projection]) {
        uint32_t at = first + column, page = at / c.page_elems;
        const struct lora_pages<T> pages = lora_pages_of<T>(c, w.adapter);
        const T *from = lora_element(c, pages, page, at - page * c.page_elems);
        eight_floats<T>(lora_load_16(from), bias);
        const float scale = lora->scale;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            bias[k] *= scale;
        }
    }
}

/* ---- for consumers that add the delta themselves, 16 rows × a tile at a time ---------------- */

/* Where the blocks of `tile` lie whose v is in the stage, ranks from `done` on. */
template <typename T>
static __device__ __forceinline__ void tile_places(const struct lora_call &c,
                                                   const struct expand_work &w, uint32_t tile,
                                                   uint32_t done, const T *(&at)[STAGE_BLOCKS]) {
    const uint32_t tiles = lora_tiles(c.out[w.projection]);
    const struct lora_pages<T> pages = lora_pages_of<T>(c, w.adapter);
#pragma unroll
    for (uint32_t i = 0; i < STAGE_BLOCKS; i++) {
        uint32_t rank = done + i * KERN_BLOCK_RANKS;
        at[i] = nullptr;
        if (rank < w.rank && tile < tiles) {
            struct lora_run run =
                lora_run_of(c.page_elems, w.begin, w.rank, tiles, rank / KERN_BLOCK_RANKS);
            at[i] = lora_tile(c, pages, run, tile);
        }
    }
}

/* sum [instruction] += v Bᵀ over the staged ranks, from `done` on, for 16 rows from `first_row` of
 * the piece and span `span` of the tile that lies at `at`. A warp; not beyond the matrix. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void
tile_delta(const struct expand_work &w, const T *const (&at)[STAGE_BLOCKS], uint32_t done,
           uint32_t span, uint32_t first_row, const stage<T, SUBTILES> &stage,
           float (&sum)[1][1][4][4]) {
#pragma unroll
    for (uint32_t i = 0; i < STAGE_BLOCKS; i++) {
        uint32_t rank = done + i * KERN_BLOCK_RANKS;
        if (rank < w.rank) {
            uint32_t ranks = min(w.rank - rank, (uint32_t)KERN_BLOCK_RANKS);
            WITH_RANKS(KERN_BLOCK_RANKS, ranks, {
                uint4 b[1][4];
                b_span<RANKS, load_tile_again>(at[i] + span * SPAN * RANKS, b[0]);
                multiply<RANKS>(sum, b, stage, i, 16, first_row);
            });
        }
    }
}

#endif
