/* attention.h - work lists of attention in a step's metadata. Inside kernels/cuda/ only. */
#ifndef LORRY_KERNELS_CUDA_ATTENTION_H
#define LORRY_KERNELS_CUDA_ATTENTION_H

#include <stdint.h>

enum {
    CUDA_PREFILL_ROWS = 128, /* tokens of one prefill item, at most */
    CUDA_DECODE_HEADS = 8,   /* query heads of one key-value head that a warp takes at a time */
    CUDA_DECODE_TILE = 16,   /* tokens of one round of a warp */
    CUDA_DECODE_WARPS = 2,   /* of a block */
    CUDA_DECODE_BLOCKS = 4,  /* of a multiprocessor */
};

/* A split: one row (a chunk of one token) over positions begin .. end - 1 of its slot, all heads.
 * Where one of a row's splits ends and the next begins is a multiple of CUDA_DECODE_TILE. */
struct cuda_decode_item {
    uint32_t row;
    uint32_t slot;
    uint32_t begin, end;
    uint32_t split_count; /* of the row; 1: the result goes straight to `attended` */
    uint32_t split;       /* 0 .. split_count - 1 */
    uint32_t partial;     /* the row's split 0 among those of all rows that have several */
    uint32_t arrival;     /* the row among all that have several */
};

/* Up to CUDA_PREFILL_ROWS consecutive tokens of one chunk. */
struct cuda_prefill_item {
    uint32_t token_begin; /* row of the first */
    uint32_t token_count;
    uint32_t position; /* of the first */
    uint32_t slot;
};

/* Filled by cuda_attention_plan(); pointers are device addresses. */
struct cuda_attention_meta {
    const struct cuda_decode_item *decode;   /* [decode_count] */
    const struct cuda_prefill_item *prefill; /* [prefill_count], longest context first (classes of a
                                                quarter octave, inside them in token order) */
    uint32_t *arrivals; /* [rows of several splits][units]; zero before and after each layer */
    uint32_t decode_count, prefill_count;
};

/* A unit is a key-value head and up to CUDA_DECODE_HEADS of the query heads that share it: what a
 * warp does of an item. Units of a row: */
static inline uint32_t cuda_decode_units(uint32_t heads, uint32_t kv_heads) {
    return kv_heads * ((heads / kv_heads + CUDA_DECODE_HEADS - 1) / CUDA_DECODE_HEADS);
}

/* Floats that a unit of a split leaves in the scratch: unscaled sums of V, the scores' maximum and
 * the sum of their exponentials, of heads in pairs. */
static inline uint32_t cuda_decode_partial(uint32_t heads, uint32_t kv_heads, uint32_t head_dim) {
    uint32_t group = heads / kv_heads, most = CUDA_DECODE_HEADS;
    uint32_t pairs = ((group < most ? group : most) + 1) / 2;
    return pairs * (2 * head_dim + 4);
}

#endif
