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
 * up first is paid seldom (a column's sum does not depend on them). How v and B come to be
 * multiplied is in lora_expand.cuh.
 *
 * Bytes: of B rank × out × 2 a piece, from memory once a step; of y 4 × rows × out; of v 4 × splits
 * × rows × rank an item. FLOPs: 2 × rows × rank × out, times two for the parts. Sums are f32 over
 * rank blocks in ascending order, high before low. Against f64: y's rounding + 2⁻¹⁶ of Σ|v b|. */
#include "kernels/cuda/lora_expand.cuh"

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

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
template <typename Y>
static __device__ __forceinline__ uint4 *
y_place(const struct lora_call &c, const struct expand_work &w, uint32_t row, uint32_t column) {
    column += threadIdx.x % 4 * 8;
    if (row >= w.rows || column >= c.out[w.projection]) {
        return NULL;
    }
    Y *y = static_cast<Y *>(c.y) + (uint64_t)w.row * c.y_row + c.at[w.projection];
    return reinterpret_cast<uint4 *>(y + (row * c.y_row + column));
}

template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void
y_load(const struct lora_call &c, const struct expand_work &w, uint32_t tile, uint32_t span,
       uint32_t first_row, y_run<Y> (&y)[SPANS][SUBTILES][2]) {
#pragma unroll
    for (int i = 0; i < SPANS * SUBTILES * 2; i++) {
        int s = i / (SUBTILES * 2), m = i / 2 % SUBTILES, half = i % 2;
        uint32_t row = first_row + m * 16 + half * 8 + threadIdx.x % 32 / 4;
        const uint4 *from = y_place<Y>(c, w, row, span_column(tile, span + s));
#pragma unroll
        for (int k = 0; k < y_run<Y>::WORDS; k++) {
            y[s][m][half].word[k] = from != NULL ? from[k] : make_uint4(0, 0, 0, 0);
        }
    }
}

template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void
y_store(const struct lora_call &c, const struct expand_work &w, uint32_t tile, uint32_t span,
        uint32_t first_row, const float (*sum)[SUBTILES][4][4], y_run<Y> (&y)[SPANS][SUBTILES][2]) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
        uint32_t column = span_column(tile, span + s);
        float bias[8] = {};
        bias_load<T>(c, w, column + lane % 4 * 8, bias);
#pragma unroll
        for (int i = 0; i < SUBTILES * 2; i++) {
            int m = i / 2, half = i % 2;
            uint32_t row = first_row + m * 16 + half * 8 + lane / 4;
            float add[8];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                add[k] = sum[s][m][k / 2][half * 2 + k % 2] + bias[k];
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
expand_spans(const struct lora_call &c, const struct expand_work &w, uint32_t tile, uint32_t span,
             bool staged, stage<T, STAGE_SUBTILES> &stage) {
    constexpr int MOST = SPANS > 2 ? 16 : KERN_BLOCK_RANKS; /* of a block's ranks */
    const bool live = tile < lora_tiles(c.out[w.projection]);
    const struct lora_pages<T> pages = lora_pages_of<T>(c, w.adapter);
    float sum[SPANS][SUBTILES][4][4] = {};
    for (uint32_t done = 0; done < w.rank; done += KERN_BLOCK_RANKS) {
        uint32_t ranks = min(w.rank - done, (uint32_t)KERN_BLOCK_RANKS);
        uint32_t block = done / KERN_BLOCK_RANKS;
        uint4 b[SPANS][4] = {};
        if (live) {
            struct lora_run run =
                lora_run_of(c.page_elems, w.begin, w.rank, lora_tiles(c.out[w.projection]), block);
            WITH_RANKS(MOST, ranks, b_load<RANKS>(c, w, pages, run, tile, span, b));
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
            y_load<T, Y, SUBTILES, AT_ONCE>(c, w, tile, span + s, 0, y);
            y_store<T, Y, SUBTILES, AT_ONCE>(c, w, tile, span + s, 0, sum + s, y);
        }
    }
}

/* A tile, for all rows of a piece whose ranks one stage takes, v being there: y is on its way while
 * B comes, and B comes from the first-level cache for all rows but the first 16. A warp. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void expand_tile(const struct lora_call &c,
                                                   const struct expand_work &w, uint32_t tile,
                                                   const stage<T, SUBTILES> &stage) {
    const T *at[STAGE_BLOCKS];
    tile_places(c, w, tile, 0, at);
#pragma unroll 1
    for (uint32_t span = 0; span < 2; span++) {
        y_run<T> y[SUBTILES][1][1][2]; /* all on their way at once */
#pragma unroll
        for (int m = 0; m < SUBTILES; m++) {
            y_load<T, T, 1, 1>(c, w, tile, span, m * 16, y[m]);
        }
#pragma unroll
        for (int m = 0; m < SUBTILES; m++) {
            if (m * 16 < w.rows) {
                float sum[1][1][4][4] = {};
                tile_delta(w, at, 0, span, m * 16, stage, sum);
                y_store<T, T, 1, 1>(c, w, tile, span, m * 16, sum, y[m]);
            }
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
    const struct expand_work w = work_of(c, piece, projection);
    if (w.rank == 0) {
        return;
    }
    bool staged = false;
    uint32_t tile = tile_begin + threadIdx.x / 32;
    if constexpr (SUBTILES > 1) {
        if (piece.rows > 16 && w.rank <= STAGE_RANKS) {
            __syncthreads();
            fill_stage(c, w, 0, stage);
            __syncthreads();
            const uint32_t end = lora_tiles(c.out[projection]);
            for (uint32_t step = 0; step < steps && tile < end; step++, tile += LORA_WARPS) {
                expand_tile<T, SUBTILES>(c, w, tile, stage);
            }
            return;
        }
    }
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
