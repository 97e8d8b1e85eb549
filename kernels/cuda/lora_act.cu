/* lora_act.cu - act = silu(gate') · up' with gate' = gate + scale · (v Bᵀ + bias), up' likewise,
 * for pieces of rows, each with its own adapter or none.
 *
 * gate_up [rows][2 × intermediate] elements, read; v: shrink's partial sums of gate and up; B in
 * tiles in pages (lora_expand.cuh); act [rows][intermediate] elements. All is added in f32 and
 * rounded once, at the store. Rows without an adapter, and projections of rank 0, give bits as
 * cuda_act_rows() does.
 *
 * Work: an item is (piece of ≤ 16, 32 or 64 rows, a range of column tiles). A persistent grid walks
 * the items; warp w takes tiles w, w + 4, … of the range, both of gate and of up, 16 rows after the
 * other: what it reads of gate_up is on its way while B comes and the rows in front are multiplied.
 * B is read from the first-level cache for all rows but the first 16.
 *
 * Bytes: of activations 6 × rows × intermediate, as without LoRA; of B 4 × rank × intermediate a
 * piece. FLOPs: 8 × rows × rank × intermediate, v being in two parts. Against f64: one rounding and
 * 2⁻¹⁶ of Σ|v b|, through silu. */
#include "kernels/cuda/lora_expand.cuh"

enum { GATE, UP, BOTH, HALVES = 2 };

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

template <typename T> struct act_work {
    struct expand_work side[BOTH];
    uint32_t rank; /* the greater one */
    T *act;        /* of the step's first row */
};

/* A lane's 8 columns of two rows of gate and up: [gate, up][row, row + 8]. */
using act_run = uint4[BOTH][HALVES];

static __device__ __forceinline__ uint32_t lane_column(uint32_t tile, uint32_t span) {
    return tile * KERN_TILE_COLUMNS + span * SPAN + threadIdx.x % 4 * 8;
}

template <typename T>
static __device__ __forceinline__ void act_load(const struct lora_call &c, const act_work<T> &w,
                                                uint32_t tile, uint32_t span, uint32_t first_row,
                                                act_run &y) {
    const uint32_t row = first_row + threadIdx.x % 32 / 4, column = lane_column(tile, span);
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        bool there = row + half * 8 < w.side[GATE].rows && column < c.out[GATE];
        uint64_t at = (uint64_t)(w.side[GATE].row + row + half * 8) * c.y_row + column;
        const T *from = static_cast<const T *>(c.y) + at;
#pragma unroll
        for (int p = 0; p < BOTH; p++) {
            y[p][half] = there ? lora_load_16(from + c.at[p]) : make_uint4(0, 0, 0, 0);
        }
    }
}

/* The delta, where there is one, and the activation of a span. */
template <typename T>
static __device__ __forceinline__ void act_store(const struct lora_call &c, const act_work<T> &w,
                                                 uint32_t tile, uint32_t span, uint32_t first_row,
                                                 const act_run &y, float (&sum)[BOTH][1][1][4][4]) {
    const uint32_t row = first_row + threadIdx.x % 32 / 4, column = lane_column(tile, span);
#pragma unroll
    for (int p = 0; p < BOTH; p++) {
        if (w.side[p].rank != 0) {
            float bias[8] = {};
            bias_load<T>(c, w.side[p], column, bias);
#pragma unroll
            for (int i = 0; i < HALVES * 8; i++) {
                sum[p][0][0][i % 8 / 2][i / 8 * 2 + i % 2] += bias[i % 8];
            }
        }
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        float v[BOTH][8];
#pragma unroll
        for (int p = 0; p < BOTH; p++) {
            eight_floats<T>(y[p][half], v[p]);
            if (w.side[p].rank != 0) { /* else the sign of a zero might change */
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    v[p][k] += sum[p][0][0][k / 2][half * 2 + k % 2];
                }
            }
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            v[UP][k] *= silu(v[GATE][k]);
        }
        if (row + half * 8 < w.side[GATE].rows && column < c.out[GATE]) {
            uint64_t at = (uint64_t)(w.side[GATE].row + row + half * 8) * c.out[GATE] + column;
            *reinterpret_cast<uint4 *>(w.act + at) = eight_bits<T>(v[UP]);
        }
    }
}

template <typename T, int SUBTILES>
static __device__ __forceinline__ void act_stage(const struct lora_call &c, const act_work<T> &w,
                                                 uint32_t done,
                                                 stage<T, SUBTILES> (&stages)[BOTH]) {
    __syncthreads();
#pragma unroll
    for (int p = 0; p < BOTH; p++) {
        if (done < w.side[p].rank) {
            fill_stage(c, w.side[p], done, stages[p]);
        }
    }
    __syncthreads();
}

/* Ranks that one stage does not take: brings v 64 ranks after the other. All threads of the block.
 */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void
act_delta_long(const struct lora_call &c, const act_work<T> &w, uint32_t tile, uint32_t span,
               uint32_t first_row, stage<T, SUBTILES> (&stages)[BOTH],
               float (&sum)[BOTH][1][1][4][4]) {
    const bool live = tile < lora_tiles(c.out[GATE]);
#pragma unroll 1
    for (uint32_t done = 0; done < w.rank; done += STAGE_RANKS) {
        act_stage(c, w, done, stages);
#pragma unroll
        for (int p = 0; p < BOTH; p++) {
            const T *at[STAGE_BLOCKS];
            tile_places(c, w.side[p], tile, done, at);
            if (live) {
                tile_delta(w.side[p], at, done, span, first_row, stages[p], sum[p]);
            }
        }
    }
}

