/* lora_qkv.cu - q, k, v += scale · (v Bᵀ + bias), then bias, norm, rope, and into q's place or the
 * token's page, for pieces of rows, each with its own adapter or none.
 *
 * qkv [rows][q + 2 kv] elements, q in place; v: shrink's partial sums of q, k and v; B in tiles in
 * pages (lora_expand.cuh). All is f32 between qkv and the store. Rows without an adapter, and
 * projections of rank 0, give bits as cuda_qkv_rows() does.
 *
 * Work: an item is (piece of ≤ 16, 32 or 64 rows, projection, up to four steps of heads); a
 * persistent grid walks the items. In it a warp takes units, 8 rows of a step's heads (qkv_step),
 * on its own: no barrier stands between units. The product is the transpose's, B vᵀ: the 16 rows of
 * m16n8k16 are columns of B, 8 of a head's first half and 8 of its second, its 8 columns rows of v.
 * So a lane ends with 8 adjacent columns of both halves: rope's pairs meet in a lane, the norm's
 * sum in a few, and qkv is read and written in whole lines.
 *
 * v goes in as two 16-bit parts (lora_expand.cuh), which the block shares, as it does the places of
 * the tokens' keys. B of ≤ 16 ranks is copied once an item, to where its thread looks for it; of
 * more it streams, and the warps take the rows of a head together, so that it mostly comes from the
 * first-level cache. y is what the sums begin with: y + Σ over rank blocks in ascending order, high
 * before low. On their way while a unit is computed: y of the warp's next, also of the next item,
 * whose entry and B's place are looked up meanwhile; B is fetched into the second-level cache. All
 * of the first item but y and v is there before the kernel in front has ended.
 *
 * Bytes: of activations 4 × rows × (q + 2 kv), as without LoRA; of B 2 × rank × (q + 2 kv) a piece.
 * FLOPs: 4 × rows × rank × (q + 2 kv). Against f64: one rounding and 2⁻¹⁶ of Σ|v b|.
 *
 * Measured on an H200, November 2026, bf16, 32 + 2 × 8 heads of 128, weights not in the caches, in
 * µs; cuda_qkv_rows() takes 62 and 11:
 *
 *                                       before, a barrier each 16 rows    now
 *   8,192 rows, 8 adapters, rank 16                                294    100
 *   8,192 rows, 8 adapters, rank 64                                358    176
 *   1,000 rows, 8 adapters, rank 16                                 45     19
 *   1,000 rows, 200 adapters, rank 16                               98     51
 *
 * Tried, in the order of these lines: B of ≤ 16 ranks in registers spills (116, 241, 21, 60); four
 * blocks a multiprocessor, 128 registers a thread, spill (116, 192, 25, 50); B that streams read
 * once for 16 rows spills too (143, 181, 25, 64); angles loaded ahead of the product as well (106,
 * 186, 20, 54). Items looked up and y loaded a turn ahead gave only rank 64 a little (c. 180).
 * Segments of at most 16 rows that share a piece: what adapters add, shrink included, 88 in place
 * of 92 at 256 rows of as many adapters, 157 of 169 at 512, but 28 of 22 and 35 of 22 with one. */
#include "kernels/cuda/lora_expand.cuh"
#include "kernels/cuda/qkv.cuh"

/* Blocks of threads that are to fit a multiprocessor, which is what limits registers. */
static constexpr int BLOCKS = 3;

enum {
    ITEM_STEPS = LORA_WARPS, /* of heads: one a warp */
    QKV_PIECE_ROWS = 64,     /* of a piece, at most */
    LANE_GROUPS = 8,         /* of four lanes */
    KEPT_RANKS = 16,         /* of B that is copied once an item */
    TOGETHER = 8,            /* columns of 8 whose B is on its way at once */
};

struct qkv_work {
    struct expand_work side;
    uint32_t head, end; /* of q, k, v together, those of the item */
    uint32_t before;    /* heads of other projections in front of this */
    bool biased;
};

/* ---- v and B ------------------------------------------------------------------------------ */

