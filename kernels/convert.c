/* Element types: f32, f16, bf16, and the ways between them.
 *
 * Nearly all that is converted is of the type it becomes, and copied; the loops of the rest are
 * runs.c's. */
#include <string.h>

#include "base/check.h"
#include "kernels/checks.h"
#include "kernels/kernels.h"
#include "kernels/runs.h"

enum { PIECE = 4096 }; /* elements between two looks at whether to go on */

float kern_tensor_float(const void *data, enum kern_dtype dtype, uint64_t index) {
    float value;
    kern_convert(&value, KERN_F32, (const unsigned char *)data + index * kern_dtype_bytes(dtype),
                 dtype, 1);
    return value;
}

void kern_convert(void *to, enum kern_dtype to_dtype, const void *from, enum kern_dtype from_dtype,
                  uint64_t count) {
    const struct runs_ops *runs = runs_best();
    if (to_dtype == from_dtype) {
        memcpy(to, from, count * kern_dtype_bytes(to_dtype));
    } else if (to_dtype == KERN_F32) {
        (from_dtype == KERN_BF16 ? runs->f32_of_bf16 : runs->f32_of_f16)(to, from, count);
    } else if (to_dtype == KERN_BF16) {
        (from_dtype == KERN_F32 ? runs->bf16_of_f32 : runs->bf16_of_f16)(to, from, count);
    } else {
        CHECK(to_dtype == KERN_F16);
        (from_dtype == KERN_F32 ? runs->f16_of_f32 : runs->f16_of_bf16)(to, from, count);
    }
}

/* The least magnitude, as bits of `dtype`, that is not finite as `as`. */
static uint32_t infinite_from(enum kern_dtype dtype, enum kern_dtype as) {
    switch (dtype) {
    case KERN_F16:
        return 0x7c00u;
    case KERN_BF16:
        return as == KERN_F16 ? (RUNS_F16_BORDER + 0xffffu) >> 16 : 0x7f80u;
    case KERN_F32:
        break;
    }
    return as == KERN_F16    ? RUNS_F16_BORDER
           : as == KERN_BF16 ? 0x7f7f8000u /* rounds up to infinity */
                             : 0x7f800000u;
}

bool kern_finite(const void *data, enum kern_dtype dtype, uint64_t count, enum kern_dtype as) {
    const struct runs_ops *runs = runs_best();
    const unsigned char *from = data;
    uint32_t border = infinite_from(dtype, as);
    while (count > 0) {
        size_t now = count < PIECE ? (size_t)count : PIECE;
        if ((dtype == KERN_F32 ? runs->greatest_f32 : runs->greatest_half)(from, now) >= border) {
            return false;
        }
        from += now * kern_dtype_bytes(dtype);
        count -= now;
    }
    return true;
}
