/* lora_act.cu - act = silu(gate') · up' with gate' = gate + scale · (v Bᵀ + bias), up' likewise,
 * for pieces of rows, each with its own adapter or none.
 *
 * gate_up [rows][2 × intermediate] elements, read; v: shrink's partial sums of gate and up; B in
 * tiles in pages; act [rows][intermediate] elements. All is added in f32, from gate and up on, and
 * rounded once, at the store. Rows without an adapter, and projections of rank 0, give bits as
 * cuda_act_rows() does.
 *
 * Work: one block of threads a multiprocessor, of as many warps as have rings in shared memory, 16
 * where there are 227 KiB. A step is a piece of ≤ 64 rows × 32 columns a warp; the steps of all
 * pieces, in a row, are dealt out by what they cost, a run to each block. A warp's unit is 16 rows
 * × 32 columns of gate and of up; B's 32 columns stay in its ring for all units of the piece. Units
 * and columns of B come by cp.async, two units ahead and from piece to piece, and no warp waits for
 * another's; where tiles lie is looked up eight at a time, eight ahead (lora_act.cuh). Barriers are
 * where v is staged: of as many pieces at once as there is room for.
 *
 * v lies in shared memory as operands of mma m16n8k16, in two 16-bit parts: see lora_expand.cuh,
 * whose order of ranks and columns this is; gate and up are what the sums begin with. Ranks over 64
 * come 64 at a time, for 16 rows after the other; v then is staged 256 ranks at a time. What a
 * row's sums are depends on its adapter alone.
 *
 * Bytes: of activations 6 × rows × intermediate, as without LoRA; of B 4 × rank × intermediate a
 * piece, from memory once a step. FLOPs: 8 × rows × rank × intermediate, v being in two parts.
 * Against f64: one rounding, 2⁻¹⁶ of Σ|v b| and 2⁻²⁰ of |gate|, |up|, through silu.
 *
 * Measured (H200, bf16, intermediate 14,336, cold caches, November 2026), against a kernel of 12
 * warps that loaded as it went: 8,192 rows of rank 16 227 µs (473), of rank 64 337 (705), without
 * adapters 231 (290; cuda_act_rows() 174); 1,024 rows of 8 adapters 36 (83), of 200 89 (379).
 * Without the arithmetic the same loads and stores take 192, 240, 186; 28 and 70: what is left is
 * instructions. Hence 16 warps: 8 with rings of four units took 1.4 times as long as they do, 12
 * 1.15 times, 14 with rings of three 1.7 times. */
#include "kernels/cuda/lora_act.cuh"

/* ---- v ------------------------------------------------------------------------------------ */

/* Where the operands of an item's v are: [side][part][16 ranks][16 rows], from `first` on. */
struct act_staged {
    uint32_t first, k16, subtiles;
};

static __device__ __forceinline__ struct act_staged staged_of(const struct act_shape &s,
                                                              uint32_t first) {
    if (s.is_long) {
        return {first, LONG_CHUNKS * CHUNK_RANKS / 16, 1};
    }
    return {first, s.slots == 0 ? 0 : s.slots == 1 ? 1 : s.slots, s.subtiles};
}
static __device__ __forceinline__ uint32_t staged_end(const struct act_staged &s) {
    return s.first + BOTH * PARTS * s.k16 * s.subtiles;
}
static __device__ __forceinline__ uint32_t fragment_of(const struct act_staged &s, uint32_t side,
                                                       uint32_t k16, uint32_t subtile) {
    return s.first + (side * PARTS * s.k16 + k16) * s.subtiles + subtile;
}

/* Two adjacent ranks of a row, in two parts, to their place in the operands; `apart` fragments. */
template <typename T>
static __device__ __forceinline__ void v_store(uint32_t *at, uint32_t apart, float a, float b) {
    const uint32_t high = pair_bits<T>(a, b);
    const float2 rounded = pair_floats<T>(high);
    /* of what overflowed nothing is left */
    const float a_low = isfinite(rounded.x) ? a - rounded.x : 0;
    const float b_low = isfinite(rounded.y) ? b - rounded.y : 0;
    at[0] = high;
    at[apart * WARP * 4] = pair_bits<T>(a_low, b_low);
}

