/* lora_shrink_hopper.cu - x Aᵀ for pieces of rows on sm_90a; lora_shrink.cu elsewhere.
 *
 * x [rows][in] elements; A in tiles [ranks ≤ 32][64 columns] in pages (kernels.h); the result is
 * partial sums v [splits][rows][projections][512] f32, not scaled; expand adds them up. Columns are
 * multiples of 8, the last tile of A is padded with zeros, and x is filled with zeros there.
 *
 * Work: the ranks of all projections that share x stand in one row, in groups of 8; a pass is up to
 * 24 groups of whatever projections and blocks, so that x is read once where ranks add up to 192 or
 * less. An item is (piece of ≤ 64 rows, split of the columns); a block takes items that are
 * neighbours, mostly of one piece, whose look-ups it then pays once. Four warps load, one
 * warpgroup multiplies. A stage of the ring between them is one or more tiles of 64 columns: of
 * each a tile of each group, then the piece's rows of x, as strips of 128 bytes (wgmma.cuh). All of
 * them come as boxes (boxes.cuh): x is a matrix; so is the whole pool, of 64 columns, in which a
 * tile of A is consecutive rows. A box of A is 8, 16 or 32 ranks, whichever all ranks of the piece
 * are multiples of; a row of boxes of 64, 32, 16 and 8 rows makes up a piece's x. Stage n is the
 * business of warp n % 4 alone, whose lanes have a box each and go on to n + 4, over passes and
 * items; what it must look up for pieces to come is on its way meanwhile. The warpgroup learns of a
 * pass from a note and adds four products of 16 columns a tile to its sums [64 rows][ranks]. Rows
 * beyond the piece hold anything, and so do groups beyond the pass, up to the instruction's width:
 * nothing of theirs is stored or meets another sum.
 *
 * The kernel starts before the one in front ends, looks up its pieces and fetches what it has room
 * for of A, which nobody writes within a step; x comes after the wait.
 *
 * A row's sum runs over the columns of a split in ascending order, then (in expand) over splits;
 * how many splits there are depends on the bucket and the shape alone, so that neighbours change no
 * bit.
 *
 * Bytes: of x rows × in × 2 a pass; of A rank × in × 2 a piece, from memory once a step, again from
 * the second-level cache where a segment has several pieces; v. On their way: up to 100 KiB a
 * block, two blocks a multiprocessor. FLOPs: 2 × rows × rank × in. Sums are f32, products exact.
 * Against f64: ≤ in × 2⁻²⁴ of Σ|x a|.
 *
 * Tried (H200, November 2026, Llama 3.1 8B's shape, µs of qkv, o, gate_up and down in a row of each
 * alone; 8,192 rows of 8 adapters of rank 16 and 64, 1,000 rows of 8 and of 200 of rank 16, 64 of
 * 8): cp.async of 16 bytes in place of boxes 138, 216, 28, 131, 20; boxes, the kernel behind let go
 * at once, 135, 191, 23, 99, 15. It begins later here, for in a layer that made qkv 3 µs of 73
 * slower, though in such a row 3 to 5 µs faster at 1,000 rows. One loading warp: 152, 231, 30, 122,
 * 19, since a box keeps a warp for 100 ns; boxes of 8 ranks alone: 170, 330, 33, 142, 20. Three
 * stages of 32 KiB, each with a warp: 146, 205, 24, 104, 14; stages of 8 KiB: 1% to 15% more.
 * Clusters of two that bring A for each other (of four alike): 246, 392, 33, 230, 24. The pool's
 * maps in device memory, with the fence that they need there: 0.5 µs more a kernel. Several tiles
 * by one box (those of A are neighbours in a page, those of x by a map of three dimensions), a
 * third of the boxes: 33 µs in place of 30, the mean of a whole run of 200 adapters. Twice the
 * splits: decode steps 0 to 1% longer, at 1 to 600 rows. A first turn of the warpgroup without
 * rows, so that its instructions are at hand when x comes: 1% off steps of up to 64 rows.
 *
 * What bounds it: at 8,192 rows of rank 16 the memory (reading x alone takes 104), at rank 64 the
 * second-level cache, which sends 5.5 TB/s of x, and of A again for each piece. In a layer, where
 * a product of the library stands in front, whose end it waits for, few adapters gain nothing
 * (decode of 512, 8 adapters), 512 adapters 25% of o and 9% of down. */