/* scale · Σ splits of a lane's ranks of its row of v, one of 8 from `row` of the piece on, of a
 * block of RANKS ranks from `from` on, in two parts; 0 beyond the piece. Words are dealt as
 * lane_ranks() does. */
template <typename T, int RANKS>
static __device__ __forceinline__ void v_load(const struct lora_call &c,
                                              const struct expand_work &w, uint32_t lane,
                                              uint32_t row, uint32_t from, uint4 (&v)[PARTS]) {
    constexpr int FOURS = RANKS == 32 ? 2 : RANKS == 8 ? 0 : 1, TWOS = RANKS % 16 / 8;
    const float scale = lora_entry(c, w.adapter, w.projection)->scale;
    const uint32_t t = lane % 4;
    float sum[8] = {};
    row += lane / 4;
    if (row < w.rows) {
        const float *at = lora_v(c, 0, w.row + row, w.projection) + from;
        const uint64_t stride = (uint64_t)c.rows * c.projections * KERN_RANK_MAX;
#pragma unroll 4
        for (uint32_t split = 0; split < c.splits; split++, at += stride) {
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                float4 part = *reinterpret_cast<const float4 *>(at + 4 * FOURS * t + 4 * i);
                sum[4 * i] += part.x;
                sum[4 * i + 1] += part.y;
                sum[4 * i + 2] += part.z;
                sum[4 * i + 3] += part.w;
            }
            if (TWOS != 0) {
                float2 part = *reinterpret_cast<const float2 *>(at + 16 * FOURS + 2 * t);
                sum[4 * FOURS] += part.x;
                sum[4 * FOURS + 1] += part.y;
            }
        }
    }
    uint32_t high[4], low[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float a = sum[2 * k] * scale, b = sum[2 * k + 1] * scale;
        high[k] = pair_bits<T>(a, b);
        float2 rounded = pair_floats<T>(high[k]);
        /* of what overflowed nothing is left */
        low[k] = pair_bits<T>(isfinite(rounded.x) ? a - rounded.x : 0,
                              isfinite(rounded.y) ? b - rounded.y : 0);
    }
    v[0] = make_uint4(high[0], high[1], high[2], high[3]);
    v[1] = make_uint4(low[0], low[1], low[2], low[3]);
}

/* Where a lane's 8 columns of both halves of a head lie, of one rank block; NULL: it has none. */
template <typename T> struct qkv_place { const T *half[2]; };

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ const T *half_of(const struct lora_call &c, const qkv_work &w,
                                                   const struct qkv_lane &l, uint32_t block,
                                                   uint32_t half) {
    const uint32_t tiles = lora_tiles(c.out[w.side.projection]);
    const struct lora_run run = lora_run_of(c.page_elems, w.side.begin, w.side.rank, tiles, block);
    uint32_t column = (l.head - w.before) * HEAD_DIM + half * (HEAD_DIM / 2) + l.column;
    uint32_t inside = column % KERN_TILE_COLUMNS * (run.tile_elems / KERN_TILE_COLUMNS);
    if (!l.live) {
        return nullptr;
    }
    return lora_tile(c, lora_pages_of<T>(c, w.side.adapter), run, column / KERN_TILE_COLUMNS) +
           inside;
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ qkv_place<T>
place_of(const struct lora_call &c, const qkv_work &w, const struct qkv_lane &l, uint32_t block) {
    qkv_place<T> p;
    p.half[0] = half_of<T, HEAD_DIM>(c, w, l, block, 0);
    p.half[1] = half_of<T, HEAD_DIM>(c, w, l, block, 1);
    return p;
}

/* lane_ranks() of column `column` of the lane's 8, in both halves. */
template <int RANKS, typename T>
static __device__ __forceinline__ void b_column(const qkv_place<T> &p, uint32_t lane, int column,
                                                uint4 (&b)[2]) {
    using from = load_tile_again;
    const uint32_t t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        b[half] = make_uint4(0, 0, 0, 0);
        if (p.half[half] != nullptr) {
            const T *run = p.half[half] + column * RANKS;
            if (RANKS == 32) {
                b[half] = from::of_16(run + 8 * t);
            } else if (RANKS == 8) {
                b[half].x = from::of_4(run + 2 * t);
            } else {
                const uint2 two = from::of_8(run + 4 * t);
                b[half].x = two.x;
                b[half].y = two.y;
            }
            if (RANKS == 24) {
                b[half].z = from::of_4(run + 16 + 2 * t);
            }
        }
    }
}

