/* lora.cuh - what LoRA's kernels share: their arguments, and where a tile lies on the device.
 *
 * The tile order is that of kernels.h; kern_tile_begin() is the twin of lora_run_of() with
 * lora_tile(). */
#ifndef LORRY_KERNELS_CUDA_LORA_CUH
#define LORRY_KERNELS_CUDA_LORA_CUH

#include "kernels/cuda/common.cuh"

enum {
    LORA_WARPS = 4,
    LORA_THREADS = 32 * LORA_WARPS,
    LORA_SPLITS_MAX = 8, /* of a sum over at most LORA_LONG tiles; twice that of longer ones */
    LORA_LONG = 128,
    LORA_SPLIT_ROWS = 4096,  /* three projections of this many rows are not split */
    LORA_FEW_ROWS = 1024,    /* up to here splits are as many as there may be */
    LORA_SEGMENTS = 8,       /* that a larger step may have: each ends with a short piece */
    LORA_SHRINK_BLOCKS = 2,  /* of threads, on a multiprocessor of sm_90a */
    LORA_GROUP_MAX = 3,      /* projections that share an input */
    LORA_ITEM_TURNS = 3,     /* items of expand that a block of threads should get, at least */
    LORA_ITEM_STEPS_MAX = 8, /* column tiles that a warp takes in one of them, at most */
    LORA_OUTER_STEPS_MAX = 64,
};
#define LORA_OUTER UINT32_MAX /* as a layer: the second list */

/* A launch. */
struct lora_call {
    struct cuda_tables tables;
    const struct cuda_meta *meta;
    const struct cuda_lora_list *list; /* in *meta */
    uint32_t layer;                    /* or LORA_OUTER */
    uint32_t entry;                    /* of the first projection; those of the others follow */
    uint32_t projections;
    uint32_t page_elems;
    uint32_t rows, splits;
    uint32_t shares; /* of a piece's split in shrink, between blocks of threads */
    float *v;        /* partial sums: [splits][rows][projections][KERN_RANK_MAX] */
    const void *x;
    uint32_t in; /* [rows][in] */
    void *y;
    uint32_t y_row;
    uint32_t out[LORA_GROUP_MAX], at[LORA_GROUP_MAX]; /* a projection's columns, the first of y */
};

/* A group's call, without x and y. */
struct lora_call lora_group_call(const struct kern_device *d, uint32_t layer,
                                 enum cuda_group group);
/* lora_pack.cu; of rows in pieces of 16. */
void lora_pack_launch(struct kern_device *d, const struct lora_call *c);
/* Partial sums of x Aᵀ; A's splits. `cut` names the list. */
void lora_shrink_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut);
/* The same on sm_90a, where d->hopper_shrink. */
void lora_shrink_hopper_launch(struct kern_device *d, const struct lora_call *c);
/* v = A[:, token], unsplit. */
void lora_gather_launch(struct kern_device *d, const struct lora_call *c);
/* y += scale · ((Σ splits) Bᵀ + bias); y is f32 where `logits`. */
void lora_expand_launch(struct kern_device *d, const struct lora_call *c, uint32_t cut,
                        bool logits);
/* The same of one projection onto x, then d->normed = norm of x; false: no kernel is for it. */
bool lora_norm_launch(struct kern_device *d, struct lora_call c, const float *w,
                      struct cuda_ahead ahead);
/* The same of gate and up, c->y, and then act = silu(gate) · up; c->y stays. */
void lora_act_launch(struct kern_device *d, const struct lora_call *c);
/* The same of q, k and v, c->y, and then what cuda_qkv_rows() does. */
void lora_qkv_launch(struct kern_device *d, const struct lora_call *c);

/* ---- where things lie --------------------------------------------------------------------- */

/* An adapter's pages as one call sees them: of a layer, or of the second list. */
template <typename T> struct lora_pages {
    const T *plane; /* of the layer; of layer 0 for the second list */
    const uint32_t *list;
    uint32_t adapter;
};

/* Equal tiles, one after the other. */
struct lora_run {
    uint32_t page, base; /* of the first page: index in the list, element inside */
    uint32_t first;      /* tiles that fit there */
    uint32_t page_tiles; /* and in the pages that follow */
    uint32_t tile_elems;
    uint32_t index; /* of this block's tile 0 in the run */
};

static __host__ __device__ __forceinline__ uint32_t lora_tiles(uint32_t columns) {
    return (columns + KERN_TILE_COLUMNS - 1) / KERN_TILE_COLUMNS;
}