#include "kernels/cuda/boxes.cuh"
#include "kernels/cuda/lora_groups.cuh"
#include "kernels/cuda/wgmma_ranks.cuh"

namespace {

enum {
    ROWS = 64,                 /* of a piece, at most: m of wgmma */
    STEP = 16,                 /* k of wgmma */
    GROUP_BYTES = STRIP_EIGHT, /* of a tile's columns of a group; of as many rows of x */
    PASS_GROUPS = 24,          /* of a pass, at most: 96 registers */
    COMPUTE_WARPS = WARPGROUP / 32,
    LOAD_WARPS = 4, /* each loads stages of its own */
    THREADS = WARPGROUP + 32 * LOAD_WARPS,
    STAGES = 16,            /* in shared memory, at most */
    STAGE_BYTES = 20 << 10, /* of one tile, or of several up to here */
    ROOM = 100 << 10,       /* of the stages: three tiles of the widest pass of a whole piece */
    NOTES = STAGES + 1,     /* the last is read while others fill all stages */
    /* wgmma reads 64 rows, whatever there are; and to align */
    SHARED_BYTES = ROOM + ROWS * STRIP_ROW + STRIP_EIGHT,
    X_BOXES = 4,          /* of 8, 16, 32, 64 rows */
    A_BOXES = 3,          /* of 8, 16, 32 ranks */
    X_LANE = PASS_GROUPS, /* the lanes behind those of the groups bring x */
};
static_assert(X_LANE + X_BOXES <= 32, "a lane each");
static_assert((int)BOX_COLUMNS == (int)KERN_TILE_COLUMNS, "a box is a tile");

/* What the loaders tell the warpgroup of a pass. */
struct note {
    uint64_t v;     /* address of the piece's first row, of the split */
    uint32_t tiles; /* 0: there are no more passes */
    uint32_t rows, groups;
    uint32_t first;   /* group in the row of all ranks */
    uint32_t ends[2]; /* groups up to the end of the first, the second projection */
};

struct desk {
    uint64_t full[STAGES], empty[STAGES];
    struct note note[NOTES];
};

struct params {
    struct lora_call c;
    CUtensorMap x[X_BOXES];
};

/* Of the pages; no parameters, since graphs are made before there is a pool. In device memory each
 * block would have to fence them. */
__constant__ CUtensorMap page_maps[A_BOXES];

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- the ring ----------------------------------------------------------------------------- */

/* Stages of equal bytes, while passes of the same shape follow one another; where the shape changes
 * the ring runs empty and begins anew at its front. All warps walk it alike. */
struct ring {
    uint32_t base;
    uint32_t width, eights;     /* groups and rows, in 8, that a tile has room for */
    uint32_t tile_bytes, tiles; /* of a stage */
    uint32_t bytes, slots;      /* of a stage; how many there are */
    uint32_t begin;             /* stage at which this shape began; they are numbered through */
};

__device__ __forceinline__ void ring_turn(struct ring &r, uint32_t width, uint32_t eights,
                                          uint32_t stage) {
    if (width != r.width || eights != r.eights) {
        r.width = width;
        r.eights = eights;
        r.tile_bytes = (width + eights) * GROUP_BYTES;
        r.tiles = max(STAGE_BYTES / r.tile_bytes, 1u);
        r.bytes = r.tiles * r.tile_bytes;
        r.slots = min(ROOM / r.bytes, (uint32_t)STAGES);
        r.begin = stage;
    }
}

/* The phase in which stage `stage` is filled, or emptied again. */
__device__ __forceinline__ uint32_t stage_parity(uint32_t stage) {
    return stage / STAGES % 2;
}
__device__ __forceinline__ uint32_t stage_at(const struct ring &r, uint32_t stage) {
    return r.base + (stage - r.begin) % r.slots * r.bytes;
}
__device__ __forceinline__ uint32_t stage_full(const struct desk &desk, uint32_t stage) {
    return shared_address(&desk.full[stage % STAGES]);
}

/* Until `stage` has room. */
__device__ __forceinline__ void room_wait(const struct desk &desk, const struct ring &r,
                                          uint32_t stage) {
    uint32_t before = stage - r.begin < r.slots ? r.begin : stage - r.slots + 1;
    if (before != 0) {
        before--;
        mbarrier_wait(shared_address(&desk.empty[before % STAGES]), stage_parity(before));
    }
}

/* ---- the loaders -------------------------------------------------------------------------- */

/* A piece, as all loaders know it; what they need of the next two is on its way. */
struct feed {
    struct cuda_lora_piece piece, next, after;
    struct lora_ranks ranks, ranks_next;
    uint32_t number, pieces;
};

/* A lane's group: where its part of a tile lies. */
template <typename T> struct group {
    const T *planes;
    struct lora_pages<T> pages;
    struct lora_run run;
    uint32_t offset; /* in a tile */
    uint32_t row;    /* in the tile that is up: of the pages as a matrix of 64 columns */
    uint32_t left;   /* tiles from there to the end of the page */
};

__device__ __forceinline__ struct cuda_lora_piece piece_of(const struct lora_call &c,
                                                           uint32_t number, uint32_t pieces) {
    if (number >= pieces) {
        return {KERN_BASE, 0, 0};
    }
    return c.list->pieces[number];
}

__device__ __forceinline__ void feed_begin(const struct lora_call &c, uint32_t number,
                                           uint32_t pieces, struct feed &f) {
    f.number = number;
    f.pieces = pieces;
    f.piece = piece_of(c, number, pieces);
    f.next = piece_of(c, number + 1, pieces);
    f.after = piece_of(c, number + 2, pieces);
    f.ranks = lora_ranks_of(c, f.piece.adapter);
    f.ranks_next = lora_ranks_of(c, f.next.adapter);
}

__device__ __forceinline__ void feed_next(const struct lora_call &c, struct feed &f) {
    f.number++;
    f.piece = f.next;
    f.ranks = f.ranks_next;
    f.next = f.after;
    f.ranks_next = lora_ranks_of(c, f.next.adapter);
    f.after = piece_of(c, f.number + 2, f.pieces);
}

/* The lane's group becomes `index` of the row of all ranks. */
template <typename T>
__device__ __forceinline__ void group_set(const struct lora_call &c, const struct feed &f,
                                          uint32_t index, struct group<T> &g) {
    const struct lora_group at = lora_group_at(c, f.ranks, index);
    g.planes = static_cast<const T *>(c.meta->planes);
    g.pages = lora_pages_of<T>(c, f.piece.adapter);
    g.run = at.run;
    g.offset = at.offset;
}

/* Tile `tile` is up. */
template <typename T>
__device__ __forceinline__ void group_seek(const struct params &p, uint32_t tile,
                                           struct group<T> &g) {
    const T *at = lora_tile(p.c, g.pages, g.run, tile) + g.offset;
    g.row = (uint32_t)((at - g.planes) / KERN_TILE_COLUMNS);
    const uint32_t index = g.run.index + tile;
    g.left = index < g.run.first ? g.run.first - index
                                 : g.run.page_tiles - (index - g.run.first) % g.run.page_tiles;
}

/* Of `tile` the tile `step` before was up. */
template <typename T>
__device__ __forceinline__ void group_step(const struct params &p, uint32_t tile, uint32_t step,
                                           struct group<T> &g) {
    if (g.left > step) {
        g.left -= step;
        g.row += step * (g.run.tile_elems / KERN_TILE_COLUMNS);
    } else {
        group_seek(p, tile, g);
    }
}

/* Groups of the instructions that take `groups`. */
__device__ __forceinline__ uint32_t width_of(uint32_t groups) {
    return groups <= 2    ? groups
           : groups <= 4  ? 4
           : groups <= 6  ? 6
           : groups <= 8  ? 8
           : groups <= 12 ? 12
           : groups <= 16 ? 16
                          : 24;
}

/* Eights of rows that a tile has room for. */
__device__ __forceinline__ uint32_t eights_of(uint32_t rows) {
    return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8;
}

/* A pass over the columns of a split. */
struct pass {
    uint32_t split, tile_begin, tiles;
    uint32_t first, groups; /* in the row of all ranks */
    uint32_t unit;          /* groups of a box of A */
    uint32_t stage, stages; /* its first, how many */
};

/* Pass `index` of all. */
__device__ __forceinline__ void pass_set(const struct feed &f, uint32_t all, uint32_t index,
                                         struct pass &pass, struct ring &r) {
    const uint32_t passes = (all + PASS_GROUPS - 1) / PASS_GROUPS, units = all / pass.unit;
    pass.first = index * units / passes * pass.unit;
    pass.groups = (index + 1) * units / passes * pass.unit - pass.first;
    ring_turn(r, width_of(pass.groups), eights_of(f.piece.rows), pass.stage);
    pass.stages = (pass.tiles + r.tiles - 1) / r.tiles;
}

/* One lane, which then arrives at the stage's barrier. */
__device__ __forceinline__ void note_write(const struct params &p, const struct feed &f,
                                           const struct pass &pass, struct note &to) {
    to.v = reinterpret_cast<uint64_t>(lora_v(p.c, pass.split, f.piece.row, 0));
    to.tiles = pass.tiles;
    to.rows = f.piece.rows;
    to.groups = pass.groups;
    to.first = pass.first;
    to.ends[0] = f.ranks.rank[0] / GROUP_RANKS;
    to.ends[1] = (f.ranks.rank[0] + f.ranks.rank[1]) / GROUP_RANKS;
}

/* Tiles of stage `i` of a pass. */
__device__ __forceinline__ uint32_t tiles_of(const struct pass &pass, const struct ring &r,
                                             uint32_t i) {
    return min(r.tiles, pass.tiles - i * r.tiles);
}

/* A's part of stage `i`; a lane has a group, and the first of a unit brings the box. */
template <typename T>
__device__ __forceinline__ void load_a(const struct params &p, const struct desk &desk,
                                       const struct pass &pass, const struct ring &r, uint32_t i,
                                       struct group<T> &g) {
    const uint32_t lane = threadIdx.x % 32, full = stage_full(desk, pass.stage + i);
    const bool mine = lane < pass.groups && lane % pass.unit == 0;
    const CUtensorMap *map = &page_maps[pass.unit / 2];
    const uint32_t tile = pass.tile_begin + i * r.tiles, tiles = tiles_of(pass, r, i);
    uint32_t to = stage_at(r, pass.stage + i) + lane * GROUP_BYTES;
    for (uint32_t t = 0; t < tiles; t++, to += r.tile_bytes) {
        if (t != 0) {
            group_step(p, tile + t, 1, g);
        }
        if (mine) {
            copy_box(to, map, 0, g.row, full);
        }
    }
}

/* x's part: a lane has a box of 8, 16, 32 or 64 rows, of which the piece's rows are made up. */
__device__ __forceinline__ void load_x(const struct params &p, const struct desk &desk,
                                       const struct cuda_lora_piece &piece, const struct pass &pass,
                                       const struct ring &r, uint32_t i) {
    const uint32_t box = threadIdx.x % 32 - X_LANE, eights = (piece.rows + 7) / 8;
    if (box < X_BOXES && (eights >> box & 1) != 0) {
        const uint32_t full = stage_full(desk, pass.stage + i), tiles = tiles_of(pass, r, i);
        const uint32_t first = eights >> (box + 1) << (box + 1); /* the larger ones' */
        uint32_t column = (pass.tile_begin + i * r.tiles) * KERN_TILE_COLUMNS;
        uint32_t to = stage_at(r, pass.stage + i) + (r.width + first) * GROUP_BYTES;
        for (uint32_t t = 0; t < tiles; t++, to += r.tile_bytes, column += KERN_TILE_COLUMNS) {
            copy_box(to, &p.x[box], column, piece.row + first * 8, full);
        }
    }
    __syncwarp();
}

/* This warp's stages of a pass: those whose number modulo LOAD_WARPS is its own. Before its first x
 * come the kernels in front, and the first of A, which they do not touch. */
template <typename T>
__device__ __forceinline__ void
load_pass(const struct params &p, struct desk &desk, const struct feed &f, const struct pass &pass,
          const struct ring &r, struct group<T> &g, struct note &note, bool &waited) {
    const uint32_t warp = threadIdx.x / 32 - COMPUTE_WARPS;
    const uint32_t tile_bytes = (pass.groups + (f.piece.rows + 7) / 8) * GROUP_BYTES;
    uint32_t i = (warp + LOAD_WARPS - pass.stage % LOAD_WARPS) % LOAD_WARPS;
    if (i >= pass.stages) {
        return;
    }
    group_seek(p, pass.tile_begin + i * r.tiles, g);
    while (true) {
        room_wait(desk, r, pass.stage + i);
        if (threadIdx.x % 32 == 0) {
            if (i == 0) {
                note_write(p, f, pass, note);
            }
            mbarrier_expect(stage_full(desk, pass.stage + i), tiles_of(pass, r, i) * tile_bytes);
        }
        __syncwarp();
        load_a(p, desk, pass, r, i, g);
        if (!waited) {
            launch_wait();
            waited = true;
        }
        load_x(p, desk, f.piece, pass, r, i);
        i += LOAD_WARPS;
        if (i >= pass.stages) {
            return;
        }
        group_step(p, pass.tile_begin + i * r.tiles, (LOAD_WARPS - 1) * r.tiles + 1, g);
    }
}

/* The block's items: neighbours in the row of all, so that most are of the same piece. */
template <typename T>
__device__ __forceinline__ void load(const struct params &p, struct desk &desk, struct ring r) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < A_BOXES) {
        map_prefetch(&page_maps[lane]);
    } else if (lane - A_BOXES < X_BOXES) {
        map_prefetch(&p.x[lane - A_BOXES]);
    }
    __syncwarp();
    const struct lora_call &c = p.c;
    const uint32_t pieces = c.list->count, items = pieces * c.splits;
    const uint32_t share = items / gridDim.x, more = items % gridDim.x;
    const uint32_t first = blockIdx.x * share + min(blockIdx.x, more);
    const uint32_t end = first + share + (blockIdx.x < more ? 1 : 0);
    const uint32_t tiles = lora_tiles(c.in), split_tiles = (tiles + c.splits - 1) / c.splits;
    struct feed f;
    feed_begin(c, first / c.splits, pieces, f);
    struct group<T> g;
    struct pass pass = {};
    pass.split = first % c.splits;
    uint32_t notes = 0;
    bool waited = false;
    for (uint32_t item = first; item < end; item++) {
        const uint32_t *ranks = f.ranks.rank;
        const uint32_t all = lora_groups_of(f.ranks);
        const uint32_t bits = (ranks[0] | ranks[1] | ranks[2]) / GROUP_RANKS;
        pass.unit = bits % 2 != 0 ? 1 : bits % 4 != 0 ? 2 : 4;
        pass.tile_begin = pass.split * split_tiles;
        pass.tiles = min(split_tiles, tiles - pass.tile_begin);
        for (uint32_t i = 0; i * PASS_GROUPS < all; i++) {
            pass_set(f, all, i, pass, r);
            if (all > PASS_GROUPS || item == first || pass.split == 0) {
                group_set(c, f, pass.first + min(lane, pass.groups - 1), g);
            }
            load_pass(p, desk, f, pass, r, g, desk.note[notes % NOTES], waited);
            notes++;
            pass.stage += pass.stages;
        }
        if (++pass.split == c.splits) {
            pass.split = 0;
            feed_next(c, f);
        }
    }
    if (!waited) {
        launch_wait();
    }
    launch_next();
    if (pass.stage % LOAD_WARPS == threadIdx.x / 32 - COMPUTE_WARPS) { /* no more */
        if (pass.stage != 0) {
            room_wait(desk, r, pass.stage);
        }
        if (lane == 0) {
            desk.note[notes % NOTES].tiles = 0;
            mbarrier_arrive(stage_full(desk, pass.stage));
        }
    }
}