template <int RANKS, typename T>
static __device__ __forceinline__ void multiply_column(const uint4 (&b)[2], const uint4 &v,
                                                       float (&y)[4]) {
    const uint32_t b_first[4] = {b[0].x, b[1].x, b[0].y, b[1].y}, v_first[2] = {v.x, v.y};
    mma_16816<T>(y, b_first, v_first);
    if (RANKS > 16) {
        const uint32_t b_second[4] = {b[0].z, b[1].z, b[0].w, b[1].w}, v_second[2] = {v.z, v.w};
        mma_16816<T>(y, b_second, v_second);
    }
}

/* y += B vᵀ over a block of ranks whose B lies at `p`. */
template <int RANKS, typename T>
static __device__ __forceinline__ void multiply_block(const qkv_place<T> &p, uint32_t lane,
                                                      const uint4 (&v)[PARTS],
                                                      float (&y)[QKV_COLUMNS][4]) {
#pragma unroll
    for (int at = 0; at < QKV_COLUMNS; at += TOGETHER) {
        uint4 b[TOGETHER][2];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
            b_column<RANKS>(p, lane, at + k, b[k]);
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
#pragma unroll
            for (int k = 0; k < TOGETHER; k++) {
                multiply_column<RANKS, T>(b[k], v[part], y[at + k]);
            }
        }
    }
}

/* A warp's units of an item. Where B streams, the four warps take a head's rows together, so that
 * it comes from the first-level cache three times of four; else a warp takes a head. */
struct qkv_order {
    uint32_t groups, count; /* of 8 rows in the piece; of the warp's units */
    uint32_t warp;
    bool streams;

    __device__ __forceinline__ qkv_order(const qkv_work &w, uint32_t heads) {
        const uint32_t steps = (w.end - w.head + heads - 1) / heads;
        warp = threadIdx.x / 32;
        groups = (w.side.rows + QKV_ROWS - 1) / QKV_ROWS;
        streams = w.side.rank > KEPT_RANKS;
        count = streams ? (groups * steps + LORA_WARPS - 1 - warp) / LORA_WARPS
                        : (warp < steps ? groups : 0);
    }
    __device__ __forceinline__ uint32_t step(uint32_t unit) const {
        return streams ? (unit * LORA_WARPS + warp) / groups : warp;
    }
    __device__ __forceinline__ uint32_t row(uint32_t unit) const {
        return (streams ? (unit * LORA_WARPS + warp) % groups : unit) * QKV_ROWS;
    }
};

/* The lane's part of unit `unit` of an item. */
template <int HEAD_DIM>
static __device__ __forceinline__ struct qkv_lane lane_of(const struct qkv_view &v,
                                                          const qkv_work &w, const qkv_order &o,
                                                          uint32_t lane, uint32_t unit) {
    return qkv_lane_of<HEAD_DIM>(lane, w.side.row + o.row(unit),
                                 min(w.side.row + w.side.rows, v.meta->token_count),
                                 w.head + o.step(unit) * qkv_step<HEAD_DIM>::HEADS, w.end);
}

/* ---- what a block keeps ------------------------------------------------------------------- */

/* B of the next item's head of this warp, its first block. */
template <typename T> struct qkv_ahead {
    qkv_place<T> place;
    uint32_t ranks; /* 0: there is none */

    __device__ __forceinline__ void fetch() const {
        const uint32_t sectors = ranks / 2; /* 8 columns, 32 bytes */
#pragma unroll
        for (int half = 0; half < 2; half++) {
            for (uint32_t i = threadIdx.x % 4; i < sectors && place.half[half] != nullptr; i += 4) {
                prefetch_l2(place.half[half] + i * 16);
            }
        }
    }
};

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ qkv_ahead<T> ahead_of(const struct lora_call &c,
                                                        const qkv_work &w) {
    qkv_ahead<T> a;
    a.ranks = min(w.side.rank, (uint32_t)KERN_BLOCK_RANKS);
    if (a.ranks != 0) {
        const uint32_t head = w.head + threadIdx.x / 32 * qkv_step<HEAD_DIM>::HEADS;
        a.place = place_of<T, HEAD_DIM>(
            c, w, qkv_lane_of<HEAD_DIM>(threadIdx.x % 32, 0, 0, head, w.end), 0);
    }
    return a;
}

