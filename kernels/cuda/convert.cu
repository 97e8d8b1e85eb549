/* convert.cu - weights: conversion to the device's type, and weights made from a seed.
 * Memory-bound; run once. Also puts a step's deltas into the tables. */
#include "kernels/cuda/common.cuh"

extern "C" {
#include "kernels/checks.h"
}
#include "kernels/random_weights.h"

enum { THREADS = 256, BLOCKS_MAX = 4096 };

static unsigned blocks_for(uint64_t items) {
    uint64_t blocks = (items + THREADS - 1) / THREADS;
    const uint64_t most = BLOCKS_MAX;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* ---- conversion --------------------------------------------------------------------------- */

template <typename T> static __device__ float any_float(T v) {
    return elem_float(v);
}
template <> __device__ float any_float<float>(float v) {
    return v;
}

template <typename From, typename To>
static __global__ void __launch_bounds__(THREADS)
    convert_kernel(const From *__restrict__ from, To *__restrict__ to, uint64_t count) {
    uint64_t stride = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        to[i] = elem_from<To>(any_float(from[i]));
    }
}

template <typename To>
static void convert(struct kern_device *d, const void *from, enum kern_dtype dtype, To *to,
                    uint64_t count) {
    unsigned blocks = blocks_for(count);
    switch (dtype) {
    case KERN_F32:
        convert_kernel<<<blocks, THREADS, 0, d->stream>>>(static_cast<const float *>(from), to,
                                                          count);
        break;
    case KERN_F16:
        convert_kernel<<<blocks, THREADS, 0, d->stream>>>(static_cast<const __half *>(from), to,
                                                          count);
        break;
    case KERN_BF16:
        convert_kernel<<<blocks, THREADS, 0, d->stream>>>(static_cast<const __nv_bfloat16 *>(from),
                                                          to, count);
        break;
    }
}

extern "C" void cuda_convert(struct kern_device *d, const void *from, enum kern_dtype dtype,
                             void *to, uint64_t count) {
    CUDA_WITH_ELEM(d, T, convert<T>(d, from, dtype, static_cast<T *>(to), count));
    CUDA_LAUNCHED(d, "convert");
}

/* ---- random weights ----------------------------------------------------------------------- */

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    random_kernel(T *to, uint64_t count, uint64_t seed, uint32_t tensor) {
    uint64_t stride = (uint64_t)gridDim.x * THREADS;
    uint64_t groups = (count + RANDOM_WEIGHTS_LANES - 1) / RANDOM_WEIGHTS_LANES;
    for (uint64_t g = (uint64_t)blockIdx.x * THREADS + threadIdx.x; g < groups; g += stride) {
        float value[RANDOM_WEIGHTS_LANES];
        random_weights(seed, tensor, g, value);
        for (int i = 0; i < RANDOM_WEIGHTS_LANES; i++) {
            uint64_t at = g * RANDOM_WEIGHTS_LANES + i;
            if (at < count) {
                to[at] = elem_from<T>(value[i]);
            }
        }
    }
}

extern "C" void cuda_fill_random(struct kern_device *d, void *to, uint64_t count, uint64_t seed,
                                 uint32_t tensor) {
    unsigned blocks = blocks_for(count / RANDOM_WEIGHTS_LANES);
    CUDA_WITH_ELEM(d, T,
                   random_kernel<T>
                   <<<blocks, THREADS, 0, d->stream>>>(static_cast<T *>(to), count, seed, tensor));
    CUDA_LAUNCHED(d, "random");
}

static __global__ void __launch_bounds__(THREADS)
    fill_kernel(float *to, uint64_t count, float value) {
    uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) {
        to[i] = value;
    }
}

extern "C" void cuda_fill_floats(struct kern_device *d, float *to, uint64_t count, float value) {
    unsigned blocks = (unsigned)((count + THREADS - 1) / THREADS);
    fill_kernel<<<blocks, THREADS, 0, d->stream>>>(to, count, value);
    CUDA_LAUNCHED(d, "fill");
}

/* ---- deltas ------------------------------------------------------------------------------- */

/* One grid walks all three lists; an adapter's table and pages are a block's work, the rest a
 * thread's. */
static __global__ void __launch_bounds__(THREADS)
    deltas_kernel(const struct cuda_deltas *deltas, struct cuda_tables tables) {
    uint32_t thread = blockIdx.x * THREADS + threadIdx.x, stride = gridDim.x * THREADS;
    for (uint32_t i = thread; i < deltas->slot_count; i += stride) {
        tables.slots[deltas->slots[i].slot] = deltas->slots[i].value;
    }
    for (uint32_t i = thread; i < deltas->page_count; i += stride) {
        struct kern_slot_page set = deltas->pages[i];
        tables.slot_pages[(uint64_t)set.slot * tables.slot_page_row + set.index] = set.page;
    }
    for (uint32_t i = blockIdx.x; i < deltas->adapter_count; i += gridDim.x) {
        const struct cuda_adapter_delta *set = &deltas->adapters[i];
        uint64_t adapter = set->adapter;
        uint32_t pages = set->value.layer_pages + set->value.outer_pages;
        if (threadIdx.x == 0) {
            tables.adapters[adapter] = set->value;
        }
        for (uint32_t e = threadIdx.x; e < tables.lora_row; e += THREADS) {
            tables.lora[adapter * tables.lora_row + e] = set->lora[e];
        }
        for (uint32_t e = threadIdx.x; e < pages; e += THREADS) {
            tables.adapter_pages[adapter * tables.adapter_page_row + e] = set->pages[e];
        }
    }
}

extern "C" void cuda_apply_deltas(struct kern_device *d, const struct cuda_deltas *deltas) {
    deltas_kernel<<<(unsigned)d->sm_count, THREADS, 0, d->stream>>>(deltas, d->tables);
    CUDA_LAUNCHED(d, "deltas");
}
