/* Every item once, whatever the number of threads; also run under the thread sanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "kernels/cpu/threads.h"

enum { ITEMS_MAX = 1000 };

struct tally {
    _Atomic uint32_t calls[ITEMS_MAX];
    uint32_t plain[ITEMS_MAX]; /* not atomic: the sanitizer sees it when a loop ends too early */
    uint32_t threads;
    _Atomic bool bad_thread;
};

static void count_item(void *context, uint32_t item, uint32_t thread) {
    struct tally *t = context;
    atomic_fetch_add(&t->calls[item], 1);
    t->plain[item]++;
    if (thread >= t->threads) {
        atomic_store(&t->bad_thread, true);
    }
}

static void run_all(uint32_t threads, int rounds) {
    static const uint32_t items_table[] = {0, 1, 2, 3, 17, 1000};
    struct threads *pool = NULL;
    assert_int_equal(threads_open(&pool, threads), ERR_OK);
    assert_int_equal(threads_count(pool), threads);
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < sizeof items_table / sizeof items_table[0]; i++) {
            uint32_t items = items_table[i];
            struct tally t = {.threads = threads};
            threads_run(pool, count_item, &t, items);
            for (uint32_t k = 0; k < ITEMS_MAX; k++) {
                assert_int_equal(t.calls[k], k < items ? 1 : 0);
                assert_int_equal(t.plain[k], k < items ? 1 : 0);
            }
            assert_false(t.bad_thread);
        }
        if (round % 50 == 0) {
            clock_sleep_ms(1); /* long enough for the workers to fall asleep */
        }
    }
    threads_close(pool);
}

static void test_each_item_once(void **state) {
    (void)state;
    run_all(1, 2);
    run_all(2, 200);
    run_all(5, 200);
}

static void test_close(void **state) {
    (void)state;
    threads_close(NULL);
    struct threads *pool = NULL;
    assert_int_equal(threads_open(&pool, 4), ERR_OK);
    threads_close(pool); /* workers that never saw a loop */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_item_once),
        cmocka_unit_test(test_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
