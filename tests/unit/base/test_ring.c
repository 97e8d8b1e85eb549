#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/ring.h"

static void capacities_are_rounded_up(void **state) {
    (void)state;
    static const uint32_t wanted[] = {1, 2, 3, 4, 5, 1000, 1024};
    static const uint32_t got[] = {2, 2, 4, 4, 8, 1024, 1024};
    for (unsigned i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        struct ring r;
        assert_int_equal(ring_init(&r, wanted[i]), ERR_OK);
        assert_int_equal(ring_capacity(&r), got[i]);
        assert_int_equal(ring_count(&r), 0);
        ring_deinit(&r);
    }
}

static void it_is_first_in_first_out_and_refuses_when_full(void **state) {
    (void)state;
    struct ring r;
    int items[4];
    assert_int_equal(ring_init(&r, 4), ERR_OK);
    for (int lap = 0; lap < 1000; lap++) {
        assert_null(ring_pop(&r));
        for (int i = 0; i < 4; i++) {
            assert_true(ring_push(&r, &items[i]));
            assert_int_equal(ring_count(&r), i + 1);
        }
        assert_false(ring_push(&r, &items[0]));
        assert_int_equal(ring_count(&r), 4);
        for (int i = 0; i < 4; i++) {
            assert_ptr_equal(ring_pop(&r), &items[i]);
        }
    }
    ring_deinit(&r);
}

static void it_wraps_at_every_fill(void **state) {
    (void)state;
    struct ring r;
    int items[8];
    unsigned pushed = 0;
    unsigned popped = 0;
    assert_int_equal(ring_init(&r, 8), ERR_OK);
    for (unsigned step = 0; step < 10000; step++) { /* 3 in, 2 out, until full; then empty it */
        for (unsigned i = 0; i < 3 && pushed - popped < 8; i++) {
            assert_true(ring_push(&r, &items[pushed++ % 8]));
        }
        for (unsigned i = 0; i < (step % 16 == 15 ? 8U : 2U) && popped < pushed; i++) {
            assert_ptr_equal(ring_pop(&r), &items[popped++ % 8]);
        }
        assert_int_equal(ring_count(&r), pushed - popped);
    }
    ring_deinit(&r);
}

/* Each of two pushers gives its numbers in order; two poppers see each number once, and the numbers
 * of one pusher in rising order. */
enum { STRESS_ITEMS = 100000, STRESS_PUSHERS = 2, STRESS_POPPERS = 2 };

struct stress {
    struct ring ring;
    uint32_t numbers[STRESS_ITEMS];     /* the items: numbers[i] == i */
    _Atomic uint8_t seen[STRESS_ITEMS]; /* how often it was popped */
    _Atomic uint32_t popped;
};

struct worker {
    struct stress *stress;
    uint64_t sum;      /* popper */
    uint32_t disorder; /* popper: times a pusher's numbers fell */
    uint32_t first;    /* pusher: its numbers are first, first + STRESS_PUSHERS … */
};

static void *push_all(void *context) {
    struct worker *w = context;
    for (uint32_t i = w->first; i < STRESS_ITEMS; i += STRESS_PUSHERS) {
        while (!ring_push(&w->stress->ring, &w->stress->numbers[i])) {
            (void)sched_yield();
        }
    }
    return NULL;
}

static void *pop_all(void *context) {
    struct worker *w = context;
    int64_t last[STRESS_PUSHERS] = {-1, -1};
    while (atomic_load(&w->stress->popped) < STRESS_ITEMS) {
        const uint32_t *item = ring_pop(&w->stress->ring);
        if (item == NULL) {
            (void)sched_yield();
            continue;
        }
        w->sum += *item;
        w->disorder += (int64_t)*item <= last[*item % STRESS_PUSHERS];
        last[*item % STRESS_PUSHERS] = *item;
        (void)atomic_fetch_add(&w->stress->seen[*item], 1);
        (void)atomic_fetch_add(&w->stress->popped, 1);
    }
    return NULL;
}

