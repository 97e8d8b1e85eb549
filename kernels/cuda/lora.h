/* lora.h - work lists of LoRA in a step's metadata. Inside kernels/cuda/ only. */
#ifndef LORRY_KERNELS_CUDA_LORA_H
#define LORRY_KERNELS_CUDA_LORA_H

#include <stdint.h>

/* Filled by cuda_lora_plan(); pointers are device addresses. */
struct cuda_lora_meta {
    uint32_t segment_count;
};

#endif
