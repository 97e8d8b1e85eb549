/* load.c - adapter images on their way into pages: events and page lists of the loads under way. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum { LOADS_MAX = 64 }; /* under way; one more waits for the oldest */

struct cuda_loads {
    cudaEvent_t arrived[LOADS_MAX];
    uint32_t *pages[LOADS_MAX]; /* pinned, [adapter_pages] */
    uint64_t begun, done;       /* events */
};

enum err cuda_loads_open(struct kern_device *d, struct err_text *why) {
    struct cuda_loads *l = calloc(1, sizeof *l);
    d->load_ring = l;
    if (l == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the device's loads");
    }
    uint64_t row = d->limits.adapter_pages > 0 ? d->limits.adapter_pages : 1;
    uint32_t *all = NULL;
    enum err e = cuda_take_host(d, (void **)&all, LOADS_MAX * row * sizeof *all, why);
    if (e != ERR_OK) {
        return e;
    }
    for (uint32_t i = 0; i < LOADS_MAX; i++) {
        l->pages[i] = all + i * row;
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

enum err cuda_load(struct kern_device *d, const void *image, const uint32_t *pages,
                   uint32_t page_count, uint64_t *event) {
    struct cuda_loads *l = d->load_ring;
    CHECK(d->planes != NULL);
    CHECK(page_count <= d->limits.adapter_pages);
    if (l->begun - l->done >= LOADS_MAX) {
        CU_TRY(&d->fault, cudaEventSynchronize(l->arrived[l->done % LOADS_MAX]));
        l->done++;
    }
    uint32_t *list = l->pages[l->begun % LOADS_MAX];
    for (uint32_t i = 0; i < page_count; i++) {
        CHECK(pages[i] < d->page_count);
        list[i] = pages[i];
    }
    cuda_load_pages(d, image, list, page_count);
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
