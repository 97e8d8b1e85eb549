/* The cost model: predictions, learning, and that nothing makes it negative or not a number. */
#include <math.h>

#include "scheduler/sched_internal.h"
#include "tests/unit/scheduler/fixture.h"
#include "tests/unit/seed.h"

static void test_prediction(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    assert_true(fabs(sched_step_us(f->sched, 0, 0) - 100) < 1e-9);
    assert_true(fabs(sched_step_us(f->sched, 8, 20) - 128) < 1e-9);
    fix_close(f);
}

static void test_learns(void **state) {
    (void)state;
    uint64_t seed = seed_take(3);
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    for (uint32_t i = 0; i < 20000; i++) { /* 1000 + 50 a token + 5 a page */
        uint32_t tokens = 1 + seed_below(&seed, o.step_tokens);
        uint32_t pages = seed_below(&seed, o.pages);
        sched_learn(f->sched, tokens, pages, 1000 + 50.0 * tokens + 5.0 * pages);
    }
    for (uint32_t tokens = 1; tokens <= o.step_tokens; tokens += 5) {
        for (uint32_t pages = 0; pages < o.pages; pages += 33) {
            double us = 1000 + 50.0 * tokens + 5.0 * pages;
            assert_true(fabs(sched_step_us(f->sched, tokens, pages) - us) < 0.02 * us);
        }
    }
    fix_close(f);
}

static void test_stays_sane(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    double before = sched_step_us(f->sched, 4, 4);
    sched_learn(f->sched, 4, 4, NAN);
    sched_learn(f->sched, 4, 4, INFINITY);
    sched_learn(f->sched, 4, 4, 0);
    sched_learn(f->sched, 4, 4, -5);
    assert_true(sched_step_us(f->sched, 4, 4) == before);
    sched_learn(f->sched, 4, 4, 1e12); /* one stall does not turn the model over */
    assert_true(sched_step_us(f->sched, 4, 4) < 2 * before);
    for (uint32_t i = 0; i < 10000; i++) {
        sched_learn(f->sched, o.step_tokens, o.pages, 1e-9);
    }
    for (uint32_t i = 0; i < SCHED_COST_PARTS; i++) {
        assert_true(f->sched->cost.us[i] > 0);
    }
    fix_close(f);
}

/* What a row and a page cost cannot be told apart while each row brings its pages along: then the
 * proportion stays the prior's, whatever the noise says. */
static void test_keeps_proportions_that_it_cannot_see(void **state) {
    (void)state;
    uint64_t seed = seed_take(5);
    struct sched_options o = fix_options();
    o.step_tokens = 8192;
    o.pages = 40000;
    o.step_us_fixed = 5000; /* a page is 40 % of a row, as five rows share 40 pages of 0.7 us */
    o.step_us_row = 32;
    o.load_us_page = 0.7;
    struct fixture *f = fix_open(&o);
    double proportion = f->sched->cost.us[2] / f->sched->cost.us[1];
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t rows = 400 + seed_below(&seed, 600);
        double noise = 0.95 + 0.001 * seed_below(&seed, 100);
        sched_learn(f->sched, rows, rows * 8, (3600 + 26.0 * rows + 0.56 * 8 * rows) * noise);
        double now = f->sched->cost.us[2] / f->sched->cost.us[1];
        assert_true(now > proportion / 2 && now < proportion * 2);
    }
    double us = 3600 + 26.0 * 700 + 0.56 * 8 * 700;
    assert_true(fabs(sched_step_us(f->sched, 700, 8 * 700) - us) < 0.03 * us);
    fix_close(f);
}

/* Whatever is measured, no part leaves the others by more than the bound. */
static void test_parts_stay_near_one_another(void **state) {
    (void)state;
    uint64_t seed = seed_take(9);
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    const struct sched_cost *c = &f->sched->cost;
    for (uint32_t i = 0; i < 3000; i++) {
        uint32_t pages = seed_below(&seed, o.pages);
        uint32_t tokens = 1 + seed_below(&seed, o.step_tokens);
        double us = i < 1000   ? 1000.0 * pages + 1 /* nothing but pages */
                    : i < 2000 ? 1e5 / tokens       /* the more tokens the faster */
                               : seed_below(&seed, 1000000);
        sched_learn(f->sched, tokens, pages, us);
        double common = c->ratio / c->weight;
        for (uint32_t k = 0; k < SCHED_COST_PARTS; k++) {
            assert_true(c->us[k] > 0.16 * common * c->prior[k]);
            assert_true(c->us[k] < 6.01 * common * c->prior[k]);
        }
    }
    fix_close(f);
}

/* A device ten times slower than thought is learned as a whole within some steps. */
static void test_scale(void **state) {
    (void)state;
    struct sched_options o = fix_options();
    struct fixture *f = fix_open(&o);
    for (uint32_t i = 0; i < 64; i++) {
        sched_learn(f->sched, 8, 20, 1280);
    }
    assert_true(fabs(sched_step_us(f->sched, 8, 20) - 1280) < 100);
    assert_true(fabs(sched_step_us(f->sched, 4, 40) - 1440) < 300);
    fix_close(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prediction),
        cmocka_unit_test(test_learns),
        cmocka_unit_test(test_stays_sane),
        cmocka_unit_test(test_keeps_proportions_that_it_cannot_see),
        cmocka_unit_test(test_parts_stay_near_one_another),
        cmocka_unit_test(test_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
