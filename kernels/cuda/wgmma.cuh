/* wgmma.cuh - the warpgroup matrix instructions of sm_90a and what goes with them: mbarriers,
 * named barriers, setmaxnreg. Inside kernels/cuda/ only, for code under
 * __CUDA_ARCH_FEAT_SM90_ALL.
 *
 * A warpgroup is four warps, the first a multiple of four. Its product d [64][N] = a [64][16] ·
 * b [16][N] (+ d) is asynchronous: wgmma_fence() before the first of a batch whenever registers
 * that it reads or writes were touched, wgmma_commit() after the last, wgmma_wait<n>() until all
 * batches but the n latest are done. Between, neither d nor an a in registers may be touched:
 * wgmma_hold() tells the compiler so.
 *
 * d: lane l of warp w has of block j of 8 columns the rows 16 w + l / 4 (d[j][0], d[j][1]) and + 8
 * (d[j][2], d[j][3]), columns 8 j + 2 (l % 4) and the next. a in registers: a[0] row 16 w + l / 4,
 * columns 2 (l % 4) and the next in the low and the high half; a[1] row + 8; a[2], a[3] the same
 * with columns + 8. These are four mma.m16n8k16 above one another, so that a d, rounded, is an a.
 *
 * Operands in shared memory are strips: [rows][128 bytes], piece i of 16 bytes of row r at i ^
 * (r % 8), the start a multiple of 1,024 bytes. The hardware swizzles addresses, not rows: it takes
 * bits 7 .. 9 of an address into bits 4 .. 6, so a start may move inside a row by whole pieces and
 * over rows by eights. A descriptor has, in units of 16 bytes: start (bits 0 .. 13), leading offset
 * (16 .. 29), stride offset (32 .. 45); and 1 in bits 62 .. 63 for the 128-byte swizzle. In pieces:
 *   "K-major", a row is one m (or n), 16 k are two pieces: ((8, n / 8), 2) : ((8, stride), 1). The
 *   stride is from 8 rows to the next 8, 1,024 bytes; the leading offset is not used. The next 16 k
 *   are 32 bytes on, inside the row; after 64 of them comes the next strip.
 *   "MN-major", a row is one k, 64 n are its eight pieces: ((8, n / 64), (8, k / 8)) : ((1,
 *   leading), (8, stride)). The leading offset is from strip to strip, the stride from 8 k to the
 *   next 8, 1,024 bytes. The next 16 k are 2,048 bytes on. */
#ifndef LORRY_KERNELS_CUDA_WGMMA_CUH
#define LORRY_KERNELS_CUDA_WGMMA_CUH

#include <stdint.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/mbarrier.cuh"

enum {
    WARPGROUP = 128,             /* threads */
    STRIP_ROW = 128,             /* bytes of a row of a strip */
    STRIP_EIGHT = 8 * STRIP_ROW, /* of eight rows, after which the swizzle repeats */
};

/* Byte of a piece of a row in a strip. */
static __host__ __device__ __forceinline__ uint32_t strip_at(uint32_t row, uint32_t piece) {
    return row * STRIP_ROW + 16 * (piece ^ (row % 8));
}

/* `address`: shared; `leading`, `stride`: bytes. Advances by adding bytes / 16. */
static __host__ __device__ __forceinline__ uint64_t wgmma_operand(uint32_t address,
                                                                  uint32_t leading,
                                                                  uint32_t stride) {
    constexpr uint32_t FIELD = 0x3fff, UNIT = 16;
    constexpr uint64_t SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | static_cast<uint64_t>(stride / UNIT & FIELD) << 32 |
           static_cast<uint64_t>(leading / UNIT & FIELD) << 16 | (address / UNIT & FIELD);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- barriers ----------------------------------------------------------------------------- */

/* Named barriers: `threads` of the block meet; who arrives does not wait. */
static __device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Shared memory that this thread sees is what wgmma will see. */
static __device__ __forceinline__ void fence_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Registers of each thread of this warpgroup from here on. */
template <int COUNT> static __device__ __forceinline__ void registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> static __device__ __forceinline__ void registers_fewer() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* ---- products ----------------------------------------------------------------------------- */

static __device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> static __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* What is computed of these registers stays on its side of this line. */
template <int N> static __device__ __forceinline__ void wgmma_hold(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            asm volatile("" : "+f"(d[n][i])::"memory");
        }
    }
}
template <int N> static __device__ __forceinline__ void wgmma_hold(uint32_t (&a)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            asm volatile("" : "+r"(a[n][i])::"memory");
        }
    }
}

/* clang-format off */
#define WGMMA_D8(d, j)                                                                             \
    "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3]),                                    \
    "+f"(d[j + 1][0]), "+f"(d[j + 1][1]), "+f"(d[j + 1][2]), "+f"(d[j + 1][3])
#define WGMMA_D32(d, j) \
    WGMMA_D8(d, j), WGMMA_D8(d, j + 2), WGMMA_D8(d, j + 4), WGMMA_D8(d, j + 6)
#define WGMMA_REGS_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63}"
#define WGMMA_REGS_32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

/* d = a bᵀ (+ d): both K-major in shared memory. */
template <typename T>
static __device__ __forceinline__ void wgmma_shared(float (&d)[16][4], uint64_t a, uint64_t b, bool add);
template <>
__device__ __forceinline__ void wgmma_shared<__half>(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 WGMMA_REGS_64 ", %64, %65, p, 1, 1, 0, 0;\n}"
                 : WGMMA_D32(d, 0), WGMMA_D32(d, 8)
                 : "l"(a), "l"(b), "r"(static_cast<uint32_t>(add)));
}
template <>
__device__ __forceinline__ void wgmma_shared<__nv_bfloat16>(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 WGMMA_REGS_64 ", %64, %65, p, 1, 1, 0, 0;\n}"
                 : WGMMA_D32(d, 0), WGMMA_D32(d, 8)
                 : "l"(a), "l"(b), "r"(static_cast<uint32_t>(add)));
}

/* d += a b: a in registers, b MN-major in shared memory. */
template <typename T>
static __device__ __forceinline__ void wgmma_registers(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b);
template <typename T>
static __device__ __forceinline__ void wgmma_registers(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b);
template <>
__device__ __forceinline__ void wgmma_registers<__half>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 WGMMA_REGS_64 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : WGMMA_D32(d, 0), WGMMA_D32(d, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma_registers<__nv_bfloat16>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 WGMMA_REGS_64 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : WGMMA_D32(d, 0), WGMMA_D32(d, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma_registers<__half>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 WGMMA_REGS_32 ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : WGMMA_D32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma_registers<__nv_bfloat16>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 WGMMA_REGS_32 ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : WGMMA_D32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef WGMMA_REGS_64
#undef WGMMA_REGS_32
#undef WGMMA_D32
#undef WGMMA_D8
/* clang-format on */

#endif

#endif