/* ---- the warpgroup ------------------------------------------------------------------------ */

/* This warp is done with a stage. */
__device__ __forceinline__ void release(struct desk &desk, uint32_t stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(shared_address(&desk.empty[stage % STAGES]));
    }
}

/* A word of a note, read by the lane that releases stages and told to the others. */
template <typename V> __device__ __forceinline__ V note_take(const V &word) {
    V v = {};
    if (threadIdx.x % 32 == 0) {
        v = word;
    }
    return __shfl_sync(0xffffffffu, v, 0);
}

/* Where the sums of 8 ranks go in a row of v. */
struct places {
    uint32_t ends[2], shifts[2];
};

__device__ __forceinline__ struct places places_of(const struct note &note) {
    struct places p;
    p.ends[0] = note_take(note.ends[0]);
    p.ends[1] = note_take(note.ends[1]);
    p.shifts[0] = KERN_RANK_MAX - p.ends[0] * GROUP_RANKS;
    p.shifts[1] = KERN_RANK_MAX - (p.ends[1] - p.ends[0]) * GROUP_RANKS;
    return p;
}

/* `group`: in the row of all ranks. */
__device__ __forceinline__ uint32_t place_at(const struct places &p, uint32_t group) {
    return group * GROUP_RANKS + (group < p.ends[0] ? 0 : p.shifts[0]) +
           (group < p.ends[1] ? 0 : p.shifts[1]);
}

