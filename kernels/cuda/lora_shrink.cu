/* lora_shrink.cu - x Aᵀ for pieces of rows, each with its own adapter; and the embedding's A[:,
 * id].
 *
 * x [rows][in] elements; A in tiles [ranks ≤ 32][64 columns] in pages (kernels.h); the result is
 * partial sums v [splits][rows][projections][512] f32, not scaled; expand adds them up. Columns are
 * multiples of 8, the last tile of A is padded with zeros, and x counts as zero there.
 *
 * Work: an item is (piece of ≤ 16, 32 or 64 rows, split of the columns, projection), projections
 * innermost, since they share x. A persistent grid walks the items. In an item, for each block of
 * ranks in turn, warp w takes tiles w, w + 4, … of the split for all rows of the piece, so a tile
 * is read once; the four warps' sums meet in shared memory. A row's sum runs over the tiles of a
 * warp in ascending order, then over warps, then (in expand) over splits; how many splits there are
 * depends on the bucket and `in` alone, so that neighbours change no bit.
 *
 * Tiles and x go from memory to registers without a stop, in runs of 16 bytes that are operands of
 * mma m16n8k16 as they are: the instruction sums over 16 columns in whatever order, so lane l may
 * bring columns 8 (l % 4) … + 7 of 32, four of them per instruction, as long as it does so for x
 * (row l / 4) and A (rank l / 4) alike.
 *
 * Bytes: of A rank × in × 2 a piece, from memory once a step, again from the second-level cache
 * where a segment has several pieces; of x rows × in × 2 a block of ranks.
 * FLOPs: 2 × rows × rank × in. Sums are f32, products exact. Against f64: ≤ in × 2⁻²⁴ of Σ|x a|. */
#include "kernels/cuda/lora.cuh"

/* What limits registers: blocks that are to fit a multiprocessor. */
static constexpr int blocks_of(int subtiles) {
    return subtiles <= 2 ? 4 : 3;
}

/* What a warp works on. */
template <typename T> struct shrink_work {
    struct lora_pages<T> pages;
    struct lora_run run;
    const T *x; /* of the piece's first row */
    uint32_t in, rows;
    uint32_t tile_begin, tile_end;
};

/* Columns 8 t … + 7 of a row; zeros beyond the piece or the matrix. */
template <typename T>
static __device__ __forceinline__ uint4 x_load(const shrink_work<T> &w, uint32_t row,
                                               uint32_t column) {
    if (row < w.rows && column < w.in) {
        return *reinterpret_cast<const uint4 *>(w.x + (uint64_t)row * w.in + column);
    }
    return make_uint4(0, 0, 0, 0);
}

/* sum [subtile of 16 rows][8 ranks] += x Aᵀ over 32 columns. */
template <typename T, int SUBTILES, int RANKS8>
static __device__ __forceinline__ void multiply(float (&sum)[SUBTILES][RANKS8][4],
                                                const uint4 (&x)[SUBTILES][2],
                                                const uint4 (&a)[RANKS8], uint32_t rows) {
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
        if (m * 16 < rows) {
            const uint32_t first[4] = {x[m][0].x, x[m][1].x, x[m][0].y, x[m][1].y};
            const uint32_t second[4] = {x[m][0].z, x[m][1].z, x[m][0].w, x[m][1].w};
#pragma unroll
            for (int n = 0; n < RANKS8; n++) {
                const uint32_t a_first[2] = {a[n].x, a[n].y}, a_second[2] = {a[n].z, a[n].w};
                mma_16816<T>(sum[m][n], first, a_first);
                mma_16816<T>(sum[m][n], second, a_second);
            }
        }
    }
}

