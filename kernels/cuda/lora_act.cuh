/* lora_act.cuh - what lora_act.cu's warps have on their way: which steps a block takes, and the
 * rings of shared memory that gate, up and B come through.
 *
 * A block's steps are a run of all steps of all pieces, of its share of what they cost: found by a
 * scan of the pieces, before the kernel in front has ended. A warp's loads run ahead of its
 * products: by units of 16 rows × 32 columns of gate and of up, from piece to piece, as far as the
 * ring has room; with the first unit of a group come B's 32 columns for all of the group. Nobody
 * but the warp waits for them. */
#ifndef LORRY_KERNELS_CUDA_LORA_ACT_CUH
#define LORRY_KERNELS_CUDA_LORA_ACT_CUH

#include "kernels/cuda/lora_expand.cuh"

enum { GATE, UP, BOTH, HALVES = 2 };
#define NOWHERE UINT32_MAX

static constexpr uint32_t WARPS = 16; /* of a block, at most; fewer where shared memory is small */
static constexpr uint32_t WARP = 32, ROWS = 16;
static constexpr uint32_t UNITS = 2; /* a warp's ring of gate and up */
static constexpr uint32_t UNIT_BYTES = BOTH * HALVES * WARP * 16;
static constexpr uint32_t SLOTS = 4; /* its ring of B: 32 columns of a rank block */
static constexpr uint32_t SLOT_BYTES = SPAN * KERN_BLOCK_RANKS * 2;
static constexpr uint32_t RING_BYTES = UNITS * UNIT_BYTES + SLOTS * SLOT_BYTES;
static constexpr uint32_t CHUNK_BLOCKS = 2; /* rank blocks that are multiplied at once */
static constexpr uint32_t CHUNK_RANKS = CHUNK_BLOCKS * KERN_BLOCK_RANKS;
static constexpr uint32_t LONG_CHUNKS = 4; /* chunks that v is staged of, of 16 rows */
static constexpr uint32_t FRAGMENTS = 64;  /* of v: operands of 16 ranks × 16 rows, one part */
static constexpr uint32_t ITEMS = 32;      /* pieces looked up at once */
static constexpr uint32_t AHEAD = WARP / (BOTH * CHUNK_BLOCKS); /* groups whose tiles likewise */
static constexpr uint32_t PIECE_COST = 8; /* of a piece of some rows: as much as so many more */

/* A piece, or a part of its steps. */
struct act_item {
    uint32_t adapter, row, rows;
    uint32_t step, steps;
    uint32_t rank[BOTH], begin[BOTH]; /* of B */
    float scale[BOTH];
    bool bias[BOTH];
};

/* How an item is walked: by steps, and in a step by 16 rows, and there by chunks of ranks; or, if
 * there is more than one chunk, 16 rows after the other. A group is what columns of B are brought
 * for at once. */
struct act_shape {
    uint32_t subtiles, chunks;
    uint32_t slots; /* of a group */
    uint32_t groups;
    bool is_long;
};

struct act_cursor {
    uint32_t item, step, subtile, chunk;
};

/* A lane's part of an item: its 8 columns of a row in its first step, in elements from row 0 on. */
struct act_place {
    uint64_t y, act;
    int rows;       /* of the item, from the lane's first row on */
    uint32_t steps; /* in which there are such columns */
};

struct act_room {
    uint4 v[FRAGMENTS][WARP];
    struct act_item items[ITEMS];
    uint32_t costs[WARPS], counts[WARPS]; /* for block_before() */
};
static constexpr uint32_t ROOM_BYTES = (sizeof(struct act_room) + 127) / 128 * 128;

/* What a warp's loads go by. */
struct act_loader {
    struct act_cursor at;
    struct act_shape shape;
    struct act_place place;
    uint32_t items;
    uint32_t rank[BOTH], steps, group; /* of the item */
    uint32_t units, slots;             /* brought since the kernel began */
    /* Lane 4 i + 2 block + side: where these columns of B are for group i of AHEAD, in 16 bytes
     * from the layer's plane on; the next of them, as page and place in it. */
    uint32_t tile, next_page, next_place;
    const uint4 *plane;
    uint32_t ring;
};

static __device__ __forceinline__ uint32_t warps() {
    return blockDim.x / WARP;
}
static __device__ __forceinline__ uint32_t spans_of(const struct lora_call &c) {
    return lora_tiles(c.out[GATE]) * (KERN_TILE_COLUMNS / SPAN);
}

