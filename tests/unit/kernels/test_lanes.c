/* The vectors' exponential and dot product against libm and double precision. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernels/cpu/lanes.h"

static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (double x = -87; x <= 88; x += 0.00037) {
        float in[LANES], out[LANES];
        for (int i = 0; i < LANES; i++) {
            in[i] = (float)(x + i * 0.00004);
        }
        lanes_store(out, lanes_exp(lanes_load(in)));
        for (int i = 0; i < LANES; i++) {
            double exact = exp(in[i] > 88 ? 88 : (double)in[i]);
            double error = fabs((double)out[i] / exact - 1);
            worst = error > worst ? error : worst;
        }
    }
    print_message("worst relative error %.2e\n", worst);
    assert_true(worst < 2.4e-7);
}

static void test_exp_at_the_ends(void **state) {
    (void)state;
    const float in[LANES] = {0, -0.0f, -INFINITY, -87.5f, 88, 1e30f, -FLT_MAX, NAN};
    float out[LANES];
    lanes_store(out, lanes_exp(lanes_load(in)));
    assert_true(out[0] == 1 && out[1] == 1);
    assert_true(out[2] == 0 && out[3] == 0 && out[6] == 0);
    assert_true(isfinite(out[4]) && out[5] == out[4]);
    assert_true(isnan(out[7]));
}

static void test_dot(void **state) {
    (void)state;
    float a[256], b[256];
    for (uint32_t i = 0; i < 256; i++) {
        a[i] = sinf((float)i);
        b[i] = cosf((float)(i * i));
    }
    for (uint32_t count = LANES; count <= 256; count += LANES) {
        double sum = 0, size = 0;
        for (uint32_t i = 0; i < count; i++) {
            sum += (double)a[i] * (double)b[i];
            size += fabs((double)a[i] * (double)b[i]);
        }
        assert_true(fabs((double)lanes_dot(a, b, count) - sum) <= 1e-6 * size);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp_at_the_ends),
        cmocka_unit_test(test_dot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
