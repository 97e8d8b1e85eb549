/* upload.cu - a block of a step's metadata or deltas, from pinned memory to the device.
 *
 * to[i] = from[i], `words` of 16 bytes, both aligned to 16.
 * Work: a thread copies a word; the grid covers the block. Bytes: each once over the bus. A kernel,
 * not a copy: the copy engine may be busy with adapters for milliseconds (load.c), and while loads
 * follow each other without a pause it never comes to another stream's copies at all. Launched in
 * the ordinary way, as what reads the block is: a kernel behind this one sees all of it. */
#include "kernels/cuda/common.cuh"

enum { UPLOAD_THREADS = 128 };

static __global__ __launch_bounds__(UPLOAD_THREADS) void upload_kernel(uint4 *to, const uint4 *from,
                                                                       uint32_t words) {
    uint32_t at = blockIdx.x * UPLOAD_THREADS + threadIdx.x;
    if (at < words) {
        to[at] = __ldcs(from + at);
    }
}

void cuda_upload(struct kern_device *d, void *to, const void *from, uint32_t words) {
    if (words == 0) {
        return;
    }
    uint32_t blocks = (words + UPLOAD_THREADS - 1) / UPLOAD_THREADS;
    upload_kernel<<<blocks, UPLOAD_THREADS, 0, d->stream>>>(
        static_cast<uint4 *>(to), static_cast<const uint4 *>(from), words);
    CUDA_LAUNCHED(d, "upload_kernel");
}
