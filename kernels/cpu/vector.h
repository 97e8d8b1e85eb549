/* vector.h - the CPU device's inner loops, compiled once for any machine and once for AVX2 and FMA.
 *
 * Rows are padded with zeros to multiples of 8 floats and tiles and heads are whole multiples, so
 * there are no tails but where a count is given. The order of every sum is that of the source
 * (lanes.h). The two tables differ in the last bits, as FMA rounds once; a process uses one. */
#ifndef LORRY_KERNELS_CPU_VECTOR_H
#define LORRY_KERNELS_CPU_VECTOR_H

#include <stddef.h>

/* One token and one key-value head, with the query heads that share it. */
struct cpu_view {
    const float *q; /* [group][head_dim] */
    float *out;     /* [group][head_dim] */
    float *scores;  /* [group][score_row] */
    size_t group;
    size_t head_dim;
    size_t score_row;
    size_t token_row; /* floats from token to token inside a page */
};

struct cpu_vector_ops {
    /* y = x · w / √(mean(x²) + ε), the mean over `columns`; all three have `row` floats, and y
     * may be x */
    void (*norm)(const float *x, const float *w, float *y, size_t row, size_t columns, float eps);
    void (*add)(float *x, const float *delta, size_t row);
    /* gate = silu(gate) · up, silu(g) = g / (1 + e⁻ᵍ) */
    void (*silu)(float *gate, const float *up, size_t row);

    /* Of `count` positions of one page, whose scores stand from scores[·][at] on: q · k ... */
    void (*scores)(const struct cpu_view *w, const float *keys, size_t at, size_t count);
    /* ... and out += score · v. */
    void (*values)(const struct cpu_view *w, const float *values, size_t at, size_t count);
    /* e^(scale · score) / Σ; there is room up to a multiple of 8. */
    void (*softmax)(float *scores, size_t count, float scale);

    /* v [ranks] += tile [ranks][64] · x [64] */
    void (*shrink)(const float *tile, size_t ranks, const float *x, float *v);
    /* y [64] += tile [64][ranks] · v [ranks] */
    void (*expand)(const float *tile, size_t ranks, const float *v, float *y);

    /* logits = e^((logits − max) / temperature) */
    void (*weigh)(float *logits, size_t count, float max, float temperature);
};

extern const struct cpu_vector_ops cpu_vector_plain;
#ifdef LORRY_CPU_AVX2
extern const struct cpu_vector_ops cpu_vector_avx2;
#endif

/* The best table for this machine. */
static inline const struct cpu_vector_ops *cpu_vector_best(void) {
#ifdef LORRY_CPU_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &cpu_vector_avx2;
    }
#endif
    return &cpu_vector_plain;
}

#endif