/* What a block keeps of an item: v, where it is of up to STAGE_RANKS ranks; where the tokens' keys
 * go; and each thread's B of its head, of up to KEPT_RANKS: both halves' words x, y, which no other
 * thread looks at. */
template <typename T> struct qkv_room {
    stage<T, QKV_PIECE_ROWS / 16> v;
    uint4 b[QKV_COLUMNS][LORA_THREADS];
    T *keys[QKV_PIECE_ROWS];
    const T *places[STAGE_BLOCKS][ITEM_STEPS][LANE_GROUPS][2]; /* of B that streams, by half */
};

/* Global → shared, of 4 or 8 bytes. */
template <int BYTES> static __device__ __forceinline__ void copy_async(void *to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from),
                 "n"(BYTES)
                 : "memory");
}

/* Sends the thread's B on its way. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void b_keep(const struct lora_call &c, const qkv_work &w,
                                              const struct qkv_lane &l, qkv_room<T> &room) {
    const qkv_place<T> p = place_of<T, HEAD_DIM>(c, w, l, 0);
    const bool wide = w.side.rank == KEPT_RANKS;
#pragma unroll
    for (int k = 0; k < QKV_COLUMNS; k++) { /* what no copy writes */
        uint4 &to = room.b[k][threadIdx.x];
        if (!l.live) {
            to = make_uint4(0, 0, 0, 0);
        } else if (!wide) {
            to.y = to.w = 0;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const T *from = p.half[half] + l.lane % 4 * (w.side.rank / 4);
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            uint2 *to = reinterpret_cast<uint2 *>(&room.b[k][threadIdx.x]) + half;
            if (l.live && wide) {
                copy_async<8>(to, from + k * KEPT_RANKS);
            } else if (l.live) {
                copy_async<4>(to, from + k * 8);
            }
        }
    }
    copy_async_commit();
}

/* Fills the room with all but v; where the item keeps B, with that of the thread's first unit. No
 * kernel in front writes any of it. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void room_prepare(const struct lora_call &c,
                                                    const struct qkv_view &v, const qkv_work &w,
                                                    qkv_room<T> &room) {
    const qkv_order order(w, qkv_step<HEAD_DIM>::HEADS);
    const struct qkv_lane first = lane_of<HEAD_DIM>(v, w, order, threadIdx.x % 32, 0);
    const bool keeps = w.side.rank != 0 && !order.streams && order.count != 0;
    const uint32_t row = w.side.row + threadIdx.x;
    const bool keyed = w.before != 0 && threadIdx.x < w.side.rows && row < v.meta->token_count;
    struct cuda_token token = {};
    if (keyed) {
        token = v.meta->tokens[row];
    }
    if (keeps) {
        b_keep<T, HEAD_DIM>(c, w, first, room);
    }
    T *keys = nullptr;
    if (keyed) {
        keys = keys_at<T>(v, token, v.kv_heads * HEAD_DIM);
    }
    __syncthreads();
    if (w.side.rank > KEPT_RANKS) {
        static_assert(LORA_THREADS == 2 * LANE_GROUPS * ITEM_STEPS * STAGE_BLOCKS, "a place each");
        const uint32_t half = threadIdx.x % 2, group = threadIdx.x / 2 % LANE_GROUPS;
        const uint32_t step = threadIdx.x / 2 / LANE_GROUPS % ITEM_STEPS;
        const uint32_t block = threadIdx.x / 2 / LANE_GROUPS / ITEM_STEPS;
        const struct qkv_lane l = qkv_lane_of<HEAD_DIM>(
            group * 4, 0, 0, w.head + step * qkv_step<HEAD_DIM>::HEADS, w.end);
        if (block * KERN_BLOCK_RANKS < w.side.rank) {
            room.places[block][step][group][half] = half_of<T, HEAD_DIM>(c, w, l, block, half);
        }
    }
    if (keyed) {
        room.keys[threadIdx.x] = keys;
    }
}

/* With v too. */
template <typename T>
static __device__ __forceinline__ void room_finish(const struct lora_call &c, const qkv_work &w,
                                                   qkv_room<T> &room) {
    if (w.side.rank != 0 && w.side.rank <= STAGE_RANKS) {
        fill_stage(c, w.side, 0, room.v);
    }
    copy_async_wait<0>();
    __syncthreads();
}

