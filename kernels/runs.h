/* runs.h - the inner loops of convert.c, compiled once for any machine and once for AVX2. Both give
 * the same bits. Nothing need be aligned; nothing overlaps. */
#ifndef LORRY_KERNELS_RUNS_H
#define LORRY_KERNELS_RUNS_H

#include <stddef.h>
#include <stdint.h>

#define RUNS_F16_BORDER 0x477ff000u /* bits of 65,520: from here on f16 rounds to infinity */

typedef void runs_convert_fn(void *to, const void *from, size_t count);

struct runs_ops {
    runs_convert_fn *f32_of_bf16, *f32_of_f16, *bf16_of_f32, *f16_of_f32, *bf16_of_f16,
        *f16_of_bf16;
    /* The greatest magnitude, as bits of the type: they are ordered as the values are. */
    uint32_t (*greatest_half)(const void *from, size_t count); /* of f16 or bf16 */
    uint32_t (*greatest_f32)(const void *from, size_t count);
};

extern const struct runs_ops runs_plain;
#ifdef LORRY_CPU_AVX2
extern const struct runs_ops runs_avx2;
#endif

/* The best table for this machine. */
static inline const struct runs_ops *runs_best(void) {
#ifdef LORRY_CPU_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) { /* as vector.h does */
        return &runs_avx2;
    }
#endif
    return &runs_plain;
}

#endif
