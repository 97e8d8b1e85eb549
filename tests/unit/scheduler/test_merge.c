/* When an adapter's product is put into the weights, and when it is not. */
#include "tests/unit/scheduler/fixture.h"

/* A step of one row takes 101 us, and LoRA 20.1 of it; two switches take 200: 10 steps. */
enum { PAGES = 10, STEPS = 10 };

static struct sched_options options(void) {
    struct sched_options o = fix_options();
    o.merging = true;
    o.merge_us = 100;
    o.lora_share = 0.1;
    return o;
}

static struct fixture *open_with(const struct sched_options *o) {
    struct fixture *f = fix_open(o);
    for (uint32_t a = 0; a < 3; a++) {
        fix_adapter(f, a, SCHED_RESIDENT, PAGES);
        f->adapters[a].mergeable = a < 2;
    }
    return f;
}

static struct fixture *open_it(void) {
    struct sched_options o = options();
    return open_with(&o);
}

static void assert_merged(struct fixture *f, uint32_t plans, uint32_t merged) {
    for (uint32_t i = 0; i < plans; i++) {
        (void)fix_plan(f);
        assert_true(f->plan.work_count > 0);
        assert_int_equal(f->plan.merged, merged);
    }
}

static void leave(struct fixture *f, uint32_t job, uint32_t adapter) {
    sched_leave(f->sched, job);
    if (adapter != SCHED_BASE) {
        f->adapters[adapter].users--;
    }
}

/* After as many steps as have cost what the switches cost, if as many are to come. */
static void test_when_it_pays(void **state) {
    (void)state;
    struct fixture *f = open_it();
    fix_enter(f, 0, 0, 1, STEPS + 1 + STEPS);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, STEPS + 1, 0);
    assert_int_equal(sched_counts(f->sched).merges, 1);
    fix_close(f);
    f = open_it();
    fix_enter(f, 0, 0, 1, STEPS + STEPS); /* one less */
    assert_merged(f, STEPS + STEPS, SCHED_BASE);
    assert_int_equal(sched_counts(f->sched).merges, 0);
    fix_close(f);
}

/* Waiting ones of its own count, as they take the rows that come free. */
static void test_its_own_wait(void **state) {
    (void)state;
    struct fixture *f = open_it();
    for (uint32_t i = 0; i < 8; i++) { /* two rounds of four rows */
        fix_enter(f, i, 0, 1, STEPS);
    }
    assert_merged(f, 9, SCHED_BASE); /* four rows: 20.4 us */
    (void)fix_plan(f);
    assert_int_equal(f->plan.merged, SCHED_BASE); /* the tenth */
    for (uint32_t i = 0; i < 4; i++) {
        leave(f, i, 0);
    }
    (void)fix_plan(f); /* nobody waits any more, and nine steps are left */
    assert_int_equal(f->plan.merged, SCHED_BASE);
    fix_close(f);
    f = open_it();
    for (uint32_t i = 0; i < 16; i++) {
        fix_enter(f, i, 0, 1, STEPS);
    }
    assert_merged(f, 10, SCHED_BASE);
    for (uint32_t i = 0; i < 4; i++) {
        leave(f, i, 0);
    }
    assert_merged(f, 1, 0);
    fix_close(f);
}

static void test_off_or_impossible(void **state) {
    (void)state;
    struct sched_options o = options();
    o.merging = false;
    struct fixture *f = open_with(&o);
    fix_enter(f, 0, 0, 1, 50);
    assert_merged(f, 50, SCHED_BASE);
    fix_close(f);
    f = open_it();
    fix_enter(f, 0, 2, 1, 50); /* has something outside the projections */
    assert_merged(f, 50, SCHED_BASE);
    fix_close(f);
    f = open_it();
    fix_enter(f, 0, SCHED_BASE, 1, 50);
    assert_merged(f, 50, SCHED_BASE);
    fix_close(f);
}

/* A row of anybody else is in the very next step, and that step is unmerged; afterwards it begins
 * anew. */
static void test_somebody_comes(void **state) {
    (void)state;
    for (uint32_t other = 0; other < 3; other++) {
        struct fixture *f = open_it();
        uint32_t adapter = other == 0 ? SCHED_BASE : other;
        fix_enter(f, 0, 0, 1, 60);
        assert_merged(f, STEPS, SCHED_BASE);
        assert_merged(f, 2, 0);
        fix_enter(f, 1, adapter, 1, 2);
        assert_merged(f, 1, SCHED_BASE);
        assert_non_null(fix_work(f, 1));
        assert_merged(f, 1, SCHED_BASE);
        leave(f, 1, adapter);
        assert_merged(f, STEPS, SCHED_BASE);
        assert_merged(f, 1, 0);
        assert_int_equal(sched_counts(f->sched).merges, 2);
        fix_close(f);
    }
}

