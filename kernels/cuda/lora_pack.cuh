/* lora_pack.cuh - v as an operand of matrix instructions: what lora_pack.cu writes and
 * linear_wide.cu reads.
 *
 * packed [key][rows / 16][32 lanes] of four words: lane l has of 16 rows the rows l / 4 and
 * l / 4 + 8, of 16 ranks 2 (l % 4) and the next (words 0 and 1: of the two rows) and those + 8
 * (words 2, 3). key: projection and slice of 16 ranks. Scaled, and rounded to the 16-bit type once.
 * Ranks beyond an adapter's, up to a multiple of 16, are zeros; what lies beyond, and rows of no
 * adapter, are anything. */
#ifndef LORRY_KERNELS_CUDA_LORA_PACK_CUH
#define LORRY_KERNELS_CUDA_LORA_PACK_CUH

#include "kernels/cuda/lora.cuh"

enum {
    PACK_ROWS = 16,
    PACK_RANKS = 16,
    PACK_LANES = 32,
    PACK_SLICES = KERN_RANK_MAX / PACK_RANKS,
};

static __host__ __device__ __forceinline__ uint32_t pack_key(uint32_t projection, uint32_t slice) {
    return projection * PACK_SLICES + slice;
}

/* Sixteens of rows that there is room for: whole tiles of a cluster of linear_wide.cu. */
static __host__ __device__ __forceinline__ uint32_t pack_sixteens(uint32_t rows) {
    return (rows + 2 * CUDA_LORA_TILE_ROWS - 1) / (2 * CUDA_LORA_TILE_ROWS) *
           (2 * CUDA_LORA_TILE_ROWS / PACK_ROWS);
}

/* Lane 0's, in 16 bytes. */
static __host__ __device__ __forceinline__ uint64_t pack_at(uint32_t rows, uint32_t key,
                                                            uint32_t sixteen) {
    return ((uint64_t)key * pack_sixteens(rows) + sixteen) * PACK_LANES;
}

#endif