/* A pass, by PARTS instructions of GROUPS groups each, 16 columns at a time. */
template <typename T, int PARTS, int GROUPS>
__device__ __forceinline__ void compute_pass(const struct params &p, struct desk &desk,
                                             const struct note &note, uint32_t left,
                                             const struct ring &r, uint32_t stage) {
    const uint32_t x_from = r.width * GROUP_BYTES;
    uint32_t slot = (stage - r.begin) % r.slots;
    float sum[PARTS][GROUPS][4] = {};
    for (; left != 0; stage++) {
        const uint32_t tiles = min(left, r.tiles);
        mbarrier_wait(stage_full(desk, stage), stage_parity(stage));
        uint32_t at = r.base + slot * r.bytes;
#pragma unroll 1 /* the code would be 125 KB in place of 76 */
        for (uint32_t t = 0; t < tiles; t++, at += r.tile_bytes) {
            const uint64_t a = wgmma_operand(at, 16, STRIP_EIGHT);
            const uint64_t x = wgmma_operand(at + x_from, 16, STRIP_EIGHT);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < KERN_TILE_COLUMNS / STEP; k++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    const uint32_t in = k * STEP * 2 / 16;
                    wgmma_ranks<T, GROUPS>(sum[part], x + in,
                                           a + (part * GROUPS * GROUP_BYTES / 16 + in));
                }
            }
            wgmma_commit();
        }
        wgmma_wait<0>();
        release(desk, stage);
        left -= tiles;
        slot = slot + 1 == r.slots ? 0 : slot + 1;
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        wgmma_hold(sum[part]);
    }
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    const uint32_t v_row = p.c.projections * KERN_RANK_MAX;
    const uint32_t rows = note_take(note.rows), groups = note_take(note.groups);
    const uint32_t first = note_take(note.first);
    const struct places places = places_of(note);
    float *v =
        reinterpret_cast<float *>(note_take(note.v)) + ((uint64_t)row * v_row + lane % 4 * 2);