/* One warp's share of a block of ranks. */
template <typename T, int SUBTILES, int RANKS8>
static __device__ __forceinline__ void shrink_tiles(const shrink_work<T> &w,
                                                    float (&sum)[SUBTILES][RANKS8][4]) {
    constexpr int HALVES = KERN_TILE_COLUMNS / 32;
    /* tiles on their way at once: narrow ones would leave memory idle */
    constexpr int DEEP = SUBTILES > 1 || RANKS8 > 2 ? 1 : 4 / RANKS8;
    const uint32_t lane = threadIdx.x % 32, row = lane / 4, run = lane % 4 * 8;
    uint32_t tile = w.tile_begin + threadIdx.x / 32;
    for (; tile < w.tile_end; tile += DEEP * LORA_WARPS) {
        uint4 a[DEEP][HALVES][RANKS8];
#pragma unroll
        for (int i = 0; i < DEEP; i++) {
            bool there = tile + i * LORA_WARPS < w.tile_end;
            const T *at = NULL;
            if (there) {
                at = lora_tile(w.pages, w.run, tile + i * LORA_WARPS);
                at += row * KERN_TILE_COLUMNS + run;
            }
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
#pragma unroll
                for (int n = 0; n < RANKS8; n++) {
                    a[i][h][n] = there ? lora_load_16(at + n * 8 * KERN_TILE_COLUMNS + h * 32)
                                       : make_uint4(0, 0, 0, 0);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < DEEP; i++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                uint32_t column = (tile + i * LORA_WARPS) * KERN_TILE_COLUMNS + h * 32 + run;
                uint4 x[SUBTILES][2];
#pragma unroll
                for (int m = 0; m < SUBTILES; m++) {
                    x[m][0] = x_load(w, m * 16 + row, column);
                    x[m][1] = x_load(w, m * 16 + row + 8, column);
                }
                multiply<T, SUBTILES, RANKS8>(sum, x, a[i][h], w.rows);
            }
        }
    }
}

/* One block of ranks: v [row][0 … 8 RANKS8) of this split. */
template <typename T, int SUBTILES, int RANKS8>
static __device__ __forceinline__ void shrink_block(const shrink_work<T> &w, float *v,
                                                    uint32_t v_row, float4 *room) {
    constexpr int PARTS = SUBTILES * RANKS8;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum[SUBTILES][RANKS8][4] = {};
    shrink_tiles<T, SUBTILES, RANKS8>(w, sum);
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
#pragma unroll
        for (int n = 0; n < RANKS8; n++) {
            const float *s = sum[m][n];
            room[(warp * PARTS + m * RANKS8 + n) * 32 + lane] = make_float4(s[0], s[1], s[2], s[3]);
        }
    }
    __syncthreads();
    for (uint32_t part = warp; part < PARTS; part += LORA_WARPS) {
        float4 total = room[part * 32 + lane];
#pragma unroll
        for (int i = 1; i < LORA_WARPS; i++) {
            float4 more = room[(i * PARTS + part) * 32 + lane];
            total.x += more.x;
            total.y += more.y;
            total.z += more.z;
            total.w += more.w;
        }
        uint32_t row = part / RANKS8 * 16 + lane / 4;
        float *to = v + (uint64_t)row * v_row + part % RANKS8 * 8 + lane % 4 * 2;
        if (row < w.rows) {
            *reinterpret_cast<float2 *>(to) = make_float2(total.x, total.y);
        }
        if (row + 8 < w.rows) {
            *reinterpret_cast<float2 *>(to + 8 * v_row) = make_float2(total.z, total.w);
        }
    }
    __syncthreads();
}

template <typename T, int SUBTILES>
static __device__ __forceinline__ void
shrink_item(const struct lora_call &c, const struct cuda_lora_piece &piece, uint32_t split,
            uint32_t projection, float4 *room) {
    const struct kern_lora *lora = lora_entry(c, piece.adapter, projection);
    const uint32_t rank = lora->rank, begin = (uint32_t)lora->a;
    const uint32_t tiles = lora_tiles(c.in);
    const uint32_t split_tiles = (tiles + c.splits - 1) / c.splits;
    const uint32_t v_row = c.projections * KERN_RANK_MAX;
    shrink_work<T> w;
    w.pages = lora_pages_of<T>(c, piece.adapter);
    w.x = static_cast<const T *>(c.x) + (uint64_t)piece.row * c.in;
    w.in = c.in;
    w.rows = piece.rows;
    w.tile_begin = split * split_tiles;
    w.tile_end = min(w.tile_begin + split_tiles, tiles);
    float *v = lora_v(c, split, piece.row, projection);
    for (uint32_t done = 0; done < rank; done += KERN_BLOCK_RANKS) {
        w.run = lora_run_of(c.page_elems, begin, rank, tiles, done / KERN_BLOCK_RANKS);
        switch (min(rank - done, (uint32_t)KERN_BLOCK_RANKS) / 8) {
        case 1:
            shrink_block<T, SUBTILES, 1>(w, v + done, v_row, room);
            break;
        case 2:
            shrink_block<T, SUBTILES, 2>(w, v + done, v_row, room);
            break;
        case 3:
            shrink_block<T, SUBTILES, 3>(w, v + done, v_row, room);
            break;
        default:
            shrink_block<T, SUBTILES, 4>(w, v + done, v_row, room);
            break;
        }
    }
}

