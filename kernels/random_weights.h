/* random_weights.h - the weights that kern_ops.weights_random gives a model, for benchmarks; for C
 * and CUDA. Inside kernels/ only.
 *
 * Norms are 1, biases 0. A matrix's element is a pure function of (seed, tensor, element):
 *
 *     word  = word `element % 4` of Philox(key: seed; counter: element / 4 low, high, tensor, 0)
 *     sum   = word's lowest 11 bits + the next 11 + 2 × the other 10 − 3,070
 *     value = sum × 0.02 / 1,024, rounded to bf16
 *
 * where `element` is row × columns + column as in a checkpoint ([out, in] of a projection), and
 * `tensor` is its kern_tensor_slot(). The head is a matrix of its own (slot of KERN_LM_HEAD): no
 * model is tied here.
 *
 * The sum is near normal (three uniforms: no tail beyond 3 deviations) with mean 0 and deviation
 * 1,024. The value fills bf16's mantissa, as trained weights do: how many bits of a product's
 * operands change decides how much power it takes, and so its clock. It is exact in f32, f16 and
 * bf16, hence the same on every device. Cost: one Philox for four elements, some 25 integer
 * instructions an element. */
#ifndef LORRY_KERNELS_RANDOM_WEIGHTS_H
#define LORRY_KERNELS_RANDOM_WEIGHTS_H

#include <stdint.h>
#include <string.h>

#include "kernels/philox.h"

enum {
    RANDOM_WEIGHTS_LANES = 4, /* elements of one Philox */
    RANDOM_WEIGHTS_CENTRE = 3070,
};

/* The value that a word makes. */
PHILOX_INLINE float random_weight_of(uint32_t word) {
    int32_t sum = (int32_t)((word & 0x7ff) + (word >> 11 & 0x7ff) + 2 * (word >> 22));
    float value = (float)(sum - RANDOM_WEIGHTS_CENTRE) * (0.02f / 1024);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Elements 4 × group .. 4 × group + 3 of a tensor; what is beyond its end is to be left out. */
PHILOX_INLINE void random_weights(uint64_t seed, uint32_t tensor, uint64_t group,
                                  float value[RANDOM_WEIGHTS_LANES]) {
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), tensor, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    philox_4x32_10(counter, key, words);
    for (int i = 0; i < RANDOM_WEIGHTS_LANES; i++) {
        value[i] = random_weight_of(words[i]);
    }
}

#endif