template <typename T, int RANKS>
static __device__ __forceinline__ void v_staged(const qkv_room<T> &room, uint32_t row,
                                                uint32_t block, uint4 (&v)[PARTS]) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        v[part] = lane_ranks<load_shared, RANKS>(room.v.v[part][block][row]);
    }
}

/* y += v Bᵀ of a unit, whose rows are those from `row` of the piece on: B of a few ranks. */
template <typename T>
static __device__ __forceinline__ void delta_kept(const qkv_work &w, const struct qkv_lane &l,
                                                  uint32_t row, const qkv_room<T> &room,
                                                  float (&y)[QKV_COLUMNS][4]) {
    uint4 v[PARTS];
    WITH_RANKS(KEPT_RANKS, w.side.rank, { v_staged<T, RANKS>(room, row + l.lane / 4, 0, v); });
#pragma unroll
    for (int k = 0; k < QKV_COLUMNS; k++) {
        const uint4 words = room.b[k][threadIdx.x];
        const uint4 b[2] = {make_uint4(words.x, words.y, 0, 0), make_uint4(words.z, words.w, 0, 0)};
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            multiply_column<KEPT_RANKS, T>(b, v[part], y[k]);
        }
    }
}

/* The same of any B. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void
delta_streamed(const struct lora_call &c, const qkv_work &w, const struct qkv_lane &l,
               uint32_t step, uint32_t row, const qkv_room<T> &room, float (&y)[QKV_COLUMNS][4]) {
    const bool staged = w.side.rank <= STAGE_RANKS;
#pragma unroll 1
    for (uint32_t done = 0; done < w.side.rank; done += KERN_BLOCK_RANKS) {
        const uint32_t block = done / KERN_BLOCK_RANKS;
        qkv_place<T> p;
        if (staged) {
            p.half[0] = room.places[block][step][l.lane / 4][0];
            p.half[1] = room.places[block][step][l.lane / 4][1];
        } else {
            p = place_of<T, HEAD_DIM>(c, w, l, block);
        }
        const uint32_t ranks = min(w.side.rank - done, (uint32_t)KERN_BLOCK_RANKS);
        WITH_RANKS(KERN_BLOCK_RANKS, ranks, {
            uint4 v[PARTS];
            if (staged) {
                v_staged<T, RANKS>(room, row + l.lane / 4, block, v);
            } else {
                v_load<T, RANKS>(c, w.side, l.lane, row, done, v);
            }
            multiply_block<RANKS>(p, l.lane, v, y);
        });
    }
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void delta_bias(const struct lora_call &c, const qkv_work &w,
                                                  const struct qkv_lane &l,
                                                  float (&y)[QKV_COLUMNS][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float bias[QKV_COLUMNS] = {};
        bias_load<T>(c, w.side, (l.head - w.before) * HEAD_DIM + half * (HEAD_DIM / 2) + l.column,
                     bias);
#pragma unroll
        for (int k = 0; k < QKV_COLUMNS; k++) {
            y[k][2 * half] += bias[k];
            y[k][2 * half + 1] += bias[k];
        }
    }
}

/* ---- units -------------------------------------------------------------------------------- */

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ T *y_of(const struct lora_call &c, const struct qkv_lane &l) {
    return static_cast<T *>(c.y) + (uint64_t)l.row * c.y_row + (l.head * HEAD_DIM + l.column);
}

