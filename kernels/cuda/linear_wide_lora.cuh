/* linear_wide_lora.cuh - LoRA's part of a tile of linear_wide.cu: the K loop goes on over ranks.
 *
 * Behind the steps over `in` come slots of 16 ranks: of one adapter that has rows in the tile, and
 * of one projection (of both where a tile is half gate and half up). A slot's B, [256 columns][16],
 * is a piece of 32 bytes of each row of a strip that has room for four; a warp of its own copies
 * it there, as far ahead as there is room, with a note that says which rows it is for. v is the
 * other operand, from registers, as lora_pack.cu left it: operands of 16 ranks × 16 rows, so that a
 * lane has its own two rows, whatever their adapters; rows that a slot is not for are zeros in it.
 * An adapter's bias is a slot too, of one rank whose v is the scale.
 *
 * Slots are in order of projections, of ranks, of rows: a row meets its own adapter's in ascending
 * order of ranks, whoever its neighbours are. */
#ifndef LORRY_KERNELS_CUDA_LINEAR_WIDE_LORA_CUH
#define LORRY_KERNELS_CUDA_LINEAR_WIDE_LORA_CUH

#include "kernels/cuda/linear_wide.cuh"
#include "kernels/cuda/lora_pack.cuh"

enum {
    SLOTS = 4,       /* 16 ranks each of a strip of 64 */
    SLOT_PIECES = 2, /* of a row of it */
    SLOT_COLUMNS = 256,
    SLOT_TILES = 5, /* of B that 256 columns may have a part in */
    SLOT_HALF = SLOT_COLUMNS / 2,
    SLOT_BYTES = SLOT_COLUMNS * STRIP_ROW, /* of the strip */
    WARP = 32,
    HALVES = 2, /* projections of a tile of gate and up */
};

/* What a tile is of the call's projections. */
struct slot_view {
    uint32_t row, rows; /* of the tile */
    uint32_t column;    /* the first, of y; of gate and of up where `pair` */
};

/* What is told of a slot. */
struct slot_note {
    uint32_t begin, end; /* rows of the tile; begin == end: the tile has no more slots */
    uint32_t key;        /* which v, of gate or the only projection: pack_key(); NO_KEY: a bias */
    uint32_t halves;     /* of gate and up, which are in it: bits 0, 1 */
};
#define NO_KEY UINT32_MAX

struct slot_desk {
    uint64_t full[SLOTS], empty[SLOTS];
    struct slot_note note[SLOTS];
    const void *tile[WARP][SLOT_TILES]; /* of a lane's adapter: where the tiles of B lie */
};

