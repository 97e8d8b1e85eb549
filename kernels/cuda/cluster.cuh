/* cluster.cuh - what the blocks of a cluster tell each other, on sm_90. */
#ifndef LORRY_KERNELS_CUDA_CLUSTER_CUH
#define LORRY_KERNELS_CUDA_CLUSTER_CUH

#include "kernels/cuda/mbarrier.cuh"

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

static __device__ __forceinline__ uint32_t cluster_size() {
    uint32_t v;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(v));
    return v;
}
static __device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t v;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
    return v;
}
/* Until all blocks of the cluster run and have made their barriers. */
static __device__ __forceinline__ void cluster_arrive() {
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "barrier.cluster.arrive.relaxed.aligned;" ::
                     : "memory");
}
static __device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/* All threads of all blocks of the cluster meet, and see what each wrote to shared memory. */
static __device__ __forceinline__ void cluster_meet() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* What blocks of the cluster tell each other goes by stores that count at a barrier of the block
 * that they reach. A barrier of the cluster would wait for all stores to x first. */
static __device__ __forceinline__ void told_init(uint64_t *told) {
    mbarrier_init(shared_address(told), 1);
}
/* One thread: of this phase, `bytes` are to come. */
static __device__ __forceinline__ void told_expect(uint64_t *told, uint32_t bytes) {
    mbarrier_expect(shared_address(told), bytes);
}
/* `value` to where block `rank` has `place`, counted at its `told`. */
static __device__ __forceinline__ void told_put(float *place, uint64_t *told, uint32_t rank,
                                                float value) {
    asm volatile("{\n"
                 ".reg .b32 to, at;\n"
                 "mapa.shared::cluster.u32 to, %0, %2;\n"
                 "mapa.shared::cluster.u32 at, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %3, [at];\n"
                 "}" ::"r"(shared_address(place)),
                 "r"(shared_address(told)), "r"(rank), "r"(__float_as_uint(value))
                 : "memory");
}
static __device__ __forceinline__ void told_wait(uint64_t *told, uint32_t phase) {
    mbarrier_wait(shared_address(told), phase);
}
/* `bytes` from `p` on, some time, into the second-level cache. One thread. */
static __device__ __forceinline__ void fetch_l2(const void *p, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

#endif

#endif
