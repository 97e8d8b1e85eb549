/* half.h - f32 to a 16-bit type and back, for tests: rounds to nearest, ties to even. */
#ifndef LORRY_TESTS_UNIT_KERNELS_HALF_H
#define LORRY_TESTS_UNIT_KERNELS_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

static inline uint16_t half_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t half_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x477ff000) { /* rounds beyond 65,504 */
        return (uint16_t)(sign | (isnan(value) ? 0x7e00 : 0x7c00));
    }
    if (magnitude < 0x38800000) { /* a multiple of 2⁻²⁴ */
        return (uint16_t)(sign | (uint32_t)lrintf(fabsf(value) * 0x1p24f));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

static inline float half_float(uint16_t bits, enum kern_dtype dtype) {
    float value;
    if (dtype == KERN_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    uint32_t exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0x1f) {
        value = fraction != 0 ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = (float)fraction * 0x1p-24f;
    } else {
        value = ldexpf((float)(fraction | 0x400), (int)exponent - 25);
    }
    return (bits & 0x8000) != 0 ? -value : value;
}

static inline uint16_t half_of(float value, enum kern_dtype dtype) {
    return dtype == KERN_BF16 ? half_bf16(value) : half_f16(value);
}

/* The nearest value that the type has. */
static inline float half_round(float value, enum kern_dtype dtype) {
    return dtype == KERN_F32 ? value : half_float(half_of(value, dtype), dtype);
}

#endif
