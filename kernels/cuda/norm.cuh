/* norm.cuh - the norm of a row, x · w / √(mean(x²) + ε), for the kernels that make it: blocks.cu's,
 * which read a row, and lora_norm.cu's, which changes it first. Both give the same bits, since the
 * squares are added in one order:
 *
 *   eight: of 8 adjacent columns, ascending, each by one fma
 *   tile:  of 64 columns, eights e: ((e0+e4) + (e1+e5)) + ((e2+e6) + (e3+e7))
 *   group: of 512 columns, tiles t: ((t0+t1) + (t2+t3)) + ((t4+t5) + (t6+t7))
 *   row:   groups, ascending
 *
 * Columns beyond the row count as zeros, which change nothing. */
#ifndef LORRY_KERNELS_CUDA_NORM_CUH
#define LORRY_KERNELS_CUDA_NORM_CUH

#include "kernels/cuda/common.cuh"

enum { NORM_EIGHT = 8 };

struct norm_factors {
    float4 low, high;
};

/* No __restrict__: ptxas moves loads of what cannot change behind launch_wait(). */
static __device__ __forceinline__ struct norm_factors norm_factors_of(const float *w,
                                                                      uint32_t eight) {
    const float4 *from = reinterpret_cast<const float4 *>(w);
    return {from[2 * eight], from[2 * eight + 1]};
}

/* An eight's squares. */
template <typename T> static __device__ __forceinline__ float norm_square(uint4 bits) {
    float v[NORM_EIGHT], sum = 0;
    eight_floats<T>(bits, v);
#pragma unroll
    for (int e = 0; e < NORM_EIGHT; e++) {
        sum = fmaf(v[e], v[e], sum);
    }
    return sum;
}

static __device__ __forceinline__ float norm_scale(float sum, uint32_t hidden, float eps) {
    return rsqrtf(sum / (float)hidden + eps);
}

template <typename T>
static __device__ __forceinline__ uint4 norm_eight(uint4 bits, float scale,
                                                   const struct norm_factors &f) {
    const float factor[NORM_EIGHT] = {f.low.x,  f.low.y,  f.low.z,  f.low.w,
                                      f.high.x, f.high.y, f.high.z, f.high.w};
    float v[NORM_EIGHT];
    eight_floats<T>(bits, v);
#pragma unroll
    for (int e = 0; e < NORM_EIGHT; e++) {
        v[e] = v[e] * scale * factor[e];
    }
    return eight_bits<T>(v);
}

#endif
