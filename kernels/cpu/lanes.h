/* lanes.h - vectors of 8 floats, so that the order of every sum stands in the source.
 *
 * A loop that the compiler vectorises by itself may sum in another order at another address; these
 * do not. The vectors are gcc's and clang's generic ones: any machine can run them. Only for files
 * that are compiled for their machine as a whole (vector.c): functions with a target of their own
 * (target_clones) get vectors that were taken apart for the least machine, which costs half. */
#ifndef LORRY_KERNELS_CPU_LANES_H
#define LORRY_KERNELS_CPU_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 };

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t lanes_int __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t lanes_bits __attribute__((vector_size(LANES * sizeof(uint32_t))));

#define LANES_INLINE static inline __attribute__((always_inline))

LANES_INLINE lanes lanes_load(const float *from) {
    lanes v;
    memcpy(&v, from, sizeof v);
    return v;
}

LANES_INLINE void lanes_store(float *to, lanes v) {
    memcpy(to, &v, sizeof v);
}

LANES_INLINE lanes lanes_all(float value) {
    return (lanes){value, value, value, value, value, value, value, value};
}

/* Per lane: where `mask` is all ones `yes`, where it is zero `no`. */
LANES_INLINE lanes lanes_select(lanes_int mask, lanes yes, lanes no) {
    return (lanes)((mask & (lanes_int)yes) | (~mask & (lanes_int)no));
}

LANES_INLINE float lanes_sum(lanes v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

LANES_INLINE float lanes_max(lanes v) {
    float max = v[0];
    for (int i = 1; i < LANES; i++) {
        max = v[i] > max ? v[i] : max;
    }
    return max;
}

/* Σ a·b in lanes, yet to be summed; `count` a multiple of 8. */
LANES_INLINE lanes lanes_products(const float *a, const float *b, size_t count) {
    lanes even = lanes_all(0), odd = lanes_all(0);
    size_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        even += lanes_load(a + i) * lanes_load(b + i);
        odd += lanes_load(a + i + LANES) * lanes_load(b + i + LANES);
    }
    if (i < count) {
        even += lanes_load(a + i) * lanes_load(b + i);
    }
    return even + odd;
}

LANES_INLINE float lanes_dot(const float *a, const float *b, size_t count) {
    return lanes_sum(lanes_products(a, b, count));
}

/* Lane i: the dot product of row i of `rows` and x, with the bits of lanes_dot(). Eight at once
 * share the shuffles: each level adds halves as lanes_sum() does. */
LANES_INLINE lanes lanes_dots(const float *rows, size_t row, const float *x, size_t count) {
    lanes v[LANES], pair[4], quad[2];
    for (size_t i = 0; i < LANES; i++) {
        v[i] = lanes_products(rows + i * row, x, count);
    }
    for (size_t i = 0; i < 4; i++) { /* rows i and i + 4 */
        pair[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                  __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (size_t i = 0; i < 2; i++) { /* rows 2i, 2i + 1, and the same + 4 */
        lanes a = pair[2 * i], b = pair[2 * i + 1];
        quad[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
                  __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return __builtin_shufflevector(quad[0], quad[1], 0, 2, 8, 10, 4, 6, 12, 14) +
           __builtin_shufflevector(quad[0], quad[1], 1, 3, 9, 11, 5, 7, 13, 15);
}

/* eˣ within 2 units in the last place; zero below −87, e⁸⁸ above 88.
 * x = n·ln 2 + r, |r| ≤ ln 2 / 2; eʳ by its Taylor polynomial of degree 7 (error 5e-9 of it). */
LANES_INLINE lanes lanes_exp(lanes x) {
    const lanes zero = lanes_all(0), most = lanes_all(88.0f), least = lanes_all(-87.0f);
    const lanes_int below = x < least;
    x = lanes_select(x > most, most, x);
    x = lanes_select(below, zero, x);
    const lanes magic = lanes_all(12582912.0f); /* 1.5 · 2²³: adding it rounds to an integer */
    lanes shifted = x * lanes_all(1.44269504f) + magic;
    lanes n = shifted - magic;
    lanes r = x - n * lanes_all(0.693359375f); /* ln 2 in two parts: n times the first is exact */
    r = r - n * lanes_all(-2.12194440e-4f);
    lanes p = lanes_all(1.0f / 5040);
    p = p * r + lanes_all(1.0f / 720);
    p = p * r + lanes_all(1.0f / 120);
    p = p * r + lanes_all(1.0f / 24);
    p = p * r + lanes_all(1.0f / 6);
    p = p * r + lanes_all(0.5f);
    p = p * r * r + r + lanes_all(1.0f);
    lanes_int exponent = __builtin_convertvector(n, lanes_int);
    return lanes_select(below, zero, p * (lanes)(((lanes_bits)exponent + 127) << 23));
}

#endif