/* Four ranks from `r` on of a row, `r` of the staged ones, of which `ranks` are this block's: the
 * order of lane_ranks(). */
template <typename T>
static __device__ __forceinline__ void v_place(struct act_room &room, const struct act_staged &s,
                                               uint32_t side, uint32_t row, uint32_t r,
                                               uint32_t ranks, const float (&v)[4]) {
    const uint32_t in = r % KERN_BLOCK_RANKS, apart = s.k16 * s.subtiles;
    const bool whole = ranks == KERN_BLOCK_RANKS, narrow = !whole && in / 16 == ranks / 16;
    const uint32_t k16 = r / KERN_BLOCK_RANKS * 2 + (whole ? in / 4 % 2 : in / 16);
    const uint32_t lane = row % 8 * 4 + (whole ? in / 8 : narrow ? in % 16 / 2 : in / 4);
    uint32_t *at =
        reinterpret_cast<uint32_t *>(&room.v[fragment_of(s, side, k16, row / ROWS)][lane]) +
        row % ROWS / 8;
    v_store<T>(at, apart, v[0], v[1]);
    v_store<T>(at + (narrow ? 4 : 2), apart, v[2], v[3]);
    if (narrow) { /* 8 ranks: the rest of the operands is 0 */
        v_store<T>(at + 2, apart, 0, 0);
        v_store<T>(at + 6, apart, 0, 0);
    }
}

