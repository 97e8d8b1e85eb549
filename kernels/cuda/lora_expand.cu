/* lora_expand.cu - y += scale · (v Bᵀ + bias) for pieces of rows, each with its own adapter.
 *
 * v: shrink's partial sums [splits][rows][projections][512] f32, added up here in the order of the
 * splits; B in tiles [64 columns][ranks ≤ 32] in pages (kernels.h); y [rows][y_row] elements, or
 * f32 logits: read, added to in f32, rounded once, written. Columns are multiples of 8 but for the
 * logits', whose rows are. Rows of no piece and projections of rank 0 stay untouched.
 *
 * Work: an item is (piece of ≤ 16, 32 or 64 rows, projection, a range of column tiles). A
 * persistent grid walks the items. Warp w takes tiles w, w + 4, … of the range for all rows of the
 * piece, so a tile is read once; ranges grow with the work at hand so that what an item must look
 * up first is paid seldom (a column's sum does not depend on them). v lies in shared memory, 64
 * ranks at a time, as two 16-bit parts, high and low: v = high + low to 16 (bf16) or 22 bits (f16),
 * so v is f32 for all that y can tell, at twice the products, which are idle here anyway.
 *
 * Tiles go from memory to registers in runs that are operands of mma m16n8k16 as they are: the
 * instruction sums over 16 ranks in whatever order, so lane l may bring ranks 8 (l % 4) … + 7 of a
 * column, as long as it does so for v alike. Columns are dealt so that a lane ends with 8 adjacent
 * ones of y: instruction g of 4 has, as its column n, column 8 (n / 2) + 2 g + n % 2 of 32.
 *
 * Bytes: of B rank × out × 2 a piece, from memory once a step; of y 4 × rows × out; of v 4 × splits
 * × rows × rank an item. FLOPs: 2 × rows × rank × out, times two for the parts. Sums are f32 over
 * rank blocks in ascending order, high before low. Against f64: y's rounding + 2⁻¹⁶ of Σ|v b|. */
#include "kernels/cuda/lora.cuh"

enum {
    STAGE_BLOCKS = 2, /* rank blocks of v in shared memory */
    STAGE_RANKS = STAGE_BLOCKS * KERN_BLOCK_RANKS,
    PARTS = 2, /* of v: high, low */
    SPAN = 32, /* columns that four instructions make */
};

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

/* An item. */
template <typename T> struct expand_work {
    struct lora_pages<T> pages;
    const struct kern_lora *lora;
    uint32_t rank, begin; /* of B */
    uint32_t row, rows;   /* of the piece */
    uint32_t projection;
    void *y; /* of the piece's first row, the projection's first column */
};

/* v in shared memory. */
template <typename T, int SUBTILES> struct stage {
    T v[PARTS][STAGE_BLOCKS][SUBTILES * 16][KERN_BLOCK_RANKS];
};

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

/* scale · Σ splits of ranks [from, from + STAGE_RANKS) of all rows of the piece, in two parts, and
 * 0 for rows beyond it up to a multiple of 16. Between two barriers. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void fill_stage(const struct lora_call &c,
                                                  const expand_work<T> &w, uint32_t from,
                                                  stage<T, SUBTILES> &stage) {
    const uint32_t quads = min(w.rank - from, (uint32_t)STAGE_RANKS) / 4;
    const float scale = w.lora->scale;
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
            *reinterpret_cast<uint32_t *>(&stage.v[1][block][row][at + k]) =
                pair_bits<T>(a_low, b_low);
        }
    }
}

/* Spans are numbered from the first of tile `tile` on, two a tile; then comes tile + 4. */
static __device__ __forceinline__ uint32_t span_column(uint32_t tile, uint32_t span) {
    return (tile + span / 2 * LORA_WARPS) * KERN_TILE_COLUMNS + span % 2 * SPAN;
}

