/* load.cu - an adapter's image from pinned host memory into pages of all planes.
 *
 * image [layers][page_count][page_elems] → planes[layer][pages[i]]; a page is a multiple of 128
 * bytes and both sides are aligned to 16.
 * Work: a few blocks of threads read the bus themselves, in runs of 16 bytes, several on their way
 * per thread, and write where the bytes belong: each byte crosses the bus once and nothing is
 * staged. Four blocks come within a tenth of the bus's rate (50.9 of 55.2 GB/s, H200) and leave the
 * other multiprocessors to the steps. Bytes: the image, once over the bus, once into memory. */
#include "kernels/cuda/common.cuh"

enum {
    LOAD_BLOCKS = 4,
    LOAD_THREADS = 512,
    LOAD_DEEP = 4, /* reads on their way, per thread */
};

struct load_call {
    const uint4 *image;
    uint4 *planes;
    const uint32_t *pages; /* [page_count] */
    uint32_t page_count, page_words;
    uint64_t plane_words;
    uint32_t words; /* of the image */
};

static __global__ __launch_bounds__(LOAD_THREADS) void load_pages_kernel(const load_call c) {
    const uint32_t turn = LOAD_THREADS * LOAD_DEEP;
    for (uint64_t begin = (uint64_t)blockIdx.x * turn + threadIdx.x; begin < c.words;
         begin += (uint64_t)gridDim.x * turn) {
        uint4 word[LOAD_DEEP];
#pragma unroll
        for (int i = 0; i < LOAD_DEEP; i++) {
            uint64_t at = begin + (uint64_t)i * LOAD_THREADS;
            word[i] = at < c.words ? __ldcs(c.image + at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < LOAD_DEEP; i++) {
            uint64_t at = begin + (uint64_t)i * LOAD_THREADS;
            if (at < c.words) {
                uint32_t page = (uint32_t)at / c.page_words;
                uint32_t plane = page / c.page_count;
                uint64_t to = (uint64_t)c.pages[page - plane * c.page_count] * c.page_words;
                to += plane * c.plane_words + (uint32_t)at - page * c.page_words;
                c.planes[to] = word[i];
            }
        }
    }
}

void cuda_load_pages(struct kern_device *d, const void *image, const uint32_t *pages,
                     uint32_t page_count) {
    load_call c = {};
    c.image = static_cast<const uint4 *>(image);
    c.planes = static_cast<uint4 *>(d->planes);
    c.pages = pages;
    c.page_count = page_count;
    c.page_words = (uint32_t)(d->page_elems * 2 / sizeof(uint4));
    c.plane_words = (uint64_t)d->page_count * c.page_words;
    uint64_t words = (uint64_t)d->shape.layers * page_count * c.page_words;
    c.words = (uint32_t)words;
    if (words == 0 || words != c.words) { /* 64 GiB: more than any adapter within the limits */
        cuda_note(d, words == 0 ? cudaSuccess : cudaErrorInvalidValue, "load_pages_kernel");
        return;
    }
    load_pages_kernel<<<LOAD_BLOCKS, LOAD_THREADS, 0, d->loads>>>(c);
    CUDA_LAUNCHED(d, "load_pages_kernel");
}
