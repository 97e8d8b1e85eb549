/* sched_internal.h - the scheduler's tables, open inside this folder. */
#ifndef LORRY_SCHEDULER_SCHED_INTERNAL_H
#define LORRY_SCHEDULER_SCHED_INTERNAL_H

#include "scheduler/scheduler.h"

#define SCHED_NONE UINT32_MAX

enum {
    SCHED_RANKED_MAX = 64,      /* adapters considered one by one in a plan, of each kind */
    SCHED_FETCH_AHEAD = 8,      /* adapters on their way to, or waiting in, the host store */
    SCHED_LOAD_AHEAD = 4,       /* adapters loading, or resident and not yet begun, at least */
    SCHED_DEAR = 8,             /* a row may cost so many times a step's rows: see pays() */
    SCHED_TURN_ROWS = 4,        /* jobs of an adapter's turn: this × rows_max */
    SCHED_OUTPUT_PAGES = 2,     /* head-room for the output of a job that starts */
    SCHED_BACKOFF_MAX = 8,      /* a fetch in vain is asked for again after 2^this plans at most, */
    SCHED_BACKOFF_IDLE_MAX = 3, /* or, while nothing runs, this */
};

enum sched_job_state { SCHED_FREE, SCHED_WAITING, SCHED_RUNNING, SCHED_ABORTED };

struct sched_seq { /* a job */
    enum sched_job_state state;
    uint32_t queue; /* adapter, or adapters_max for the base */
    int32_t priority;
    bool preempted; /* ran before: in front of its adapter's queue */
    int64_t deadline_ms, arrival;
    uint64_t order;      /* of sched_enter(): kept when preempted; its age */
    uint64_t enter_step; /* steps before it came */
    uint64_t cost_steps; /* its part of sched_bound() */
    uint32_t output_tokens;
    uint32_t known, computed, sampled; /* tokens */
    uint32_t found_pages;              /* RUNNING: of its pages those that it found, not its own */
    uint32_t deadline_at;              /* place in the heap of deadlines, or NONE */
    uint32_t work_at;                  /* place in this plan's work, or NONE */
    uint32_t short_pages;              /* that kept it from work in this plan */
    uint32_t older, younger;           /* WAITING: its adapter's queue by age; RUNNING: by start */
    uint32_t child, next, prev;        /* WAITING: pairing heap of its adapter by rank */
};

/* What is known of an adapter, or of the base. All zero but the links when nobody names it. */
struct sched_queue {
    uint32_t best;           /* root of the heap by (preempted, priority, arrival) */
    uint32_t oldest, newest; /* the same jobs by age */
    uint32_t waiting, running;
    uint32_t waiting_at;   /* place in `waiting`, or NONE */
    uint32_t resident_at;  /* place in `residents`, or NONE */
    uint32_t fetch_misses; /* since it last was in pages */
    bool fetch_asked;      /* and has not come into pages since */
    uint64_t fetch_again;  /* not before this plan */
    uint64_t used_step;    /* it last had work */
    uint64_t step_mark;    /* the plan whose step reads it */
    uint64_t evict_mark;   /* the plan that evicts it, */
    uint64_t load_mark;    /* and that loads it */
};

struct sched_rank { /* of adapters: compared field by field, smaller first */
    int64_t first, second;
    double third;
    uint64_t order;
    uint32_t queue;
};

struct sched_ranking { /* the best few, sorted */
    struct sched_rank ranks[SCHED_RANKED_MAX];
    uint32_t count, most; /* most ≤ SCHED_RANKED_MAX */
};

/* The cost model, see cost.c. Parts: an empty step, a full step's tokens, the whole pool's pages.
 */
enum { SCHED_COST_PARTS = 3 };
struct sched_cost {
    double prior[SCHED_COST_PARTS], factor[SCHED_COST_PARTS];
    double us[SCHED_COST_PARTS]; /* prior × factor */
    /* weighted sums over the steps: shares × shares, shares × ratio, ratio, 1 */
    double seen[SCHED_COST_PARTS][SCHED_COST_PARTS], seen_y[SCHED_COST_PARTS];
    double ratio, weight;
    double noise; /* mean square error of the predicted ratio */
};

