#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"
#include "tests/gpu/peek.h"
#include "tests/unit/kernels/half.h"

static void demand(cudaError_t result, const char *what) {
    if (result != cudaSuccess) {
        fail_msg("%s: %s", what, cudaGetErrorString(result));
    }
}

/* `rows` rows of `columns` elements, `row` elements apart, once the stream has come so far. */
static void copy(const struct kern_device *d, const void *from, uint32_t row, uint32_t rows,
                 uint32_t columns, float *out) {
    if (rows == 0) {
        return;
    }
    demand(cudaStreamSynchronize(d->stream), "the blocks so far");
    uint16_t *halves = calloc((size_t)rows * columns, sizeof *halves);
    assert_non_null(halves);
    size_t width = columns * sizeof *halves;
    demand(cudaMemcpy2D(halves, width, from, row * sizeof *halves, width, rows,
                        cudaMemcpyDeviceToHost),
           "a copy from the device");
    for (size_t i = 0; i < (size_t)rows * columns; i++) {
        out[i] = half_float(halves[i], d->elem);
    }
    free(halves);
}

static const void *rows_of(const struct kern_device *d, enum peek_rows which, uint32_t *row) {
    *row = peek_columns(&d->shape, which);
    switch (which) {
    case PEEK_X:
        return d->x;
    case PEEK_NORMED:
        return d->normed;
    case PEEK_HEAD_IN:
        return d->head_in;
    case PEEK_Q:
        *row = d->qkv_cols;
        return d->qkv;
    case PEEK_ATTENDED:
        return d->attended;
    case PEEK_ACT:
        return d->act;
    }
    CHECK(!"rows of this kind");
    return NULL;
}

void peek_cuda_rows(const struct kern_device *d, enum peek_rows which, uint32_t rows, float *out) {
    uint32_t row = 0;
    const void *from = rows_of(d, which, &row);
    copy(d, from, row, rows, peek_columns(&d->shape, which), out);
}

void peek_cuda_kv(const struct kern_device *d, const struct peek_place *at, float *k, float *v) {
    uint32_t columns = d->shape.kv_heads * d->shape.head_dim;
    const uint16_t *keys = d->planes;
    keys += ((uint64_t)at->layer * d->page_count + at->page) * d->page_elems +
            (uint64_t)at->offset * columns;
    copy(d, keys, columns, 1, columns, k);
    copy(d, keys + (uint64_t)d->limits.page_tokens * columns, columns, 1, columns, v);
}

void peek_cuda_plane(const struct kern_device *d, uint32_t layer, uint16_t *out) {
    demand(cudaStreamSynchronize(d->stream), "the blocks so far");
    uint64_t elems = d->page_count * d->page_elems;
    const uint16_t *plane = d->planes;
    demand(cudaMemcpy(out, plane + layer * elems, elems * sizeof *out, cudaMemcpyDeviceToHost),
           "a copy of a plane");
}

void peek_cuda_matrix(const struct kern_device *d, uint32_t layer, enum kern_module module,
                      uint16_t *out) {
    static const enum cuda_linear linears[KERN_MODULES] = {
        CUDA_QKV, CUDA_QKV, CUDA_QKV, CUDA_O, CUDA_GATE_UP, CUDA_GATE_UP, CUDA_DOWN};
    const uint16_t *from = cuda_layer_matrix(&d->layers[layer], linears[module]);
    uint64_t in = kern_module_in(&d->shape, module), out_rows = kern_module_out(&d->shape, module);
    for (enum kern_module m = KERN_Q; m < module; m++) { /* those in front in the same matrix */
        from += linears[m] == linears[module] ? in * kern_module_out(&d->shape, m) : 0;
    }
    demand(cudaStreamSynchronize(d->stream), "the blocks so far");
    demand(cudaMemcpy(out, from, in * out_rows * sizeof *out, cudaMemcpyDeviceToHost),
           "a copy of a matrix");
}

uint32_t peek_cuda_history(const struct kern_device *d, uint32_t page, uint32_t offset) {
    uint32_t id = 0;
    demand(cudaStreamSynchronize(d->stream), "the blocks so far");
    demand(cudaMemcpy(&id, d->history + (uint64_t)page * d->limits.page_tokens + offset, sizeof id,
                      cudaMemcpyDeviceToHost),
           "a copy of a token's id");
    return id;
}

struct peek_bucket peek_cuda_bucket(const struct kern_device *d) {
    return (struct peek_bucket){
        .rows = d->rows, .sample_rows = d->sample_rows, .mixed = d->mixed, .lora = d->lora_rows};
}

bool peek_cuda_wide(struct kern_device *d) {
    d->wide_always = d->wide != NULL;
    return d->wide_always;
}

void peek_cuda_break(struct kern_device *d) {
    const struct cuda_tables *t = &d->tables;
    uint64_t bytes = (uint64_t)d->limits.slots * t->slot_page_row * sizeof t->slot_pages[0];
    demand(cudaStreamSynchronize(d->stream), "the steps so far");
    demand(cudaMemset(t->slot_pages, 0x7e, bytes), "the page lists"); /* some 2 · 10⁹ each */
    demand(cudaDeviceSynchronize(), "the page lists");
}
