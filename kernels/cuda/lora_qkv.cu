/* lora_qkv.cu - q, k, v += scale · (v Bᵀ + bias), then bias, norm, rope, and into q's place or the
 * token's page, for pieces of rows, each with its own adapter or none.
 *
 * qkv [rows][q + 2 kv] elements, q in place; v: shrink's partial sums of q, k and v; B in tiles in
 * pages (lora_expand.cuh). All is f32 between qkv and the store. Rows without an adapter, and
 * projections of rank 0, give bits as cuda_qkv_rows() does.
 *
 * Work: an item is (piece of ≤ 16, 32 or 64 rows, projection, some heads that fill whole tiles of
 * B). A persistent grid walks the items, 16 rows after the other: warp w works out the delta of
 * tile w and lays it into shared memory; then, as in blocks.cu, a warp is a head of a row, for one
 * after the other. What it reads of qkv was on its way all the while.
 *
 * Bytes: of activations 4 × rows × (q + 2 kv), as without LoRA; of B 2 × rank × (q + 2 kv) a piece.
 * FLOPs: 4 × rows × rank × (q + 2 kv). Against f64: one rounding and 2⁻¹⁶ of Σ|v b|. */
#include "kernels/cuda/lora_expand.cuh"
#include "kernels/cuda/qkv.cuh"

enum { ROWS = 16, AHEAD = 8 /* heads of rows that a warp has on their way */ };

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

/* Heads of an item: whole tiles, about one a warp. */
static __host__ __device__ constexpr int heads_of(int head_dim) {
    return head_dim == 32 ? 8 : head_dim <= 80 ? 4 : 2;
}

template <typename T> struct qkv_work {
    struct expand_work side;
    uint32_t tile;        /* the first */
    uint32_t head, heads; /* of q, k, v together, the first; how many */
    T *qkv;               /* the first head's place in the piece's first row */
    uint32_t qkv_row;
};

/* The delta of the item's heads; rows of a tile's columns lie apart so that stores do not clash. */
template <int HEAD_DIM> struct delta_room {
    static constexpr int COLUMNS = heads_of(HEAD_DIM) * HEAD_DIM;
    static constexpr int TILES = COLUMNS / KERN_TILE_COLUMNS;
    static_assert(COLUMNS % KERN_TILE_COLUMNS == 0, "heads fill tiles");
    float v[ROWS][COLUMNS + 4];
};

template <typename T, int SUBTILES>
static __device__ __forceinline__ void qkv_stage(const struct lora_call &c,
                                                 const struct expand_work &w, uint32_t done,
                                                 stage<T, SUBTILES> &stage) {
    __syncthreads();
    fill_stage(c, w, done, stage);
    __syncthreads();
}

/* A span of 16 rows, with the bias, to its place. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void delta_store(const struct lora_call &c, const qkv_work<T> &w,
                                                   uint32_t column, const float (&sum)[1][1][4][4],
                                                   delta_room<HEAD_DIM> &room) {
    const uint32_t lane = threadIdx.x % 32, at = column + lane % 4 * 8;
    float bias[8] = {};
    bias_load<T>(c, w.side, w.tile * KERN_TILE_COLUMNS + at, bias);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int half = i / 2, k = i % 2 * 4;
        const float(&s)[4][4] = sum[0][0];
        *reinterpret_cast<float4 *>(&room.v[half * 8 + lane / 4][at + k]) = make_float4(
            s[k / 2][half * 2] + bias[k], s[k / 2][half * 2 + 1] + bias[k + 1],
            s[k / 2 + 1][half * 2] + bias[k + 2], s[k / 2 + 1][half * 2 + 1] + bias[k + 3]);
    }
}

/* Works out 16 rows from `first_row` of the piece on. All threads of the block; between two
 * barriers. `fits`: v is in the stage; else it comes 64 ranks after the other. */
