/* wgmma_ranks.cuh - a warpgroup's products of few columns: 8 to 96, for lora_shrink_hopper.cu. For
 * code under __CUDA_ARCH_FEAT_SM90_ALL; wgmma.cuh says how operands and sums lie. */
#ifndef LORRY_KERNELS_CUDA_WGMMA_RANKS_CUH
#define LORRY_KERNELS_CUDA_WGMMA_RANKS_CUH

#include "kernels/cuda/wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* clang-format off */
#define RANKS_D(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define RANKS_D2(j) RANKS_D(j), RANKS_D(j + 1)
#define RANKS_D4(j) RANKS_D2(j), RANKS_D2(j + 2)
#define RANKS_D6(j) RANKS_D4(j), RANKS_D2(j + 4)
#define RANKS_R1 "%0, %1, %2, %3"
#define RANKS_R2 RANKS_R1 ", %4, %5, %6, %7"
#define RANKS_R4 RANKS_R2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define RANKS_R6 RANKS_R4 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define RANKS_R8 RANKS_R6 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define RANKS_R12 RANKS_R8 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"

/* d += x aᵀ: both K-major in shared memory, n as wide as d. */
template <typename T, int GROUPS>
static __device__ __forceinline__ void wgmma_ranks(float (&d)[GROUPS][4], uint64_t x, uint64_t a);
#define RANKS_PRODUCT(T, type, groups, n, regs, xr, ar, ...)                                     \
    template <>                                                                                  \
    __device__ __forceinline__ void wgmma_ranks<T, groups>(float (&d)[groups][4], uint64_t x,    \
                                                           uint64_t a) {                         \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" regs    \
                     "}, " xr ", " ar ", 1, 1, 1, 0, 0;"                                         \
                     : __VA_ARGS__                                                               \
                     : "l"(x), "l"(a));                                                          \
    }
#define RANKS_PRODUCTS(T, type)                                                                  \
    RANKS_PRODUCT(T, type, 1, "8", RANKS_R1, "%4", "%5", RANKS_D(0))                             \
    RANKS_PRODUCT(T, type, 2, "16", RANKS_R2, "%8", "%9", RANKS_D2(0))                           \
    RANKS_PRODUCT(T, type, 4, "32", RANKS_R4, "%16", "%17", RANKS_D4(0))                         \
    RANKS_PRODUCT(T, type, 6, "48", RANKS_R6, "%24", "%25", RANKS_D6(0))                         \
    RANKS_PRODUCT(T, type, 8, "64", RANKS_R8, "%32", "%33", RANKS_D4(0), RANKS_D4(4))            \
    RANKS_PRODUCT(T, type, 12, "96", RANKS_R12, "%48", "%49", RANKS_D6(0), RANKS_D6(6))
RANKS_PRODUCTS(__half, "f16")
RANKS_PRODUCTS(__nv_bfloat16, "bf16")
#undef RANKS_PRODUCTS
#undef RANKS_PRODUCT
#undef RANKS_D
#undef RANKS_D2
#undef RANKS_D4
#undef RANKS_D6
#undef RANKS_R1
#undef RANKS_R2
#undef RANKS_R4
#undef RANKS_R6
#undef RANKS_R8
#undef RANKS_R12
/* clang-format on */

#endif

#endif
