/* Loaders that share in one another's requests: each part runs once, whoever runs it. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/clock.h"
#include "worker/loaders.h"

enum { REQUESTS = 200, PARTS = 37, THREADS = 8, WAIT_MS = 10000 };

struct request {
    _Atomic uint32_t parts[PARTS];
    bool again; /* a second round of parts */
};

struct fixture {
    struct loaders *loaders;
    struct request requests[REQUESTS];
    _Atomic uint32_t served;
    _Atomic uint64_t busy; /* threads that wait in a part */
    uint32_t meet;         /* a part waits until so many are at it */
};

static struct fixture f;

static void part(void *argument, uint32_t index) {
    struct request *r = argument;
    atomic_fetch_add(&r->parts[index], 1);
    if (f.meet > 0) {
        atomic_fetch_add(&f.busy, 1);
        for (uint32_t ms = 0; atomic_load(&f.busy) < f.meet && ms < WAIT_MS; ms++) {
            clock_sleep_ms(1);
        }
    }
}

static void serve(void *context, void *request) {
    struct fixture *fixture = context;
    struct request *r = request;
    struct model_crew crew = loaders_crew(fixture->loaders);
    for (uint32_t round = 0; round <= (r->again ? 1u : 0u); round++) {
        model_crew_run(&crew, PARTS, part, r);
        for (uint32_t i = 0; i < PARTS; i++) { /* all have returned */
            CHECK(atomic_load(&r->parts[i]) == round + 1);
        }
    }
    atomic_fetch_add(&fixture->served, 1);
}

static void start(uint32_t threads, uint32_t meet) {
    f.meet = meet;
    atomic_store(&f.served, 0);
    atomic_store(&f.busy, 0);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        f.requests[i].again = i % 3 == 0;
        for (uint32_t k = 0; k < PARTS; k++) {
            atomic_store(&f.requests[i].parts[k], 0);
        }
    }
    assert_int_equal(loaders_open(&f.loaders, &(struct loaders_options){.threads = threads,
                                                                        .requests_max = REQUESTS,
                                                                        .serve = serve,
                                                                        .context = &f}),
                     ERR_OK);
}

static void served_all(uint32_t count) {
    for (uint32_t ms = 0; atomic_load(&f.served) < count && ms < WAIT_MS; ms++) {
        clock_sleep_ms(1);
    }
    assert_int_equal(atomic_load(&f.served), count);
}

static void test_each_part_once(void **state) {
    (void)state;
    for (uint32_t threads = 1; threads <= THREADS; threads *= 2) {
        start(threads, 0);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            loaders_give(f.loaders, &f.requests[i]);
        }
        served_all(REQUESTS);
        loaders_close(f.loaders);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            for (uint32_t k = 0; k < PARTS; k++) {
                assert_int_equal(atomic_load(&f.requests[i].parts[k]), f.requests[i].again ? 2 : 1);
            }
        }
    }
}

/* Its parts wait for each other: they end only if all loaders are at it at the same time. */
static void test_the_idle_help(void **state) {
    (void)state;
    start(THREADS, THREADS);
    f.requests[0].again = false;
    loaders_give(f.loaders, &f.requests[0]);
    served_all(1);
    assert_true(atomic_load(&f.busy) >= THREADS);
    loaders_close(f.loaders);
}

static void test_closing_drops_what_waits(void **state) {
    (void)state;
    for (uint32_t turn = 0; turn < 20; turn++) {
        start(3, 0);
        for (uint32_t i = 0; i < REQUESTS; i++) {
            loaders_give(f.loaders, &f.requests[i]);
        }
        loaders_close(f.loaders);
        assert_true(atomic_load(&f.served) <= REQUESTS);
    }
    loaders_close(NULL);
}

static void test_counts(void **state) {
    (void)state;
    assert_int_equal(loaders_count(5), 5);
    assert_in_range(loaders_count(0), 1, LOADERS_AUTO_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_part_once),
        cmocka_unit_test(test_the_idle_help),
        cmocka_unit_test(test_closing_drops_what_waits),
        cmocka_unit_test(test_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