#pragma unroll
    for (int n = 0; n < PARTS * GROUPS; n++) {
        if (n < groups) {
            const float *s = sum[n / GROUPS][n % GROUPS];
            float *to = v + place_at(places, first + n);
            if (row < rows) {
                *reinterpret_cast<float2 *>(to) = make_float2(s[0], s[1]);
            }
            if (row + 8 < rows) {
                *reinterpret_cast<float2 *>(to + 8 * v_row) = make_float2(s[2], s[3]);
            }
        }
    }
}

template <typename T>
__device__ __forceinline__ void compute(const struct params &p, struct desk &desk, struct ring r) {
    launch_wait(); /* v may still be read */
    uint32_t stage = 0;
    for (uint32_t turn = 0;; turn++) {
        mbarrier_wait(stage_full(desk, stage), stage_parity(stage));
        const struct note &note = desk.note[turn % NOTES];
        const uint32_t tiles = note_take(note.tiles);
        if (tiles == 0) {
            break;
        }
        ring_turn(r, width_of(note_take(note.groups)), eights_of(note_take(note.rows)), stage);
        switch (r.width) {
        case 1:
            compute_pass<T, 1, 1>(p, desk, note, tiles, r, stage);
            break;
        case 2:
            compute_pass<T, 1, 2>(p, desk, note, tiles, r, stage);
            break;
        case 4:
            compute_pass<T, 1, 4>(p, desk, note, tiles, r, stage);
            break;
        case 6:
            compute_pass<T, 1, 6>(p, desk, note, tiles, r, stage);
            break;
        case 8:
            compute_pass<T, 1, 8>(p, desk, note, tiles, r, stage);
            break;
        case 12:
            compute_pass<T, 1, 12>(p, desk, note, tiles, r, stage);
            break;
        case 16:
            compute_pass<T, 2, 8>(p, desk, note, tiles, r, stage);
            break;
        default:
            compute_pass<T, 2, 12>(p, desk, note, tiles, r, stage);
            break;
        }
        stage += (tiles + r.tiles - 1) / r.tiles;
    }
}