/* A tile, for all rows of a piece whose ranks one stage takes, v being there: 16 rows of a span
 * after the other, gate and up of the next being on their way. A warp. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void act_tile(const struct lora_call &c, const act_work<T> &w,
                                                uint32_t tile,
                                                const stage<T, SUBTILES> (&stages)[BOTH]) {
    const T *at[BOTH][STAGE_BLOCKS];
    tile_places(c, w.side[GATE], tile, 0, at[GATE]);
    tile_places(c, w.side[UP], tile, 0, at[UP]);
    const uint32_t units = (w.side[GATE].rows + 15) / 16 * 2;
    act_run next;
    act_load(c, w, tile, 0, 0, next);
#pragma unroll 1
    for (uint32_t unit = 0; unit < units; unit++) {
        const uint32_t row = unit / 2 * 16, span = unit % 2;
        float sum[BOTH][1][1][4][4] = {};
        act_run y;
#pragma unroll
        for (int i = 0; i < BOTH * HALVES; i++) {
            y[i / HALVES][i % HALVES] = next[i / HALVES][i % HALVES];
        }
        act_load(c, w, tile, (unit + 1) % 2, (unit + 1) / 2 * 16, next); /* zeros behind the last */
        tile_delta(w.side[GATE], at[GATE], 0, span, row, stages[GATE], sum[GATE]);
        tile_delta(w.side[UP], at[UP], 0, span, row, stages[UP], sum[UP]);
        act_store(c, w, tile, span, row, y, sum);
    }
}

/* The same where one stage does not take all ranks. All threads of the block. */
template <typename T, int SUBTILES>
static __device__ __forceinline__ void act_tile_long(const struct lora_call &c,
                                                     const act_work<T> &w, uint32_t tile,
                                                     stage<T, SUBTILES> (&stages)[BOTH]) {
#pragma unroll 1
    for (uint32_t unit = 0; unit < (w.side[GATE].rows + 15) / 16 * 2; unit++) {
        const uint32_t row = unit / 2 * 16, span = unit % 2;
        float sum[BOTH][1][1][4][4] = {};
        act_run y;
        act_delta_long(c, w, tile, span, row, stages, sum);
        act_load(c, w, tile, span, row, y);
        act_store(c, w, tile, span, row, y, sum);
    }
}

template <typename T, int SUBTILES>
static __device__ __forceinline__ void
act_item(const struct lora_call &c, T *act, const struct cuda_lora_piece &piece,
         uint32_t tile_begin, uint32_t steps, stage<T, SUBTILES> (&stages)[BOTH]) {
    act_work<T> w;
    w.side[GATE] = work_of(c, piece, GATE);
    w.side[UP] = work_of(c, piece, UP);
    w.rank = max(w.side[GATE].rank, w.side[UP].rank);
    w.act = act;
    const bool fits = w.rank <= STAGE_RANKS;
    if (fits && w.rank != 0) {
        act_stage(c, w, 0, stages);
    }
    const uint32_t end = lora_tiles(c.out[GATE]);
    uint32_t tile = tile_begin + threadIdx.x / 32;
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++, tile += LORA_WARPS) {
        if (!fits) {
            act_tile_long(c, w, tile, stages);
        } else if (tile < end) {
            act_tile(c, w, tile, stages);
        }
    }
}

/* Column tiles that a warp takes in an item. */
static __device__ __forceinline__ uint32_t act_steps(const struct lora_call &c) {
    uint32_t steps =
        c.list->all * lora_tiles(c.out[GATE]) / (LORA_WARPS * LORA_ACT_TURNS * gridDim.x);
    return max(1u, min(steps, (uint32_t)LORA_ITEM_STEPS_MAX));
}

template <typename T, int SUBTILES>
static __global__
__launch_bounds__(LORA_THREADS,
                  BLOCKS) void lora_act_kernel(const __grid_constant__ struct lora_call c, T *act) {
    __shared__ stage<T, SUBTILES> stages[BOTH];
    const uint32_t steps = act_steps(c), range = steps * LORA_WARPS;
    const uint32_t units = (lora_tiles(c.out[GATE]) + range - 1) / range;
    for (uint32_t item = blockIdx.x; item < c.list->all * units; item += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[item / units];
        act_item<T, SUBTILES>(c, act, piece, item % units * range, steps, stages);
    }
}

template <typename T, int SUBTILES>
static void launch(struct kern_device *d, const struct lora_call *c) {
    uint32_t items = c->rows * (lora_tiles(c->out[GATE]) / LORA_WARPS + 1);
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * BLOCKS));
    auto kernel = lora_act_kernel<T, SUBTILES>;
    kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c, static_cast<T *>(d->act));
    CUDA_LAUNCHED(d, "lora_act_kernel");
}

void lora_act_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    CUDA_WITH_ELEM(d, T, {
        if (cut == CUDA_LORA_16) {
            launch<T, 1>(d, c);
        } else if (cut == CUDA_LORA_32) {
            launch<T, 2>(d, c);
        } else {
            launch<T, 4>(d, c);
        }
    });
}
