/* linear_wide.cuh - what linear_wide.cu is made of on sm_90a: clusters of blocks that share what
 * they bring, and the widest product of a warpgroup. For code under
 * __CUDA_ARCH_FEAT_SM90_ALL. */
#ifndef LORRY_KERNELS_CUDA_LINEAR_WIDE_CUH
#define LORRY_KERNELS_CUDA_LINEAR_WIDE_CUH

#include "kernels/cuda/boxes.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- clusters ----------------------------------------------------------------------------- */

/* An arrival at block `rank`'s barrier that lies where `bar` does here; says that this block has
 * read what it had to, not that others see what it wrote: release.cluster would cost a fence of the
 * whole GPU. */
static __device__ __forceinline__ void mbarrier_arrive_at(uint32_t bar, uint32_t rank) {
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(bar),
                 "r"(rank)
                 : "memory");
}
/* ---- copies of boxes ---------------------------------------------------------------------- */

/* copy_box() to this place in all blocks of `mask`, and to the barrier there. */
static __device__ __forceinline__ void copy_box_shared(uint32_t to, const CUtensorMap *map,
                                                       uint32_t column, uint32_t row, uint32_t bar,
                                                       uint16_t mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar), "h"(mask)
                 : "memory");
}

/* ---- products ----------------------------------------------------------------------------- */

/* clang-format off */
#define WIDE_D4(d, j)                                                                              \
    "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3]),                                    \
    "+f"(d[j + 1][0]), "+f"(d[j + 1][1]), "+f"(d[j + 1][2]), "+f"(d[j + 1][3]),                    \
    "+f"(d[j + 2][0]), "+f"(d[j + 2][1]), "+f"(d[j + 2][2]), "+f"(d[j + 2][3]),                    \
    "+f"(d[j + 3][0]), "+f"(d[j + 3][1]), "+f"(d[j + 3][2]), "+f"(d[j + 3][3])
#define WIDE_D16(d, j) WIDE_D4(d, j), WIDE_D4(d, j + 4), WIDE_D4(d, j + 8), WIDE_D4(d, j + 12)
#define WIDE_R64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "   \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "   \
    "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "   \
    "%56, %57, %58, %59, %60, %61, %62, %63"
#define WIDE_R128 WIDE_R64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "   \
    "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
    "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
    "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* d [64][256] = a bᵀ (+ d): both K-major in shared memory. _half: of the 128 columns from block
 * FIRST of 8 on. */
template <typename T>
static __device__ __forceinline__ void wide_shared(float (&d)[32][4], uint64_t a, uint64_t b, bool add);
template <typename T, int FIRST>
static __device__ __forceinline__ void wide_shared_half(float (&d)[32][4], uint64_t a, uint64_t b, bool add);
/* d += a bᵀ: a in registers, b K-major in shared memory; of all 256 columns, or of the 128 from
 * block FIRST of 8 on. */
template <typename T>
static __device__ __forceinline__ void wide_registers(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b);
template <typename T, int FIRST>
static __device__ __forceinline__ void wide_half(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b);

#define WIDE_PRODUCTS(T, type)                                                                     \
    template <>                                                                                    \
    __device__ __forceinline__ void wide_shared<T>(float (&d)[32][4], uint64_t a, uint64_t b,      \
                                                   bool add) {                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                 \
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" WIDE_R128   \
                     "}, %128, %129, p, 1, 1, 0, 0;\n}"                                            \
                     : WIDE_D16(d, 0), WIDE_D16(d, 16)                                             \
                     : "l"(a), "l"(b), "r"(static_cast<uint32_t>(add)));                           \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wide_registers<T>(float (&d)[32][4], const uint32_t (&a)[4],   \
                                                      uint64_t b) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" WIDE_R128   \
                     "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"                              \
                     : WIDE_D16(d, 0), WIDE_D16(d, 16)                                             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }                                                                                              \
    WIDE_HALF(T, type, 0)                                                                          \
    WIDE_HALF(T, type, 16)
#define WIDE_HALF(T, type, first)                                                                  \
    template <>                                                                                    \
    __device__ __forceinline__ void wide_half<T, first>(float (&d)[32][4], const uint32_t (&a)[4], \
                                                        uint64_t b) {                              \
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" WIDE_R64    \
                     "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"                                   \
                     : WIDE_D16(d, first)                                                          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                        \
    }                                                                                              \
    template <>                                                                                    \
    __device__ __forceinline__ void wide_shared_half<T, first>(float (&d)[32][4], uint64_t a,      \
                                                               uint64_t b, bool add) {             \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                  \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" WIDE_R64    \
                     "}, %64, %65, p, 1, 1, 0, 0;\n}"                                              \
                     : WIDE_D16(d, first)                                                          \
                     : "l"(a), "l"(b), "r"(static_cast<uint32_t>(add)));                           \
    }
WIDE_PRODUCTS(__half, "f16")
WIDE_PRODUCTS(__nv_bfloat16, "bf16")
#undef WIDE_PRODUCTS
#undef WIDE_HALF
#undef WIDE_R128
#undef WIDE_R64
#undef WIDE_D16
#undef WIDE_D4
/* clang-format on */

#endif

#endif
