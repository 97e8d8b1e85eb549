/* The waiting room beside a model: order by rank and by age, deadlines, rankings. */
#include "scheduler/sched_internal.h"
#include "tests/unit/scheduler/fixture.h"
#include "tests/unit/seed.h"

enum { JOBS = 64, ROUNDS = 20000 };

static bool ranks_before(const struct sched_seq *a, const struct sched_seq *b) {
    if (a->preempted != b->preempted) {
        return a->preempted;
    }
    if (a->priority != b->priority) {
        return a->priority < b->priority;
    }
    return a->arrival != b->arrival ? a->arrival < b->arrival : a->order < b->order;
}

/* Compares every queue's ends, and the earliest deadline, with a search through all jobs. */
static void assert_ends(const struct sched *s) {
    uint32_t soonest = SCHED_NONE;
    for (uint32_t q = 0; q <= s->options.adapters_max; q++) {
        uint32_t best = SCHED_NONE;
        uint32_t oldest = SCHED_NONE;
        uint32_t count = 0;
        for (uint32_t i = 0; i < JOBS; i++) {
            const struct sched_seq *j = &s->jobs[i];
            if (j->state != SCHED_WAITING || j->queue != q) {
                continue;
            }
            count++;
            if (best == SCHED_NONE || ranks_before(j, &s->jobs[best])) {
                best = i;
            }
            if (oldest == SCHED_NONE || j->order < s->jobs[oldest].order) {
                oldest = i;
            }
            if (j->deadline_ms != INT64_MAX &&
                (soonest == SCHED_NONE || j->deadline_ms < s->jobs[soonest].deadline_ms)) {
                soonest = i;
            }
        }
        assert_int_equal(s->queues[q].best, best);
        assert_int_equal(s->queues[q].oldest, oldest);
        assert_int_equal(s->queues[q].waiting, count);
        uint64_t order = 0;
        for (uint32_t i = s->queues[q].oldest; i != SCHED_NONE; i = s->jobs[i].younger) {
            assert_true(s->jobs[i].order >= order);
            order = s->jobs[i].order;
            count--;
        }
        assert_int_equal(count, 0);
    }
    if (soonest == SCHED_NONE) {
        assert_int_equal(s->deadlines.count, 0);
    } else {
        assert_int_equal(s->jobs[s->deadlines.items[0]].deadline_ms, s->jobs[soonest].deadline_ms);
    }
}

static void test_against_model(void **state) {
    (void)state;
    uint64_t seed = seed_take(7);
    print_message("LORRY_SEED=%llu\n", (unsigned long long)seed);
    struct sched_options o = fix_options();
    o.jobs_max = JOBS;
    struct sched *s = NULL;
    assert_int_equal(sched_open(&s, &o), ERR_OK);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t i = seed_below(&seed, JOBS);
        if (s->jobs[i].state == SCHED_FREE) {
            struct sched_job job = {
                .job = i,
                .adapter = seed_below(&seed, 3),
                .prompt_tokens = 1,
                .output_tokens = 1,
                .priority = (int32_t)seed_below(&seed, 3) - 1,
                .arrival = seed_below(&seed, 8),
                .deadline_ms = seed_below(&seed, 2) == 0 ? INT64_MAX : seed_below(&seed, 1000)};
            uint64_t bound = 0;
            assert_int_equal(sched_enter(s, &job, &bound), ERR_OK);
        } else if (seed_below(&seed, 3) == 0) { /* comes back as preempted ones do */
            sched_queue_remove(s, i);
            s->jobs[i].preempted = true;
            sched_queue_put(s, i);
        } else if (seed_below(&seed, 3) == 0) {
            sched_deadline(s, i, seed_below(&seed, 4) == 0 ? INT64_MAX : seed_below(&seed, 1000));
        } else {
            sched_leave(s, i);
        }
        assert_ends(s);
    }
    sched_close(s);
}

static void test_ranking_keeps_the_best(void **state) {
    (void)state;
    struct sched_ranking r = {.most = SCHED_RANKED_MAX};
    for (uint32_t i = 0; i < 1000; i++) { /* 7919 and 1000 have no common factor */
        uint32_t key = i * 7919 % 1000;
        sched_rank_put(&r, &(struct sched_rank){.first = 1, .third = key, .queue = key});
    }
    assert_int_equal(r.count, SCHED_RANKED_MAX);
    for (uint32_t i = 0; i < r.count; i++) {
        assert_int_equal(r.ranks[i].queue, i);
    }
    sched_rank_put(&r, &(struct sched_rank){.first = 0, .third = 5000, .queue = 5000});
    assert_int_equal(r.ranks[0].queue, 5000);
    assert_int_equal(r.ranks[r.count - 1].queue, SCHED_RANKED_MAX - 2);
    r = (struct sched_ranking){.most = 1};
    sched_rank_put(&r, &(struct sched_rank){.order = 7, .queue = 7});
    sched_rank_put(&r, &(struct sched_rank){.order = 8, .queue = 8});
    sched_rank_put(&r, &(struct sched_rank){.order = 6, .queue = 6});
    assert_int_equal(r.count, 1);
    assert_int_equal(r.ranks[0].queue, 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_model),
        cmocka_unit_test(test_ranking_keeps_the_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
