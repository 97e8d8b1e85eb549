/* boxes.cuh - copies of boxes of a matrix into shared memory, by the unit that walks memory for the
 * threads (sm_90). Inside kernels/cuda/ only.
 *
 * A map says where a matrix [rows][columns] of 16-bit elements lies and how large its boxes are:
 * 64 columns, which are 128 bytes, of so many rows. A box arrives as a strip (wgmma.cuh), what lies
 * outside the matrix as zeros. The matrix starts at a multiple of 16 bytes, and so do its rows;
 * shared memory that boxes go to at a multiple of 1,024. A kernel takes a map as a parameter that
 * is __grid_constant__, or from constant memory. */
#ifndef LORRY_KERNELS_CUDA_BOXES_CUH
#define LORRY_KERNELS_CUDA_BOXES_CUH

#include <cuda.h>

#include "kernels/cuda/mbarrier.cuh"

enum { BOX_COLUMNS = 64 };

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/* One thread each. */
static __device__ __forceinline__ void map_prefetch(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* The box whose first element is `column` of `row`; its bytes, zeros too, count at `bar`. */
static __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map,
                                                uint32_t column, uint32_t row, uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar)
                 : "memory");
}

#endif

/* A map of `rows` < 2³¹ rows in boxes of `box_rows` ≤ 256; false: none. Some 100 ns. */
static inline bool boxes_map(const struct kern_device *d, CUtensorMap *map, const void *at,
                             uint64_t rows, uint32_t columns, uint32_t box_rows) {
    using encode_tiled =
        CUresult(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    const cuuint64_t sizes[2] = {columns, rows};
    const cuuint64_t strides[1] = {columns * sizeof(uint16_t)};
    const cuuint32_t box[2] = {BOX_COLUMNS, box_rows}, steps[2] = {1, 1};
    auto encode = reinterpret_cast<encode_tiled *>(d->map_encode);
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void *>(at), sizes, strides,
                  box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

#endif
