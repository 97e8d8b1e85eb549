/* engine_internal.h - the loop's own state, shared by engine.c, engine_jobs.c, engine_prefix.c and
 * engine_step.c. */
#ifndef LORRY_WORKER_ENGINE_INTERNAL_H
#define LORRY_WORKER_ENGINE_INTERNAL_H

#include "base/ring.h"
#include "pool/pool.h"
#include "scheduler/scheduler.h"
#include "worker/adapters.h"
#include "worker/engine.h"

enum { ENGINE_STEPS = 2 }; /* launched and not read: one computes while one is read */

/* Whom a sampling row of a launched step belongs to. */
struct engine_row {
    uint32_t job;
    uint64_t serial;
};

struct engine_step {
    uint64_t ticket;
    uint32_t row_count;
    struct engine_row *rows; /* [limits.step_samples] */
    int64_t launched_us;
    struct engine_stepped facts;
};

struct engine {
    struct engine_options options;
    struct adapters *adapters;
    struct pool *pool;
    struct pool_store *store;
    struct sched *sched;
    uint32_t jobs_max;

    struct ring inbox; /* of struct job, from admit and the registry */
    struct bell bell;
    _Atomic bool draining, stopping;
    _Atomic int64_t drain_until_us;
    bool drain_seen;
    uint64_t revocations_seen;
    struct engine_report report;

    struct job **held; /* [jobs_max] by index: between engine_give and the end; else NULL */
    uint32_t held_count;
    struct job **by_slot; /* [limits.slots] */
    uint32_t *slots_free; /* stack */
    uint32_t slots_free_count;
    uint32_t *slot_pages; /* [limits.slots][limits.slot_pages] */
    uint64_t serial;
    uint32_t merged;       /* adapter whose weights the last step ran with, or SCHED_BASE, */
    uint32_t merged_label; /* and that of its figures */

    uint32_t *prefix_tokens; /* scratch: [limits.page_tokens], */
    uint32_t *prefix_pages;  /* [limits.slot_pages] */

    struct engine_step steps[ENGINE_STEPS]; /* ring of launched steps */
    uint32_t step_head, step_count;
    uint64_t ticket_launched;    /* last */
    int64_t turn_us, planned_us; /* when this turn began, and when its plan stood */

    /* The step being built; all sized by the limits. */
    uint32_t *tokens;
    struct kern_chunk *chunks;
    struct kern_segment *segments;
    struct kern_slot_set *slot_sets;
    struct kern_slot_page *slot_page_deltas;
    struct kern_adapter_set *adapter_sets;
    struct kern_sample *samples;
};

/* ---- engine_jobs.c: jobs come and go ---- */

void engine_drain_inbox(struct engine *e);
void engine_take_adapters(struct engine *e, int64_t now_us);
void engine_take_updates(struct engine *e);
void engine_sweep_revoked(struct engine *e);
void engine_sweep_running(struct engine *e); /* stop strings and cancels */
void engine_drop_waiting(struct engine *e);
void engine_drop_all(struct engine *e);
/* The one way out: gives back all that the job has, and hands it to publish. */
void engine_end(struct engine *e, struct job *job, enum job_outcome outcome);
/* The job enters the waiting room (+1) or leaves it, begins (+1) or ends to run: by adapter. */
void engine_count_waiting(const struct engine *e, const struct job *job, int by);
void engine_count_running(const struct engine *e, const struct job *job, int by);
/* Gives back the slot and the pages; the job waits again. */
void engine_unseat(struct engine *e, struct job *job);

/* ---- engine_prefix.c: full pages that jobs share ---- */

/* For the scheduler: what is found of a job that is about to start; `context` is the engine. */
struct sched_found engine_found(void *context, uint32_t job);
/* Gives a job that has just got a slot its first pages, those of `tokens` that were found. */
void engine_share(struct engine *e, struct job *job, uint32_t tokens);
/* Lets the job's full pages be found, as far as steps were launched that compute them and their
 * tokens are known. Before its pages are released, and whenever it has more. */
void engine_remember(struct engine *e, struct job *job);

/* ---- engine_step.c: plans become steps ---- */

/* Carries out a plan; true: a step was launched. */
NODISCARD enum err engine_apply(struct engine *e, const struct sched_plan *plan, bool *launched);
/* Reads the oldest launched step. */
NODISCARD enum err engine_read(struct engine *e);
/* The ticket that pages released now must wait for; 0 = none in flight. */
uint64_t engine_ticket(const struct engine *e);

#endif
