/* lora_shrink.cu - x Aᵀ for pieces of rows, each with its own adapter; and the embedding's A[:,
 * id]. On sm_90a lora_shrink_hopper.cu does the first.
 *
 * x [rows][in] elements; A in tiles [ranks ≤ 32][64 columns] in pages (kernels.h); the result is
 * partial sums v [splits][rows][projections][512] f32, not scaled; expand adds them up. Columns are
 * multiples of 8, the last tile of A is padded with zeros, and x counts as zero there.
 *
 * Work: the ranks of all projections that share x stand in one row, in groups of 8: a group is what
 * one instruction takes. A pass is up to 4 or 6 groups of whatever projections and blocks. An item
 * is (piece of ≤ 16, 32 or 64 rows, split of the columns, share of the passes); a persistent grid
 * walks the items. In a pass warp w takes the column tiles w, w + 4, … of the split for all rows of
 * the piece, so that an element of A is read once and x once a pass; the four warps' sums meet in
 * shared memory. A row's sum runs over the tiles of a warp in ascending order, then over warps,
 * then (in expand) over splits; how many splits there are depends on the bucket and the shape
 * alone, so that neighbours change no bit.
 *
 * A and x go from memory to registers without a stop, in runs of 16 bytes that are operands of mma
 * m16n8k16 as they are: the instruction sums over 16 columns in whatever order, so lane l may bring
 * columns 8 (l % 4) … + 7 of 32, four of them per instruction, as long as it does so for x (row
 * l / 4) and A (rank l / 4) alike. Where a group's tile lies is worked out by one lane each.
 *
 * Tried: on a stream of its own beside the base product, B1(8) gave 16,313 output tokens/s, in line
 * 16,453 (H200, November 2026): the product leaves nothing free. Decode steps of 1 to 256 rows took
 * 3 to 4% longer so: kernels that wait for two others begin later.
 *
 * Bytes: of A rank × in × 2 a piece, from memory once a step, again from the second-level cache
 * where a segment has several pieces; of x rows × in × 2 a pass. FLOPs: 2 × rows × rank × in.
 * Sums are f32, products exact. Against f64: ≤ in × 2⁻²⁴ of Σ|x a|. */
#include "kernels/cuda/lora_groups.cuh"

static constexpr uint32_t HALF = 32; /* columns of two instructions, of a tile's 64 */

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

/* Groups of a pass, by the most rows of a piece, in 16. */
static __host__ __device__ constexpr int groups_of(int subtiles) {
    return subtiles == 1 ? 6 : 4;
}
/* Tiles that a warp has on their way at once: few groups alone would leave memory idle. */
static __host__ __device__ constexpr int deep_of(int subtiles, int groups) {
    if (subtiles > 1) {
        return 1;
    }
    return groups == 1 ? 4 : groups <= 3 ? 2 : 1;
}

template <typename T> struct shrink_work {
    struct lora_pages<T> pages;
    const T *x; /* of the piece's first row */
    float *v;   /* likewise, of the split */
    uint32_t rows;
    uint32_t tile_begin, tile_end;
};

/* 8 columns of a row; zeros beyond the piece or the matrix. */
template <typename T>
static __device__ __forceinline__ uint4 x_load(const struct lora_call &c, const shrink_work<T> &w,
                                               uint32_t row, uint32_t column) {
    if (row < w.rows && column < c.in) {
        return *reinterpret_cast<const uint4 *>(w.x + (row * c.in + column));
    }
    return make_uint4(0, 0, 0, 0);
}

/* sum [subtile of 16 rows][group] += x Aᵀ over 32 columns from `column` on. */
template <typename T, int SUBTILES, int GROUPS>
static __device__ __forceinline__ void multiply(const struct lora_call &c, const shrink_work<T> &w,
                                                uint32_t column, const uint4 (&a)[GROUPS],
                                                float (&sum)[SUBTILES][GROUPS][4]) {
    const uint32_t row = threadIdx.x % 32 / 4;
    uint4 x[SUBTILES][2];
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
        x[m][0] = x_load(c, w, m * 16 + row, column);
        x[m][1] = x_load(c, w, m * 16 + row + 8, column);
    }
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
        if (m * 16 < w.rows) {
            const uint32_t first[4] = {x[m][0].x, x[m][1].x, x[m][0].y, x[m][1].y};
            const uint32_t second[4] = {x[m][0].z, x[m][1].z, x[m][0].w, x[m][1].w};
#pragma unroll
            for (int n = 0; n < GROUPS; n++) {
                const uint32_t a_first[2] = {a[n].x, a[n].y}, a_second[2] = {a[n].z, a[n].w};
                mma_16816<T>(sum[m][n], first, a_first);
                mma_16816<T>(sum[m][n], second, a_second);
            }
        }
    }
}