template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void y_load(const struct lora_call &c, const struct qkv_view &v,
                                              const qkv_work &w, uint32_t lane, uint32_t unit,
                                              uint4 (&words)[4]) {
    const qkv_order order(w, qkv_step<HEAD_DIM>::HEADS);
    if (unit < order.count) {
        const struct qkv_lane l = lane_of<HEAD_DIM>(v, w, order, lane, unit);
        qkv_load<T, HEAD_DIM>(v, l, y_of<T, HEAD_DIM>(c, l), words);
    }
}

/* What follows the product: LoRA's bias, then what cuda_qkv_rows() does. */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void
unit_finish(const struct lora_call &c, const struct qkv_view &v, const qkv_work &w,
            const struct qkv_lane &l, const qkv_room<T> &room, float (&y)[QKV_COLUMNS][4]) {
    if (w.biased && l.live) {
        delta_bias<T, HEAD_DIM>(c, w, l, y);
    }
    float4 angles[2][4];
    qkv_angles<HEAD_DIM>(v, l, 0, angles[0]);
    qkv_angles<HEAD_DIM>(v, l, 1, angles[1]);
    qkv_prepare<HEAD_DIM>(v, l, y);
    T *from = y_of<T, HEAD_DIM>(c, l);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        T *to = from + i * v.qkv_cols;
        if (w.before != 0) {
            to = room.keys[(l.row + i - w.side.row) % QKV_PIECE_ROWS] +
                 ((l.head - w.before) * HEAD_DIM + l.column) +
                 (w.side.projection == 2 ? v.page_elems / 2 : 0);
        }
        qkv_row<T, HEAD_DIM>(v, l, i, y, angles[i], to);
    }
}

/* `words`: of the warp's first unit, as y_load() gave them; and then of `next`'s, if there is one.
 */
template <typename T, int HEAD_DIM>
static __device__ __forceinline__ void
qkv_units(const struct lora_call &c, const struct qkv_view &v, const qkv_work &w,
          const qkv_work &next, bool more, uint4 (&words)[4], qkv_room<T> &room) {
    const qkv_order order(w, qkv_step<HEAD_DIM>::HEADS);
    uint32_t lane = threadIdx.x % 32;
    room_finish(c, w, room);
    const qkv_ahead<T> ahead = ahead_of<T, HEAD_DIM>(c, next);
    if (order.count == 0 && more) {
        y_load<T, HEAD_DIM>(c, v, next, lane, 0, words);
    }
#pragma unroll 1
    for (uint32_t unit = 0; unit < order.count; unit++) {
        /* what comes of the lane's number stays in the loop: hoisted, it would spill */
        asm volatile("" : "+r"(lane));
        const struct qkv_lane l = lane_of<HEAD_DIM>(v, w, order, lane, unit);
        float y[QKV_COLUMNS][4];
        qkv_floats<T>(words, y);
        if (unit + 1 < order.count) {
            y_load<T, HEAD_DIM>(c, v, w, lane, unit + 1, words);
        } else if (more) {
            y_load<T, HEAD_DIM>(c, v, next, lane, 0, words);
        }
        if (w.side.rank != 0) {
            if (order.streams) {
                delta_streamed<T, HEAD_DIM>(c, w, l, order.step(unit), order.row(unit), room, y);
            } else {
                delta_kept<T>(w, l, order.row(unit), room, y);
            }
        }
        unit_finish<T, HEAD_DIM>(c, v, w, l, room, y);
    }
    ahead.fetch();
}

/* ---- items -------------------------------------------------------------------------------- */

template <int HEAD_DIM> static __host__ __device__ constexpr uint32_t item_heads() {
    return ITEM_STEPS * qkv_step<HEAD_DIM>::HEADS;
}

template <int HEAD_DIM>
static __host__ __device__ uint32_t items_of(uint32_t heads, uint32_t kv_heads) {
    constexpr uint32_t HEADS = item_heads<HEAD_DIM>();
    return (heads + HEADS - 1) / HEADS + 2 * ((kv_heads + HEADS - 1) / HEADS);
}