template <typename T, int HEAD_DIM, int SUBTILES>
static __device__ __forceinline__ void
delta_fill(const struct lora_call &c, const qkv_work<T> &w, uint32_t first_row, bool fits,
           stage<T, SUBTILES> &stage, delta_room<HEAD_DIM> &room) {
    const uint32_t tiles = lora_tiles(c.out[w.side.projection]);
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = 0; i < (room.TILES + LORA_WARPS - 1) / LORA_WARPS * 2; i++) {
        const uint32_t mine = i / 2 * LORA_WARPS + threadIdx.x / 32, span = i % 2;
        const bool live = mine < room.TILES && w.tile + mine < tiles;
        float sum[1][1][4][4] = {};
#pragma unroll 1
        for (uint32_t done = 0; done < w.side.rank; done += STAGE_RANKS) {
            if (!fits) {
                qkv_stage(c, w.side, done, stage);
            }
            if (live) {
                const T *at[STAGE_BLOCKS];
                tile_places(c, w.side, w.tile + mine, done, at);
                tile_delta(w.side, at, done, span, first_row, stage, sum);
            }
        }
        if (live) {
            uint32_t column = mine * KERN_TILE_COLUMNS + span * SPAN;
            delta_store<T, HEAD_DIM>(c, w, column, sum, room);
        }
    }
    __syncthreads();
}

/* Heads of rows are numbered row by row; a warp takes every fourth. */
template <typename T, int HEAD_DIM> struct qkv_place {
    uint32_t row, head; /* of the 16 rows; of the item's heads */
    bool there;

    __device__ __forceinline__ qkv_place(const struct qkv_view &v, const qkv_work<T> &w,
                                         uint32_t first_row, uint32_t turn) {
        uint32_t number = turn * LORA_WARPS + threadIdx.x / 32;
        row = number / heads_of(HEAD_DIM);
        head = number % heads_of(HEAD_DIM);
        there = first_row + row < w.side.rows && head < w.heads &&
                w.side.row + first_row + row < v.meta->token_count;
    }
};

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ T *place_of(const qkv_work<T> &w, uint32_t row, uint32_t head) {
    return w.qkv + (row * w.qkv_row + head * HEAD_DIM);
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void heads_load(const struct qkv_view &v, const qkv_work<T> &w,
                                                  uint32_t first_row, uint32_t turn,
                                                  uint2 (&words)[AHEAD]) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const qkv_place<T, HEAD_DIM> p(v, w, first_row, turn + i);
        words[i] = make_uint2(0, 0);
        if (p.there) {
            words[i] = qkv_load<HEAD_DIM>(place_of<T, HEAD_DIM>(w, first_row + p.row, p.head));
        }
    }
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void
heads_finish(const struct qkv_view &v, const qkv_work<T> &w, uint32_t first_row, uint32_t turn,
             const uint2 (&words)[AHEAD], const delta_room<HEAD_DIM> &room) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const qkv_place<T, HEAD_DIM> p(v, w, first_row, turn + i);
        if (!p.there) {
            continue; /* the whole warp */
        }
        struct qkv_pairs pairs = {pair_floats<T>(words[i].x), pair_floats<T>(words[i].y)};
        if (w.side.rank != 0 && lane < HEAD_DIM / 4) {
            const float *delta = &room.v[p.row][p.head * HEAD_DIM + 2 * lane];
            float2 low = *reinterpret_cast<const float2 *>(delta);
            float2 high = *reinterpret_cast<const float2 *>(delta + HEAD_DIM / 2);
            pairs.low = make_float2(pairs.low.x + low.x, pairs.low.y + low.y);
            pairs.high = make_float2(pairs.high.x + high.x, pairs.high.y + high.y);
        }
        T *place = place_of<T, HEAD_DIM>(w, first_row + p.row, p.head);
        const uint32_t row = w.side.row + first_row + p.row, head = w.head + p.head;
        qkv_head<T, HEAD_DIM>(v, row, head, pairs, qkv_target<T, HEAD_DIM>(v, row, head, place));
    }
}

template <typename T, int HEAD_DIM, int SUBTILES>
static __device__ __forceinline__ void qkv_item(const struct lora_call &c, const struct qkv_view &v,
                                                const qkv_work<T> &w, stage<T, SUBTILES> &stage,
                                                delta_room<HEAD_DIM> &room) {
    constexpr uint32_t TURNS = ROWS * heads_of(HEAD_DIM) / LORA_WARPS;
    static_assert(TURNS % AHEAD == 0, "turns are taken eight at a time");
    const bool fits = w.side.rank <= STAGE_RANKS;
    if (fits && w.side.rank != 0) {
        qkv_stage(c, w.side, 0, stage);
    }
#pragma unroll 1
    for (uint32_t row = 0; row < w.side.rows; row += ROWS) {
        uint2 words[AHEAD];
        if (fits) {
            heads_load<T, HEAD_DIM>(v, w, row, 0, words);
        }
        if (w.side.rank != 0) {
            delta_fill<T, HEAD_DIM, SUBTILES>(c, w, row, fits, stage, room);
        }
#pragma unroll 1
        for (uint32_t turn = 0; turn < TURNS; turn += AHEAD) {
            if (turn != 0 || !fits) {
                heads_load<T, HEAD_DIM>(v, w, row, turn, words);
            }
            heads_finish<T, HEAD_DIM>(v, w, row, turn, words, room);
        }
    }
}