struct slot_ring {
    uint32_t base, slot, phase;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void slots_init(struct slot_desk &desk, uint32_t computing_warps) {
    for (int i = 0; i < SLOTS; i++) {
        mbarrier_init(shared_address(&desk.full[i]), WARP + 1); /* copies, and the note */
        mbarrier_init(shared_address(&desk.empty[i]), computing_warps);
    }
}

__device__ __forceinline__ void slot_next(struct slot_ring &r) {
    r.slot++;
    if (r.slot == SLOTS) {
        r.slot = 0;
        r.phase ^= 1;
    }
}

/* ---- the warp that fills -------------------------------------------------------------------- */

/* A lane's adapter, of those in the tile. */
struct slot_adapter {
    uint32_t number;
    uint32_t begin, end; /* rows of the tile; begin == end: none */
    uint32_t rank[HALVES], b[HALVES], bias[HALVES];
    float scale[HALVES];
};

template <bool PAIR>
__device__ __forceinline__ struct slot_adapter
adapter_of(const struct lora_call &c, const struct slot_view &v, uint32_t projection,
           uint32_t index, uint32_t end) {
    struct slot_adapter a = {};
    if (index >= end) {
        return a;
    }
    const struct cuda_lora_piece piece = c.meta->lora.whole.pieces[index];
    a.number = piece.adapter;
    a.begin = max(piece.row, v.row) - v.row;
    a.end = max(min(piece.row + piece.rows, v.row + v.rows), v.row) - v.row;
    a.begin = min(a.begin, a.end);
#pragma unroll
    for (uint32_t h = 0; h < (PAIR ? HALVES : 1); h++) {
        if (a.begin < a.end) {
            const struct kern_lora *lora = lora_entry(c, a.number, projection + h);
            a.rank[h] = lora->rank;
            a.b[h] = (uint32_t)lora->b;
            a.bias[h] = lora->rank != 0 ? (uint32_t)lora->bias : 0;
            a.scale[h] = lora->scale;
        }
    }
    return a;
}

/* The first column of a projection that a tile has, which may not be the tile's first. */
template <bool PAIR>
__device__ __forceinline__ uint32_t first_column(const struct lora_call &c,
                                                 const struct slot_view &v, uint32_t projection) {
    return PAIR ? v.column : max(v.column, c.at[projection]) - c.at[projection];
}

/* Where the tiles of B of a lane's adapter lie, of the rank block that has `slice`. */
template <typename T, bool PAIR>
__device__ __forceinline__ void tiles_find(const struct lora_call &c, const struct slot_view &v,
                                           uint32_t projection, const struct slot_adapter &a,
                                           uint32_t slice, const void **to) {
    const uint32_t first = first_column<PAIR>(c, v, projection) / KERN_TILE_COLUMNS;
    const uint32_t tiles = lora_tiles(c.out[projection]);
    const struct lora_pages<T> pages = lora_pages_of<T>(c, a.number);
    constexpr uint32_t EACH = PAIR ? SLOT_HALF / KERN_TILE_COLUMNS : SLOT_TILES;
#pragma unroll
    for (uint32_t i = 0; i < (PAIR ? HALVES * EACH : EACH); i++) {
        const uint32_t h = i / EACH, tile = first + i % EACH;
        const void *at = nullptr;
        if (a.rank[h] > slice * PACK_RANKS && tile < tiles) {
            const struct lora_run run = lora_run_of(c.page_elems, a.b[h], a.rank[h], tiles,
                                                    slice * PACK_RANKS / KERN_BLOCK_RANKS);
            at = lora_tile(c, pages, run, tile);
        }
        to[i] = at;
    }
}

/* A column of a slot, as a column of a projection: which half, which column, which of the tiles
 * that were found; false: it is beyond the projection. */
struct slot_column {
    uint32_t half, column, tile;
    bool there;
};

template <bool PAIR>
__device__ __forceinline__ struct slot_column
column_of(const struct lora_call &c, const struct slot_view &v, uint32_t projection, uint32_t n) {
    struct slot_column s;
    if (PAIR) {
        s.half = n / SLOT_HALF;
        s.column = v.column + n % SLOT_HALF;
        s.tile = n / KERN_TILE_COLUMNS;
        s.there = s.column < c.out[projection];
        return s;
    }
    const uint32_t first = first_column<PAIR>(c, v, projection) / KERN_TILE_COLUMNS;
    s.half = 0;
    s.there = v.column + n >= c.at[projection];
    s.column = s.there ? v.column + n - c.at[projection] : 0;
    s.there = s.there && s.column < c.out[projection];
    s.tile = s.there ? s.column / KERN_TILE_COLUMNS - first : 0;
    return s;
}

/* Waits for room, and says what the slot is. */
__device__ __forceinline__ void slot_begin(struct slot_desk &desk, const struct slot_ring &r,
                                           const struct slot_note &note) {
    mbarrier_wait(shared_address(&desk.empty[r.slot]), r.phase ^ 1);
    if (threadIdx.x % WARP == 0) {
        desk.note[r.slot] = note;
        mbarrier_arrive(shared_address(&desk.full[r.slot]));
    }
}
__device__ __forceinline__ void slot_end(struct slot_desk &desk, struct slot_ring &r) {
    mbarrier_arrive_copied(shared_address(&desk.full[r.slot]));
    slot_next(r);
}
/* Where a piece of 16 bytes of the slot's column `n` goes. */
__device__ __forceinline__ uint32_t slot_at(const struct slot_ring &r, uint32_t n, uint32_t piece) {
    return r.base + strip_at(n, r.slot * SLOT_PIECES + piece);
}

/* Whether a slot's columns are whole tiles of B, none of another projection. */
template <bool PAIR>
__device__ __forceinline__ bool tiles_whole(const struct lora_call &c, const struct slot_view &v,
                                            uint32_t projection) {
    if (PAIR) {
        return v.column + SLOT_HALF <= c.out[projection];
    }
    return v.column >= c.at[projection] &&
           v.column + SLOT_COLUMNS <= c.at[projection] + c.out[projection] &&
           (v.column - c.at[projection]) % KERN_TILE_COLUMNS == 0;
}

/* The lane's pieces of four whole tiles; `ranks`: of the blocks, `at_rank` the piece's first, `to`
 * where the first column's goes. Every 16 columns the places repeat. */
template <typename T, bool PAIR>
__device__ __forceinline__ void copy_tiles(const struct slot_desk &desk, uint32_t from,
                                           const uint32_t (&ranks)[HALVES], uint32_t at_rank,
                                           uint32_t to, const struct lora_call &c) {
    constexpr uint32_t TILES = SLOT_COLUMNS / KERN_TILE_COLUMNS;
    constexpr uint32_t COLUMNS = WARP / SLOT_PIECES; /* at once */
#pragma unroll
    for (uint32_t i = 0; i < TILES; i++) {
        const uint32_t width = PAIR && i >= TILES / 2 ? ranks[1] : ranks[0];
        const bool there = at_rank < width;
        const T *tile = static_cast<const T *>(desk.tile[from][i]);
        const T *piece = tile + (threadIdx.x % WARP / SLOT_PIECES * width + at_rank);
#pragma unroll
        for (uint32_t k = 0; k < KERN_TILE_COLUMNS / COLUMNS; k++) {
            copy_async_16(to + (i * KERN_TILE_COLUMNS + k * COLUMNS) * STRIP_ROW,
                          there ? piece + k * COLUMNS * width : static_cast<const void *>(c.meta),
                          there);
        }
    }
}

/* Brings the tiles of a lane's adapter into the second-level cache: of its block's every column. */
template <typename T, bool PAIR>
__device__ __forceinline__ void tiles_fetch(const struct slot_adapter &a, uint32_t slice,
                                            const void *const *tiles) {
    constexpr uint32_t LINE = 128, EACH = PAIR ? SLOT_HALF / KERN_TILE_COLUMNS : SLOT_TILES;
    const uint32_t done = slice * PACK_RANKS;
    if (done % KERN_BLOCK_RANKS != 0) {
        return;
    }
    for (uint32_t i = 0; i < (PAIR ? HALVES * EACH : EACH); i++) {
        const uint32_t rank = i < EACH ? a.rank[0] : a.rank[1];
        const uint32_t ranks = rank > done ? min(rank - done, (uint32_t)KERN_BLOCK_RANKS) : 0;
        const char *tile = static_cast<const char *>(tiles[i]);
        const uint32_t bytes = tile == nullptr ? 0 : ranks * KERN_TILE_COLUMNS * sizeof(T);
        for (uint32_t at = 0; at < bytes; at += LINE) {
            prefetch_l2(tile + at);
        }
    }
}

/* 16 ranks of lane `from`'s adapter. */
template <typename T, bool PAIR>
__device__ __forceinline__ void fill_ranks(const struct lora_call &c, const struct slot_view &v,
                                           uint32_t projection, uint32_t slice,
                                           const struct slot_adapter &a, uint32_t from,
                                           struct slot_desk &desk, struct slot_ring &r) {
    constexpr uint32_t ALL = 0xffffffffu;
    uint32_t rank[HALVES] = {__shfl_sync(ALL, a.rank[0], from), 0};
    if (PAIR) {
        rank[1] = __shfl_sync(ALL, a.rank[1], from);
    }
    struct slot_note note = {};
    note.begin = __shfl_sync(ALL, a.begin, from);
    note.end = __shfl_sync(ALL, a.end, from);
    note.key = pack_key(projection, slice);
    const uint32_t done = slice * PACK_RANKS;
    uint32_t ranks[HALVES]; /* of the block */
#pragma unroll
    for (uint32_t h = 0; h < HALVES; h++) {
        const uint32_t block = done / KERN_BLOCK_RANKS * KERN_BLOCK_RANKS;
        note.halves |= rank[h] > done ? 1u << h : 0;
        ranks[h] = rank[h] > block ? min(rank[h] - block, (uint32_t)KERN_BLOCK_RANKS) : 0;
    }
    slot_begin(desk, r, note);
    const uint32_t lane = threadIdx.x % WARP, piece = lane % SLOT_PIECES;
    const uint32_t at_rank = done % KERN_BLOCK_RANKS + piece * 8; /* in the block */
    if (tiles_whole<PAIR>(c, v, projection)) {
        copy_tiles<T, PAIR>(desk, from, ranks, at_rank, slot_at(r, lane / SLOT_PIECES, piece), c);
        slot_end(desk, r);
        return;
    }
    for (uint32_t n = lane / SLOT_PIECES; n < SLOT_COLUMNS; n += WARP / SLOT_PIECES) {
        const struct slot_column s = column_of<PAIR>(c, v, projection, n);
        const uint32_t width = s.half == 0 ? ranks[0] : ranks[1];
        const T *tile = static_cast<const T *>(desk.tile[from][s.tile]);
        const bool there = s.there && at_rank < width;
        copy_async_16(slot_at(r, n, piece),
                      there ? tile + (s.column % KERN_TILE_COLUMNS * width + at_rank)
                            : static_cast<const void *>(c.meta),
                      there);
    }
    slot_end(desk, r);
}

/* scale · bias of lane `from`'s adapter, as two ranks, its high and its low part. */
template <typename T, bool PAIR>
__device__ __forceinline__ void fill_bias(const struct lora_call &c, const struct slot_view &v,
                                          uint32_t projection, const struct slot_adapter &a,
                                          uint32_t from, struct slot_desk &desk,
                                          struct slot_ring &r) {
    constexpr uint32_t ALL = 0xffffffffu;
    struct slot_note note = {};
    uint32_t bias[HALVES] = {};
    float scale[HALVES] = {};
    note.begin = __shfl_sync(ALL, a.begin, from);
    note.end = __shfl_sync(ALL, a.end, from);
    note.key = NO_KEY;
#pragma unroll
    for (uint32_t h = 0; h < (PAIR ? HALVES : 1); h++) {
        bias[h] = __shfl_sync(ALL, a.bias[h], from);
        scale[h] = __shfl_sync(ALL, a.scale[h], from);
        note.halves |= bias[h] != 0 ? 1u << h : 0;
    }
    const struct lora_pages<T> pages = lora_pages_of<T>(c, __shfl_sync(ALL, a.number, from));
    slot_begin(desk, r, note);
    for (uint32_t n = threadIdx.x % WARP; n < SLOT_COLUMNS; n += WARP) {
        const struct slot_column s = column_of<PAIR>(c, v, projection, n);
        const uint32_t first = s.half == 0 ? bias[0] : bias[1];
        float value = 0;
        if (s.there && first != 0) {
            const uint32_t at = first + s.column, page = at / c.page_elems;
            value = elem_float(*lora_element(c, pages, page, at - page * c.page_elems)) *
                    (s.half == 0 ? scale[0] : scale[1]);
        }
        const float high = elem_float(elem_from<T>(value));
        const uint32_t word = pair_bits<T>(high, isfinite(high) ? value - high : 0);
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %2, %2};" ::"r"(slot_at(r, n, 0)), "r"(word),
                     "r"(0)
                     : "memory");
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(slot_at(r, n, 1)), "r"(0)
                     : "memory");
    }
    mbarrier_arrive(shared_address(&desk.full[r.slot])); /* in place of copies */
    slot_next(r);
}