/* The lane, asked anew: what follows from it is worked out where it is used, not kept. */
static __device__ __forceinline__ uint32_t lane_again() {
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/* 16 bytes, global → shared; the second-level cache fetches 256 from memory, which is what the
 * warps of the block read of a row about then. Rows of 64 bytes, which is what a warp reads, are
 * slow: as plain loads, 8,192 rows of 14,336 columns took 252 µs in rows of 64 bytes, 199 in 128
 * and 187 in 256 (H200, November 2026). */
static __device__ __forceinline__ void copy_wide_16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from)
                 : "memory");
}

/* ---- which steps are a block's ------------------------------------------------------------- */

/* Σ of `value` over the threads in front; *all: of all. All threads; a barrier has to lie between
 * two calls with the same `sums`, behind the one in here. */
static __device__ __forceinline__ uint32_t block_before(uint32_t value, uint32_t *sums,
                                                        uint32_t *all) {
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t sum = value;
#pragma unroll
    for (uint32_t d = 1; d < WARP; d *= 2) {
        uint32_t below = __shfl_up_sync(0xffffffffu, sum, d);
        sum += lane >= d ? below : 0;
    }
    if (lane == WARP - 1) {
        sums[warp] = sum;
    }
    __syncthreads();
    uint32_t total = 0, before = 0;
    for (uint32_t i = 0; i < warps(); i++) {
        before += i < warp ? sums[i] : 0;
        total += sums[i];
    }
    *all = total;
    return before + sum - value;
}

/* Steps of a piece that begin in front of `cost`, which counts from the piece's first on. */
static __device__ __forceinline__ uint32_t steps_before(uint64_t cost, uint32_t each,
                                                        uint32_t steps) {
    return cost >= (uint64_t)each * steps ? steps : ((uint32_t)cost + each - 1) / each;
}

static __device__ __forceinline__ struct act_item item_of(const struct lora_call &c,
                                                          const struct cuda_lora_piece &piece) {
    struct act_item item = {};
    item.adapter = piece.adapter;
    item.row = piece.row;
    item.rows = piece.rows;
    if (piece.adapter != KERN_BASE) {
#pragma unroll
        for (uint32_t p = 0; p < BOTH; p++) {
            const struct kern_lora *lora = lora_entry(c, piece.adapter, p);
            item.rank[p] = lora->rank;
            item.begin[p] = (uint32_t)lora->b;
            item.scale[p] = lora->scale;
            item.bias[p] = lora->rank != 0 && lora->bias != 0;
        }
    }
    return item;
}

/* The block's steps are a run of all steps, of its share of all costs. Finds the pieces that these
 * are of, looks up those from the `skip`th on, as many as there is room for, and gives how many
 * there are. All threads. */
static __device__ __forceinline__ uint32_t act_share(const struct lora_call &c, uint32_t steps,
                                                     uint32_t skip, struct act_room &room) {
    const uint32_t pieces = c.list->all;
    const struct cuda_lora_piece *list = c.list->pieces;
    const uint64_t share =
        ((uint64_t)(c.rows + PIECE_COST * pieces) * steps + gridDim.x - 1) / gridDim.x;
    const uint64_t begin = share * blockIdx.x;
    const uint64_t end = blockIdx.x + 1 == gridDim.x ? UINT64_MAX : begin + share;
    uint32_t cost = 0, count = 0;
    __syncthreads();
    for (uint32_t base = 0; base < pieces; base += blockDim.x) {
        const uint32_t i = base + threadIdx.x;
        const bool there = i < pieces;
        struct act_item item = {};
        if (there) { /* before it is known whether this is one of them: it takes a while */
            item = item_of(c, list[i]);
        }
        const uint32_t each = there ? item.rows + PIECE_COST : 0;
        uint32_t sum;
        const uint64_t at = (uint64_t)(cost + block_before(each, room.costs, &sum)) * steps;
        cost += sum;
        if (there && at < end && at + (uint64_t)each * steps > begin) {
            item.step = at < begin ? steps_before(begin - at, each, steps) : 0;
            item.steps = steps_before(end - at, each, steps) - item.step;
        }
        const uint32_t before = count + block_before(item.steps != 0, room.counts, &sum);
        count += sum;
        if (item.steps != 0 && before >= skip && before - skip < ITEMS) {
            room.items[before - skip] = item;
        }
    }
    __syncthreads();
    return count;
}

static __device__ __forceinline__ struct act_shape shape_of(const struct act_item &item) {
    const uint32_t rank = max(item.rank[GATE], item.rank[UP]);
    struct act_shape s;
    s.is_long = rank > CHUNK_RANKS;
    s.subtiles = (item.rows + ROWS - 1) / ROWS;
    s.chunks = s.is_long ? (rank + CHUNK_RANKS - 1) / CHUNK_RANKS : 1;
    s.slots = rank == 0                  ? 0
              : rank <= 16               ? 1 /* gate and up share it */
              : rank <= KERN_BLOCK_RANKS ? BOTH
                                         : BOTH * CHUNK_BLOCKS;
    s.groups = item.steps * s.chunks * (s.is_long ? s.subtiles : 1);
    return s;
}