static void threads_lose_and_double_nothing(void **state) {
    (void)state;
    struct stress *s = calloc(1, sizeof *s);
    pthread_t threads[STRESS_PUSHERS + STRESS_POPPERS];
    struct worker workers[STRESS_PUSHERS + STRESS_POPPERS] = {0};
    assert_non_null(s);
    assert_int_equal(ring_init(&s->ring, 64), ERR_OK);
    for (uint32_t i = 0; i < STRESS_ITEMS; i++) {
        s->numbers[i] = i;
    }
    for (uint32_t i = 0; i < STRESS_PUSHERS + STRESS_POPPERS; i++) {
        workers[i] = (struct worker){.stress = s, .first = i};
        assert_int_equal(
            pthread_create(&threads[i], NULL, i < STRESS_PUSHERS ? push_all : pop_all, &workers[i]),
            0);
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < STRESS_PUSHERS + STRESS_POPPERS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        sum += workers[i].sum;
        assert_int_equal(workers[i].disorder, 0);
    }
    assert_int_equal(sum, (uint64_t)STRESS_ITEMS * (STRESS_ITEMS - 1) / 2);
    for (uint32_t i = 0; i < STRESS_ITEMS; i++) {
        assert_int_equal(s->seen[i], 1);
    }
    assert_int_equal(ring_count(&s->ring), 0);
    assert_null(ring_pop(&s->ring));
    ring_deinit(&s->ring);
    free(s);
}

static void a_bell_that_was_rung_does_not_wait(void **state) {
    (void)state;
    struct bell b;
    bell_init(&b);
    bell_ring(&b);
    bell_ring(&b); /* rings add up to one */
    int64_t start = clock_mono_us();
    assert_true(bell_wait(&b, 60000));
    assert_true(clock_mono_us() - start < 30000000);
    assert_false(bell_wait(&b, 0));
}

static void a_silent_bell_waits_its_time(void **state) {
    (void)state;
    struct bell b;
    bell_init(&b);
    int64_t start = clock_mono_us();
    assert_false(bell_wait(&b, 30));
    assert_true(clock_mono_us() - start >= 30000);
}

struct straying {
    struct bell bell;
    atomic_bool done;
};

/* Wakes whoever sleeps by the bell and does not ring it, as a ringer does that is late to wake: its
 * ring was taken by the wait before. */
static void *stray(void *context) {
    struct straying *s = context;
    while (!atomic_load(&s->done)) {
        (void)syscall(SYS_futex, &s->bell.rung, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        (void)sched_yield();
    }
    return NULL;
}

static void a_stray_wake_up_ends_no_wait(void **state) {
    (void)state;
    struct straying s = {0};
    pthread_t thread;
    bell_init(&s.bell);
    assert_int_equal(pthread_create(&thread, NULL, stray, &s), 0);
    for (uint32_t i = 0; i < 20; i++) {
        int64_t start = clock_mono_us();
        assert_false(bell_wait(&s.bell, 10));
        assert_true(clock_mono_us() - start >= 10000);
    }
    bell_ring(&s.bell);
    assert_true(bell_wait(&s.bell, 60000));
    atomic_store(&s.done, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

struct ringing {
    struct bell here, there;
    struct ring ring;
};

enum { BELL_ROUNDS = 5000 };

/* Rings only after the push, so whoever wakes finds the item: no wake-up may get lost. */
static void *hand_over(void *context) {
    struct ringing *r = context;
    for (uint32_t i = 0; i < BELL_ROUNDS; i++) {
        while (!ring_push(&r->ring, r)) {
            (void)sched_yield();
        }
        bell_ring(&r->there);
        while (!bell_wait(&r->here, 60000)) {
        }
    }
    return NULL;
}

static void no_ring_is_lost_between_threads(void **state) {
    (void)state;
    struct ringing r = {0};
    pthread_t thread;
    bell_init(&r.here);
    bell_init(&r.there);
    assert_int_equal(ring_init(&r.ring, 2), ERR_OK);
    assert_int_equal(pthread_create(&thread, NULL, hand_over, &r), 0);
    for (uint32_t i = 0; i < BELL_ROUNDS; i++) {
        assert_true(bell_wait(&r.there, 60000));
        assert_ptr_equal(ring_pop(&r.ring), &r);
        assert_null(ring_pop(&r.ring));
        bell_ring(&r.here);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    ring_deinit(&r.ring);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capacities_are_rounded_up),
        cmocka_unit_test(it_is_first_in_first_out_and_refuses_when_full),
        cmocka_unit_test(it_wraps_at_every_fill),
        cmocka_unit_test(threads_lose_and_double_nothing),
        cmocka_unit_test(a_bell_that_was_rung_does_not_wait),
        cmocka_unit_test(a_silent_bell_waits_its_time),
        cmocka_unit_test(a_stray_wake_up_ends_no_wait),
        cmocka_unit_test(no_ring_is_lost_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