/* Tiles of `tile_elems` from list element `begin` on. */
static __host__ __device__ __forceinline__ struct lora_run
lora_run_at(uint32_t page_elems, uint32_t begin, uint32_t tile_elems) {
    struct lora_run r;
    r.page = begin / page_elems;
    r.base = begin - r.page * page_elems;
    r.first = (page_elems - r.base) / tile_elems;
    r.page_tiles = page_elems / tile_elems;
    r.tile_elems = tile_elems;
    r.index = 0;
    return r;
}

/* Page (in the list) and element inside it of tile `tile` of the run's block. */
static __host__ __device__ __forceinline__ void lora_place(const struct lora_run &r, uint32_t tile,
                                                           uint32_t *page, uint32_t *element) {
    uint32_t index = r.index + tile;
    if (index < r.first) {
        *page = r.page;
        *element = r.base + index * r.tile_elems;
        return;
    }
    uint32_t after = index - r.first;
    uint32_t pages = after / r.page_tiles;
    *page = r.page + 1 + pages;
    *element = (after - pages * r.page_tiles) * r.tile_elems;
}

/* The tiles of rank block `block` of a matrix of `tiles` column tiles that starts at `begin`. */
static __host__ __device__ __forceinline__ struct lora_run
lora_run_of(uint32_t page_elems, uint32_t begin, uint32_t rank, uint32_t tiles, uint32_t block) {
    uint32_t full = rank / KERN_BLOCK_RANKS;
    struct lora_run r = lora_run_at(page_elems, begin, KERN_TILE_ELEMENTS);
    if (block < full) {
        r.index = block * tiles;
        return r;
    }
    if (full != 0) { /* right behind the last of the wider tiles */
        uint32_t page, element;
        lora_place(r, full * tiles - 1, &page, &element);
        begin = page * page_elems + element + KERN_TILE_ELEMENTS;
    }
    return lora_run_at(page_elems, begin, rank % KERN_BLOCK_RANKS * KERN_TILE_COLUMNS);
}

template <typename T>
static __device__ __forceinline__ struct lora_pages<T> lora_pages_of(const struct lora_call &c,
                                                                     uint32_t adapter) {
    struct lora_pages<T> p;
    p.plane = static_cast<const T *>(c.meta->planes);
    p.list = c.tables.adapter_pages + (uint64_t)adapter * c.tables.adapter_page_row;
    p.adapter = adapter;
    if (c.layer == LORA_OUTER) {
        p.list += c.tables.adapters[adapter].layer_pages;
    } else {
        p.plane += c.layer * c.meta->plane_elems;
    }
    return p;
}

template <typename T>
static __device__ __forceinline__ const T *lora_element(const struct lora_call &c,
                                                        const struct lora_pages<T> &p,
                                                        uint32_t page, uint32_t element) {
    const T *plane = p.plane;
    if (c.layer == LORA_OUTER) {
        uint32_t pages = c.tables.adapters[p.adapter].outer_pages;
        plane += page / pages * c.meta->plane_elems;
        page %= pages;
    }
    return plane + (uint64_t)p.list[page] * c.page_elems + element;
}

template <typename T>
static __device__ __forceinline__ const T *lora_tile(const struct lora_call &c,
                                                     const struct lora_pages<T> &p,
                                                     const struct lora_run &r, uint32_t tile) {
    uint32_t page, element;
    lora_place(r, tile, &page, &element);
    return lora_element(c, p, page, element);
}

/* An adapter's entry for projection `projection` of the call. */
static __device__ __forceinline__ const struct kern_lora *
lora_entry(const struct lora_call &c, uint32_t adapter, uint32_t projection) {
    return c.tables.lora + (uint64_t)adapter * c.tables.lora_row + c.entry + projection;
}

static __device__ __forceinline__ float *lora_v(const struct lora_call &c, uint32_t split,
                                                uint32_t row, uint32_t projection) {
    uint64_t at = ((uint64_t)split * c.rows + row) * c.projections + projection;
    return c.v + at * KERN_RANK_MAX;
}

/* ---- loads of adapters -------------------------------------------------------------------- */

/* Read once by a block, so they stay out of the first-level cache. */
static __device__ __forceinline__ uint4 lora_load_16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint2 lora_load_8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint32_t lora_load_4(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

/* Read again by the block that reads them. Volatile as those above: hoisted, they would spill. */
static __device__ __forceinline__ uint4 lora_load_again_16(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
static __device__ __forceinline__ uint2 lora_load_again_8(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
static __device__ __forceinline__ uint32_t lora_load_again_4(const void *p) {
    uint32_t v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

#endif
