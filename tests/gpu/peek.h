/* peek.h - looks into a device's activations and pages, and sets the CPU's.
 *
 * Values are floats here, rows of activations [rows][columns] without padding. Between the blocks
 * of an eager step; the CUDA device is waited for. Each device's header stays in its own file,
 * since both define struct kern_device. */
#ifndef LORRY_TESTS_GPU_PEEK_H
#define LORRY_TESTS_GPU_PEEK_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum peek_rows {
    PEEK_X,
    PEEK_NORMED,
    PEEK_Q, /* after bias, norms and rope */
    PEEK_ATTENDED,
    PEEK_ACT,
    PEEK_HEAD_IN, /* of the sampling rows; on the CPU after head() */
};
uint32_t peek_columns(const struct kern_shape *shape, enum peek_rows which);

/* Where a token's K and V lie. */
struct peek_place {
    uint32_t layer, page, offset; /* offset: of the token in its page */
};

void peek_cpu_rows(const struct kern_device *d, enum peek_rows which, uint32_t rows, float *out);
void poke_cpu_rows(struct kern_device *d, enum peek_rows which, uint32_t rows, const float *in);
/* The norm of one row of what the head will read. */
void poke_cpu_normed(struct kern_device *d, uint32_t row, const float *in);
void peek_cpu_kv(const struct kern_device *d, const struct peek_place *at, float *k, float *v);
void poke_cpu_kv(struct kern_device *d, const struct peek_place *at, const float *k,
                 const float *v);

/* Fails the test on any error of the runtime. */
void peek_cuda_rows(const struct kern_device *d, enum peek_rows which, uint32_t rows, float *out);
void peek_cuda_kv(const struct kern_device *d, const struct peek_place *at, float *k, float *v);
/* All pages of a layer as they lie there: [pages][page_elems] 16-bit elements. */
void peek_cuda_plane(const struct kern_device *d, uint32_t layer, uint16_t *out);
/* A layer's projection as the linears read it: [out][in] 16-bit elements. */
void peek_cuda_matrix(const struct kern_device *d, uint32_t layer, enum kern_module module,
                      uint16_t *out);
/* The id of a token that the penalties look up. */
uint32_t peek_cuda_history(const struct kern_device *d, uint32_t page, uint32_t offset);

/* Lets the slots' page lists point nowhere: the next step that writes K and V faults. */
void peek_cuda_break(struct kern_device *d);

/* Lets linear_wide.cu do all linears of steps to come, launched eagerly; false: it cannot. */
bool peek_cuda_wide(struct kern_device *d);

/* What a launch of the last step could depend on. */
struct peek_bucket {
    uint32_t rows, sample_rows; /* padding included */
    bool mixed, lora;
};
struct peek_bucket peek_cuda_bucket(const struct kern_device *d);

#endif