/* A lane's part of a block of B: SPANS spans from `span` on. */
template <int RANKS, typename T, int SPANS>
static __device__ __forceinline__ void b_load(const struct lora_call &c, const expand_work<T> &w,
                                              const struct lora_run &run, uint32_t tile,
                                              uint32_t span, uint4 (&b)[SPANS][4]) {
    const uint32_t n = threadIdx.x % 32 / 4, column = n / 2 * 8 + n % 2;
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
        uint32_t at_tile = tile + (span + s) / 2 * LORA_WARPS;
        if (at_tile < lora_tiles(c.out[w.projection])) {
            const T *at = lora_tile(c, w.pages, run, at_tile);
            at += ((span + s) % 2 * SPAN + column) * RANKS;
#pragma unroll
            for (int g = 0; g < 4; g++) {
                b[s][g] = lane_ranks<load_tile, RANKS>(at + g * 2 * RANKS);
            }
        }
    }
}

/* sum [span][subtile][instruction] += v Bᵀ over block `block` of the stage. */
template <int RANKS, typename T, int SUBTILES, int STAGE_SUBTILES, int SPANS>
static __device__ __forceinline__ void
multiply(float (&sum)[SPANS][SUBTILES][4][4], const uint4 (&b)[SPANS][4],
         const stage<T, STAGE_SUBTILES> &stage, uint32_t block, uint32_t rows) {
    const uint32_t row = threadIdx.x % 32 / 4;
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

/* 8 columns of y. */
template <typename Y> struct y_run {
    static constexpr int WORDS = 8 * sizeof(Y) / sizeof(uint4);
    uint4 word[WORDS];
};
static __device__ __forceinline__ void y_add(y_run<float> &y, const float add[8]) {
    float *v = reinterpret_cast<float *>(y.word);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] += add[i];
    }
}
template <typename T>
static __device__ __forceinline__ void y_add(y_run<T> &y, const float add[8]) {
    float v[8];
    eight_floats<T>(y.word[0], v);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] += add[i];
    }
    y.word[0] = eight_bits<T>(v);
}

/* Where a lane's 8 columns of row `row` of the piece are; NULL beyond the piece or the matrix. */
template <typename Y, typename T>
static __device__ __forceinline__ uint4 *y_place(const struct lora_call &c, const expand_work<T> &w,
                                                 uint32_t row, uint32_t column) {
    column += threadIdx.x % 4 * 8;
    if (row >= w.rows || column >= c.out[w.projection]) {
        return NULL;
    }
    return reinterpret_cast<uint4 *>(static_cast<Y *>(w.y) + (row * c.y_row + column));
}

template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void y_load(const struct lora_call &c, const expand_work<T> &w,
                                              uint32_t tile, uint32_t span,
                                              y_run<Y> (&y)[SPANS][SUBTILES][2]) {
#pragma unroll
    for (int i = 0; i < SPANS * SUBTILES * 2; i++) {
        int s = i / (SUBTILES * 2), m = i / 2 % SUBTILES, half = i % 2;
        uint32_t row = m * 16 + half * 8 + threadIdx.x % 32 / 4;
        const uint4 *from = y_place<Y>(c, w, row, span_column(tile, span + s));
#pragma unroll
        for (int k = 0; k < y_run<Y>::WORDS; k++) {
            y[s][m][half].word[k] = from != NULL ? from[k] : make_uint4(0, 0, 0, 0);
        }
    }
}