template <typename T, int SUBTILES>
static __global__ __launch_bounds__(LORA_THREADS, blocks_of(SUBTILES)) void lora_shrink_kernel(
    const __grid_constant__ struct lora_call c) {
    __shared__ float4 room[LORA_WARPS * SUBTILES * (KERN_BLOCK_RANKS / 8) * 32];
    const uint32_t units = c.splits * c.projections;
    const uint32_t items = c.list->count * units;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[item / units];
        uint32_t unit = item % units;
        shrink_item<T, SUBTILES>(c, piece, unit / c.projections, unit % c.projections, room);
    }
}

template <typename T, int SUBTILES>
static void launch(struct kern_device *d, const struct lora_call *c) {
    uint32_t items = c->rows * c->splits * c->projections;
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * blocks_of(SUBTILES)));
    auto kernel = lora_shrink_kernel<T, SUBTILES>;
    kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c);
    CUDA_LAUNCHED(d, "lora_shrink_kernel");
}

void lora_shrink_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    CUDA_WITH_ELEM(d, T, {
        switch (cut) {
        case CUDA_LORA_16:
            launch<T, 1>(d, c);
            break;
        case CUDA_LORA_32:
            launch<T, 2>(d, c);
            break;
        default:
            launch<T, 4>(d, c);
            break;
        }
    });
}

/* ---- the embedding ------------------------------------------------------------------------ */

/* A block of threads takes a piece, a warp a row of it, a lane 8 ranks: they lie side by side in a
 * tile [64 tokens][ranks]. Bytes: rows × rank × 2, plus v. */
template <typename T>
static __global__ __launch_bounds__(LORA_THREADS) void lora_gather_kernel(
    const __grid_constant__ struct lora_call c) {
    for (uint32_t item = blockIdx.x; item < c.list->count; item += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[item];
        const struct kern_lora *lora = lora_entry(c, piece.adapter, 0);
        const uint32_t rank = lora->rank;
        const struct lora_pages<T> pages = lora_pages_of<T>(c, piece.adapter);
        for (uint32_t row = threadIdx.x / 32; row < piece.rows && rank != 0; row += LORA_WARPS) {
            uint32_t id = c.meta->tokens[piece.row + row].id;
            float *v = lora_v(c, 0, piece.row + row, 0);
            for (uint32_t r = threadIdx.x % 32 * 8; r < rank; r += 32 * 8) {
                uint32_t block = r / KERN_BLOCK_RANKS;
                uint32_t ranks = min(rank - block * KERN_BLOCK_RANKS, (uint32_t)KERN_BLOCK_RANKS);
                struct lora_run run =
                    lora_run_of(c.page_elems, (uint32_t)lora->a, rank, lora_tiles(c.in), block);
                const T *at = lora_tile(pages, run, id / KERN_TILE_COLUMNS);
                at += id % KERN_TILE_COLUMNS * ranks + r % KERN_BLOCK_RANKS;
                float eight[8];
                eight_floats<T>(lora_load_16(at), eight);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    v[r + i] = eight[i];
                }
            }
        }
    }
}

void lora_gather_launch(struct kern_device *d, const struct lora_call *c) {
    uint32_t blocks = min(c->rows, (uint32_t)d->sm_count * 4);
    CUDA_WITH_ELEM(d, T, {
        auto kernel = lora_gather_kernel<T>;
        kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c);
    });
    CUDA_LAUNCHED(d, "lora_gather_kernel");
}