/* All slots of a tile for one projection, or for gate and up. The adapters in the tile are `begin`
 * to `end` of the step's. */
template <typename T, bool PAIR>
__device__ __forceinline__ void
fill_projection(const struct lora_call &c, const struct slot_view &v, uint32_t projection,
                uint32_t begin, uint32_t end, struct slot_desk &desk, struct slot_ring &r) {
    const uint32_t lane = threadIdx.x % WARP;
    struct slot_adapter a = {};
    uint32_t known = UINT32_MAX; /* which adapters the lanes have */
    uint32_t any_bias = 0;
    bool more = true;
    for (uint32_t slice = 0; more; slice++) {
        more = false;
        for (uint32_t batch = begin; batch < end; batch += WARP) {
            if (batch != known) {
                a = adapter_of<PAIR>(c, v, projection, batch + lane, end);
                known = batch;
            }
            const uint32_t rank = max(a.rank[0], a.rank[1]);
            uint32_t mask = __ballot_sync(0xffffffffu, rank > slice * PACK_RANKS);
            more = more || __any_sync(0xffffffffu, rank > (slice + 1) * PACK_RANKS);
            any_bias |= __ballot_sync(0xffffffffu, (a.bias[0] | a.bias[1]) != 0);
            if (mask == 0) {
                continue;
            }
            tiles_find<T, PAIR>(c, v, projection, a, slice, desk.tile[lane]);
            tiles_fetch<T, PAIR>(a, slice, desk.tile[lane]);
            __syncwarp();
            for (; mask != 0; mask &= mask - 1) {
                fill_ranks<T, PAIR>(c, v, projection, slice, a, __ffs((int)mask) - 1, desk, r);
            }
            __syncwarp();
        }
    }
    for (uint32_t batch = begin; any_bias != 0 && batch < end; batch += WARP) {
        if (batch != known) {
            a = adapter_of<PAIR>(c, v, projection, batch + lane, end);
            known = batch;
        }
        uint32_t mask = __ballot_sync(0xffffffffu, (a.bias[0] | a.bias[1]) != 0);
        for (; mask != 0; mask &= mask - 1) {
            fill_bias<T, PAIR>(c, v, projection, a, __ffs((int)mask) - 1, desk, r);
        }
    }
}

