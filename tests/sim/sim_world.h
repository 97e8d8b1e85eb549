/* sim_world.h - a worker around the scheduler: the real pool, with prefixes that jobs have in
 * common, and, made of counters, a host store, loaders, a device that runs one step ahead, and
 * people who send, cancel and set deadlines. All from one seed. */
#ifndef LORRY_TESTS_SIM_SIM_WORLD_H
#define LORRY_TESTS_SIM_SIM_WORLD_H

#include "pool/pool.h"
#include "scheduler/scheduler.h"

enum {
    SIM_ADAPTERS_MAX = 40,
    SIM_JOBS_MAX = 256,
    SIM_ROWS_MAX = 32,
    SIM_STEPS_MAX = 2,
    SIM_PAGES_MAX = 400,
    SIM_SLOT_PAGES_MAX = 40,
    SIM_PAGE_TOKENS_MAX = 16
};

struct sim_job {
    bool held;    /* known to the scheduler */
    bool seated;  /* has a slot */
    bool started; /* had one once */
    uint64_t serial;
    uint64_t seat; /* the step that seated it */
    struct sched_job entry;
    uint32_t known, computed, sampled; /* as planned */
    uint32_t read;                     /* tokens that the loop has seen */
    uint32_t stop_at;                  /* it ends with this token */
    uint32_t group, common;            /* the first `common` tokens are those of all in its group */
    uint32_t page_count, pages[SIM_SLOT_PAGES_MAX];
    uint32_t entered;       /* of its pages those that can be found */
    uint64_t chain;         /* name of the last of them */
    uint64_t bound, waited; /* steps while its adapter could be had */
};

struct sim_adapter {
    uint32_t jobs; /* that name it */
    uint32_t size; /* pages */
    uint64_t revision;
    uint32_t pages[SIM_PAGES_MAX];
    uint32_t due;       /* tick at which the fetch or load ends */
    uint32_t retry;     /* no fetch before this tick */
    uint32_t bad_until; /* cannot be read before this tick */
    bool refused;       /* turns out to be unusable */
    bool cached;        /* its image is in the store, unheld */
};

struct sim_step { /* in flight */
    uint32_t jobs[SIM_ROWS_MAX];
    uint64_t serials[SIM_ROWS_MAX];
    uint32_t count;
    uint64_t ticket;
};

struct sim_knobs {
    struct sched_options options;
    uint32_t adapter_slots, store_images;
    uint32_t jobs;  /* to send in all */
    uint32_t burst; /* most arrivals in a tick */
    uint32_t prompt_max, output_max;
    uint32_t fetch_ticks, load_ticks; /* at most */
    uint32_t fault_percent; /* of fetches, and of adapters that cannot be read for a while */
    uint32_t cancel_percent, deadline_percent;
    uint32_t base_percent;
    bool prefixes;
    uint32_t groups, common_max; /* of each adapter; tokens in common */
};

struct sim_world {
    uint64_t seed; /* of what comes next */
    struct sim_knobs knobs;
    struct sched *sched;
    struct pool *pool;
    struct sim_job jobs[SIM_JOBS_MAX];
    struct sim_adapter adapters[SIM_ADAPTERS_MAX];
    struct sched_adapter view[SIM_ADAPTERS_MAX];
    struct sim_step steps[SIM_STEPS_MAX];
    uint32_t step_count;
    uint32_t tick;
    int64_t now_ms;
    uint32_t slots_free, adapter_slots_free;
    uint32_t sent, held, fetching;
    uint64_t serials, revisions;

    /* what came of it */
    uint64_t digest; /* of all plans */
    uint64_t step_total, token_total, row_total, found_total;
    uint64_t merged_total; /* steps that ran merged */
    uint64_t loads, preempts, aborts_no_room, aborts_expired, cancels, refused, finished;
    uint64_t waited_max;
    double bound_share_max; /* of waited / bound */
};

uint32_t sim_below(struct sim_world *w, uint32_t below);
bool sim_chance(struct sim_world *w, uint32_t percent);

/* Chooses all knobs by the seed, but for whether steps may run merged, and opens the scheduler. */
void sim_open(struct sim_world *w, uint64_t seed, bool merging);
void sim_close(struct sim_world *w);

/* Arrivals, cancels, new deadlines, loaders, copies: what happens between two plans. */
void sim_outside(struct sim_world *w);
struct sched_snapshot sim_snapshot(struct sim_world *w);
/* What the pool has of a job's tokens; `context` is the world. */
struct sched_found sim_found(void *context, uint32_t job);
/* Carries out a plan that sim_check() has found legal, and reads what the loop would read. */
void sim_apply(struct sim_world *w, const struct sched_plan *plan);
/* Pages of adapters that are, or come, there. The pool counts them among KV's. */
uint32_t sim_adapters_pages(const struct sim_world *w);
uint32_t sim_pages_of(const struct sim_world *w, uint32_t tokens);

/* sim_check.c: ends the process, naming seed and tick, if the plan is not legal. */
void sim_check(struct sim_world *w, const struct sched_plan *plan);
/* Ends the process if the counts do not add up, or a job has waited beyond its bound. */
void sim_check_world(struct sim_world *w);
_Noreturn void sim_fail(const char *what, uint32_t job);
void sim_fail_context(uint64_t seed, const struct sim_world *w);

#endif
