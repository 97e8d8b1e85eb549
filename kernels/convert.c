/* Element types: f32, f16, bf16, and the ways between them.
 *
 * Nearly all that is converted is of the type it becomes, and copied. The loops of the rest are
 * plain enough for the compiler to make vectors of them. */
#include <string.h>

#include "base/check.h"
#include "kernels/checks.h"
#include "kernels/kernels.h"

enum { PIECE = 512 }; /* elements that go through f32 at a time */

#define F16_BORDER 0x477ff000u /* bits of 65,520: from here on f16 rounds to infinity */

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

static inline float f32_of_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: fraction · 2⁻²⁴, exact in f32 */
        return f32_of_bits(sign | bits_of_f32((float)fraction * 0x1p-24f));
    }
    if (exponent == 0x1f) {
        return f32_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    return f32_of_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

static inline uint16_t bf16_of_f32(float value) {
    uint32_t bits = bits_of_f32(value);
    uint32_t nan = (bits & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return (uint16_t)(nan != 0 ? bits >> 16 | 0x40u : rounded >> 16);
}

static inline uint16_t f16_of_f32(float value) {
    uint32_t bits = bits_of_f32(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude >= F16_BORDER) {
        return (uint16_t)(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    }
    if (magnitude < 0x38800000u) { /* subnormal: adding 0.5 lets the adder round to 2⁻²⁴ */
        uint32_t shifted = bits_of_f32(f32_of_bits(magnitude) + 0.5f);
        return (uint16_t)(sign | (shifted - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

float kern_tensor_float(const void *data, enum kern_dtype dtype, uint64_t index) {
    float value;
    kern_convert(&value, KERN_F32, (const unsigned char *)data + index * kern_dtype_bytes(dtype),
                 dtype, 1);
    return value;
}

/* ---- runs --------------------------------------------------------------------------------- */

static void widen(float *to, const unsigned char *from, enum kern_dtype dtype, uint32_t count) {
    uint16_t half[PIECE];
    if (dtype == KERN_F32) {
        memcpy(to, from, count * sizeof *to);
        return;
    }
    memcpy(half, from, count * sizeof half[0]);
    if (dtype == KERN_BF16) {
        for (uint32_t i = 0; i < count; i++) {
            to[i] = f32_of_bits((uint32_t)half[i] << 16);
        }
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        to[i] = f32_of_f16(half[i]);
    }
}

static void narrow(unsigned char *to, enum kern_dtype dtype, const float *from, uint32_t count) {
    uint16_t half[PIECE];
    if (dtype == KERN_F32) {
        memcpy(to, from, count * sizeof *from);
        return;
    }
    if (dtype == KERN_BF16) {
        for (uint32_t i = 0; i < count; i++) {
            half[i] = bf16_of_f32(from[i]);
        }
    } else {
        for (uint32_t i = 0; i < count; i++) {
            half[i] = f16_of_f32(from[i]);
        }
    }
    memcpy(to, half, count * sizeof half[0]);
}

void kern_convert(void *to, enum kern_dtype to_dtype, const void *from, enum kern_dtype from_dtype,
                  uint64_t count) {
    if (to_dtype == from_dtype) {
        memcpy(to, from, count * kern_dtype_bytes(to_dtype));
        return;
    }
    float floats[PIECE];
    unsigned char *out = to;
    const unsigned char *in = from;
    while (count > 0) {
        uint32_t now = count < PIECE ? (uint32_t)count : PIECE;
        widen(floats, in, from_dtype, now);
        narrow(out, to_dtype, floats, now);
        in += (uint64_t)now * kern_dtype_bytes(from_dtype);
        out += (uint64_t)now * kern_dtype_bytes(to_dtype);
        count -= now;
    }
}

/* ---- finite ------------------------------------------------------------------------------- */

/* The greatest magnitude, as bits of its type: they are ordered as the values are. */
static uint32_t magnitude_max(const unsigned char *data, enum kern_dtype dtype, uint32_t count) {
    uint32_t words[PIECE], greatest = 0;
    uint16_t halves[PIECE], half_greatest = 0;
    if (dtype == KERN_F32) {
        memcpy(words, data, count * sizeof words[0]);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t magnitude = words[i] & 0x7fffffffu;
            greatest = magnitude > greatest ? magnitude : greatest;
        }
        return greatest;
    }
    memcpy(halves, data, count * sizeof halves[0]);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t magnitude = halves[i] & 0x7fffu;
        half_greatest = magnitude > half_greatest ? magnitude : half_greatest;
    }
    return half_greatest;
}

/* The least magnitude, as bits of `dtype`, that is not finite as `as`. */
static uint32_t infinite_from(enum kern_dtype dtype, enum kern_dtype as) {
    switch (dtype) {
    case KERN_F16:
        return 0x7c00u;
    case KERN_BF16:
        return as == KERN_F16 ? (F16_BORDER + 0xffffu) >> 16 : 0x7f80u;
    case KERN_F32:
        break;
    }
    return as == KERN_F16    ? F16_BORDER
           : as == KERN_BF16 ? 0x7f7f8000u /* rounds up to infinity */
                             : 0x7f800000u;
}

bool kern_finite(const void *data, enum kern_dtype dtype, uint64_t count, enum kern_dtype as) {
    const unsigned char *from = data;
    uint32_t border = infinite_from(dtype, as);
    while (count > 0) {
        uint32_t now = count < PIECE ? (uint32_t)count : PIECE;
        if (magnitude_max(from, dtype, now) >= border) {
            return false;
        }
        from += (uint64_t)now * kern_dtype_bytes(dtype);
        count -= now;
    }
    return true;
}
