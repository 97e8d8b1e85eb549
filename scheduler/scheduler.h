/* scheduler.h - what to compute next: the waiting room, the running sequences and the plan.
 *
 * Pure: no clock, no socket, no device; time and the state of the pool come in a snapshot, and the
 * same calls with the same arguments give the same plans. It does not know pool/: it counts pages.
 * One thread. All memory is taken in sched_open().
 *
 * Jobs and adapters are named by small indices that the caller chooses and may use again once the
 * job has left (sched_leave). The base is SCHED_BASE.
 *
 * A sequence has `known` tokens (prompt and sampled) of which `computed` are in its pages. A step
 * computes some of the rest; when none is left a token is sampled and `known` grows by one. The
 * scheduler counts as if each plan were carried out at once and in full, which lets the loop run
 * ahead of what it has read. */
#ifndef LORRY_SCHEDULER_SCHEDULER_H
#define LORRY_SCHEDULER_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define SCHED_BASE UINT32_MAX

struct sched;

enum sched_policy {
    SCHED_BACKLOG, /* adapter by adapter, such that steps read few of them: what waits is planned
                      as a whole; whoever has waited for wait_steps goes first */
    SCHED_ARRIVAL, /* first come, first served: jobs start in the order of sched_enter(), priority
                      and adapter alike. Only jobs whose adapter is on its way are passed over. What
                      servers without a backlog do; the baseline */
};

struct sched_options {
    enum sched_policy policy;
    uint32_t jobs_max;     /* indices are below this; waiting and running together */
    uint32_t adapters_max; /* indices are below this */
    uint32_t rows_max;     /* most sequences running: slots of the device */
    uint32_t step_tokens;  /* token budget of a step */
    uint32_t chunk_tokens; /* most prompt tokens of one sequence in one step, so that a long prompt
                              does not hold up the decode rows beside it */
    uint32_t page_tokens;  /* T */
    uint32_t pages;        /* of the whole pool */
    uint32_t split_pages;  /* of these so many are for adapters alone, and the rest for KV alone, as
                              servers without a unified pool have it: a baseline. 0 = all for both */
    uint32_t slot_pages;   /* most pages of a sequence */
    uint32_t wait_steps;   /* an adapter whose oldest job has waited this many steps goes first */
    double step_us_fixed;  /* cost model's prior: time of an empty step, */
    double step_us_row;    /* of each token in it, */
    double load_us_page;   /* and of reading one adapter page in a step. Their proportions matter */
    bool merging;          /* steps may run merged; and then, likewise priors, */
    double merge_us;       /* of making the weights an adapter's, or the base's again, */
    double lora_share; /* and what LoRA costs a step of one adapter besides its pages, as a share
                          of the step */
};

NODISCARD enum err sched_open(struct sched **out, const struct sched_options *options);
void sched_close(struct sched *s); /* NULL is fine */

struct sched_job {
    uint32_t job;
    uint32_t adapter;       /* or SCHED_BASE */
    uint32_t prompt_tokens; /* ≥ 1 */
    uint32_t output_tokens; /* ≥ 1: at most this many are sampled */
    int32_t priority;       /* lower first */
    int64_t deadline_ms;    /* Unix time; INT64_MAX = none */
    int64_t arrival;        /* smaller first among equals: order of reception */
};

/* Lets a job into the waiting room. `*bound_steps`: it will have started, or have been aborted,
 * before this many more plans with work (invariant 5), not counting those during which its adapter
 * was AWAY, FETCHING or LOADING. Conservative: sched_bound() in scheduler.c says how it comes
 * about. Errors  ERR_NO_SPACE: an index of jobs_max or more. ERR_PROMPT_TOO_LONG: the prompt and
 * one token do not fit into a slot's page list, or into the pool (its part for KV) alone. An
 * output, or an adapter, that outgrows the pool later ends the job by SCHED_NO_ROOM. */
NODISCARD enum err sched_enter(struct sched *s, const struct sched_job *job, uint64_t *bound_steps);
/* The job is gone, whatever it was doing (finished, cancelled, dropped). CHECKs that it is known.
 */
void sched_leave(struct sched *s, uint32_t job);
void sched_deadline(struct sched *s, uint32_t job, int64_t deadline_ms);

/* ---- the snapshot ------------------------------------------------------------------------- */

