/* load.c - adapter images on their way into pages: by the copy engines, which need no
 * multiprocessor.
 *
 * image [layers][page_count][page_elems] → planes[layer][pages[i]]. A run of pages that adjoin in
 * the pool goes by one copy of three dimensions, bytes × pages × layers: each byte crosses the bus
 * once and nothing is staged. One H200, 84 MB beside kernels that fill every multiprocessor and
 * stream weights: 48.6 GB/s page by page, 54 in runs of eight (the bus alone 55), 3.5 µs of the
 * loop's thread a run; these kernels take 1.07 times as long.
 *
 * Tried and lost (same GPU, same neighbours, longer kernels beside): a kernel of 4 × 512 threads
 * that reads pinned memory, 51 GB/s alone, 28 to 40 beside others, which it makes 1.6 to 1.7 times
 * as long, since its blocks keep a product's from their multiprocessors; of 8 × 128 threads 50 and
 * 1.35; bulk copies through shared memory by single warps 34 to 44 and 1.35 to 1.8; a staged copy
 * and a kernel that scatters it 31 to 45 and 1.3 to 1.6; one copy a page and layer 17 GB/s; a batch
 * of these (cudaMemcpyBatchAsync) 40 and 1 ms of the thread; copies of two dimensions are as good
 * as long as a plane has less than 2 GiB, then 16 GB/s. How the memory came to be pinned, and the
 * size of its pages, does not show.
 *
 * While loads follow each other without a pause the copy engine serves no other stream's copies
 * from the host: what steps need of it goes through upload.cu. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum { LOADS_MAX = 64 }; /* under way; one more waits for the oldest */

struct cuda_loads {
    cudaEvent_t arrived[LOADS_MAX];
    uint64_t begun, done; /* events */
};

enum err cuda_loads_open(struct kern_device *d, struct err_text *why) {
    struct cuda_loads *l = calloc(1, sizeof *l);
    d->load_ring = l;
    if (l == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the device's loads");
    }
    for (uint32_t i = 0; i < LOADS_MAX; i++) {
        CU_TRY(why, cudaEventCreateWithFlags(&l->arrived[i],
                                             cudaEventDisableTiming | cudaEventBlockingSync));
    }
    return ERR_OK;
}

void cuda_loads_close(struct kern_device *d) {
    for (uint32_t i = 0; d->load_ring != NULL && i < LOADS_MAX; i++) {
        if (d->load_ring->arrived[i] != NULL) {
            (void)cudaEventDestroy(d->load_ring->arrived[i]);
        }
    }
    free(d->load_ring);
}

/* Pages [first, first + count) of the image, which adjoin in the pool from `page` on. */
static cudaError_t run_copy(struct kern_device *d, void *image, uint32_t page_count, uint32_t first,
                            uint32_t count, uint32_t page) {
    const size_t page_bytes = d->page_elems * sizeof(uint16_t);
    const struct cudaMemcpy3DParms copy = {
        .srcPtr = {.ptr = (unsigned char *)image + first * page_bytes,
                   .pitch = page_bytes,
                   .xsize = page_bytes,
                   .ysize = page_count},
        .dstPtr = {.ptr = (unsigned char *)d->planes + page * page_bytes,
                   .pitch = page_bytes,
                   .xsize = page_bytes,
                   .ysize = d->page_count},
        .extent = {.width = page_bytes, .height = count, .depth = d->shape.layers},
        .kind = cudaMemcpyHostToDevice};
    return cudaMemcpy3DAsync(&copy, d->loads);
}

enum err cuda_load(struct kern_device *d, const void *image, const uint32_t *pages,
                   uint32_t page_count, uint64_t *event) {
    struct cuda_loads *l = d->load_ring;
    CHECK(d->planes != NULL);
    CHECK(page_count <= d->limits.adapter_pages);
    if (l->begun - l->done >= LOADS_MAX) {
        CU_TRY(&d->fault, cudaEventSynchronize(l->arrived[l->done % LOADS_MAX]));
        l->done++;
    }
    void *from = NULL; /* the runtime's struct has no const pointer; a source is only read */
    memcpy(&from, &image, sizeof from);
    for (uint32_t first = 0, count; first < page_count; first += count) {
        count = 1;
        CHECK(pages[first] < d->page_count);
        while (first + count < page_count && pages[first + count] == pages[first] + count) {
            count++;
        }
        CHECK(pages[first] + count <= d->page_count);
        cuda_note(d, run_copy(d, from, page_count, first, count, pages[first]),
                  "cudaMemcpy3DAsync");
    }
    CU_TRY(&d->fault, cudaEventRecord(l->arrived[l->begun % LOADS_MAX], d->loads));
    *event = ++l->begun;
    return d->failed;
}

bool cuda_load_done(struct kern_device *d, uint64_t event) {
    struct cuda_loads *l = d->load_ring;
    CHECK(event >= 1 && event <= l->begun);
    while (l->done < event) { /* they end in order */
        cudaError_t result = cudaEventQuery(l->arrived[l->done % LOADS_MAX]);
        if (result == cudaErrorNotReady) {
            return false;
        }
        cuda_note(d, result, "a load"); /* the next step says so */
        l->done++;
    }
    return true;
}