struct sched_list {
    uint32_t *items;
    uint32_t count;
};

struct sched {
    struct sched_options options;
    struct sched_seq *jobs;       /* [jobs_max] */
    struct sched_queue *queues;   /* [adapters_max + 1], the last is the base's */
    struct sched_list waiting;    /* queues with waiting jobs, in no order */
    struct sched_list residents;  /* adapters that are, or may be, in pages */
    struct sched_list deadlines;  /* heap of jobs */
    struct sched_list aged;       /* heap of queues, within a plan */
    uint32_t run_first, run_last; /* oldest start first */
    uint32_t waiting_count, running_count;
    uint64_t orders, plans, steps;
    uint32_t turn_queue, turn_left; /* the aged adapter whose turn it is, and jobs still to start */
    uint32_t fetch_limit;           /* 1 .. SCHED_FETCH_AHEAD: what the host store bore lately */
    uint64_t cost_known;            /* sum of cost_steps of jobs that wait or run */
    uint64_t admitted, preempted, expired, merges;
    uint32_t merged; /* queue whose weights the last step ran with; NONE: they are gone */
    uint32_t alone;  /* queue that had the last steps to itself, or NONE, */
    double alone_us; /* and what LoRA cost these */
    struct sched_cost cost;
    struct sched_ranking ready, stored, away;

    /* the plan's arrays */
    struct sched_abort *aborts;
    uint32_t abort_count;
    struct sched_list preempts, evicts, loads, fetches;
    struct sched_work *work, *work_scratch;
    uint32_t work_count;
};

/* One call of sched_plan(). Page counts are a working copy that covers the plan so far. */
struct sched_turn {
    const struct sched_snapshot *snapshot;
    uint32_t pages_left;     /* of all that are free */
    uint32_t pages_free;     /* of them, for KV: all, unless the pool is split */
    uint32_t adapter_free;   /* that adapters may still take of their part of a split pool */
    uint32_t pages_coming;   /* pending ones, and of what this plan evicts; split: for KV, */
    uint32_t adapter_coming; /* and these for adapters */
    uint32_t pages_promised; /* to running sequences: rest of the prompt, and one page for each */
    uint32_t adapter_slots;
    uint32_t tokens_left;
    uint32_t adapter_pages; /* that the step reads */
    uint32_t pages_short;   /* of running sequences that got no work for want of pages */
    uint32_t fetch_ahead, loading;
    /* Adapters loading, or resident and not yet begun; the rows that their jobs will take, and
     * these rows' pages. */
    uint32_t load_ahead, rows_ahead;
    uint64_t pages_ahead;
    uint32_t pages_owed; /* to adapters for whose sake this plan evicts, and how many these are */
    uint32_t loads_owed;
    bool placed; /* the adapters have been looked at, and the counts above stand */
    bool admit_closed, load_closed;
};