/* Item `item` of a piece: projection after projection, heads after heads. */
template <int HEAD_DIM>
static __device__ __forceinline__ qkv_work qkv_work_of(const struct lora_call &c,
                                                       const struct qkv_view &v,
                                                       const struct cuda_lora_piece &piece,
                                                       uint32_t item) {
    constexpr uint32_t HEADS = item_heads<HEAD_DIM>();
    const uint32_t q_items = (v.heads + HEADS - 1) / HEADS;
    const uint32_t kv_items = (v.kv_heads + HEADS - 1) / HEADS;
    uint32_t projection = 0, heads = v.heads;
    qkv_work w;
    w.before = 0;
    if (item >= q_items) {
        item -= q_items;
        projection = 1 + item / kv_items;
        item %= kv_items;
        w.before = v.heads + (projection - 1) * v.kv_heads;
        heads = v.kv_heads;
    }
    w.side = work_of(c, piece, projection);
    w.biased = w.side.rank != 0 && lora_entry(c, piece.adapter, projection)->bias != 0;
    w.head = w.before + item * HEADS;
    w.end = w.before + min(heads, (item + 1) * HEADS);
    return w;
}

/* What a block looks up of its items, a turn ahead: piece → entry → B's place. */
template <typename T, int HEAD_DIM>
static __global__ __launch_bounds__(LORA_THREADS, BLOCKS) void lora_qkv_kernel(
    const __grid_constant__ struct lora_call c, const __grid_constant__ struct qkv_view v) {
    __shared__ qkv_room<T> room;
    const uint32_t a_piece = items_of<HEAD_DIM>(v.heads, v.kv_heads);
    const uint32_t items = c.list->all * a_piece;
    auto piece_at = [&](uint32_t item) { return c.list->pieces[min(item, items - 1) / a_piece]; };
    auto work_at = [&](const struct cuda_lora_piece &piece, uint32_t item) {
        return qkv_work_of<HEAD_DIM>(c, v, piece, min(item, items - 1) % a_piece);
    };
    launch_next(); /* attention, for its lists */
    uint32_t item = blockIdx.x;
    if (item >= items) {
        launch_wait();
        return;
    }
    qkv_work w = work_at(piece_at(item), item);
    struct cuda_lora_piece piece = piece_at(item + gridDim.x);
    if (w.side.rank > KEPT_RANKS) { /* less is copied at once */
        ahead_of<T, HEAD_DIM>(c, w).fetch();
    }
    uint4 words[4];
#pragma unroll 1
    for (; item < items; item += gridDim.x) {
        room_prepare<T, HEAD_DIM>(c, v, w, room);
        if (item == blockIdx.x) {
            launch_wait();
            y_load<T, HEAD_DIM>(c, v, w, threadIdx.x % 32, 0, words);
        }
        const qkv_work next = work_at(piece, item + gridDim.x);
        piece = piece_at(item + 2 * gridDim.x);
        const bool more = item + gridDim.x < items;
        qkv_units<T, HEAD_DIM>(c, v, w, next, more, words, room);
        w = next;
    }
}

template <typename T, int HEAD_DIM>
static void launch(struct kern_device *d, const struct lora_call *c) {
    const struct qkv_view v = qkv_view_of(d, c->layer);
    uint32_t items = c->rows * items_of<HEAD_DIM>(v.heads, v.kv_heads);
    uint32_t blocks = min(items, (uint32_t)(d->sm_count * BLOCKS));
    cuda_launch_early(d, "lora_qkv_kernel", lora_qkv_kernel<T, HEAD_DIM>, dim3(blocks),
                      LORA_THREADS, *c, v);
}

void lora_qkv_launch(struct kern_device *d, const struct lora_call *c) {
    CUDA_WITH_ELEM(d, T, {
        switch (d->shape.head_dim) {
        case 32:
            launch<T, 32>(d, c);
            break;
        case 64:
            launch<T, 64>(d, c);
            break;
        case 80:
            launch<T, 80>(d, c);
            break;
        case 96:
            launch<T, 96>(d, c);
            break;
        default: /* device.c takes no other */
            launch<T, 128>(d, c);
            break;
        }
    });
}
