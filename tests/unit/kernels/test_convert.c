/* Element types: every f16 and bf16 there and back, rounding against the slow way, unaligned runs.
 */
#include "kernels/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/half.h"
#include "tests/unit/seed.h"

static float float_of(uint16_t bits, enum kern_dtype dtype) {
    float value = 0;
    kern_convert(&value, KERN_F32, &bits, dtype, 1);
    return value;
}

static uint16_t half_by_convert(float value, enum kern_dtype dtype) {
    uint16_t bits = 0;
    kern_convert(&bits, dtype, &value, KERN_F32, 1);
    return bits;
}

static void test_every_half_there_and_back(void **state) {
    (void)state;
    static const enum kern_dtype types[] = {KERN_F16, KERN_BF16};
    for (size_t t = 0; t < 2; t++) {
        for (uint32_t bits = 0; bits <= UINT16_MAX; bits++) {
            float value = float_of((uint16_t)bits, types[t]);
            float slow = half_float((uint16_t)bits, types[t]);
            if (isnan(slow)) {
                assert_true(isnan(value));
                assert_true(isnan(float_of(half_by_convert(value, types[t]), types[t])));
                continue;
            }
            assert_memory_equal(&value, &slow, sizeof value);
            assert_int_equal(half_by_convert(value, types[t]), bits);
            uint16_t half = (uint16_t)bits;
            assert_int_equal(kern_finite(&half, types[t], 1, types[t]), isfinite(value) != 0);
        }
    }
}

static void test_rounds_to_nearest(void **state) {
    (void)state;
    uint64_t seed = seed_take(7);
    for (uint32_t i = 0; i < 2000000; i++) {
        uint32_t bits = seed_below(&seed, UINT32_MAX);
        float value = 0;
        memcpy(&value, &bits, sizeof value);
        if (!isnan(value)) {
            assert_int_equal(half_by_convert(value, KERN_F16), half_f16(value));
            assert_int_equal(half_by_convert(value, KERN_BF16), half_bf16(value));
        }
    }
    const float ties[] = {65519.996F, 65520.0F,     -65520.0F, 0x1p-25F,
                          0x1.8p-24F, 0x1.ffcp-15F, 0.0F};
    for (size_t i = 0; i < sizeof ties / sizeof ties[0]; i++) {
        assert_int_equal(half_by_convert(ties[i], KERN_F16), half_f16(ties[i]));
    }
}

static void test_long_unaligned_runs(void **state) {
    (void)state;
    enum { COUNT = 1337 };
    static unsigned char from[COUNT * 4 + 1], to[COUNT * 2 + 1];
    for (uint32_t i = 0; i < COUNT; i++) {
        float value = (float)i * 0.37F - 100;
        memcpy(from + 1 + (size_t)i * 4, &value, sizeof value);
    }
    kern_convert(to + 1, KERN_F16, from + 1, KERN_F32, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint16_t half = 0;
        memcpy(&half, to + 1 + (size_t)i * 2, sizeof half);
        assert_int_equal(half, half_f16((float)i * 0.37F - 100));
    }
}

/* kern_finite(as) says what conversion to `as` would give. */
static void test_finite_as_another_type(void **state) {
    (void)state;
    const float values[] = {1,       65504,  65519.996F, 65520,     65536, 3.3e38F,
                            3.4e38F, -70000, INFINITY,   -INFINITY, NAN,   1e-40F};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        static const enum kern_dtype types[] = {KERN_F32, KERN_F16, KERN_BF16};
        for (size_t from = 0; from < 3; from++) {
            for (size_t as = 0; as < 3; as++) {
                unsigned char source[4], result[4];
                float back = 0;
                kern_convert(source, types[from], &values[i], KERN_F32, 1);
                kern_convert(result, types[as], source, types[from], 1);
                kern_convert(&back, KERN_F32, result, types[as], 1);
                assert_int_equal(kern_finite(source, types[from], 1, types[as]),
                                 isfinite(back) != 0);
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half_there_and_back),
        cmocka_unit_test(test_rounds_to_nearest),
        cmocka_unit_test(test_long_unaligned_runs),
        cmocka_unit_test(test_finite_as_another_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
