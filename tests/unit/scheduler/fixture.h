/* fixture.h - a scheduler of four adapters and a pool that keeps its counts honest. */
#ifndef LORRY_TESTS_UNIT_SCHEDULER_FIXTURE_H
#define LORRY_TESTS_UNIT_SCHEDULER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "scheduler/scheduler.h"

enum { FIX_JOBS = 32, FIX_ADAPTERS = 4 };

struct fixture {
    struct sched *sched;
    struct sched_options options;
    struct sched_adapter adapters[FIX_ADAPTERS];
    struct sched_snapshot snapshot;
    struct sched_plan plan; /* of the last step_plan() */
};

/* Pages of 4 tokens, 4 rows, 16 tokens a step in chunks of 8. */
static inline struct sched_options fix_options(void) {
    return (struct sched_options){.jobs_max = FIX_JOBS,
                                  .adapters_max = FIX_ADAPTERS,
                                  .rows_max = 4,
                                  .step_tokens = 16,
                                  .chunk_tokens = 8,
                                  .page_tokens = 4,
                                  .pages = 100,
                                  .slot_pages = 16,
                                  .wait_steps = 10,
                                  .step_us_fixed = 100,
                                  .step_us_row = 1,
                                  .load_us_page = 1};
}

static inline struct fixture *fix_open(const struct sched_options *options) {
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->options = *options;
    assert_int_equal(sched_open(&f->sched, options), ERR_OK);
    f->snapshot = (struct sched_snapshot){.now_ms = 1000,
                                          .pages_free = options->pages,
                                          .adapter_slots_free = FIX_ADAPTERS,
                                          .adapters = f->adapters};
    return f;
}

static inline void fix_close(struct fixture *f) {
    sched_close(f->sched);
    free(f);
}

static inline struct sched_job fix_job(uint32_t job, uint32_t adapter, uint32_t prompt,
                                       uint32_t output) {
    return (struct sched_job){.job = job,
                              .adapter = adapter,
                              .prompt_tokens = prompt,
                              .output_tokens = output,
                              .deadline_ms = INT64_MAX,
                              .arrival = job};
}

static inline uint64_t fix_put(struct fixture *f, const struct sched_job *job) {
    uint64_t bound = 0;
    assert_int_equal(sched_enter(f->sched, job, &bound), ERR_OK);
    return bound;
}

static inline void fix_enter(struct fixture *f, uint32_t job, uint32_t adapter, uint32_t prompt,
                             uint32_t output) {
    struct sched_job entry = fix_job(job, adapter, prompt, output);
    (void)fix_put(f, &entry);
}

/* Plans, and takes the plan's pages out of the free ones. */
static inline const struct sched_plan *fix_plan(struct fixture *f) {
    sched_plan(f->sched, &f->snapshot, &f->plan);
    for (uint32_t i = 0; i < f->plan.work_count; i++) {
        const struct sched_work *w = &f->plan.work[i];
        assert_true(f->snapshot.pages_free >= w->pages);
        f->snapshot.pages_free -= w->pages;
        if (w->starts && w->adapter != SCHED_BASE) {
            assert_int_equal(f->adapters[w->adapter].state, SCHED_RESIDENT);
            f->adapters[w->adapter].users++;
        }
    }
    return &f->plan;
}

static inline void fix_adapter(struct fixture *f, uint32_t adapter, enum sched_adapter_state state,
                               uint32_t pages) {
    f->adapters[adapter] = (struct sched_adapter){.state = state, .pages = pages};
}

/* The work of a job in the last plan, or NULL. */
static inline const struct sched_work *fix_work(const struct fixture *f, uint32_t job) {
    for (uint32_t i = 0; i < f->plan.work_count; i++) {
        if (f->plan.work[i].job == job) {
            return &f->plan.work[i];
        }
    }
    return NULL;
}

static inline void assert_work(const struct fixture *f, uint32_t job, uint32_t position,
                               uint32_t tokens, uint32_t pages, bool sample) {
    const struct sched_work *w = fix_work(f, job);
    assert_non_null(w);
    assert_int_equal(w->position, position);
    assert_int_equal(w->tokens, tokens);
    assert_int_equal(w->pages, pages);
    assert_int_equal(w->sample, sample);
}

#endif
