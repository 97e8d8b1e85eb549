/* lora_groups.cuh - the ranks of all projections that share an input, in one row, in groups of 8: a
 * group is what one matrix instruction takes. For the kernels that make x Aᵀ. */
#ifndef LORRY_KERNELS_CUDA_LORA_GROUPS_CUH
#define LORRY_KERNELS_CUDA_LORA_GROUPS_CUH

#include "kernels/cuda/lora.cuh"

static constexpr uint32_t GROUP_RANKS = 8;

/* An adapter's A of each projection of a call. */
struct lora_ranks {
    uint32_t rank[LORA_GROUP_MAX], begin[LORA_GROUP_MAX];
};

static __device__ __forceinline__ struct lora_ranks lora_ranks_of(const struct lora_call &c,
                                                                  uint32_t adapter) {
    struct lora_ranks r = {};
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

static __device__ __forceinline__ uint32_t lora_groups_of(const struct lora_ranks &r) {
    return (r.rank[0] + r.rank[1] + r.rank[2]) / GROUP_RANKS;
}

/* Where a group's columns lie, and its sums. */
struct lora_group {
    struct lora_run run; /* of its rank block */
    uint32_t offset;     /* in a tile */
    uint32_t place;      /* in a row of v */
};

static __device__ __forceinline__ struct lora_group
lora_group_at(const struct lora_call &c, const struct lora_ranks &r, uint32_t group) {
    uint32_t rank = r.rank[0], begin = r.begin[0], projection = 0, at = group * GROUP_RANKS;
#pragma unroll
    for (uint32_t p = 1; p < LORA_GROUP_MAX; p++) {
        if (projection == p - 1 && at >= rank) {
            at -= rank;
            rank = r.rank[p];
            begin = r.begin[p];
            projection = p;
        }
    }
    struct lora_group g;
    g.run = lora_run_of(c.page_elems, begin, rank, lora_tiles(c.in), at / KERN_BLOCK_RANKS);
    g.offset = at % KERN_BLOCK_RANKS * KERN_TILE_COLUMNS;
    g.place = projection * KERN_RANK_MAX + at;
    return g;
}

#endif