static inline uint32_t sched_min(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static inline uint32_t sched_pages(const struct sched *s, uint64_t tokens) {
    return (uint32_t)((tokens + s->options.page_tokens - 1) / s->options.page_tokens);
}

static inline bool sched_is_base(const struct sched *s, uint32_t queue) {
    return queue == s->options.adapters_max;
}

static inline enum sched_adapter_state sched_state(const struct sched *s,
                                                   const struct sched_turn *t, uint32_t queue) {
    return sched_is_base(s, queue) ? SCHED_RESIDENT : t->snapshot->adapters[queue].state;
}

static inline uint32_t sched_adapter_pages(const struct sched *s, const struct sched_turn *t,
                                           uint32_t queue) {
    return sched_is_base(s, queue) ? 0 : t->snapshot->adapters[queue].pages;
}

/* Can be read by this plan's step. */
static inline bool sched_readable(const struct sched *s, const struct sched_turn *t,
                                  uint32_t queue) {
    return sched_state(s, t, queue) == SCHED_RESIDENT && s->queues[queue].evict_mark != s->plans;
}

/* Has waited for wait_steps; in the order of arrival, all have. */
static inline bool sched_aged(const struct sched *s, uint32_t job) {
    return s->options.policy == SCHED_ARRIVAL ||
           s->steps - s->jobs[job].enter_step >= s->options.wait_steps;
}

/* Jobs that an adapter's turn starts at most. */
static inline uint32_t sched_turn_jobs(const struct sched *s) {
    if (s->options.policy == SCHED_ARRIVAL) {
        return 1;
    }
    uint64_t jobs = (uint64_t)s->options.rows_max * SCHED_TURN_ROWS;
    return jobs < s->options.jobs_max ? (uint32_t)jobs : s->options.jobs_max;
}

/* Runs, and the loop has still tokens to come from it. */
static inline bool sched_unfinished(const struct sched_seq *j) {
    return j->sampled < j->output_tokens;
}

static inline bool sched_split(const struct sched *s) {
    return s->options.split_pages > 0;
}

/* Pages that KV may take when there is nothing else. */
static inline uint32_t sched_kv_pages(const struct sched *s) {
    return s->options.pages - s->options.split_pages;
}

/* Takes free pages for KV. */
static inline void sched_take(struct sched_turn *t, uint32_t pages) {
    t->pages_free -= pages;
    t->pages_left -= pages;
}

/* The most pages that a sequence may ever have beside its adapter. */
static inline uint32_t sched_pages_max(const struct sched *s, const struct sched_turn *t,
                                       uint32_t queue) {
    uint32_t adapter = sched_min(sched_adapter_pages(s, t, queue), s->options.pages);
    if (sched_split(s)) {
        bool fits = adapter <= s->options.split_pages;
        return fits ? sched_min(s->options.slot_pages, sched_kv_pages(s)) : 0;
    }
    return sched_min(s->options.slot_pages, s->options.pages - adapter);
}

/* waiting.c */
void sched_list_put(struct sched_list *list, uint32_t item, uint32_t *place);
void sched_queue_put(struct sched *s, uint32_t job);
void sched_queue_remove(struct sched *s, uint32_t job);
void sched_deadline_put(struct sched *s, uint32_t job);
void sched_deadline_remove(struct sched *s, uint32_t job);
void sched_rank_put(struct sched_ranking *ranking, const struct sched_rank *rank);

/* scheduler.c: out of every list; what is left of the job is its place. */
void sched_detach(struct sched *s, uint32_t job);

/* plan.c */
void sched_abort_job(struct sched *s, uint32_t job, enum sched_reason reason);
void sched_run(struct sched *s, uint32_t job);
void sched_emit(struct sched *s, struct sched_turn *t, const struct sched_work *work);
void sched_mark_read(struct sched *s, struct sched_turn *t, uint32_t queue);

/* residents.c: whom an eviction may hit, besides idle residents that nobody waits for. */
enum sched_force {
    SCHED_SPARE_WANTED, /* nobody */
    SCHED_TAKE_YOUNGER, /* those whose oldest job is younger than `order` */
    SCHED_TAKE_ANY,     /* any idle one */
};
struct sched_claim { /* who evicts */
    uint32_t queue;
    enum sched_force force;
    uint64_t order;
};
void sched_residents_refresh(struct sched *s, const struct sched_turn *t);
void sched_resident_note(struct sched *s, uint32_t queue);
/* Evicts until `pages` are coming for an adapter; false: there are not as many to be had. */
bool sched_make_pages(struct sched *s, struct sched_turn *t, uint32_t pages,
                      const struct sched_claim *claim);
/* The same for KV, to which adapters of a split pool give nothing. */
bool sched_make_kv_pages(struct sched *s, struct sched_turn *t, uint32_t pages,
                         const struct sched_claim *claim);
/* Evicts one. */
bool sched_evict_one(struct sched *s, struct sched_turn *t, const struct sched_claim *claim);

/* choose.c: admissions, loads and fetches. */
void sched_choose(struct sched *s, struct sched_turn *t);

/* merge.c: the adapter whose weights the plan's step runs with, or SCHED_BASE. After sorting. */
uint32_t sched_merge(struct sched *s, const struct sched_turn *t);
void sched_merge_forget(struct sched *s, uint32_t queue); /* it is evicted */

/* cost.c: predicted time of a step, and a prior of another time by as much as these were off. */
void sched_cost_open(struct sched *s);
double sched_step_us(const struct sched *s, uint32_t tokens, uint32_t adapter_pages);
double sched_scaled_us(const struct sched *s, double prior_us);

#endif