template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void
y_store(const struct lora_call &c, const expand_work<T> &w, uint32_t tile, uint32_t span,
        const float (*sum)[SUBTILES][4][4], y_run<Y> (&y)[SPANS][SUBTILES][2]) {
    const uint32_t lane = threadIdx.x % 32, first = (uint32_t)w.lora->bias;
    const float scale = w.lora->scale;
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
        uint32_t column = span_column(tile, span + s);
        float bias[8] = {};
        if (first != 0 && column + lane % 4 * 8 < c.out[w.projection]) {
            uint32_t at = first + column + lane % 4 * 8, page = at / c.page_elems;
            const T *from = lora_element(c, w.pages, page, at - page * c.page_elems);
            eight_floats<T>(lora_load_16(from), bias);
        }
#pragma unroll
        for (int i = 0; i < SUBTILES * 2; i++) {
            int m = i / 2, half = i % 2;
            uint32_t row = m * 16 + half * 8 + lane / 4;
            float add[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                add[k] = sum[s][m][k / 2][half * 2 + k % 2] + scale * bias[k];
            }
            y_add(y[s][m][half], add);
            uint4 *to = y_place<Y>(c, w, row, column);
            if (to != NULL) {
#pragma unroll
                for (int k = 0; k < y_run<Y>::WORDS; k++) {
                    to[k] = y[s][m][half].word[k];
                }
            }
        }
    }
}

/* SPANS spans from span `span` of tile `tile` on. All threads of the block come here together;
 * those whose tile lies beyond the matrix only help with v. `staged`: v is there already. */
template <typename T, typename Y, int SUBTILES, int SPANS, int STAGE_SUBTILES>
static __device__ __forceinline__ void
expand_spans(const struct lora_call &c, const expand_work<T> &w, uint32_t tile, uint32_t span,
             bool staged, stage<T, STAGE_SUBTILES> &stage) {
    constexpr int MOST = SPANS > 2 ? 16 : KERN_BLOCK_RANKS; /* of a block's ranks */
    const bool live = tile < lora_tiles(c.out[w.projection]);
    float sum[SPANS][SUBTILES][4][4] = {};
    for (uint32_t done = 0; done < w.rank; done += KERN_BLOCK_RANKS) {
        uint32_t ranks = min(w.rank - done, (uint32_t)KERN_BLOCK_RANKS);
        uint32_t block = done / KERN_BLOCK_RANKS;
        uint4 b[SPANS][4] = {};
        if (live) {
            struct lora_run run =
                lora_run_of(c.page_elems, w.begin, w.rank, lora_tiles(c.out[w.projection]), block);
            WITH_RANKS(MOST, ranks, b_load<RANKS>(c, w, run, tile, span, b));
        }
        if (!staged && done % STAGE_RANKS == 0) {
            __syncthreads();
            fill_stage(c, w, done, stage);
            __syncthreads();
        }
        if (live) {
            WITH_RANKS(MOST, ranks, multiply<RANKS>(sum, b, stage, block % STAGE_BLOCKS, w.rows));
        }
    }
    if (live) {
        constexpr int AT_ONCE = SPANS < 2 ? SPANS : 2;
#pragma unroll
        for (int s = 0; s < SPANS; s += AT_ONCE) {
            y_run<Y> y[AT_ONCE][SUBTILES][2]; /* all on their way at once */
            y_load<T, Y, SUBTILES, AT_ONCE>(c, w, tile, span + s, y);
            y_store<T, Y, SUBTILES, AT_ONCE>(c, w, tile, span + s, sum + s, y);
        }
    }
}

/* Column tiles that a warp takes in an item. */
static __device__ __forceinline__ uint32_t item_steps(const struct lora_call &c, uint32_t pieces) {
    uint32_t tiles = 0;
    for (uint32_t p = 0; p < c.projections; p++) {
        tiles += lora_tiles(c.out[p]);
    }
    uint32_t most = c.layer == LORA_OUTER ? LORA_OUTER_STEPS_MAX : LORA_ITEM_STEPS_MAX;
    uint32_t steps = pieces * tiles / (LORA_WARPS * LORA_ITEM_TURNS * gridDim.x);
    return max(1u, min(steps, most));
}

