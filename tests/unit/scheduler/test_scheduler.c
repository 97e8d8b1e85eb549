/* Entering and leaving: refusals, counts, indices used again, bounds. */
#include "base/check.h"
#include "tests/unit/crash.h"
#include "tests/unit/scheduler/fixture.h"

static void test_refusals(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    uint64_t bound = 77;
    struct sched_job job = fix_job(0, SCHED_BASE, 64, 1); /* 65 tokens in 16 pages of 4 */
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_PROMPT_TOO_LONG);
    assert_int_equal(bound, 77);
    job.prompt_tokens = 63;
    job.output_tokens = UINT32_MAX; /* is not reserved */
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_OK);
    job = fix_job(FIX_JOBS, SCHED_BASE, 1, 1);
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_NO_SPACE);
    fix_close(f);

    o.pages = 3; /* smaller than a slot */
    f = fix_open(&o);
    job = fix_job(0, SCHED_BASE, 12, 1);
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_PROMPT_TOO_LONG);
    job.prompt_tokens = 11;
    assert_int_equal(sched_enter(f->sched, &job, &bound), ERR_OK);
    fix_close(f);
    sched_close(NULL);
}

static void test_counts_and_reuse(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    for (uint32_t round = 0; round < 3; round++) {
        fix_enter(f, 5, SCHED_BASE, 4, 1);
        fix_enter(f, 6, 2, 4, 1); /* its adapter is away */
        struct sched_counts c = sched_counts(f->sched);
        assert_int_equal(c.waiting, 2);
        assert_int_equal(c.running, 0);
        assert_int_equal(c.adapters_waiting, 2);
        (void)fix_plan(f);
        c = sched_counts(f->sched);
        assert_int_equal(c.waiting, 1);
        assert_int_equal(c.running, 1);
        assert_int_equal(c.admitted, round + 1);
        assert_int_equal(c.plans, round + 1);
        sched_leave(f->sched, 5);
        sched_leave(f->sched, 6);
        c = sched_counts(f->sched);
        assert_int_equal(c.waiting + c.running + c.adapters_waiting, 0);
    }
    fix_close(f);
}

static void test_bound(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    struct sched_job job = fix_job(0, SCHED_BASE, 8, 4);
    uint64_t first = fix_put(f, &job);
    job.job = 1;
    uint64_t second = fix_put(f, &job);
    assert_true(first >= o.wait_steps);
    assert_true(second > first); /* one more is ahead of it */
    sched_leave(f->sched, 0);
    sched_leave(f->sched, 1);
    job.job = 2;
    assert_int_equal(fix_put(f, &job), first); /* nothing of them is left */
    job.job = 3;
    job.output_tokens = UINT32_MAX; /* counts as no more than a slot holds */
    (void)fix_put(f, &job);
    job.job = 4;
    assert_true(fix_put(f, &job) < 10000);
    fix_close(f);
}

static void leave_unknown(void *context) {
    sched_leave(context, 3);
}

static void enter_twice(void *context) {
    struct sched_job job = fix_job(0, SCHED_BASE, 1, 1);
    uint64_t bound = 0;
    enum err e = sched_enter(context, &job, &bound);
    CHECK(e == ERR_OK);
    e = sched_enter(context, &job, &bound);
    CHECK(e == ERR_OK);
}

static void test_misuse_crashes(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    assert_true(crashes(leave_unknown, f->sched));
    assert_true(crashes(enter_twice, f->sched));
    fix_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_counts_and_reuse),
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_misuse_crashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
