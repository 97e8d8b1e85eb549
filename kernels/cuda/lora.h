/* lora.h - work lists of LoRA in a step's metadata. Inside kernels/cuda/ only. */
#ifndef LORRY_KERNELS_CUDA_LORA_H
#define LORRY_KERNELS_CUDA_LORA_H

#include <stdint.h>

/* Segments are cut into pieces of at most this many rows; which cut a launch uses depends on its
 * bucket, what a row's sums are does not. */
enum { CUDA_LORA_16, CUDA_LORA_32, CUDA_LORA_64, CUDA_LORA_CUTS };
enum { CUDA_LORA_TILE_ROWS = 128 }; /* of linear_wide.cu */

static inline uint32_t cuda_lora_cut_rows(uint32_t cut) {
    return 16u << cut;
}

/* Consecutive rows that share an adapter. */
struct cuda_lora_piece {
    uint32_t adapter;
    uint32_t row, rows;
};

/* Behind the adapters' pieces come those of the base rows and of padding, adapter KERN_BASE, for
 * kernels that do more than add LoRA. */
struct cuda_lora_list {
    const struct cuda_lora_piece *pieces; /* [all] */
    uint32_t count, all;
};

/* Filled by cuda_lora_plan(); pointers are device addresses. */
struct cuda_lora_meta {
    struct cuda_lora_list tokens[CUDA_LORA_CUTS]; /* the same rows of activations, cut thrice */
    struct cuda_lora_list samples;                /* rows of logits, in pieces of 16 */
    struct cuda_lora_list whole;                  /* the segments, uncut, without base rows */
    /* [tiles of CUDA_LORA_TILE_ROWS rows + 1], an even number of tiles: the first of them that ends
     * behind the tile's first row. */
    const uint32_t *tile_first;
};

#endif