enum sched_adapter_state {
    SCHED_AWAY,     /* not in the host store: `fetch` asks for it */
    SCHED_FETCHING, /* a loader is at it, or it waits to be tried again */
    SCHED_STORED,   /* in the host store, not in pages: `load` asks for it */
    SCHED_LOADING,  /* on its way into pages */
    SCHED_RESIDENT,
};

struct sched_adapter {
    enum sched_adapter_state state;
    uint32_t pages; /* it takes when resident; 0 while not known */
    uint32_t users; /* running sequences: an adapter with any is not evicted */
    bool mergeable; /* into the weights; read only where it is resident */
};

/* What the pool still has of a job's tokens, computed for others or for the job itself before it
 * was preempted. */
struct sched_found {
    uint32_t tokens; /* of whole pages, from the first on; less than `known` */
    uint32_t pages;  /* of these pages, those that pages_free counts: nobody uses them just now */
};

struct sched_snapshot {
    int64_t now_ms;                       /* Unix time */
    uint32_t pages_free;                  /* can be reserved at once, those included that are kept
                                             for what was computed into them */
    uint32_t pages_pending;               /* will be free when steps in flight end */
    uint32_t pages_kv, pages_adapters;    /* in use; read only where the pool is split */
    uint32_t adapter_slots_free;          /* of the device's adapter table */
    const struct sched_adapter *adapters; /* [adapters_max] */
    /* A column that is read only where it is needed: of jobs about to start, whose adapter is
     * resident. What it says of a job is the same throughout the plan, and holds until the plan's
     * work has its pages. NULL: nothing is found. */
    struct sched_found (*found)(void *context, uint32_t job);
    void *context;
};

/* ---- the plan ----------------------------------------------------------------------------- */

struct sched_work { /* one sequence's part of the step; sorted so that an adapter's rows adjoin */
    uint32_t job;
    uint32_t adapter;
    uint32_t position; /* of the first token; of one that starts: the tokens before it are found
                          ones, whose pages are its first */
    uint32_t tokens;
    uint32_t pages; /* new pages to reserve before the step, behind those */
    bool starts;    /* first work since it waited: it needs a slot */
    bool sample;
};

enum sched_reason {
    SCHED_EXPIRED, /* its deadline has passed */
    SCHED_NO_ROOM, /* with its adapter it outgrew the pool, or its own output the slot's page list
                    */
};

struct sched_abort {
    uint32_t job;
    enum sched_reason reason;
    bool running; /* false: the device never saw it */
};

/* Carried out in this order: abort, preempt, evict, share the found pages of work that starts,
 * load, fetch, work. Arrays belong to the scheduler and are valid until the next sched_plan(). */
struct sched_plan {
    const struct sched_abort *aborts; /* the caller still calls sched_leave() for each */
    uint32_t abort_count;
    const uint32_t *preempts; /* jobs that give their pages and slot back and wait again; their
                                 tokens are kept, and computed anew where their pages are gone */
    uint32_t preempt_count;
    const uint32_t *evicts; /* adapters */
    uint32_t evict_count;
    const uint32_t *loads; /* adapters: host store → pages */
    uint32_t load_count;
    const uint32_t *fetches; /* adapters: root → host store */
    uint32_t fetch_count;
    const struct sched_work *work;
    uint32_t work_count;
    uint32_t tokens;       /* of all work */
    uint32_t merged;       /* the adapter that all work is of and whose weights the step runs with;
                              SCHED_BASE: the base's */
    int64_t next_event_ms; /* with no work: nothing changes by time alone before this; INT64_MAX */
};

void sched_plan(struct sched *s, const struct sched_snapshot *snapshot, struct sched_plan *plan);

/* Teaches the cost model: a step of `tokens` that read `adapter_pages` took `us`. Learned is by how
 * much each of the options' three times is off; what steps do not tell apart keeps the options'
 * proportions. cost.c says how, and why it settles. */
void sched_learn(struct sched *s, uint32_t tokens, uint32_t adapter_pages, double us);

struct sched_counts {
    uint32_t waiting, running, adapters_waiting;
    uint64_t plans, admitted, preempted, expired;
    uint64_t merges; /* times that an adapter's weights were asked for */
};
struct sched_counts sched_counts(const struct sched *s);

#endif