/* Where a lane's group lies in tile `tile`, as a number that lanes can pass on. */
template <typename T>
static __device__ __forceinline__ unsigned long long
group_place(const struct lora_call &c, const shrink_work<T> &w, const struct lora_group &group,
            uint32_t tile) {
    if (tile >= w.tile_end) {
        return 0;
    }
    return reinterpret_cast<unsigned long long>(lora_tile(c, w.pages, group.run, tile) +
                                                group.offset);
}

/* A lane's columns of HALVES halves of a tile, from `half` on; zeros beyond the split. */
template <typename T, int GROUPS, int HALVES>
static __device__ __forceinline__ void a_load(unsigned long long mine, bool there, uint32_t half,
                                              uint4 (&a)[HALVES][GROUPS]) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t from = lane / 4 * KERN_TILE_COLUMNS + half * HALF + lane % 4 * 8;
#pragma unroll
    for (int n = 0; n < GROUPS; n++) {
        const T *at = reinterpret_cast<const T *>(__shfl_sync(0xffffffffu, mine, n)) + from;
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            a[h][n] = there ? lora_load_16(at + h * HALF) : make_uint4(0, 0, 0, 0);
        }
    }
}

/* One warp's share of a pass: DEEP tiles, or half of one, are on their way at once. */
template <typename T, int SUBTILES, int GROUPS>
static __device__ __forceinline__ void
shrink_tiles(const struct lora_call &c, const shrink_work<T> &w, const struct lora_group &group,
             float (&sum)[SUBTILES][GROUPS][4]) {
    constexpr int DEEP = deep_of(SUBTILES, GROUPS), HALVES = SUBTILES == 1 ? 2 : 1;
    const uint32_t run = threadIdx.x % 4 * 8;
    uint32_t tile = w.tile_begin + threadIdx.x / 32;
    unsigned long long mine[DEEP];
#pragma unroll
    for (int i = 0; i < DEEP; i++) {
        mine[i] = group_place(c, w, group, tile + i * LORA_WARPS);
    }
    for (; tile < w.tile_end; tile += DEEP * LORA_WARPS) {
#pragma unroll 1
        for (int half = 0; half < 2; half += HALVES) {
            uint4 a[DEEP][HALVES][GROUPS];
#pragma unroll
            for (int i = 0; i < DEEP; i++) {
                bool there = tile + i * LORA_WARPS < w.tile_end;
                a_load<T, GROUPS, HALVES>(mine[i], there, half, a[i]);
            }
            if (half + HALVES == 2) { /* while these are on their way */
#pragma unroll
                for (int i = 0; i < DEEP; i++) {
                    mine[i] = group_place(c, w, group, tile + (DEEP + i) * LORA_WARPS);
                }
            }
#pragma unroll
            for (int i = 0; i < DEEP * HALVES; i++) {
                uint32_t at = tile + i / HALVES * LORA_WARPS;
                uint32_t column = at * KERN_TILE_COLUMNS + (half + i % HALVES) * HALF + run;
                multiply<T, SUBTILES, GROUPS>(c, w, column, a[i / HALVES][i % HALVES], sum);
            }
        }
    }
}

/* Adds up the warps' sums, which lie in `room` [warp][subtile][group][lane], into v. */
template <typename T, int SUBTILES, int GROUPS>
static __device__ __forceinline__ void shrink_store(const struct lora_call &c,
                                                    const shrink_work<T> &w, const float4 *room,
                                                    const uint32_t *place) {
    constexpr uint32_t PARTS = SUBTILES * GROUPS;
    const uint32_t lane = threadIdx.x % 32, v_row = c.projections * KERN_RANK_MAX;
    for (uint32_t part = threadIdx.x / 32; part < PARTS; part += LORA_WARPS) {
        float4 total = room[part * 32 + lane];
#pragma unroll
        for (int i = 1; i < LORA_WARPS; i++) {
            float4 more = room[(i * PARTS + part) * 32 + lane];
            total.x += more.x;
            total.y += more.y;
            total.z += more.z;
            total.w += more.w;
        }
        uint32_t row = part / GROUPS * 16 + lane / 4;
        float *to = w.v + (uint64_t)row * v_row + place[part % GROUPS] + lane % 4 * 2;
        if (row < w.rows) {
            *reinterpret_cast<float2 *>(to) = make_float2(total.x, total.y);
        }
        if (row + 8 < w.rows) {
            *reinterpret_cast<float2 *>(to + 8 * v_row) = make_float2(total.z, total.w);
        }
    }
}

