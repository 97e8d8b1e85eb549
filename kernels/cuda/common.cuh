/* common.cuh - what the kernels share: the two 16-bit types, 16-byte loads, reductions, and the
 * tensor core instructions of sm_80 and later (mma, ldmatrix, cp.async). */
#ifndef LORRY_KERNELS_CUDA_COMMON_CUH
#define LORRY_KERNELS_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"

/* Calls `call` with T as the device's element type. */
#define CUDA_WITH_ELEM(d, T, ...)    \
    do {                             \
        if ((d)->elem == KERN_F16) { \
            using T = __half;        \
            __VA_ARGS__;             \
        } else {                     \
            using T = __nv_bfloat16; \
            __VA_ARGS__;             \
        }                            \
    } while (0)

/* After a launch. */
#define CUDA_LAUNCHED(d, name) cuda_note(d, cudaGetLastError(), name)

/* ---- kernels that start before the one in front ends ---------------------------------------- */

/* Of a launch. */
struct cuda_shape {
    dim3 grid;
    unsigned threads;    /* of a block */
    size_t shared_bytes; /* asked for at the launch */
    unsigned cluster;    /* blocks of a cluster; 1: no clusters */
};

/* Launches so that the kernel may start as soon as every block of the one in front on the stream
 * has called launch_next() or ended; elsewhere than on sm_90 an ordinary launch. In a graph it is a
 * programmatic edge. Such a kernel
 *
 * - calls launch_wait() in every thread, before a thread returns and before it touches anything
 *   that kernels of the same step write, or writes anything that they read. Behind it all kernels
 *   in front have ended and what they wrote is there: for that each kernel launched so must have
 *   waited for its own predecessor. Others, the library's above all, wait for everything anyway.
 *
 * - before that only reads weights, tables and what the step's metadata hold from the upload on
 *   (all but the tokens' ids, which embed() writes).
 *
 * - declares no pointer to what others write __restrict__: the compiler might read through it
 *   before launch_wait(). */
template <class... P, class... A>
static void cuda_launch_early(struct kern_device *d, const char *name, void (*kernel)(P...),
                              const struct cuda_shape &shape, A... arguments) {
    cudaLaunchAttribute attributes[2] = {};
    unsigned count = 0;
    if (d->launches_early) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {shape.cluster, 1, 1};
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = d->stream;
    config.attrs = attributes;
    config.numAttrs = count;
    cuda_note(d, cudaLaunchKernelEx(&config, kernel, arguments...), name);
}
template <class... P, class... A>
static void cuda_launch_early(struct kern_device *d, const char *name, void (*kernel)(P...),
                              dim3 grid, unsigned threads, A... arguments) {
    cuda_launch_early(d, name, kernel, cuda_shape{grid, threads, 0, 1}, arguments...);
}

/* Until the kernels in front have ended and what they wrote can be read. */
static __device__ __forceinline__ void launch_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The kernel behind may start, for what it does before its launch_wait(). */
static __device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Fetches the 32 bytes round `p` into the second-level cache, some time. */
static __device__ __forceinline__ void prefetch_l2(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* Thread `index` of `count` fetches its share; neighbours fetch neighbouring sectors. */
static __device__ __forceinline__ void ahead_fetch(const struct cuda_ahead &a, uint32_t index,
                                                   uint32_t count) {
    const uint32_t row_log2 = a.pieces_log2 + a.sectors_log2;
    const uint32_t apart = (a.row_bytes >> a.pieces_log2) & ~127u; /* from piece to piece */
    const char *base = static_cast<const char *>(a.at);
    for (uint32_t i = index; i < a.rows << row_log2; i += count) {
        const uint32_t sector = i & ((1u << a.sectors_log2) - 1);
        const uint32_t piece = i >> a.sectors_log2 & ((1u << a.pieces_log2) - 1);
        prefetch_l2(base + (uint64_t)(i >> row_log2) * a.row_bytes + piece * apart + sector * 32);
    }
}

template <typename T> struct elem_pair;
template <> struct elem_pair<__half> { using type = __half2; };
template <> struct elem_pair<__nv_bfloat16> { using type = __nv_bfloat162; };

static __device__ __forceinline__ float elem_float(__half v) {
    return __half2float(v);
}
static __device__ __forceinline__ float elem_float(__nv_bfloat16 v) {
    return __bfloat162float(v);
}
template <typename T> static __device__ __forceinline__ T elem_from(float v);
template <> __device__ __forceinline__ __half elem_from<__half>(float v) {
    return __float2half_rn(v);
}
template <> __device__ __forceinline__ __nv_bfloat16 elem_from<__nv_bfloat16>(float v) {
    return __float2bfloat16_rn(v);
}

/* Two elements in 32 bits. */
template <typename T> static __device__ __forceinline__ float2 pair_floats(uint32_t bits);
template <> __device__ __forceinline__ float2 pair_floats<__half>(uint32_t bits) {
    return __half22float2(*reinterpret_cast<__half2 *>(&bits));
}
template <> __device__ __forceinline__ float2 pair_floats<__nv_bfloat16>(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}
template <typename T> static __device__ __forceinline__ uint32_t pair_bits(float low, float high);
template <> __device__ __forceinline__ uint32_t pair_bits<__half>(float low, float high) {
    __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&v);
}
template <> __device__ __forceinline__ uint32_t pair_bits<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&v);
}

/* Eight elements in 16 bytes. */
template <typename T>
static __device__ __forceinline__ void eight_floats(uint4 bits, float out[8]) {
    const uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 v = pair_floats<T>(word[i]);
        out[2 * i] = v.x;
        out[2 * i + 1] = v.y;
    }
}
template <typename T> static __device__ __forceinline__ uint4 eight_bits(const float in[8]) {
    return make_uint4(pair_bits<T>(in[0], in[1]), pair_bits<T>(in[2], in[3]),
                      pair_bits<T>(in[4], in[5]), pair_bits<T>(in[6], in[7]));
}

/* v / (1 + e⁻ᵛ), of two approximate instructions: relatively within (4 + |v|) · 2⁻²³, and 0 where
 * it is below 2⁻¹²⁰. With an exact division an activation's arithmetic took longer than its memory.
 */
static __device__ __forceinline__ float silu(float v) {
    constexpr float LOG2_E = 1.44269504f;
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * -LOG2_E));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return v * inverse;
}

static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(0xffffffffu, v, offset);
    }
    return v;
}

/* ---- tensor cores ------------------------------------------------------------------------- */

/* d += a b, one warp: a is 16 × 16 by rows (4 registers), b is 16 × 8 by columns (2), d is 16 × 8
 * (4 floats). Lane l holds: a0 (row l/4, columns 2(l%4), +1), a1 (row l/4 + 8, same), a2 (row l/4,
 * columns + 8), a3 (row l/4 + 8, columns + 8); b0 (rows 2(l%4), +1, column l/4), b1 (rows + 8); d0,
 * d1 (row l/4, columns 2(l%4), +1), d2, d3 (row l/4 + 8). */
template <typename T>
static __device__ __forceinline__ void mma_16816(float d[4], const uint32_t a[4],
                                                 const uint32_t b[2]);
template <>
__device__ __forceinline__ void mma_16816<__half>(float d[4], const uint32_t a[4],
                                                  const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float d[4], const uint32_t a[4],
                                                         const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* Four 8 × 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8. */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes, global → shared, past the first-level cache; zeros instead where `valid` is false. */
static __device__ __forceinline__ void copy_async_16(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> static __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
