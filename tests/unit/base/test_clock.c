#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"

static void the_wall_clock_is_unix_time_in_milliseconds(void **state) {
    (void)state;
    time_t before = time(NULL);
    int64_t now_ms = clock_wall_ms();
    time_t after = time(NULL);
    assert_in_range(now_ms / 1000, before - 1, after + 1); /* time(2) may lag a tick behind */
}

static void the_monotonic_clock_counts_microseconds(void **state) {
    (void)state;
    int64_t start = clock_mono_us();
    clock_sleep_ms(20);
    int64_t slept = clock_mono_us() - start;
    assert_true(slept >= 20000);
    assert_true(slept < 20000000); /* the machine may be busy, but this is no other unit */
    int64_t last = clock_mono_us();
    for (int i = 0; i < 1000; i++) {
        int64_t now = clock_mono_us();
        assert_true(now >= last);
        last = now;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_wall_clock_is_unix_time_in_milliseconds),
        cmocka_unit_test(the_monotonic_clock_counts_microseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