/* To the next unit; says whether it is another item's. */
static __device__ __forceinline__ bool act_advance(struct act_cursor &at, const struct act_shape &s,
                                                   uint32_t steps) {
    if (!s.is_long) {
        if (++at.subtile < s.subtiles) {
            return false;
        }
        at.subtile = 0;
        if (++at.step < steps) {
            return false;
        }
    } else {
        if (++at.chunk < s.chunks) {
            return false;
        }
        at.chunk = 0;
        if (++at.step < steps) {
            return false;
        }
        at.step = 0;
        if (++at.subtile < s.subtiles) {
            return false;
        }
        at.subtile = 0;
    }
    at.step = 0;
    at.item++;
    return true;
}

static __device__ __forceinline__ struct act_place place_of(const struct lora_call &c,
                                                            const struct act_item &item) {
    const uint32_t lane = threadIdx.x % WARP, stride = warps() * SPAN;
    const uint32_t column = item.step * stride + threadIdx.x / WARP * SPAN + lane % 4 * 8;
    const uint64_t row = item.row + lane / 4;
    struct act_place p;
    p.y = row * c.y_row + column;
    p.act = row * c.out[GATE] + column;
    p.rows = (int)item.rows - (int)(lane / 4);
    p.steps = column < c.out[GATE] ? (c.out[GATE] - column + stride - 1) / stride : 0;
    return p;
}

/* ---- loads -------------------------------------------------------------------------------- */

/* Where byte `at` of 32 columns of B lies in its slot: so that the lanes that read some columns at
 * once, 8 apart, meet different banks. */
static __device__ __forceinline__ uint32_t b_place(uint32_t at) {
    return at ^ (at >> 7 & 3) << 5;
}

/* Where a side's columns of a rank block lie in the ring, from a group's first slot on. */
static __device__ __forceinline__ uint32_t b_slot(uint32_t first, uint32_t slots, uint32_t block,
                                                  uint32_t side) {
    if (slots == 1) {
        return first % SLOTS * SLOT_BYTES + side * (SLOT_BYTES / BOTH);
    }
    return (first + block * BOTH + side) % SLOTS * SLOT_BYTES;
}

/* Where the columns of groups [group, group + AHEAD) of an item lie, a lane each. That is looked up
 * without being waited for. */
static __device__ __forceinline__ void tiles_look_up(const struct lora_call &c,
                                                     const struct act_room &room, uint32_t index,
                                                     uint32_t group, struct act_loader &l) {
    l.next_place = NOWHERE;
    l.next_page = 0;
    if (index >= l.items) {
        return;
    }
    const struct act_item &item = room.items[index];
    const uint32_t lane = lane_again(), side = lane % 2;
    const struct act_shape shape = shape_of(item);
    const uint32_t rank = side == GATE ? item.rank[GATE] : item.rank[UP];
    uint32_t step = group + lane / (BOTH * CHUNK_BLOCKS), block = lane / BOTH % CHUNK_BLOCKS;
    if (shape.is_long) {
        block += step % shape.chunks * CHUNK_BLOCKS;
        step = step / shape.chunks % item.steps;
    }
    const uint32_t span = (item.step + step) * warps() + threadIdx.x / WARP;
    if (block * KERN_BLOCK_RANKS >= rank || span >= spans_of(c)) {
        return;
    }
    const uint32_t begin = side == GATE ? item.begin[GATE] : item.begin[UP];
    const uint32_t ranks = min(rank - block * KERN_BLOCK_RANKS, (uint32_t)KERN_BLOCK_RANKS);
    const struct lora_run run =
        lora_run_of(c.page_elems, begin, rank, lora_tiles(c.out[GATE]), block);
    uint32_t page, element;
    lora_place(run, span / 2, &page, &element);
    l.next_place = (element + span % 2 * SPAN * ranks) / 8;
    l.next_page = c.tables.adapter_pages[(uint64_t)item.adapter * c.tables.adapter_page_row + page];
}

