/* merge.c - whose the layers' projections are: the base's, or merged ones of an adapter.
 *
 * All linears and graphs read the same memory, whatever it holds. Beside it lies a copy of what the
 * checkpoint has, made once; merge.cu makes one of the other, and the base comes back by copies, to
 * the bit. */
#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum err cuda_merge_open(struct kern_device *d, struct err_text *why) {
    d->merged = d->merge_next = KERN_BASE;
    if (!d->limits.merging) {
        return ERR_OK;
    }
    enum err e = cuda_merge_kernel_open(d, why);
    for (uint32_t i = 0; i < d->shape.layers; i++) {
        for (enum cuda_linear w = CUDA_QKV; w < CUDA_HEAD && e == ERR_OK; w++) {
            e = cuda_take(d, &d->layers[i].given[w], cuda_layer_matrix_bytes(d, w),
                          "a copy of the projections for scheduler.merged", why);
        }
    }
    return e;
}

static void matrices_copy(struct kern_device *d, bool back) {
    for (uint32_t i = 0; i < d->shape.layers; i++) {
        for (enum cuda_linear w = CUDA_QKV; w < CUDA_HEAD; w++) {
            void *given = d->layers[i].given[w], *used = cuda_layer_matrix(&d->layers[i], w);
            cudaError_t result =
                cudaMemcpyAsync(back ? used : given, back ? given : used,
                                cuda_layer_matrix_bytes(d, w), cudaMemcpyDeviceToDevice, d->stream);
            cuda_note(d, result, "cudaMemcpyAsync");
        }
    }
}

void cuda_merge_keep(struct kern_device *d) {
    if (d->limits.merging) {
        matrices_copy(d, false);
    }
}

void cuda_merge(struct kern_device *d, uint32_t adapter) {
    CHECK(d->phase == CUDA_IDLE);
    CHECK(d->limits.merging);
    CHECK(adapter == KERN_BASE || adapter < d->limits.adapters);
    d->merge_next = adapter;
}

void cuda_merge_step(struct kern_device *d) {
    if (d->merge_next == d->merged) {
        return;
    }
    if (d->merge_next == KERN_BASE) {
        matrices_copy(d, true);
    }
    for (uint32_t i = 0; d->merge_next != KERN_BASE && i < d->shape.layers; i++) {
        cuda_merge_layer(d, i);
    }
    d->merged = d->merge_next;
}
