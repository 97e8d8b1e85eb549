/* mbarrier.cuh - barriers in shared memory at which threads, copies and stores arrive, on sm_90.
 * `bar`: the shared address of its 8 bytes. */
#ifndef LORRY_KERNELS_CUDA_MBARRIER_CUH
#define LORRY_KERNELS_CUDA_MBARRIER_CUH

#include "kernels/cuda/common.cuh"

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

/* A phase ends after `count` arrivals. Of the phase that begins at init the parity is 0. */
static __device__ __forceinline__ void mbarrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
static __device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* An arrival; the phase ends only when copies have brought so many bytes as well. */
static __device__ __forceinline__ void mbarrier_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
/* Barriers that this thread has made are seen by copies. */
static __device__ __forceinline__ void mbarriers_publish() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/* An arrival once all copies that this thread has begun are in shared memory; it is one of the
 * `count`. */
static __device__ __forceinline__ void mbarrier_arrive_copied(uint32_t bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
/* Until the phase of that parity is over: with 1, a barrier never used lets pass. */
static __device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(over)
                     : "r"(bar), "r"(parity)
                     : "memory");
    } while (!over);
}

#endif

#endif