template <typename T, typename Y, int SUBTILES>
static __device__ __forceinline__ void
expand_item(const struct lora_call &c, const struct cuda_lora_piece &piece, uint32_t projection,
            uint32_t tile_begin, uint32_t steps, stage<T, SUBTILES> &stage) {
    const struct kern_lora *lora = lora_entry(c, piece.adapter, projection);
    expand_work<T> w;
    w.rank = lora->rank;
    if (w.rank == 0) {
        return;
    }
    w.pages = lora_pages_of<T>(c, piece.adapter);
    w.lora = lora;
    w.begin = (uint32_t)lora->b;
    w.row = piece.row;
    w.rows = piece.rows;
    w.projection = projection;
    w.y = static_cast<Y *>(c.y) + (uint64_t)piece.row * c.y_row + c.at[projection];
    bool staged = false;
    uint32_t tile = tile_begin + threadIdx.x / 32;
    for (uint32_t step = 0; step < steps; step++, tile += LORA_WARPS) {
        if (SUBTILES > 1 && piece.rows > 16) {
            for (uint32_t span = 0; span < 2; span++) {
                expand_spans<T, Y, SUBTILES, 1>(c, w, tile, span, staged, stage);
                staged = w.rank <= STAGE_RANKS;
            }
        } else if (SUBTILES == 1 && sizeof(Y) == sizeof(T) && w.rank <= 16 && step + 1 < steps) {
            /* narrow tiles, two at once: one alone would leave memory idle */
            expand_spans<T, Y, 1, 4>(c, w, tile, 0, staged, stage);
            step++;
            tile += LORA_WARPS;
        } else {
            expand_spans<T, Y, 1, 2>(c, w, tile, 0, staged, stage);
        }
        staged = w.rank <= STAGE_RANKS;
    }
}

template <typename T, typename Y, int SUBTILES>
static __global__
__launch_bounds__(LORA_THREADS,
                  BLOCKS) void lora_expand_kernel(const __grid_constant__ struct lora_call c) {
    __shared__ stage<T, SUBTILES> stage;
    const uint32_t pieces = c.list->count;
    const uint32_t steps = item_steps(c, pieces);
    uint32_t units[LORA_GROUP_MAX], all = 0; /* items of a piece */
#pragma unroll
    for (uint32_t p = 0; p < LORA_GROUP_MAX; p++) {
        uint32_t tiles = p < c.projections ? lora_tiles(c.out[p]) : 0;
        units[p] = (tiles + steps * LORA_WARPS - 1) / (steps * LORA_WARPS);
        all += units[p];
    }
    for (uint32_t item = blockIdx.x; item < pieces * all; item += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[item / all];
        uint32_t unit = item % all, projection = 0;
#pragma unroll
        for (uint32_t p = 0; p + 1 < LORA_GROUP_MAX; p++) {
            if (projection == p && unit >= units[p]) {
                unit -= units[p];
                projection = p + 1;
            }
        }
        expand_item<T, Y, SUBTILES>(c, piece, projection, unit * steps * LORA_WARPS, steps, stage);
    }
}

template <typename T, typename Y, int SUBTILES>
static void launch(struct kern_device *d, const struct lora_call *c) {
    uint32_t tiles = 0;
    for (uint32_t p = 0; p < c->projections; p++) {
        tiles += lora_tiles(c->out[p]);
    }
    uint32_t items = c->rows * (tiles / LORA_WARPS + c->projections);
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * BLOCKS));
    auto kernel = lora_expand_kernel<T, Y, SUBTILES>;
    kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c);
    CUDA_LAUNCHED(d, "lora_expand_kernel");
}

void lora_expand_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut,
                        bool logits) {
    CUDA_WITH_ELEM(d, T, {
        if (logits) { /* in pieces of 16 */
            launch<T, float, 1>(d, c);
        } else if (cut == CUDA_LORA_16) {
            launch<T, T, 1>(d, c);
        } else if (cut == CUDA_LORA_32) {
            launch<T, T, 2>(d, c);
        } else {
            launch<T, T, 4>(d, c);
        }
    });
}
