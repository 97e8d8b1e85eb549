/* peaks.c - what this GPU reaches: the rates that a benchmark's figures stand beside. */
#include <cublasLt.h>

#include "base/check.h"
#include "kernels/cuda/cuda.h"

enum {
    COPY_BYTES = 1 << 30,
    PINNED_BYTES = 256 << 20,
    GEMM_SIZE = 8192,
    RUNS = 5, /* the best counts, after one to warm up */
};

struct peak_work {
    struct kern_device *d;
    void *from, *to, *pinned;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayoutOpaque_t square;
};

static cudaError_t run_copy(struct peak_work *w) {
    return cudaMemcpyAsync(w->to, w->from, COPY_BYTES, cudaMemcpyDeviceToDevice, w->d->stream);
}

static cudaError_t run_pinned(struct peak_work *w) {
    return cudaMemcpyAsync(w->to, w->pinned, PINNED_BYTES, cudaMemcpyHostToDevice, w->d->stream);
}

/* The library's first suggestion, which for a large square is a good one. */
static cudaError_t run_gemm(struct peak_work *w) {
    const float one = 1, zero = 0;
    unsigned char *to = w->to;
    cublasStatus_t status = cublasLtMatmul(w->handle, w->desc, &one, w->from, &w->square, w->from,
                                           &w->square, &zero, to, &w->square, to, &w->square, NULL,
                                           to + COPY_BYTES / 2, COPY_BYTES / 2, w->d->stream);
    return status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
}

/* Seconds of the fastest run. */
static cudaError_t fastest(struct peak_work *w, cudaError_t (*run)(struct peak_work *),
                           double *seconds) {
    cudaEvent_t begin = NULL, end = NULL;
    float best = 0;
    cudaError_t result = cudaEventCreate(&begin);
    if (result == cudaSuccess) {
        result = cudaEventCreate(&end);
    }
    for (int i = 0; i <= RUNS && result == cudaSuccess; i++) {
        float ms = 0;
        result = cudaEventRecord(begin, w->d->stream);
        result = result == cudaSuccess ? run(w) : result;
        result = result == cudaSuccess ? cudaEventRecord(end, w->d->stream) : result;
        result = result == cudaSuccess ? cudaEventSynchronize(end) : result;
        result = result == cudaSuccess ? cudaEventElapsedTime(&ms, begin, end) : result;
        best = i == 0 ? 0 : (best == 0 || ms < best) ? ms : best;
    }
    if (begin != NULL) {
        (void)cudaEventDestroy(begin);
    }
    if (end != NULL) {
        (void)cudaEventDestroy(end);
    }
    *seconds = (double)best / 1e3;
    return result;
}

static cudaError_t measure(struct peak_work *w, struct kern_peaks *peaks) {
    double copy = 0, gemm = 0, pinned = 0;
    cudaError_t result = fastest(w, run_copy, &copy);
    result = result == cudaSuccess ? fastest(w, run_gemm, &gemm) : result;
    result = result == cudaSuccess ? fastest(w, run_pinned, &pinned) : result;
    if (result == cudaSuccess) {
        const double size = GEMM_SIZE;
        *peaks = (struct kern_peaks){.copy_bytes_s = 2.0 * COPY_BYTES / copy,
                                     .gemm_flop_s = 2 * size * size * size / gemm,
                                     .pinned_bytes_s = PINNED_BYTES / pinned};
    }
    return result;
}

enum err cuda_peaks(struct kern_device *d, struct kern_peaks *peaks) {
    CHECK(d->phase == CUDA_IDLE);
    struct peak_work w = {.d = d};
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cudaDataType_t elem = d->elem == KERN_F16 ? CUDA_R_16F : CUDA_R_16BF;
    cudaError_t result = cudaMalloc(&w.from, COPY_BYTES);
    result = result == cudaSuccess ? cudaMalloc(&w.to, COPY_BYTES) : result;
    result = result == cudaSuccess ? cudaHostAlloc(&w.pinned, PINNED_BYTES, cudaHostAllocDefault)
                                   : result;
    if (result == cudaSuccess &&
        (cublasLtCreate(&w.handle) != CUBLAS_STATUS_SUCCESS ||
         cublasLtMatmulDescCreate(&w.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
             CUBLAS_STATUS_SUCCESS ||
         cublasLtMatmulDescSetAttribute(w.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                        sizeof transposed) != CUBLAS_STATUS_SUCCESS ||
         cublasLtMatrixLayoutInit(&w.square, elem, GEMM_SIZE, GEMM_SIZE, GEMM_SIZE) !=
             CUBLAS_STATUS_SUCCESS)) {
        result = cudaErrorUnknown;
    }
    if (result == cudaSuccess) {
        cuda_fill_random(d, w.from, COPY_BYTES / sizeof(uint16_t), 1, 0);
        result = measure(&w, peaks);
    }
    if (w.desc != NULL) {
        (void)cublasLtMatmulDescDestroy(w.desc);
    }
    if (w.handle != NULL) {
        (void)cublasLtDestroy(w.handle);
    }
    (void)cudaFree(w.from);
    (void)cudaFree(w.to);
    (void)cudaFreeHost(w.pinned);
    return result == cudaSuccess ? ERR_OK : cuda_fail(&d->fault, result, "peaks");
}
