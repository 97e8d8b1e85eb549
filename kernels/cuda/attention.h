/* attention.h - work lists of attention in a step's metadata. Inside kernels/cuda/ only. */
#ifndef LORRY_KERNELS_CUDA_ATTENTION_H
#define LORRY_KERNELS_CUDA_ATTENTION_H

#include <stdint.h>

/* Filled by cuda_attention_plan(); pointers are device addresses. */
struct cuda_attention_meta {
    uint32_t decode_count, prefill_count;
};

#endif
