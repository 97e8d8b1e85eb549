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
 * warpgroup multiplies. A stage of the ring between them is 64 columns: of x as many rows as the
 * bucket's pieces may have, and a tile of each group, both as strips of 128 bytes (wgmma.cuh).
 * Stage n is the business of warp n % 4 alone: it copies it with cp.async, whose arrival the
 * stage's barrier counts, and goes on to n + 4, over passes and items; what it must look up for
 * pieces to come is on its way meanwhile. The warpgroup learns of a pass from a note and adds four
 * products of 16 columns a stage to its sums [64 rows][ranks]. Rows beyond the piece hold anything,
 * and so do groups beyond the pass, up to the instruction's width: nothing of theirs is stored or
 * meets another sum.
 *
 * A row's sum runs over the columns of a split in ascending order, then (in expand) over splits;
 * how many splits there are depends on the bucket and the shape alone, so that neighbours change no
 * bit.
 *
 * Bytes: of x rows × in × 2 a pass; of A rank × in × 2 a piece, from memory once a step, again from
 * the second-level cache where a segment has several pieces; v. On their way: up to 104 KiB a
 * block, two blocks a multiprocessor. FLOPs: 2 × rows × rank × in. Sums are f32, products exact.
 * Against f64: ≤ in × 2⁻²⁴ of Σ|x a|.
 *
 * Tried (H200, November 2026, Llama 3.1 8B's shape, 8,192 rows of rank 16, µs of qkv, o, gate_up,
 * down; lora_shrink.cu: 78, 37, 52, 119): as here, one split: 26, 22, 24, 66; two: 31, 28, 29, 87,
 * since the second turn of a few blocks is as long as the first; two loading warps that share every
 * stage: 54, 48, 48, 172; one arrival a stage, sent after waiting for the copies: 31, 25, 27, 75;
 * three blocks of 12 groups and two loading warps, two splits: 24, 21, 23, 64, but a rank of 64
 * then takes 63, 27, 49, 72 in two passes and one split twice that.
 *
 * What bounds it: of down's 66 µs 49 are left without the copies, 60 without the products, 27
 * without both: a stage's barriers and its four products, whose latency is the same for few ranks
 * as for many, follow one another in the warpgroup. Memory bounds large steps of rank 16, this
 * bounds steps of many adapters with few rows: 1,000 rows of 200 take 29, 21, 23, 57
 * (lora_shrink.cu: 39, 19, 26, 47), of which 27, 15, 20, 39 without the products. The fence in
 * front of them and the second-level cache's 256 bytes a request cost and gain nothing. */
#include "kernels/cuda/lora.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace {

enum {
    ROWS = 64,                 /* of a piece, at most: m of wgmma */
    STEP = 16,                 /* k of wgmma */
    GROUP_RANKS = 8,           /* n is a multiple */
    GROUP_BYTES = STRIP_EIGHT, /* of a tile's columns of a group; of as many rows of x */
    PASS_GROUPS = 24,          /* of a pass, at most: 96 registers */
    COMPUTE_WARPS = WARPGROUP / 32,
    LOAD_WARPS = 4, /* each loads stages of its own */
    THREADS = WARPGROUP + 32 * LOAD_WARPS,
    STAGES = 16,                       /* in shared memory, at most */
    NOTES = 2 * STAGES,                /* more than passes can be on their way */
    ROOM = 104 << 10,                  /* of the stages */
    SHARED_BYTES = ROOM + STRIP_EIGHT, /* to align */
};

/* What the loaders tell the warpgroup of a pass. */
struct note {
    float *v;                    /* of the piece's first row, of the split */
    uint32_t rows, tiles;        /* tiles 0: there are no more passes */
    uint32_t groups, width;      /* groups, and those of the instructions */
    uint32_t place[PASS_GROUPS]; /* of a group in a row of v */
};

struct desk {
    uint64_t full[STAGES], empty[STAGES];
    struct note note[NOTES];
};

