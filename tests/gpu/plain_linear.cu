/* plain_linear.cu - the linears without the library: what linear.c offers, by a kernel that does
 * nothing clever. A test linked with it in front of lorry_kernels has only kernels of ours, which
 * compute-sanitizer's racecheck can follow; it ends with an error of its own in cuBLASLt's.
 *
 * A thread is an element of y: f32 sum over x and W in ascending order, one rounding. */
#include "kernels/cuda/common.cuh"

enum { THREADS = 128 };

struct plain_product {
    uint32_t in, out, rows, y_row;
    bool adds;
};

static struct plain_product product_of(const struct kern_device *d, enum cuda_linear which) {
    const uint32_t hidden = d->shape.hidden, wide = d->shape.intermediate;
    switch (which) {
    case CUDA_QKV:
        return {hidden, d->qkv_cols, d->rows, d->qkv_cols, false};
    case CUDA_O:
        return {d->q_cols, hidden, d->rows, hidden, true};
    case CUDA_GATE_UP:
        return {hidden, 2 * wide, d->rows, 2 * wide, false};
    case CUDA_DOWN:
        return {wide, hidden, d->rows, hidden, true};
    default:
        return {hidden, d->shape.vocab, d->sample_rows, d->vocab_row, false};
    }
}

template <typename T, typename Y>
static __global__ __launch_bounds__(THREADS) void plain_linear_kernel(struct plain_product p,
                                                                      const T *w, const T *x,
                                                                      Y *y) {
    const uint32_t column = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (column >= p.out) {
        return;
    }
    Y *to = y + (uint64_t)row * p.y_row + column;
    float sum = p.adds ? (float)*to : 0.0f;
    for (uint32_t i = 0; i < p.in; i++) {
        sum += (float)x[(uint64_t)row * p.in + i] * (float)w[(uint64_t)column * p.in + i];
    }
    *to = (Y)sum;
}

extern "C" enum err cuda_linears_open(struct kern_device *, struct err_text *) {
    return ERR_OK;
}
extern "C" void cuda_linears_close(struct kern_device *) {
}
extern "C" enum err cuda_linears_choose(struct kern_device *, struct err_text *) {
    return ERR_OK;
}

extern "C" void cuda_linear(struct kern_device *d, enum cuda_linear which, const void *w,
                            const void *x, void *y) {
    const struct plain_product p = product_of(d, which);
    const dim3 grid((p.out + THREADS - 1) / THREADS, p.rows);
    CUDA_WITH_ELEM(d, T, {
        const T *weights = static_cast<const T *>(w), *from = static_cast<const T *>(x);
        if (which == CUDA_HEAD) {
            plain_linear_kernel<T, float>
                <<<grid, THREADS, 0, d->stream>>>(p, weights, from, static_cast<float *>(y));
        } else {
            plain_linear_kernel<T, T>
                <<<grid, THREADS, 0, d->stream>>>(p, weights, from, static_cast<T *>(y));
        }
    });
    CUDA_LAUNCHED(d, "plain_linear_kernel");
}

extern "C" bool cuda_linear_is_wide(const struct kern_device *d, enum cuda_linear which) {
    return d->wide != nullptr && which != CUDA_HEAD && d->wide_always;
}

extern "C" struct cuda_ahead cuda_linear_ahead(const struct kern_device *, enum cuda_linear,
                                               uint32_t, uint64_t) {
    return {};
}
