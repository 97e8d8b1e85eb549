/* random_weights.h - the weights that kern_ops.weights_random gives a model, for benchmarks; for C
 * and CUDA. Inside kernels/ only.
 *
 * Norms are 1, biases 0. A matrix's element is a pure function of (seed, tensor, element):
 *
 *     word  = word `element % 4` of Philox(key: seed; counter: element / 4 low, high, tensor, 0)
 *     value = (the sum of word's five 6-bit numbers from bit 0 on, and bit 30, − 158) × 2⁻¹¹
 *
 * where `element` is row × columns + column as in a checkpoint ([out, in] of a projection), and
 * `tensor` is its kern_tensor_slot(). The head is a matrix of its own (slot of KERN_LM_HEAD): no
 * model is tied here.
 *
 * The sum is near normal (five uniforms: no tail beyond 3.8 deviations) with mean 0 and deviation
 * 0.0202, and a whole number of at most 8 bits: exact in f32, f16 and bf16, hence the same on every
 * device. Cost: one Philox for four elements, some 25 integer instructions an element. */
#ifndef LORRY_KERNELS_RANDOM_WEIGHTS_H
#define LORRY_KERNELS_RANDOM_WEIGHTS_H

#include <stdint.h>

#include "kernels/philox.h"

enum {
    RANDOM_WEIGHTS_LANES = 4, /* elements of one Philox */
    RANDOM_WEIGHTS_UNIFORMS = 5,
    RANDOM_WEIGHTS_BITS = 6, /* of each */
    RANDOM_WEIGHTS_CENTRE = 158,
};

#define RANDOM_WEIGHTS_SCALE (1.0f / 2048)

/* The value that a word makes. */
PHILOX_INLINE float random_weight_of(uint32_t word) {
    uint32_t sum = word >> (RANDOM_WEIGHTS_UNIFORMS * RANDOM_WEIGHTS_BITS) & 1;
    for (int i = 0; i < RANDOM_WEIGHTS_UNIFORMS; i++) {
        sum += word >> (i * RANDOM_WEIGHTS_BITS) & ((1u << RANDOM_WEIGHTS_BITS) - 1);
    }
    return (float)((int32_t)sum - RANDOM_WEIGHTS_CENTRE) * RANDOM_WEIGHTS_SCALE;
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
