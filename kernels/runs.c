/* The tables of runs.h: this file is compiled once for each, which RUNS_OPS names. No branches, so
 * that the compiler makes vectors of the loops. */
#include "kernels/runs.h"

#include <string.h>

/* ---- one element -------------------------------------------------------------------------- */

static inline float f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline uint32_t bits_f32_of_f16(uint32_t half) {
    uint32_t sign = (half & 0x8000u) << 16;
    uint32_t exponent = half & 0x7c00u, fraction = half & 0x3ffu;
    /* zero or subnormal: fraction · 2⁻²⁴, exact in f32 */
    uint32_t small = bits_of_f32((float)(int32_t)fraction * 0x1p-24f);
    uint32_t normal = (exponent >> 10) + (127 - 15);
    normal = (exponent == 0x7c00u ? 0xffu : normal) << 23 | fraction << 13;
    return sign | (exponent == 0 ? small : normal);
}

static inline uint16_t bf16_of_bits(uint32_t bits) {
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    uint32_t nan = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline uint16_t f16_of_bits(uint32_t bits) {
    uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    /* subnormal: adding 0.5 lets the adder round to 2⁻²⁴ */
    uint32_t small = bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
    uint32_t finite = magnitude < 0x38800000u ? small : normal;
    return (uint16_t)(sign | (magnitude >= RUNS_F16_BORDER ? large : finite));
}

/* ---- runs --------------------------------------------------------------------------------- */

static inline uint32_t half_at(const void *from, size_t i) {
    uint16_t half;
    memcpy(&half, (const unsigned char *)from + i * sizeof half, sizeof half);
    return half;
}

static inline uint32_t word_at(const void *from, size_t i) {
    uint32_t word;
    memcpy(&word, (const unsigned char *)from + i * sizeof word, sizeof word);
    return word;
}

static inline void half_put(void *to, size_t i, uint16_t half) {
    memcpy((unsigned char *)to + i * sizeof half, &half, sizeof half);
}

static inline void word_put(void *to, size_t i, uint32_t word) {
    memcpy((unsigned char *)to + i * sizeof word, &word, sizeof word);
}

static void f32_of_bf16(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        word_put(to, i, half_at(from, i) << 16);
    }
}

static void f32_of_f16(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        word_put(to, i, bits_f32_of_f16(half_at(from, i)));
    }
}

static void bf16_of_f32(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        half_put(to, i, bf16_of_bits(word_at(from, i)));
    }
}

static void f16_of_f32(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        half_put(to, i, f16_of_bits(word_at(from, i)));
    }
}

static void bf16_of_f16(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        half_put(to, i, bf16_of_bits(bits_f32_of_f16(half_at(from, i))));
    }
}

static void f16_of_bf16(void *restrict to, const void *restrict from, size_t count) {
    for (size_t i = 0; i < count; i++) {
        half_put(to, i, f16_of_bits(half_at(from, i) << 16));
    }
}

static uint32_t greatest_half(const void *from, size_t count) {
    uint16_t greatest = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t magnitude = (uint16_t)(half_at(from, i) & 0x7fffu);
        greatest = magnitude > greatest ? magnitude : greatest;
    }
    return greatest;
}

static uint32_t greatest_f32(const void *from, size_t count) {
    uint32_t greatest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = word_at(from, i) & 0x7fffffffu;
        greatest = magnitude > greatest ? magnitude : greatest;
    }
    return greatest;
}

const struct runs_ops RUNS_OPS = {.f32_of_bf16 = f32_of_bf16,
                                  .f32_of_f16 = f32_of_f16,
                                  .bf16_of_f32 = bf16_of_f32,
                                  .f16_of_f32 = f16_of_f32,
                                  .bf16_of_f16 = bf16_of_f16,
                                  .f16_of_bf16 = f16_of_bf16,
                                  .greatest_half = greatest_half,
                                  .greatest_f32 = greatest_f32};
