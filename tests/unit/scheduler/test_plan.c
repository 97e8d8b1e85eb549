/* What runs: chunks, decode rows, budgets, deadlines, pages that run short, order, determinism. */
#include "tests/unit/scheduler/fixture.h"

static void test_life_of_a_job(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_enter(f, 3, SCHED_BASE, 11, 3);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->work_count, 1);
    assert_int_equal(p->tokens, 8);
    assert_true(p->work[0].starts);
    assert_int_equal(p->work[0].adapter, SCHED_BASE);
    assert_work(f, 3, 0, 8, 2, false);
    (void)fix_plan(f);
    assert_false(f->plan.work[0].starts);
    assert_work(f, 3, 8, 3, 1, true); /* first token */
    (void)fix_plan(f);
    assert_work(f, 3, 11, 1, 0, true); /* the page has one place left */
    (void)fix_plan(f);
    assert_work(f, 3, 12, 1, 1, true); /* third and last */
    assert_int_equal(fix_plan(f)->work_count, 0);
    assert_int_equal(sched_counts(f->sched).running, 1); /* until the loop lets it go */
    sched_leave(f->sched, 3);
    assert_int_equal(sched_counts(f->sched).running, 0);
    fix_close(f);
}

static void test_budget(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.step_tokens = 10;
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 2, 9); /* decodes from the second plan on */
    fix_enter(f, 1, SCHED_BASE, 30, 9);
    fix_enter(f, 2, SCHED_BASE, 30, 9);
    (void)fix_plan(f);
    assert_work(f, 0, 0, 2, 1, true);
    assert_work(f, 1, 0, 8, 2, false);
    assert_null(fix_work(f, 2)); /* no tokens left */
    (void)fix_plan(f);
    assert_work(f, 0, 2, 1, 0, true);
    assert_work(f, 1, 8, 8, 2, false);
    assert_work(f, 2, 0, 1, 1, false); /* what is left of the budget */
    assert_int_equal(f->plan.tokens, 10);
    fix_close(f);
}

static void test_oldest_prompt_before_decode_rows(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.step_tokens = 8;
    o.chunk_tokens = 8;
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 40, 1);
    fix_enter(f, 1, SCHED_BASE, 1, 9);
    for (uint32_t i = 0; i < 5; i++) { /* it has the whole budget until its prompt is done */
        (void)fix_plan(f);
        assert_work(f, 0, 8 * i, 8, 2, i == 4);
        assert_null(fix_work(f, 1));
    }
    (void)fix_plan(f);
    assert_work(f, 1, 0, 1, 1, true);
    fix_close(f);
}

static void test_deadlines(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    struct sched_job job = fix_job(0, SCHED_BASE, 4, 9);
    job.deadline_ms = 1001;
    (void)fix_put(f, &job);
    job = fix_job(1, 0, 4, 9); /* its adapter is away */
    job.deadline_ms = 1500;
    (void)fix_put(f, &job);
    job = fix_job(2, SCHED_BASE, 4, 9);
    job.deadline_ms = 1000; /* has passed: never reaches the device */
    (void)fix_put(f, &job);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->abort_count, 1);
    assert_int_equal(p->aborts[0].job, 2);
    assert_int_equal(p->aborts[0].reason, SCHED_EXPIRED);
    assert_false(p->aborts[0].running);
    assert_null(fix_work(f, 2));
    assert_int_equal(p->next_event_ms, 1001);
    f->snapshot.now_ms = 1001;
    p = fix_plan(f); /* 2 has not been let go: it is not told twice */
    assert_int_equal(p->abort_count, 1);
    assert_int_equal(p->aborts[0].job, 0);
    assert_true(p->aborts[0].running);
    assert_int_equal(p->work_count, 0);
    assert_int_equal(p->next_event_ms, 1500);
    sched_deadline(f->sched, 1, INT64_MAX);
    sched_deadline(f->sched, 0, 5); /* too late: ignored */
    f->snapshot.now_ms = 9999;
    p = fix_plan(f);
    assert_int_equal(p->abort_count, 0);
    assert_int_equal(p->next_event_ms, INT64_MAX);
    sched_deadline(f->sched, 1, 9999);
    assert_int_equal(fix_plan(f)->abort_count, 1);
    assert_int_equal(sched_counts(f->sched).expired, 3);
    sched_leave(f->sched, 0);
    sched_leave(f->sched, 1);
    sched_leave(f->sched, 2);
    fix_close(f);
}

/* Two sequences of one page each with a second token to come, in a pool of `pages`. */
static struct fixture *two_full(uint32_t pages) {
    struct sched_options o = fix_options();
    o.pages = pages;
    struct fixture *f = fix_open(&o);
    f->snapshot.pages_free = 100; /* head-room for both, then it goes */
    fix_enter(f, 0, SCHED_BASE, 4, 20);
    fix_enter(f, 1, SCHED_BASE, 4, 20);
    (void)fix_plan(f);
    assert_int_equal(f->plan.work_count, 2);
    f->snapshot.pages_free = 0;
    return f;
}