/* All slots of a tile, and the note that there are no more. */
template <typename T, bool PAIR>
__device__ __forceinline__ void fill_tile(const struct lora_call &c, const struct slot_view &v,
                                          struct slot_desk &desk, struct slot_ring &r) {
    const struct cuda_lora_meta &lora = c.meta->lora;
    const uint32_t tile = v.row / CUDA_LORA_TILE_ROWS;
    const uint32_t begin = lora.tile_first[tile];
    const uint32_t end = min(lora.tile_first[tile + 1] + 1, lora.whole.count);
    if (PAIR) {
        fill_projection<T, true>(c, v, 0, begin, end, desk, r);
    } else {
        for (uint32_t p = 0; p < c.projections; p++) {
            if (v.column < c.at[p] + c.out[p] && v.column + SLOT_COLUMNS > c.at[p]) {
                fill_projection<T, false>(c, v, p, begin, end, desk, r);
            }
        }
    }
    slot_begin(desk, r, {});
    slot_end(desk, r);
}

/* ---- the warpgroups that multiply ----------------------------------------------------------- */

/* v of a lane's two rows: 16 ranks of a projection, of gate and of up where there are both. */
template <bool PAIR> struct slot_rows {
    uint4 v[PAIR ? HALVES : 1];
    uint32_t key;
};