/* Somebody waits whom a free row awaits: he may come at any time. With all rows taken it is
 * known when. */
static void test_somebody_waits(void **state) {
    (void)state;
    struct fixture *f = open_it();
    fix_adapter(f, 1, SCHED_LOADING, PAGES);
    fix_enter(f, 0, 0, 1, 60);
    fix_enter(f, 1, 1, 1, 60);
    assert_merged(f, 40, SCHED_BASE);
    fix_close(f);

    f = open_it();
    for (uint32_t i = 0; i < 4; i++) {
        fix_enter(f, i, 0, 1, i == 3 ? 15 : 40);
    }
    (void)fix_plan(f);
    fix_enter(f, 4, SCHED_BASE, 1, 9);
    assert_merged(f, 14, SCHED_BASE); /* too soon, a row comes free */
    leave(f, 3, 0);
    assert_merged(f, 1, SCHED_BASE);
    assert_non_null(fix_work(f, 4));
    fix_close(f);

    f = open_it();
    for (uint32_t i = 0; i < 4; i++) {
        fix_enter(f, i, 0, 1, 30);
    }
    (void)fix_plan(f);
    fix_enter(f, 4, SCHED_BASE, 1, 9);
    assert_merged(f, 9, SCHED_BASE);
    assert_merged(f, 20, 0); /* up to their end */
    for (uint32_t i = 0; i < 4; i++) {
        leave(f, i, 0);
    }
    assert_merged(f, 1, SCHED_BASE);
    assert_non_null(fix_work(f, 4));
    fix_close(f);
}

/* What is merged stays so while nothing runs, and goes with the first step of another. */
static void test_one_after_the_other(void **state) {
    (void)state;
    struct fixture *f = open_it();
    fix_enter(f, 0, 0, 1, 30);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, STEPS, 0);
    leave(f, 0, 0);
    (void)fix_plan(f);
    assert_int_equal(f->plan.work_count, 0);
    fix_enter(f, 1, 0, 1, 1);
    assert_merged(f, 1, 0); /* one step is as good as many */
    leave(f, 1, 0);
    fix_enter(f, 2, 1, 1, 30);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, STEPS, 1);
    assert_int_equal(sched_counts(f->sched).merges, 2);
    fix_close(f);
}

/* Its index may come back as another adapter. */
static void test_evicted(void **state) {
    (void)state;
    struct sched_options o = options();
    o.pages = 24;
    struct fixture *f = open_with(&o);
    f->snapshot.pages_free = 4;
    fix_enter(f, 0, 0, 1, 30);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, 1, 0);
    leave(f, 0, 0);
    f->snapshot.pages_free = 4;
    fix_adapter(f, 1, SCHED_STORED, PAGES);
    fix_adapter(f, 2, SCHED_AWAY, 0);
    fix_enter(f, 1, 1, 1, 9);
    (void)fix_plan(f);
    assert_int_equal(f->plan.evict_count, 1);
    assert_int_equal(f->plan.evicts[0], 0);
    sched_leave(f->sched, 1);
    fix_adapter(f, 0, SCHED_RESIDENT, PAGES);
    f->adapters[0].mergeable = true;
    fix_enter(f, 2, 0, 1, 30);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, 1, 0);
    fix_close(f);
}

/* Steps twice as long as the prior says: switches take twice as long, too. */
static void test_learned(void **state) {
    (void)state;
    struct fixture *f = open_it();
    for (uint32_t i = 0; i < 500; i++) {
        sched_learn(f->sched, 1, PAGES, 222);
    }
    fix_enter(f, 0, 0, 1, 60);
    assert_merged(f, STEPS, SCHED_BASE);
    assert_merged(f, 1, 0);
    fix_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_when_it_pays),      cmocka_unit_test(test_its_own_wait),
        cmocka_unit_test(test_off_or_impossible), cmocka_unit_test(test_somebody_comes),
        cmocka_unit_test(test_somebody_waits),    cmocka_unit_test(test_one_after_the_other),
        cmocka_unit_test(test_evicted),           cmocka_unit_test(test_learned),
    };
    cmocka_set_test_filter(getenv("LORRY_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