struct params {
    struct lora_call c;
    uint32_t x_bytes; /* of a stage: rows of the longest piece, up to a multiple of 8 */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- the ring ----------------------------------------------------------------------------- */

/* Stages of equal bytes, while passes of the same width follow one another; where the width
 * changes the ring runs empty and begins anew at its front. All warps walk it alike. */
struct ring {
    uint32_t base, x_bytes;
    uint32_t width, bytes, slots; /* stage bytes, how many there are */
    uint32_t begin;               /* stage at which this width began; they are numbered through */
};

__device__ __forceinline__ void ring_turn(struct ring &r, uint32_t width, uint32_t stage) {
    if (width != r.width) {
        r.width = width;
        r.bytes = r.x_bytes + width * GROUP_BYTES;
        /* wgmma reads 64 rows, whatever there are */
        r.slots = min((ROOM - (ROWS * STRIP_ROW - r.x_bytes)) / r.bytes, (uint32_t)STAGES);
        r.begin = stage;
    }
}

/* The phase in which stage `stage` is filled, or emptied again. */
__device__ __forceinline__ uint32_t stage_parity(uint32_t stage) {
    return stage / STAGES % 2;
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

struct shrink_ranks {
    uint32_t rank[LORA_GROUP_MAX], begin[LORA_GROUP_MAX];
};

/* A piece, as all loaders know it; what they need of the next two is on its way. */
struct feed {
    struct cuda_lora_piece piece, next, after;
    struct shrink_ranks ranks, ranks_next;
    uint32_t number, pieces;
};

/* A lane's group: where its part of a tile lies. */
template <typename T> struct group {
    struct lora_pages<T> pages;
    struct lora_run run;
    uint32_t offset; /* in a tile */
    uint32_t place;  /* in a row of v */
    const T *at;     /* in the tile that is up */
    uint32_t left;   /* tiles from there to the end of the page */
};

__device__ __forceinline__ struct cuda_lora_piece piece_of(const struct lora_call &c,
                                                           uint32_t number, uint32_t pieces) {
    if (number >= pieces) {
        return {KERN_BASE, 0, 0};
    }
    return c.list->pieces[number];
}

__device__ __forceinline__ struct shrink_ranks ranks_of(const struct lora_call &c,
                                                        uint32_t adapter) {
    struct shrink_ranks r = {};
#pragma unroll
    for (uint32_t p = 0; p < LORA_GROUP_MAX; p++) {
        if (p < c.projections && adapter != KERN_BASE) {
            const struct kern_lora *lora = lora_entry(c, adapter, p);
            r.rank[p] = lora->rank;
            r.begin[p] = (uint32_t)lora->a;
        }
    }
    return r;
}

__device__ __forceinline__ void feed_begin(const struct lora_call &c, uint32_t number,
                                           uint32_t pieces, struct feed &f) {
    f.number = number;
    f.pieces = pieces;
    f.piece = piece_of(c, number, pieces);
    f.next = piece_of(c, number + 1, pieces);
    f.after = piece_of(c, number + 2, pieces);
    f.ranks = ranks_of(c, f.piece.adapter);
    f.ranks_next = ranks_of(c, f.next.adapter);
}

__device__ __forceinline__ void feed_next(const struct lora_call &c, struct feed &f) {
    f.number++;
    f.piece = f.next;
    f.ranks = f.ranks_next;
    f.next = f.after;
    f.ranks_next = ranks_of(c, f.next.adapter);
    f.after = piece_of(c, f.number + 2, f.pieces);
}

/* The lane's group becomes `index` of the row of all ranks. */
template <typename T>
__device__ __forceinline__ void group_set(const struct lora_call &c, const struct feed &f,
                                          uint32_t index, struct group<T> &g) {
    uint32_t rank = f.ranks.rank[0], begin = f.ranks.begin[0], projection = 0;
    uint32_t first = index * GROUP_RANKS;
#pragma unroll
    for (uint32_t p = 1; p < LORA_GROUP_MAX; p++) {
        if (projection == p - 1 && first >= rank) {
            first -= rank;
            rank = f.ranks.rank[p];
            begin = f.ranks.begin[p];
            projection = p;
        }
    }
    g.pages = lora_pages_of<T>(c, f.piece.adapter);
    g.run = lora_run_of(c.page_elems, begin, rank, lora_tiles(c.in), first / KERN_BLOCK_RANKS);
    g.offset = first % KERN_BLOCK_RANKS * KERN_TILE_COLUMNS;
    g.place = projection * KERN_RANK_MAX + first;
}

/* Tile `tile` is up. */
template <typename T>
__device__ __forceinline__ void group_seek(const struct lora_call &c, uint32_t tile,
                                           struct group<T> &g) {
    const uint32_t index = g.run.index + tile;
    uint32_t page, element;
    lora_place(g.run, tile, &page, &element);
    g.left = index < g.run.first ? g.run.first - index
                                 : g.run.page_tiles - (index - g.run.first) % g.run.page_tiles;
    g.at = lora_element(c, g.pages, page, element) + g.offset;
}

/* Of `tile` the tile LOAD_WARPS before was up. */
template <typename T>
__device__ __forceinline__ void group_step(const struct lora_call &c, uint32_t tile,
                                           struct group<T> &g) {
    if (g.left > LOAD_WARPS) {
        g.left -= LOAD_WARPS;
        g.at += LOAD_WARPS * g.run.tile_elems;
    } else {
        group_seek(c, tile, g);
    }
}

/* 16 bytes; memory may bring those round them too, which come next. */
__device__ __forceinline__ void copy_wide(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

/* The tile of x and of `groups` groups, by one warp: lane l has piece l % 8 of the rows, or ranks,
 * l / 8, l / 8 + 4, … Rows beyond the piece stay what they were. */
template <typename T>
__device__ __forceinline__ void copy_stage(const struct params &p, const T *x, uint32_t rows,
                                           uint32_t tile, const T *group, uint32_t groups,
                                           uint32_t stage) {
    const uint32_t lane = threadIdx.x % 32, row = lane / 8, piece = lane % 8;
    const uint32_t column = tile * KERN_TILE_COLUMNS + piece * 8;
    const bool inside = column < p.c.in;
    const uint32_t to[2] = {stage + strip_at(row, piece), stage + strip_at(row + 4, piece)};
    const T *from = x + (row * p.c.in + (inside ? column : 0));
#pragma unroll
    for (uint32_t k = 0; k < ROWS / 4; k++) {
        if (k * 4 + row < rows) {
            copy_wide(to[k % 2] + k / 2 * GROUP_BYTES, from, inside);
        }
        from += 4 * p.c.in;
    }
#pragma unroll 2
    for (uint32_t g = 0; g < groups; g++) {
        unsigned long long of = reinterpret_cast<unsigned long long>(group);
        const T *a = reinterpret_cast<const T *>(__shfl_sync(0xffffffffu, of, g)) + lane * 8;
        const uint32_t at = p.x_bytes + g * GROUP_BYTES;
        copy_wide(to[0] + at, a, true);
        copy_wide(to[1] + at, a + 4 * KERN_TILE_COLUMNS, true);
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

/* A pass over the columns of a split. */
struct pass {
    uint32_t split, tile_begin, tiles;
    uint32_t groups, stage; /* its first */
};

template <typename T>
__device__ __forceinline__ void note_write(const struct params &p, const struct feed &f,
                                           const struct pass &pass, uint32_t width, uint32_t place,
                                           struct note &to) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane < pass.groups) {
        to.place[lane] = place;
    }
    if (lane == 0) {
        to.v = lora_v(p.c, pass.split, f.piece.row, 0);
        to.rows = f.piece.rows;
        to.tiles = pass.tiles;
        to.groups = pass.groups;
        to.width = width;
    }
    __syncwarp();
}

/* This warp's stages of a pass: those whose number modulo LOAD_WARPS is its own. */
template <typename T>
__device__ __forceinline__ void load_pass(const struct params &p, struct desk &desk,
                                          const struct feed &f, const struct pass &pass,
                                          struct group<T> &g, struct ring &r, struct note &note) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 - COMPUTE_WARPS;
    const uint32_t width = width_of(pass.groups);
    ring_turn(r, width, pass.stage);
    uint32_t of = (warp + LOAD_WARPS - pass.stage % LOAD_WARPS) % LOAD_WARPS;
    if (of >= pass.tiles) {
        return;
    }
    uint32_t slot = (pass.stage + of - r.begin) % r.slots;
    const T *x = static_cast<const T *>(p.c.x) + (uint64_t)f.piece.row * p.c.in;
    group_seek(p.c, pass.tile_begin + of, g);
    while (of < pass.tiles) {
        const uint32_t stage = pass.stage + of, tile = pass.tile_begin + of;
        const uint32_t full = shared_address(&desk.full[stage % STAGES]);
        room_wait(desk, r, stage);
        if (of == 0) {
            note_write<T>(p, f, pass, width, g.place, note);
        }
        if (lane == 0) {
            mbarrier_arrive(full);
        }
        copy_stage(p, x, f.piece.rows, tile, g.at, pass.groups, r.base + slot * r.bytes);
        mbarrier_arrive_copied(full);
        of += LOAD_WARPS;
        if (of < pass.tiles) {
            group_step(p.c, tile + LOAD_WARPS, g);
        }
        for (slot += LOAD_WARPS; slot >= r.slots;) {
            slot -= r.slots;
        }
    }
}

/* The block's items: neighbours in the row of all, so that most are of the same piece. */
template <typename T>
__device__ __forceinline__ void load(const struct params &p, struct desk &desk, struct ring r) {
    const struct lora_call &c = p.c;
    const uint32_t pieces = c.list->count, items = pieces * c.splits;
    const uint32_t first = items * blockIdx.x / gridDim.x;
    const uint32_t end = items * (blockIdx.x + 1) / gridDim.x;
    const uint32_t tiles = lora_tiles(c.in), split_tiles = (tiles + c.splits - 1) / c.splits;
    struct feed f;
    feed_begin(c, first / c.splits, pieces, f);
    struct group<T> g;
    struct pass pass = {};
    pass.split = first % c.splits;
    uint32_t notes = 0;
    bool waited = false;
    for (uint32_t item = first; item < end; item++) {
        const uint32_t all = (f.ranks.rank[0] + f.ranks.rank[1] + f.ranks.rank[2]) / GROUP_RANKS;
        const uint32_t passes = (all + PASS_GROUPS - 1) / PASS_GROUPS;
        pass.tile_begin = pass.split * split_tiles;
        pass.tiles = min(split_tiles, tiles - pass.tile_begin);
        for (uint32_t i = 0; i < passes; i++) {
            const uint32_t from = i * all / passes;
            pass.groups = (i + 1) * all / passes - from;
            if (passes > 1 || item == first || pass.split == 0) {
                group_set(c, f, from + min(threadIdx.x % 32, pass.groups - 1), g);
            }
            if (!waited) {
                launch_wait();
                waited = true;
            }
            load_pass(p, desk, f, pass, g, r, desk.note[notes % NOTES]);
            notes++;
            pass.stage += pass.tiles;
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
        const uint32_t full = shared_address(&desk.full[pass.stage % STAGES]);
        if (threadIdx.x % 32 == 0) {
            desk.note[notes % NOTES].tiles = 0;
            mbarrier_arrive(full);
        }
        mbarrier_arrive_copied(full);
    }
    copy_async_commit();
    copy_async_wait<0>();
}

/* ---- the warpgroup ------------------------------------------------------------------------ */

/* clang-format off */
#define SHRINK_D(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SHRINK_D2(j) SHRINK_D(j), SHRINK_D(j + 1)
#define SHRINK_D4(j) SHRINK_D2(j), SHRINK_D2(j + 2)
#define SHRINK_D6(j) SHRINK_D4(j), SHRINK_D2(j + 4)
#define SHRINK_R1 "%0, %1, %2, %3"
#define SHRINK_R2 SHRINK_R1 ", %4, %5, %6, %7"
#define SHRINK_R4 SHRINK_R2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SHRINK_R6 SHRINK_R4 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SHRINK_R8 SHRINK_R6 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SHRINK_R12 SHRINK_R8 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"

/* d += x aᵀ: both K-major in shared memory, n as wide as d. */
template <typename T, int GROUPS>
__device__ __forceinline__ void wgmma_ranks(float (&d)[GROUPS][4], uint64_t x, uint64_t a);
#define SHRINK_WGMMA(T, type, groups, n, regs, xr, ar, ...)                                     \
    template <>                                                                                 \
    __device__ __forceinline__ void wgmma_ranks<T, groups>(float (&d)[groups][4], uint64_t x,   \
                                                           uint64_t a) {                        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" regs   \
                     "}, " xr ", " ar ", 1, 1, 1, 0, 0;"                                        \
                     : __VA_ARGS__                                                              \
                     : "l"(x), "l"(a));                                                         \
    }
#define SHRINK_WGMMAS(T, type)                                                                  \
    SHRINK_WGMMA(T, type, 1, "8", SHRINK_R1, "%4", "%5", SHRINK_D(0))                           \
    SHRINK_WGMMA(T, type, 2, "16", SHRINK_R2, "%8", "%9", SHRINK_D2(0))                         \
    SHRINK_WGMMA(T, type, 4, "32", SHRINK_R4, "%16", "%17", SHRINK_D4(0))                       \
    SHRINK_WGMMA(T, type, 6, "48", SHRINK_R6, "%24", "%25", SHRINK_D6(0))                       \
    SHRINK_WGMMA(T, type, 8, "64", SHRINK_R8, "%32", "%33", SHRINK_D4(0), SHRINK_D4(4))         \
    SHRINK_WGMMA(T, type, 12, "96", SHRINK_R12, "%48", "%49", SHRINK_D6(0), SHRINK_D6(6))
SHRINK_WGMMAS(__half, "f16")
SHRINK_WGMMAS(__nv_bfloat16, "bf16")
/* clang-format on */

/* This warp is done with a stage. */
__device__ __forceinline__ void release(struct desk &desk, uint32_t stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(shared_address(&desk.empty[stage % STAGES]));
    }
}

/* A pass, by PARTS instructions of GROUPS groups each, 16 columns at a time. */
template <typename T, int PARTS, int GROUPS>
__device__ __forceinline__ void compute_pass(const struct params &p, struct desk &desk,
                                             const struct note &note, const struct ring &r,
                                             uint32_t stage) {
    const uint32_t end = stage + note.tiles;
    uint32_t slot = (stage - r.begin) % r.slots;
    float sum[PARTS][GROUPS][4] = {};
    for (bool first = true; stage < end; stage++, first = false) {
        mbarrier_wait(shared_address(&desk.full[stage % STAGES]), stage_parity(stage));
        fence_async_proxy();
        const uint32_t at = r.base + slot * r.bytes;
        const uint64_t x = wgmma_operand(at, 16, STRIP_EIGHT);
        const uint64_t a = wgmma_operand(at + r.x_bytes, 16, STRIP_EIGHT);
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
        if (!first) {
            wgmma_wait<1>();
            release(desk, stage - 1);
        }
        slot = slot + 1 == r.slots ? 0 : slot + 1;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        wgmma_hold(sum[part]);
    }
    release(desk, end - 1);
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    const uint32_t v_row = p.c.projections * KERN_RANK_MAX;
    const uint32_t rows = note.rows, groups = note.groups;
    float *v = note.v + ((uint64_t)row * v_row + lane % 4 * 2);
#pragma unroll
    for (int n = 0; n < PARTS * GROUPS; n++) {
        if (n < groups) {
            const float *s = sum[n / GROUPS][n % GROUPS];
            float *to = v + note.place[n];
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
    uint32_t stage = 0, tiles = 0;
    for (uint32_t turn = 0;; turn++, stage += tiles) {
        mbarrier_wait(shared_address(&desk.full[stage % STAGES]), stage_parity(stage));
        const struct note &note = desk.note[turn % NOTES];
        tiles = note.tiles;
        if (tiles == 0) {
            break;
        }
        ring_turn(r, note.width, stage);
        switch (note.width) {
        case 1:
            compute_pass<T, 1, 1>(p, desk, note, r, stage);
            break;
        case 2:
            compute_pass<T, 1, 2>(p, desk, note, r, stage);
            break;
        case 4:
            compute_pass<T, 1, 4>(p, desk, note, r, stage);
            break;
        case 6:
            compute_pass<T, 1, 6>(p, desk, note, r, stage);
            break;
        case 8:
            compute_pass<T, 1, 8>(p, desk, note, r, stage);
            break;
        case 12:
            compute_pass<T, 1, 12>(p, desk, note, r, stage);
            break;
        case 16:
            compute_pass<T, 2, 8>(p, desk, note, r, stage);
            break;
        default:
            compute_pass<T, 2, 12>(p, desk, note, r, stage);
            break;
        }
    }
}

#endif

template <typename T>
__global__ void __launch_bounds__(THREADS, LORA_SHRINK_BLOCKS)
    lora_shrink_hopper_kernel(const __grid_constant__ struct params p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint4 shrink_shared[];
    __shared__ struct desk desk;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(shared_address(&desk.full[i]), 32 + 1); /* copies, and the note */
            mbarrier_init(shared_address(&desk.empty[i]), COMPUTE_WARPS);
        }
    }
    __syncthreads();
    struct ring r = {};
    r.base = (shared_address(shrink_shared) + STRIP_EIGHT - 1) / STRIP_EIGHT * STRIP_EIGHT;
    r.x_bytes = p.x_bytes;
    if (threadIdx.x < WARPGROUP) {
        compute<T>(p, desk, r);
    } else {
        load<T>(p, desk, r);
    }
#endif
}

template <typename T> void launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    struct params p;
    p.c = *c;
    p.x_bytes = cuda_round_up(min(cuda_lora_cut_rows(cut), c->rows), 8) * STRIP_ROW;
    const dim3 grid(min(c->rows * c->splits, (uint32_t)(d->sm_count * LORA_SHRINK_BLOCKS)));
    cuda_launch_early(d, "lora_shrink_hopper", lora_shrink_hopper_kernel<T>,
                      cuda_shape{grid, THREADS, SHARED_BYTES, 1}, p);
}

template <typename T> enum err open(struct kern_device *d, struct err_text *why) {
    cudaFuncAttributes found;
    CU_TRY(why, cudaFuncGetAttributes(&found, lora_shrink_hopper_kernel<T>));
    d->hopper_shrink = found.sharedSizeBytes != 0; /* else no body: not compiled for sm_90a */
    if (d->hopper_shrink) {
        CU_TRY(why,
               cudaFuncSetAttribute(lora_shrink_hopper_kernel<T>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES));
    }
    return ERR_OK;
}

} // namespace

void lora_shrink_hopper_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut) {
    CUDA_WITH_ELEM(d, T, { launch<T>(d, c, cut); });
}

extern "C" enum err cuda_lora_open(struct kern_device *d, struct err_text *why) {
    constexpr int HOPPER = 90;
    if (d->capability != HOPPER) {
        return ERR_OK;
    }
    CUDA_WITH_ELEM(d, T, { return open<T>(d, why); });
}
