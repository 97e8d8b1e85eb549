/* Who goes: idle ones that nobody waits for by last use, then by whose claim is the youngest. */
#include "scheduler/sched_internal.h"
#include "tests/unit/scheduler/fixture.h"

/* Adapters 0, 1, 2 resident and known; 2 was used last, 0 first; job 9 waits for 1, job 10 for 0.
 */
static struct fixture *three(struct sched_turn *t) {
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    for (uint32_t i = 0; i < 3; i++) {
        fix_adapter(f, i, SCHED_RESIDENT, 10);
        fix_enter(f, i, i, 1, 1);
        (void)fix_plan(f);
        sched_leave(f->sched, i);
        f->adapters[i].users = 0;
    }
    *t = (struct sched_turn){.snapshot = &f->snapshot};
    f->sched->plans++;
    f->sched->evicts.count = 0;
    return f;
}

static void test_least_recently_used(void **state) {
    (void)state;
    struct sched_turn t;
    struct fixture *f = three(&t);
    struct sched_claim claim = {.queue = 3, .force = SCHED_SPARE_WANTED};
    assert_true(sched_make_pages(f->sched, &t, 15, &claim));
    assert_int_equal(t.pages_coming, 20);
    assert_int_equal(f->sched->evicts.count, 2);
    assert_int_equal(f->sched->evicts.items[0], 0);
    assert_int_equal(f->sched->evicts.items[1], 1);
    assert_false(sched_make_pages(f->sched, &t, 31, &claim)); /* takes 2, and it is too little */
    assert_int_equal(f->sched->evicts.count, 3);
    fix_close(f);
}

static void test_pages_on_their_way_count(void **state) {
    (void)state;
    struct sched_turn t;
    struct fixture *f = three(&t);
    struct sched_claim claim = {.queue = 3, .force = SCHED_TAKE_ANY};
    t.pages_coming = 7;
    assert_true(sched_make_pages(f->sched, &t, 7, &claim));
    assert_int_equal(f->sched->evicts.count, 0);
    fix_close(f);
}

static void test_users_and_claims(void **state) {
    (void)state;
    struct sched_turn t;
    struct fixture *f = three(&t);
    fix_enter(f, 9, 1, 1, 1);
    fix_enter(f, 10, 0, 1, 1);
    f->adapters[2].users = 1;
    struct sched_claim claim = {.queue = 3, .force = SCHED_SPARE_WANTED};
    assert_false(sched_evict_one(f->sched, &t, &claim)); /* used, or wanted */
    claim.force = SCHED_TAKE_YOUNGER;
    claim.order = f->sched->jobs[9].order; /* as old as 1's: only 0's is younger */
    assert_true(sched_evict_one(f->sched, &t, &claim));
    assert_int_equal(f->sched->evicts.items[0], 0);
    assert_false(sched_evict_one(f->sched, &t, &claim));
    claim.force = SCHED_TAKE_ANY;
    claim.queue = 1; /* never its own */
    assert_false(sched_evict_one(f->sched, &t, &claim));
    claim.queue = 3;
    assert_true(sched_evict_one(f->sched, &t, &claim));
    assert_int_equal(f->sched->evicts.items[1], 1);
    fix_close(f);
}

static void test_a_turn_is_not_cut_short(void **state) {
    (void)state;
    struct sched_turn t;
    struct fixture *f = three(&t);
    fix_enter(f, 9, 1, 1, 1);
    f->adapters[0].users = f->adapters[2].users = 1;
    f->sched->turn_queue = 1;
    f->sched->turn_left = 1;
    struct sched_claim claim = {.queue = 3, .force = SCHED_TAKE_YOUNGER, .order = 0};
    assert_false(sched_evict_one(f->sched, &t, &claim));
    claim.force = SCHED_TAKE_ANY; /* but for those that run, whose pages may be nowhere else */
    assert_true(sched_evict_one(f->sched, &t, &claim));
    fix_close(f);
}

static void test_list_follows_the_snapshot(void **state) {
    (void)state;
    struct sched_turn t;
    struct fixture *f = three(&t);
    assert_int_equal(f->sched->residents.count, 3);
    f->adapters[0].state = SCHED_AWAY;
    f->adapters[1].state = SCHED_STORED;
    (void)fix_plan(f);
    assert_int_equal(f->sched->residents.count, 1);
    assert_int_equal(f->sched->residents.items[0], 2);
    fix_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_least_recently_used),
        cmocka_unit_test(test_pages_on_their_way_count),
        cmocka_unit_test(test_users_and_claims),
        cmocka_unit_test(test_a_turn_is_not_cut_short),
        cmocka_unit_test(test_list_follows_the_snapshot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