template <bool PAIR>
__device__ __forceinline__ void rows_load(const struct lora_call &c, const uint4 *packed,
                                          uint32_t row, uint32_t key, struct slot_rows<PAIR> &v) {
    v.key = key;
#pragma unroll
    for (uint32_t h = 0; h < (PAIR ? HALVES : 1); h++) {
        const uint64_t at = pack_at(c.rows, key + h * pack_key(1, 0), row / PACK_ROWS);
        v.v[h] = packed[at + threadIdx.x % WARP];
    }
}

/* A slot's note, read by the lane that will release the slot and told to the others. */
__device__ __forceinline__ struct slot_note note_take(const struct slot_note &from) {
    constexpr uint32_t ALL = 0xffffffffu;
    struct slot_note note = {};
    if (threadIdx.x % WARP == 0) {
        note = from;
    }
    note.begin = __shfl_sync(ALL, note.begin, 0);
    note.end = __shfl_sync(ALL, note.end, 0);
    note.key = __shfl_sync(ALL, note.key, 0);
    note.halves = __shfl_sync(ALL, note.halves, 0);
    return note;
}

/* Begins to load what the tile's first slot wants. */
template <bool PAIR>
__device__ __forceinline__ void rows_ahead(const struct lora_call &c, const uint4 *packed,
                                           uint32_t row, const struct slot_desk &desk,
                                           const struct slot_ring &r, struct slot_rows<PAIR> &v) {
    mbarrier_wait(shared_address(&desk.full[r.slot]), r.phase);
    const struct slot_note note = note_take(desk.note[r.slot]);
    if (note.begin < note.end && note.key != NO_KEY) {
        rows_load<PAIR>(c, packed, row, note.key, v);
    }
}