/* Item `unit` of a piece: projection after projection, heads after heads. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ qkv_work<T>
qkv_work_of(const struct lora_call &c, const struct qkv_view &v,
            const struct cuda_lora_piece &piece, uint32_t unit) {
    constexpr uint32_t HEADS = heads_of(HEAD_DIM);
    const uint32_t q_units = (v.heads + HEADS - 1) / HEADS;
    const uint32_t kv_units = (v.kv_heads + HEADS - 1) / HEADS;
    uint32_t projection = 0, begin = 0, heads = v.heads;
    if (unit >= q_units) {
        unit -= q_units;
        projection = 1 + unit / kv_units;
        unit %= kv_units;
        begin = v.heads + (projection - 1) * v.kv_heads;
        heads = v.kv_heads;
    }
    qkv_work<T> w;
    w.side = work_of(c, piece, projection);
    w.tile = unit * delta_room<HEAD_DIM>::TILES;
    w.head = begin + unit * HEADS;
    w.heads = min(heads - unit * HEADS, HEADS);
    w.qkv = static_cast<T *>(c.y) + ((uint64_t)piece.row * c.y_row + w.head * HEAD_DIM);
    w.qkv_row = c.y_row;
    return w;
}

template <int HEAD_DIM>
static __host__ __device__ uint32_t units_of(uint32_t heads, uint32_t kv_heads) {
    constexpr uint32_t HEADS = heads_of(HEAD_DIM);
    return (heads + HEADS - 1) / HEADS + 2 * ((kv_heads + HEADS - 1) / HEADS);
}

template <typename T, int HEAD_DIM, int SUBTILES>
static __global__ __launch_bounds__(LORA_THREADS, BLOCKS) void lora_qkv_kernel(
    const __grid_constant__ struct lora_call c, const __grid_constant__ struct qkv_view v) {
    __shared__ stage<T, SUBTILES> stage;
    __shared__ delta_room<HEAD_DIM> room;
    const uint32_t units = units_of<HEAD_DIM>(v.heads, v.kv_heads);
    for (uint32_t item = blockIdx.x; item < c.list->all * units; item += gridDim.x) {
        const struct cuda_lora_piece piece = c.list->pieces[item / units];
        const qkv_work<T> w = qkv_work_of<T, HEAD_DIM>(c, v, piece, item % units);
        qkv_item<T, HEAD_DIM, SUBTILES>(c, v, w, stage, room);
    }
}

template <typename T, int HEAD_DIM>
static void launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    const struct qkv_view v = qkv_view_of(d, c->layer);
    uint32_t items = c->rows * units_of<HEAD_DIM>(v.heads, v.kv_heads);
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * BLOCKS));
    auto kernel = cut == CUDA_LORA_16   ? lora_qkv_kernel<T, HEAD_DIM, 1>
                  : cut == CUDA_LORA_32 ? lora_qkv_kernel<T, HEAD_DIM, 2>
                                        : lora_qkv_kernel<T, HEAD_DIM, 4>;
    kernel<<<blocks, LORA_THREADS, 0, d->stream>>>(*c, v);
    CUDA_LAUNCHED(d, "lora_qkv_kernel");
}

void lora_qkv_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    CUDA_WITH_ELEM(d, T, {
        switch (d->shape.head_dim) {
        case 32:
            launch<T, 32>(d, c, cut);
            break;
        case 64:
            launch<T, 64>(d, c, cut);
            break;
        case 80:
            launch<T, 80>(d, c, cut);
            break;
        case 96:
            launch<T, 96>(d, c, cut);
            break;
        default: /* device.c takes no other */
            launch<T, 128>(d, c, cut);
            break;
        }
    });
}