/* scale · Σ splits of four ranks of a row. */
static __device__ __forceinline__ void v_load(const struct lora_call &c, const float *v,
                                              float scale, float (&sum)[4]) {
    constexpr uint32_t AT_ONCE = 8;
    const uint64_t stride = (uint64_t)c.rows * c.projections * KERN_RANK_MAX;
    float4 total = make_float4(0, 0, 0, 0);
    for (uint32_t split = 0; split < c.splits; split += AT_ONCE) {
        float4 part[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            part[i] = make_float4(0, 0, 0, 0);
            if (split + i < c.splits) {
                part[i] = *reinterpret_cast<const float4 *>(v + (split + i) * stride);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            total.x += part[i].x;
            total.y += part[i].y;
            total.z += part[i].z;
            total.w += part[i].w;
        }
    }
    sum[0] = total.x * scale;
    sum[1] = total.y * scale;
    sum[2] = total.z * scale;
    sum[3] = total.w * scale;
}

/* Stages v of items from `item` on, as many as there is room for, and gives the first behind them;
 * of a long one at most 256 ranks from `from` on of 16 rows. All threads. */
template <typename T>
static __device__ __forceinline__ uint32_t v_stage(const struct lora_call &c, uint32_t item,
                                                   uint32_t items, uint32_t subtile, uint32_t from,
                                                   struct act_room &room) {
    __syncthreads();
    uint32_t end = item, used = 0;
    for (; end < items; end++) {
        const struct act_shape shape = shape_of(room.items[end]);
        used = staged_end(staged_of(shape, used));
        if (used > FRAGMENTS || (shape.is_long && end > item)) {
            break;
        }
    }
    for (uint32_t task = threadIdx.x;; task += blockDim.x) {
        uint32_t left = task, i = item, first = 0;
        for (; i < end; i++) { /* whose task it is */
            const struct act_item &it = room.items[i];
            const struct act_shape shape = shape_of(it);
            const struct act_staged staged = staged_of(shape, first);
            uint32_t rank[BOTH] = {it.rank[GATE], it.rank[UP]}, row = 0, rows = it.rows;
            if (shape.is_long) {
                row = subtile * ROWS;
                rows = min(rows - row, ROWS);
                rank[GATE] = min(rank[GATE] - min(from, rank[GATE]), LONG_CHUNKS * CHUNK_RANKS);
                rank[UP] = min(rank[UP] - min(from, rank[UP]), LONG_CHUNKS * CHUNK_RANKS);
            }
            const uint32_t quads = (rank[GATE] + rank[UP]) / 4;
            if (left < rows * quads) {
                const uint32_t in_row = left / quads, quad = left % quads;
                const uint32_t side = quad >= rank[GATE] / 4 ? UP : GATE;
                const uint32_t r = (side == UP ? quad - rank[GATE] / 4 : quad) * 4;
                const uint32_t ranks =
                    (side == UP ? rank[UP] : rank[GATE]) - r / KERN_BLOCK_RANKS * KERN_BLOCK_RANKS;
                float v[4];
                v_load(c, lora_v(c, 0, it.row + row + in_row, side) + from + r, it.scale[side], v);
                v_place<T>(room, staged, side, in_row, r, min(ranks, (uint32_t)KERN_BLOCK_RANKS),
                           v);
                break;
            }
            left -= rows * quads;
            first = staged_end(staged);
        }
        if (i == end) {
            break;
        }
    }
    __syncthreads();
    return end;
}

/* ---- products ----------------------------------------------------------------------------- */

/* A lane's ranks of one column of B in its slot: as lane_ranks(). */
template <int RANKS>
static __device__ __forceinline__ uint4 b_ranks(const unsigned char *slot, uint32_t column,
                                                uint32_t t) {
    const uint32_t at = column * RANKS * 2;
    if (RANKS == 32) {
        return *reinterpret_cast<const uint4 *>(slot + b_place(at + 16 * t));
    }
    if (RANKS == 8) {
        return make_uint4(*reinterpret_cast<const uint32_t *>(slot + b_place(at + 4 * t)), 0, 0, 0);
    }
    const uint2 two = *reinterpret_cast<const uint2 *>(slot + b_place(at + 8 * t));
    uint32_t third = 0;
    if (RANKS == 24) {
        third = *reinterpret_cast<const uint32_t *>(slot + b_place(at + 32 + 4 * t));
    }
    return make_uint4(two.x, two.y, third, 0);
}

/* sum [instruction] += v Bᵀ of a rank block. v: this lane's first operand; its parts and its second
 * 16 ranks follow at these distances. */
template <typename T, int RANKS>
static __device__ __forceinline__ void act_multiply(const unsigned char *slot, const uint4 *v,
                                                    uint32_t part_stride, uint32_t k16_stride,
                                                    float (&sum)[4][4]) {
    const uint32_t lane = lane_again(), n = lane / 4, column = n / 2 * 8 + n % 2;
    uint4 b[4];
#pragma unroll
    for (uint32_t g = 0; g < 4; g++) {
        b[g] = b_ranks<RANKS>(slot, column + g * 2, lane % 4);
    }
#pragma unroll
    for (uint32_t k = 0; k < (RANKS > 16 ? 2 : 1); k++) {
#pragma unroll
        for (uint32_t part = 0; part < PARTS; part++) {
            const uint4 a = v[part * part_stride + k * k16_stride];
            const uint32_t rows[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (uint32_t g = 0; g < 4; g++) {
                const uint32_t columns[2] = {k == 0 ? b[g].x : b[g].z, k == 0 ? b[g].y : b[g].w};
                mma_16816<T>(sum[g], rows, columns);
            }
        }
    }
}

/* What a warp has used: units and slots of its rings; how far v is staged. */
struct act_used {
    uint32_t units, slots;
    uint32_t staged, fragments; /* items; fragments of those in front */
    const unsigned char *ring;
};

/* A chunk's product for 16 rows. */
template <typename T>
static __device__ __forceinline__ void
act_delta(const struct act_room &room, const struct act_item &item, const struct act_cursor &at,
          const struct act_shape &shape, const struct act_used &used, float (&sum)[BOTH][4][4]) {
    const struct act_staged staged = staged_of(shape, used.fragments);
    const unsigned char *slots = used.ring + UNITS * UNIT_BYTES;
    const uint32_t lane = lane_again(), chunk = at.chunk % LONG_CHUNKS * CHUNK_BLOCKS;
#pragma unroll
    for (uint32_t p = 0; p < BOTH; p++) {
#pragma unroll 1
        for (uint32_t i = 0; i < CHUNK_BLOCKS; i++) {
            const uint32_t first = (at.chunk * CHUNK_BLOCKS + i) * KERN_BLOCK_RANKS;
            if (first >= item.rank[p]) {
                break;
            }
            const uint32_t ranks = min(item.rank[p] - first, (uint32_t)KERN_BLOCK_RANKS);
            const uint32_t subtile = shape.is_long ? 0 : at.subtile;
            const uint4 *v = &room.v[fragment_of(staged, p, (chunk + i) * 2, subtile)][lane];
            const unsigned char *b = slots + b_slot(used.slots, shape.slots, i, p);
            WITH_RANKS(KERN_BLOCK_RANKS, ranks,
                       act_multiply<T, RANKS>(b, v, staged.k16 * staged.subtiles * WARP,
                                              staged.subtiles * WARP, sum[p]));
        }
    }
}

/* Gate and up of 16 rows, as they came; of the first 8 where there are not `both` halves. */
template <typename T>
static __device__ __forceinline__ void act_begin(const unsigned char *unit, bool both,
                                                 float (&sum)[BOTH][4][4]) {
#pragma unroll
    for (uint32_t i = 0; i < BOTH * HALVES; i++) {
        float y[8] = {};
        const uint32_t lane = threadIdx.x % WARP;
        if (i % HALVES == 0 || both) {
            eight_floats<T>(*reinterpret_cast<const uint4 *>(unit + (i * WARP + lane) * 16), y);
        }
#pragma unroll
        for (uint32_t k = 0; k < 8; k++) {
            sum[i / HALVES][k / 2][i % HALVES * 2 + k % 2] = y[k];
        }
    }
}

/* The activation of 16 rows × 32 columns. */
template <typename T>
static __device__ __forceinline__ void
act_end(const struct lora_call &c, const struct act_item &item, const struct act_place &place,
        const struct act_cursor &at, T *act, float (&sum)[BOTH][4][4]) {
    const uint32_t step = at.step * (warps() * SPAN), row = at.subtile * ROWS;
#pragma unroll
    for (uint32_t p = 0; p < BOTH; p++) {
        if (item.bias[p]) {
            const struct expand_work w = {item.adapter, 0, 0, p, 0, 0};
            const uint32_t first = (item.step * warps() + threadIdx.x / WARP) * SPAN;
            const uint32_t column = first + step + threadIdx.x % 4 * 8;
            float bias[8] = {};
            bias_load<T>(c, w, column, bias);
#pragma unroll
            for (uint32_t i = 0; i < HALVES * 8; i++) {
                sum[p][i % 8 / 2][i / 8 * 2 + i % 2] += bias[i % 8];
            }
        }
    }
    T *to = act + (place.act + step + row * c.out[GATE]);
    const bool there = at.step < place.steps;
#pragma unroll
    for (uint32_t half = 0; half < HALVES; half++) {
        if (row + half * 8 < item.rows) { /* the whole warp */
            float v[8];
#pragma unroll
            for (uint32_t k = 0; k < 8; k++) {
                const uint32_t i = half * 2 + k % 2;
                v[k] = sum[UP][k / 2][i] * silu(sum[GATE][k / 2][i]);
            }
            if (there && (int)(row + half * 8) < place.rows) {
                *reinterpret_cast<uint4 *>(to + half * 8 * c.out[GATE]) = eight_bits<T>(v);
            }
        }
    }
}

/* ---- the kernel --------------------------------------------------------------------------- */

/* Until all copies but those of the `pending` last units have come. */
static __device__ __forceinline__ void act_wait(uint32_t pending) {
    static_assert(UNITS == 2, "one may be behind the unit that is waited for");
    if (pending == 0) {
        copy_async_wait<0>();
    } else {
        copy_async_wait<1>();
    }
    __syncwarp();
}

/* All units of an item; apart for long ones, whose walk costs more instructions. */
template <typename T, bool LONG>
static __device__ __forceinline__ void act_walk(const struct lora_call &c, struct act_room &room,
                                                uint32_t index, struct act_loader &l,
                                                struct act_used &used, T *act) {
    const struct act_item &item = room.items[index];
    struct act_shape shape = shape_of(item);
    shape.is_long = LONG; /* as it is, for the compiler */
    shape.chunks = LONG ? shape.chunks : 1;
    const struct act_place place = place_of(c, item);
    const uint32_t spans = spans_of(c), span = item.step * warps() + threadIdx.x / WARP;
    struct act_cursor at = {};
    float sum[BOTH][4][4];
    bool more = true, first = index == 0; /* then the loads have to begin */
#pragma unroll 1
    while (more) {
        const bool live = span + at.step * warps() < spans;
        if (!first) {
            const bool again = shape.is_long && at.chunk % LONG_CHUNKS == 0 &&
                               (at.step == 0 || shape.chunks > LONG_CHUNKS);
            if ((again || index == used.staged) && shape.slots != 0) {
                used.staged =
                    v_stage<T>(c, index, l.items, at.subtile, at.chunk * CHUNK_RANKS, room);
                used.fragments = 0;
            }
            act_wait(l.units - used.units - 1);
            if (at.chunk == 0) {
                act_begin<T>(used.ring + used.units % UNITS * UNIT_BYTES,
                             at.subtile * ROWS + 8 < item.rows, sum);
            }
            if (shape.slots != 0 && live) {
                act_delta<T>(room, item, at, shape, used, sum);
            }
            used.units++; /* its place in the ring is free */
            if (shape.is_long || at.subtile + 1 == shape.subtiles) {
                used.slots += shape.slots;
            }
            __syncwarp();
        }
        act_pump<T>(c, room, used.units, used.slots, l);
        if (!first) {
            if (at.chunk + 1 == shape.chunks && live) {
                act_end<T>(c, item, place, at, act, sum);
            }
            more = !act_advance(at, shape, item.steps);
        }
        first = false;
    }
    used.fragments = staged_end(staged_of(shape, used.fragments));
    used.staged = max(used.staged, index + 1);
}

template <typename T>
static __global__
__launch_bounds__(WARPS *WARP, 1) void lora_act_kernel(const __grid_constant__ struct lora_call c,
                                                       T *act) {
    extern __shared__ __align__(128) unsigned char shared[];
    struct act_room &room = *reinterpret_cast<struct act_room *>(shared);
    const unsigned char *ring = shared + ROOM_BYTES + threadIdx.x / WARP * RING_BYTES;
    const uint32_t steps = (spans_of(c) + warps() - 1) / warps();
    struct act_loader l = {};
    struct act_used used = {};
    l.plane = reinterpret_cast<const uint4 *>(static_cast<const T *>(c.meta->planes) +
                                              c.layer * c.meta->plane_elems);
    l.ring = shared_address(ring);
    used.ring = ring;
    launch_next();
    uint32_t count = act_share(c, steps, 0, room);
    for (uint32_t done = 0;;) {
        l.items = min(count - done, ITEMS);
        l.at = {};
        act_enter(c, room, l);
        tiles_look_up(c, room, 0, 0, l);
        if (done == 0) {
            launch_wait();
        }
        used.staged = 0;
        used.fragments = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < l.items; i++) {
            if (shape_of(room.items[i]).is_long) {
                act_walk<T, true>(c, room, i, l, used, act);
            } else {
                act_walk<T, false>(c, room, i, l, used, act);
            }
        }
        done += ITEMS;
        if (done >= count) {
            break;
        }
        act_share(c, steps, done, room);
    }
}

/* As many warps as there is shared memory for. */
static uint32_t warps_of(struct kern_device *d) {
    int device = 0, bytes = 0;
    cuda_note(d, cudaGetDevice(&device), "lora_act: device");
    cuda_note(d, cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
              "lora_act: shared memory");
    uint32_t count = WARPS;
    while (count > 1 && ROOM_BYTES + count * RING_BYTES > (uint32_t)bytes) {
        count /= 2;
    }
    return count;
}

template <typename T> static void launch(struct kern_device *d, const struct lora_call *c) {
    const uint32_t count = warps_of(d), bytes = ROOM_BYTES + count * RING_BYTES;
    const uint32_t steps = (lora_tiles(c->out[GATE]) * 2 + count - 1) / count;
    auto kernel = lora_act_kernel<T>;
    cuda_note(d,
              cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
              "lora_act: shared memory");
    const dim3 grid(min((uint32_t)d->sm_count, c->rows * steps));
    cuda_launch_early(d, "lora_act_kernel", kernel, cuda_shape{grid, count * WARP, bytes, 1}, *c,
                      static_cast<T *>(d->act));
}

void lora_act_launch(struct kern_device *d, const struct lora_call *c) {
    CUDA_WITH_ELEM(d, T, launch<T>(d, c));
}