/* A pass of `count` groups, at most GROUPS. All threads of the block. */
template <typename T, int SUBTILES, int GROUPS>
static __device__ __forceinline__ void
shrink_pass(const struct lora_call &c, const shrink_work<T> &w, uint32_t count,
            const struct lora_group &group, float4 *room, uint32_t *place) {
    if constexpr (GROUPS > 1) {
        if (count < GROUPS) {
            shrink_pass<T, SUBTILES, GROUPS - 1>(c, w, count, group, room, place);
            return;
        }
    }
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x < GROUPS) {
        place[threadIdx.x] = group.place;
    }
    float sum[SUBTILES][GROUPS][4] = {};
    shrink_tiles<T, SUBTILES, GROUPS>(c, w, group, sum);
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
#pragma unroll
        for (int n = 0; n < GROUPS; n++) {
            const float *s = sum[m][n];
            room[((warp * SUBTILES + m) * GROUPS + n) * 32 + lane] =
                make_float4(s[0], s[1], s[2], s[3]);
        }
    }
    __syncthreads();
    shrink_store<T, SUBTILES, GROUPS>(c, w, room, place);
    __syncthreads();
}

/* Passes `share`, `share` + shares, … of a piece's split. */
template <typename T, int MAX_SUBTILES>
static __device__ __forceinline__ void
shrink_item(const struct lora_call &c, const struct cuda_lora_piece &piece, uint32_t split,
            uint32_t share, float4 *room, uint32_t *place) {
    constexpr uint32_t GROUPS = groups_of(MAX_SUBTILES);
    const struct lora_ranks r = lora_ranks_of(c, piece.adapter);
    const uint32_t tiles = lora_tiles(c.in), split_tiles = (tiles + c.splits - 1) / c.splits;
    shrink_work<T> w;
    w.pages = lora_pages_of<T>(c, piece.adapter);
    w.x = static_cast<const T *>(c.x) + (uint64_t)piece.row * c.in;
    w.v = lora_v(c, split, piece.row, 0);
    w.rows = piece.rows;
    w.tile_begin = split * split_tiles;
    w.tile_end = min(w.tile_begin + split_tiles, tiles);
    const uint32_t all = lora_groups_of(r), passes = (all + GROUPS - 1) / GROUPS;
    for (uint32_t pass = share; pass < passes; pass += c.shares) {
        uint32_t from = pass * all / passes, count = (pass + 1) * all / passes - from;
        struct lora_group group = lora_group_at(c, r, from + min(threadIdx.x % 32, count - 1));
        if (MAX_SUBTILES == 1 || piece.rows <= 16) {
            shrink_pass<T, 1, GROUPS>(c, w, count, group, room, place);
        } else {
            shrink_pass<T, MAX_SUBTILES, GROUPS>(c, w, count, group, room, place);
        }
    }
}

template <typename T, int MAX_SUBTILES>
static __global__
__launch_bounds__(LORA_THREADS,
                  BLOCKS) void lora_shrink_kernel(const __grid_constant__ struct lora_call c) {
    __shared__ float4 room[LORA_WARPS * MAX_SUBTILES * groups_of(MAX_SUBTILES) * 32];
    __shared__ uint32_t place[groups_of(MAX_SUBTILES)];
    const uint32_t items = c.list->count * c.splits * c.shares;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        /* shares without a pass fall on all multiprocessors alike */
        uint32_t unit = item / c.shares, share = (item + unit) % c.shares;
        const struct cuda_lora_piece piece = c.list->pieces[unit / c.splits];
        shrink_item<T, MAX_SUBTILES>(c, piece, unit % c.splits, share, room, place);
    }
}

template <typename T, int MAX_SUBTILES>
static void launch(struct kern_device *d, const struct lora_call *c) {
    uint32_t items = c->rows * c->splits * c->shares;
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * BLOCKS));
    auto kernel = lora_shrink_kernel<T, MAX_SUBTILES>;
    kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c);
    CUDA_LAUNCHED(d, "lora_shrink_kernel");
}

void lora_shrink_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    if (d->hopper_shrink) {
        lora_shrink_hopper_launch(d, c);
        return;
    }
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
                const T *at = lora_tile(c, pages, run, id / KERN_TILE_COLUMNS);
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
