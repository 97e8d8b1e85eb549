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

/* What limits registers: blocks that are to fit a multiprocessor. */
static constexpr int blocks_of(int subtiles) {
    return subtiles <= 2 ? 4 : 3;
}

/* An item. */
template <typename T> struct expand_work {
    struct lora_pages<T> pages;
    struct cuda_lora_piece piece;
    uint32_t rank, begin, bias; /* of B; of the bias, 0 = none */
    float scale;
    uint32_t projection, out, tiles;
};

/* v in shared memory. */
template <typename T, int SUBTILES> struct stage {
    T v[PARTS][STAGE_BLOCKS][SUBTILES * 16][KERN_BLOCK_RANKS];
};

/* A lane's ranks of one column of B, or row of v, of a block: words 0, 1 go with the first 16
 * ranks, words 2, 3 with the rest. */
static __device__ __forceinline__ uint32_t lane_rank(uint32_t ranks) {
    uint32_t t = threadIdx.x % 4;
    return ranks == 32 ? 8 * t : ranks == 8 ? 2 * t : 4 * t;
}

template <typename T>
static __device__ __forceinline__ uint4 b_load(const T *column, uint32_t ranks) {
    const T *at = column + lane_rank(ranks);
    uint4 word = make_uint4(0, 0, 0, 0);
    if (ranks == 32) {
        return lora_load_16(at);
    }
    if (ranks == 8) {
        word.x = lora_load_4(at);
        return word;
    }
    uint2 two = lora_load_8(at);
    word.x = two.x;
    word.y = two.y;
    if (ranks == 24) {
        word.z = lora_load_4(column + 16 + 2 * (threadIdx.x % 4));
    }
    return word;
}

template <typename T> static __device__ __forceinline__ uint4 v_load(const T *row, uint32_t ranks) {
    const T *at = row + lane_rank(ranks);
    uint4 word = make_uint4(0, 0, 0, 0);
    if (ranks == 32) {
        return *reinterpret_cast<const uint4 *>(at);
    }
    if (ranks == 8) {
        word.x = *reinterpret_cast<const uint32_t *>(at);
        return word;
    }
    uint2 two = *reinterpret_cast<const uint2 *>(at);
    word.x = two.x;
    word.y = two.y;
    if (ranks == 24) {
        word.z = *reinterpret_cast<const uint32_t *>(row + 16 + 2 * (threadIdx.x % 4));
    }
    return word;
}

/* scale · Σ splits of ranks [from, from + STAGE_RANKS) of all rows of the piece, in two parts; rows
 * beyond the piece become 0. Between two barriers. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void fill_stage(const struct lora_call &c,
                                                  const expand_work<T> &w, uint32_t from,
                                                  stage<T, SUBTILES> &stage) {
    const uint32_t quads = min(w.rank - from, (uint32_t)STAGE_RANKS) / 4;
    const uint64_t split_stride = (uint64_t)c.rows * c.projections * KERN_RANK_MAX;
    for (uint32_t i = threadIdx.x; i < SUBTILES * 16 * quads; i += LORA_THREADS) {
        uint32_t row = i / quads, r = i % quads * 4;
        float sum[4] = {};
        if (row < w.piece.rows) {
            const float *v = lora_v(c, 0, w.piece.row + row, w.projection) + from + r;
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
            float a = sum[k] * w.scale, b = sum[k + 1] * w.scale;
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

/* sum [span][subtile][instruction] += v Bᵀ over one block of ranks. */
template <typename T, int SUBTILES, int SPANS>
static __device__ __forceinline__ void
multiply(float (&sum)[SPANS][SUBTILES][4][4], const uint4 (&b)[SPANS][4],
         const stage<T, SUBTILES> &stage, uint32_t block, uint32_t ranks, uint32_t rows) {
    const uint32_t row = threadIdx.x % 32 / 4;
#pragma unroll
    for (int m = 0; m < SUBTILES; m++) {
        if (m * 16 < rows) {
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                uint4 low = v_load(stage.v[part][block][m * 16 + row], ranks);
                uint4 high = v_load(stage.v[part][block][m * 16 + row + 8], ranks);
                const uint32_t first[4] = {low.x, high.x, low.y, high.y};
                const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
                for (int s = 0; s < SPANS; s++) {
#pragma unroll
                    for (int g = 0; g < 4; g++) {
                        const uint32_t b_first[2] = {b[s][g].x, b[s][g].y};
                        mma_16816<T>(sum[s][m][g], first, b_first);
                        if (ranks > 16) {
                            const uint32_t b_second[2] = {b[s][g].z, b[s][g].w};
                            mma_16816<T>(sum[s][m][g], second, b_second);
                        }
                    }
                }
            }
        }
    }
}

