/* lanes.h - vectors of 8 floats, so that the order of every sum stands in the source.
 *
 * A loop that the compiler vectorises by itself may sum in another order at another address; these
 * do not. Rows are padded with zeros to whole vectors, so there are no tails. The vectors are gcc's
 * and clang's generic ones: any machine can run them; LANES_CLONES compiles a function once more
 * for AVX2 with FMA and picks at start. */
#ifndef LORRY_KERNELS_CPU_LANES_H
#define LORRY_KERNELS_CPU_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 };

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t lanes_int __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t lanes_bits __attribute__((vector_size(LANES * sizeof(uint32_t))));

/* The loader resolves clones before a sanitizer's runtime is ready, so sanitized builds have none.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LANES_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define LANES_CLONES
#endif
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

/* Σ a·b; `count` a multiple of 8. */
LANES_INLINE float lanes_dot(const float *a, const float *b, size_t count) {
    lanes even = lanes_all(0), odd = lanes_all(0);
    size_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        even += lanes_load(a + i) * lanes_load(b + i);
        odd += lanes_load(a + i + LANES) * lanes_load(b + i + LANES);
    }
    if (i < count) {
        even += lanes_load(a + i) * lanes_load(b + i);
    }
    return lanes_sum(even + odd);
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