#endif

template <typename T>
__global__ void __launch_bounds__(THREADS, LORA_SHRINK_BLOCKS)
    lora_shrink_hopper_kernel(const __grid_constant__ struct params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint4 shrink_shared[];
    __shared__ struct desk desk;
    if (threadIdx.x == WARPGROUP) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(shared_address(&desk.full[i]), 1);
            mbarrier_init(shared_address(&desk.empty[i]), COMPUTE_WARPS);
        }
        mbarriers_publish();
    }
    __syncthreads();
    struct ring r = {};
    r.base = (shared_address(shrink_shared) + STRIP_EIGHT - 1) & ~(STRIP_EIGHT - 1u);
    if (threadIdx.x < WARPGROUP) {
        compute<T>(p, desk, r);
    } else {
        load<T>(p, desk, r);
    }
#endif
}

template <typename T> void launch(struct kern_device *d, const struct lora_call *c) {
    struct params p;
    p.c = *c;
    for (uint32_t i = 0; i < X_BOXES; i++) {
        if (!boxes_map(d, &p.x[i], c->x, c->rows, c->in, GROUP_RANKS << i)) {
            cuda_note(d, cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
            return;
        }
    }
    const dim3 grid(min(c->rows * c->splits, (uint32_t)(d->sm_count * LORA_SHRINK_BLOCKS)));
    cuda_launch_early(d, "lora_shrink_hopper", lora_shrink_hopper_kernel<T>,
                      cuda_shape{grid, THREADS, SHARED_BYTES, 1}, p);
}

template <typename T> enum err open(struct kern_device *d, struct err_text *why) {
    cudaFuncAttributes found;
    CU_TRY(why, cudaFuncGetAttributes(&found, lora_shrink_hopper_kernel<T>));
    /* no shared memory: no body, for it was not compiled for sm_90a */
    d->hopper_shrink = found.sharedSizeBytes != 0 && d->map_encode != nullptr;
    if (d->hopper_shrink) {
        CU_TRY(why,
               cudaFuncSetAttribute(lora_shrink_hopper_kernel<T>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
    }
    return ERR_OK;
}

} // namespace

void lora_shrink_hopper_launch(struct kern_device *d, const struct lora_call *c) {
    CUDA_WITH_ELEM(d, T, { launch<T>(d, c); });
}

extern "C" enum err cuda_lora_open(struct kern_device *d, struct err_text *why) {
    constexpr int HOPPER = 90;
    if (d->capability != HOPPER) {
        return ERR_OK;
    }
    CUDA_WITH_ELEM(d, T, { return open<T>(d, why); });
}

extern "C" enum err cuda_lora_pool(struct kern_device *d, struct err_text *why) {
    if (!d->hopper_shrink) {
        return ERR_OK;
    }
    CUtensorMap maps[A_BOXES];
    const uint64_t plane_rows = d->page_count * d->page_elems / KERN_TILE_COLUMNS;
    for (uint32_t i = 0; i < A_BOXES; i++) {
        if (!boxes_map(d, &maps[i], d->planes, d->shape.layers * plane_rows, KERN_TILE_COLUMNS,
                       GROUP_RANKS << i)) {
            return cuda_fail(why, cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
        }
    }
    CU_TRY(why, cudaMemcpyToSymbol(page_maps, maps, sizeof maps));
    return ERR_OK;
}