/* A group's columns of B into the next slots. */
static __device__ __forceinline__ void b_load(const struct lora_call &c,
                                              const struct act_room &room, struct act_loader &l) {
    if (l.group % AHEAD == 0) {
        const bool more = l.group + AHEAD < l.shape.groups;
        l.tile =
            l.next_place == NOWHERE ? NOWHERE : l.next_page * (c.page_elems / 8) + l.next_place;
        tiles_look_up(c, room, more ? l.at.item : l.at.item + 1, more ? l.group + AHEAD : 0, l);
    }
    const uint32_t lane = lane_again();
    if (l.shape.slots == 1) { /* ranks up to 16: the same, in few instructions */
#pragma unroll
        for (uint32_t i = 0; i < BOTH; i++) {
            const uint32_t tile = __shfl_sync(0xffffffffu, l.tile,
                                              (int)(l.group % AHEAD * (BOTH * CHUNK_BLOCKS) + i));
            const uint32_t to = l.ring + UNITS * UNIT_BYTES + b_slot(l.slots, 1, 0, i);
            if (tile != NOWHERE) {
                const uint4 *from = l.plane + tile + lane;
                const uint32_t place = to + b_place(lane * 16);
                copy_wide_16(place, from);
                if (l.rank[i] > 8) {
                    copy_wide_16(place + WARP * 16, from + WARP);
                }
            }
        }
        l.slots++;
        l.group++;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < BOTH * CHUNK_BLOCKS; i++) {
        if (i < l.shape.slots) {
            const uint32_t tile = __shfl_sync(0xffffffffu, l.tile,
                                              (int)(l.group % AHEAD * (BOTH * CHUNK_BLOCKS) + i));
            const uint32_t first = (l.at.chunk * CHUNK_BLOCKS + i / BOTH) * KERN_BLOCK_RANKS;
            const uint32_t to =
                l.ring + UNITS * UNIT_BYTES + b_slot(l.slots, l.shape.slots, i / BOTH, i % BOTH);
            if (tile != NOWHERE) {
                const uint32_t ranks = l.rank[i % BOTH] - first;
                const uint4 *from = l.plane + tile + lane;
                const uint32_t place = to + b_place(lane * 16);
#pragma unroll
                for (uint32_t k = 0; k < KERN_BLOCK_RANKS / 8; k++) {
                    if (k * 8 < ranks) { /* as b_place(), which repeats after 32 lanes */
                        copy_wide_16(place + k * WARP * 16, from + k * WARP);
                    }
                }
            }
        }
    }
    l.slots += l.shape.slots;
    l.group++;
}

/* A lane's 8 columns of two rows of gate and up: [gate, up][row, row + 8]. It reads its own. */
template <typename T>
static __device__ __forceinline__ void unit_load(const struct lora_call &c,
                                                 const struct act_loader &l) {
    const uint32_t to = l.ring + l.units % UNITS * UNIT_BYTES + threadIdx.x % WARP * 16;
    const uint32_t off = l.at.step * (warps() * SPAN) + l.at.subtile * (ROWS * c.y_row);
    const T *from = static_cast<const T *>(c.y) + (l.place.y + off);
    const bool there = l.at.step < l.place.steps;
#pragma unroll
    for (uint32_t half = 0; half < HALVES; half++) {
        if (there && (int)(l.at.subtile * ROWS + half * 8) < l.place.rows) {
#pragma unroll
            for (uint32_t p = 0; p < BOTH; p++) {
                copy_wide_16(to + (p * HALVES + half) * WARP * 16,
                             from + half * 8 * c.y_row + c.at[p]);
            }
        }
    }
}

/* To the item that the cursor has come to. */
static __device__ __forceinline__ void
act_enter(const struct lora_call &c, const struct act_room &room, struct act_loader &l) {
    if (l.at.item < l.items) {
        const struct act_item &item = room.items[l.at.item];
        l.shape = shape_of(item);
        l.place = place_of(c, item);
        l.rank[GATE] = item.rank[GATE];
        l.rank[UP] = item.rank[UP];
        l.steps = item.steps;
        l.group = 0;
    }
}

/* Brings units while there is room for them, `done` units and `freed` slots having been used. */
template <typename T>
static __device__ __forceinline__ void act_pump(const struct lora_call &c,
                                                const struct act_room &room, uint32_t done,
                                                uint32_t freed, struct act_loader &l) {
#pragma unroll 1
    while (l.at.item < l.items && l.units - done < UNITS) {
        const bool begins = l.at.subtile == 0 || l.shape.is_long;
        if (begins && l.slots + l.shape.slots - freed > SLOTS) {
            break;
        }
        if (l.at.chunk == 0) {
            unit_load<T>(c, l);
        }
        if (begins) { /* later: where B lies may still be on its way */
            b_load(c, room, l);
        }
        copy_async_commit();
        l.units++;
        if (act_advance(l.at, l.shape, l.steps)) {
            act_enter(c, room, l);
        }
    }
}

#endif