/* This warp is done with slot `slot`. */
__device__ __forceinline__ void slot_release(struct slot_desk &desk, uint32_t slot) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
        mbarrier_arrive(shared_address(&desk.empty[slot]));
    }
}

/* Which tile the slots are added to, by whom: `first` row of the tile, `row` in it of the warp. */
struct slot_place {
    const uint4 *packed;
    uint32_t first, row;
};

/* The next slot that is for rows of this warpgroup, as operand a; gives its number, SLOTS: none is
 * left. */
template <typename T, bool PAIR>
__device__ __forceinline__ uint32_t slot_take(const struct lora_call &c,
                                              const struct slot_place &place,
                                              struct slot_desk &desk, struct slot_ring &r,
                                              struct slot_rows<PAIR> &v,
                                              uint32_t (&a)[PAIR ? HALVES : 1][4]) {
    constexpr uint32_t GROUP = 64;
    const uint32_t group = place.row / GROUP * GROUP;
    for (;;) {
        const uint32_t slot = r.slot;
        mbarrier_wait(shared_address(&desk.full[slot]), r.phase);
        const struct slot_note note = note_take(desk.note[slot]);
        slot_next(r);
        if (note.begin >= note.end) {
            slot_release(desk, slot);
            return SLOTS;
        }
        if (note.begin >= group + GROUP || note.end <= group) {
            slot_release(desk, slot);
            continue;
        }
        if (note.key != NO_KEY && note.key != v.key) {
            rows_load<PAIR>(c, place.packed, place.first + place.row, note.key, v);
        }
        const uint32_t row = place.row + threadIdx.x % WARP / 4;
        const bool low = row >= note.begin && row < note.end;
        const bool high = row + 8 >= note.begin && row + 8 < note.end;
        const uint32_t ones = threadIdx.x % 4 == 0 ? pair_bits<T>(1, 1) : 0;
#pragma unroll
        for (uint32_t h = 0; h < (PAIR ? HALVES : 1); h++) {
            const bool in = !PAIR || (note.halves >> h & 1) != 0, bias = note.key == NO_KEY;
            a[h][0] = !low || !in ? 0 : bias ? ones : v.v[h].x;
            a[h][1] = !high || !in ? 0 : bias ? ones : v.v[h].y;
            a[h][2] = !low || !in || bias ? 0 : v.v[h].z;
            a[h][3] = !high || !in || bias ? 0 : v.v[h].w;
        }
        return slot;
    }
}

/* d += what the tile's slots have. The first is looked up while products are still under way;
 * `before` is called when those are done. */
template <typename T, bool PAIR, class BEFORE>
__device__ __forceinline__ void
add_slots(const struct lora_call &c, const struct slot_place &place, struct slot_desk &desk,
          struct slot_ring &r, struct slot_rows<PAIR> &v, float (&d)[32][4], BEFORE before) {
    uint32_t a[PAIR ? HALVES : 1][4];
    uint32_t slot = slot_take<T, PAIR>(c, place, desk, r, v, a);
    wgmma_wait<0>();
    wgmma_hold(d);
    before();
    while (slot != SLOTS) {
        const uint64_t b = wgmma_operand(r.base, 16, STRIP_EIGHT) + slot * SLOT_PIECES;
        fence_async_proxy();
        wgmma_fence();
        if (!PAIR) {
            wide_registers<T>(d, a[0], b);
        } else {
            wide_half<T, 0>(d, a[0], b);
            wide_half<T, 16>(d, a[PAIR ? 1 : 0], b + SLOT_HALF * STRIP_ROW / 16);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(d);
        wgmma_hold(a);
        slot_release(desk, slot);
        slot = slot_take<T, PAIR>(c, place, desk, r, v, a);
    }
}

#endif

#endif