static void test_preempts_the_youngest(void **state) {
    (void)state;
    struct fixture *f = two_full(8);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->work_count, 0);
    assert_int_equal(p->preempt_count, 1);
    assert_int_equal(p->preempts[0], 1);
    assert_int_equal(sched_counts(f->sched).preempted, 1);
    assert_int_equal(sched_counts(f->sched).waiting, 1);
    f->snapshot.pages_pending = 1; /* of job 1: not free yet */
    p = fix_plan(f);
    assert_int_equal(p->preempt_count, 0);
    assert_int_equal(p->work_count, 0);
    f->snapshot.pages_pending = 0;
    f->snapshot.pages_free = 1;
    (void)fix_plan(f);
    assert_work(f, 0, 4, 1, 1, true);
    assert_null(fix_work(f, 1));
    sched_leave(f->sched, 0);
    f->snapshot.pages_free = 8;
    (void)fix_plan(f); /* its five tokens are computed anew, and it has sampled one already */
    assert_work(f, 1, 0, 5, 2, true);
    assert_true(fix_work(f, 1)->starts);
    fix_close(f);
}

static void test_waits_for_pending_pages(void **state) {
    (void)state;
    struct fixture *f = two_full(8);
    f->snapshot.pages_pending = 2;
    assert_int_equal(fix_plan(f)->preempt_count, 0);
    f->snapshot.pages_pending = 1;
    assert_int_equal(fix_plan(f)->preempt_count, 1);
    fix_close(f);
}

static void test_a_finished_sequence_counts_as_coming(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    fix_enter(f, 0, SCHED_BASE, 4, 20);
    fix_enter(f, 1, SCHED_BASE, 4, 1);
    (void)fix_plan(f);
    f->snapshot.pages_free = 0;
    assert_int_equal(fix_plan(f)->preempt_count, 0); /* 1 is about to leave */
    fix_close(f);
}

static void test_evicts_before_it_preempts(void **state) {
    (void)state;
    struct fixture *f = two_full(8);
    fix_adapter(f, 2, SCHED_RESIDENT, 2);
    fix_enter(f, 9, 2, 4, 1); /* makes it known; not admitted for want of pages */
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->preempt_count, 1); /* was not known yet */
    p = fix_plan(f);
    assert_int_equal(p->evict_count, 1);
    assert_int_equal(p->evicts[0], 2);
    fix_close(f);
}

static void test_outgrows_the_pool(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.pages = 3;
    struct fixture *f = fix_open(&o);
    f->snapshot.pages_free = 2;
    fix_adapter(f, 0, SCHED_RESIDENT, 1);
    fix_enter(f, 0, 0, 8, 20);
    (void)fix_plan(f);
    assert_work(f, 0, 0, 8, 2, true);
    const struct sched_plan *p = fix_plan(f);
    assert_int_equal(p->abort_count, 1);
    assert_int_equal(p->aborts[0].reason, SCHED_NO_ROOM);
    assert_true(p->aborts[0].running);
    sched_leave(f->sched, 0);
    fix_enter(f, 0, 0, 9, 20); /* fits alone, not beside its adapter: never starts */
    f->adapters[0].users = 0;
    f->snapshot.pages_free = 2;
    p = fix_plan(f);
    assert_int_equal(p->abort_count, 1);
    assert_int_equal(p->aborts[0].reason, SCHED_NO_ROOM);
    assert_false(p->aborts[0].running);
    fix_close(f);
}

static void test_rows_of_an_adapter_adjoin(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    o.rows_max = 8;
    o.step_tokens = 64;
    struct fixture *f = fix_open(&o);
    fix_adapter(f, 0, SCHED_RESIDENT, 1);
    fix_adapter(f, 3, SCHED_RESIDENT, 1);
    const uint32_t adapters[8] = {3, 0, SCHED_BASE, 3, 0, SCHED_BASE, 3, 0};
    for (uint32_t i = 0; i < 8; i++) {
        fix_enter(f, i, adapters[i], 1 + i, 9);
    }
    const uint32_t order[8] = {2, 5, 1, 4, 7, 0, 3, 6};
    for (uint32_t plan = 0; plan < 3; plan++) {
        assert_int_equal(fix_plan(f)->work_count, 8);
        for (uint32_t i = 0; i < 8; i++) {
            assert_int_equal(f->plan.work[i].job, order[i]);
        }
    }
    fix_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life_of_a_job),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_oldest_prompt_before_decode_rows),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_preempts_the_youngest),
        cmocka_unit_test(test_waits_for_pending_pages),
        cmocka_unit_test(test_a_finished_sequence_counts_as_coming),
        cmocka_unit_test(test_evicts_before_it_preempts),
        cmocka_unit_test(test_outgrows_the_pool),
        cmocka_unit_test(test_rows_of_an_adapter_adjoin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