/* y's 8 columns + add + scale · bias. */
static __device__ __forceinline__ void y_add(float *y, const float add[8]) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        float4 v = *reinterpret_cast<const float4 *>(y + i);
        v.x += add[i];
        v.y += add[i + 1];
        v.z += add[i + 2];
        v.w += add[i + 3];
        *reinterpret_cast<float4 *>(y + i) = v;
    }
}
template <typename T> static __device__ __forceinline__ void y_add(T *y, const float add[8]) {
    float v[8];
    eight_floats<T>(*reinterpret_cast<const uint4 *>(y), v);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] += add[i];
    }
    *reinterpret_cast<uint4 *>(y) = eight_bits<T>(v);
}

template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void store(const struct lora_call &c, const expand_work<T> &w,
                                             const float (&sum)[SPANS][SUBTILES][4][4],
                                             uint32_t tile, uint32_t span) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
        uint32_t column = tile * KERN_TILE_COLUMNS + (span + s) * SPAN + lane % 4 * 8;
        float bias[8] = {};
        if (w.bias != 0 && column < w.out) {
            uint32_t at = w.bias + column, page = at / c.page_elems;
            const T *from = lora_element(w.pages, page, at - page * c.page_elems);
            eight_floats<T>(lora_load_16(from), bias);
        }
        Y *y = static_cast<Y *>(c.y) + c.at[w.projection] + column;
#pragma unroll
        for (int m = 0; m < SUBTILES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t row = m * 16 + half * 8 + lane / 4;
                float add[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    add[i] = sum[s][m][i / 2][half * 2 + i % 2] + w.scale * bias[i];
                }
                if (row < w.piece.rows && column < w.out) {
                    y_add(y + (uint64_t)(w.piece.row + row) * c.y_row, add);
                }
            }
        }
    }
}

/* SPANS spans of a tile, from span `span` on. All threads of the block come here together; those
 * whose tile lies beyond the matrix only help with v. `staged`: v is there already. */
template <typename T, typename Y, int SUBTILES, int SPANS>
static __device__ __forceinline__ void
expand_tile(const struct lora_call &c, const expand_work<T> &w, uint32_t tile, uint32_t span,
            bool staged, stage<T, SUBTILES> &stage) {
    const uint32_t n = threadIdx.x % 32 / 4, column = n / 2 * 8 + n % 2;
    const bool live = tile < w.tiles;
    float sum[SPANS][SUBTILES][4][4] = {};
    for (uint32_t done = 0; done < w.rank; done += KERN_BLOCK_RANKS) {
        uint32_t ranks = min(w.rank - done, (uint32_t)KERN_BLOCK_RANKS);
        uint4 b[SPANS][4] = {};
        if (live) {
            struct lora_run run =
                lora_run_of(c.page_elems, w.begin, w.rank, w.tiles, done / KERN_BLOCK_RANKS);
            const T *at = lora_tile(w.pages, run, tile) + (span * SPAN + column) * ranks;
#pragma unroll
            for (int s = 0; s < SPANS; s++) {
#pragma unroll
                for (int g = 0; g < 4; g++) {
                    b[s][g] = b_load(at + (s * SPAN + g * 2) * ranks, ranks);
                }
            }
        }
        if (!staged && done % STAGE_RANKS == 0) {
            __syncthreads();
            fill_stage(c, w, done, stage);
            __syncthreads();
        }
        if (live) {
            multiply<T, SUBTILES, SPANS>(sum, b, stage, done / KERN_BLOCK_RANKS % STAGE_BLOCKS,
                                         ranks, w.piece.rows);
        }
    }
    if (live) {
        store<T, Y, SUBTILES, SPANS>(c, w, sum, tile, span);
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
    w.piece = piece;
    w.begin = (uint32_t)lora->b;
    w.bias = (uint32_t)lora->bias;
    w.scale = lora->scale;
    w.projection = projection;
    w.out = c.out[projection];
    w.tiles = lora_tiles(w.out);
    bool staged = false;
    for (uint32_t step = 0; step < steps; step++) {
        uint32_t tile = tile_begin + step * LORA_WARPS + threadIdx.x / 32;
        if (SUBTILES == 1) {
            expand_tile<T, Y, SUBTILES, 2>(c, w, tile, 0, staged, stage);
        } else {
            for (uint32_t span = 0; span < 2; span++) {
                expand_tile<T, Y, SUBTILES, 1>(c, w, tile, span, staged, stage);
                staged = w.rank <= STAGE_RANKS;
            }
        }
        staged = w.rank <= STAGE_RANKS;
    }
}

template <typename T, typename Y, int SUBTILES>
static __global__ __launch_bounds__(LORA_THREADS, blocks_of(SUBTILES)) void lora_expand_kernel(
    const __grid_constant__ struct lora_call c) {
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
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * blocks_of(SUBTILES)));
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
