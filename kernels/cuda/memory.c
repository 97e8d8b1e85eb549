/* memory.c - device and pinned memory that lives as long as the device, and blocks that are filled
 * on the host and uploaded in one go. */
#include <stdlib.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum { BLOCK_ALIGN = 16 };

struct cuda_memory {
    struct cuda_memory *next;
    void *base;
    bool pinned; /* host memory */
};

enum err cuda_fail(struct err_text *why, cudaError_t result, const char *call) {
    if (result == cudaErrorMemoryAllocation) {
        return err_set(why, ERR_NO_SPACE,
                       "%s: the GPU has no memory left; nvidia-smi shows what else is on it", call);
    }
    return err_set(why, ERR_DEVICE, "%s: %s (%s)", call, cudaGetErrorString(result),
                   cudaGetErrorName(result));
}

void cuda_note(struct kern_device *d, cudaError_t result, const char *call) {
    if (result != cudaSuccess && d->failed == ERR_OK) {
        d->failed = ERR_DEVICE; /* a launch takes no memory: whatever it says is a fault */
        (void)cuda_fail(&d->fault, result, call);
    }
}

static enum err keep(struct kern_device *d, void *base, bool pinned, struct err_text *why) {
    struct cuda_memory *m = malloc(sizeof *m);
    if (m == NULL) {
        (void)(pinned ? cudaFreeHost(base) : cudaFree(base));
        return err_set(why, ERR_NO_MEMORY, "no memory for the device's list of allocations");
    }
    *m = (struct cuda_memory){.next = d->memory, .base = base, .pinned = pinned};
    d->memory = m;
    return ERR_OK;
}

enum err cuda_take(struct kern_device *d, void **out, uint64_t bytes, const char *what,
                   struct err_text *why) {
    void *base = NULL;
    bytes = bytes > 0 ? bytes : 1;
    cudaError_t result = cudaMalloc(&base, bytes);
    if (result != cudaSuccess) {
        (void)cudaGetLastError(); /* out of memory is not sticky */
        size_t room = 0, all = 0;
        (void)cudaMemGetInfo(&room, &all);
        enum err e = cuda_fail(why, result, "cudaMalloc");
        return e != ERR_NO_SPACE
                   ? e
                   : err_set(why, e, "%s: %llu MiB do not fit, %llu of %llu MiB are free", what,
                             (unsigned long long)bytes >> 20, (unsigned long long)room >> 20,
                             (unsigned long long)all >> 20);
    }
    enum err e = keep(d, base, false, why);
    if (e != ERR_OK) {
        return e;
    }
    CU_TRY(why, cudaMemsetAsync(base, 0, bytes, d->stream));
    d->bytes += bytes;
    *out = base;
    return ERR_OK;
}

enum err cuda_take_host(struct kern_device *d, void **out, uint64_t bytes, struct err_text *why) {
    void *base = NULL;
    if (cudaHostAlloc(&base, bytes > 0 ? bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        return err_set(why, ERR_NO_SPACE, "%llu bytes of pinned host memory cannot be had",
                       (unsigned long long)bytes);
    }
    enum err e = keep(d, base, true, why);
    if (e == ERR_OK) {
        *out = base;
    }
    return e;
}

void cuda_memory_close(struct kern_device *d) {
    while (d->memory != NULL) {
        struct cuda_memory *m = d->memory;
        d->memory = m->next;
        (void)(m->pinned ? cudaFreeHost(m->base) : cudaFree(m->base));
        free(m);
    }
}

/* ---- blocks ------------------------------------------------------------------------------- */

void *cuda_block_take(struct cuda_block *b, uint64_t bytes) {
    uint64_t at = (b->used + BLOCK_ALIGN - 1) / BLOCK_ALIGN * BLOCK_ALIGN;
    CHECK(at <= b->bytes && bytes <= b->bytes - at);
    b->used = at + bytes;
    return b->host + at;
}

bool cuda_block_has_room(const struct cuda_block *b, uint64_t bytes) {
    return b->used + BLOCK_ALIGN + bytes <= b->bytes;
}

void *cuda_block_device(const struct cuda_block *b, const void *host) {
    const unsigned char *at = host;
    DCHECK(at >= b->host && at <= b->host + b->used);
    return b->device + (at - b->host);
}

void cuda_block_upload(struct kern_device *d, const struct cuda_block *b) {
    uint64_t words = (b->used + BLOCK_ALIGN - 1) / BLOCK_ALIGN;
    CHECK(words * BLOCK_ALIGN <= b->bytes);
    cuda_upload(d, b->device, b->host, (uint32_t)words);
}
