/* engine.h - the loop: owns the scheduler, the pool and the device, and runs the steps.
 *
 * One turn: drain inboxes → plan → apply → upload and launch → read back the step before → hand
 * over. The loop runs one step ahead of what it has read: sampled tokens stay on the device and
 * feed the next step. Text is never touched here.
 *
 * Thread: engine_run() is the loop thread; functions that say so may be called by others. */
#ifndef LORRY_WORKER_ENGINE_H
#define LORRY_WORKER_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "config/config.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "worker/adapters.h"
#include "worker/health.h"
#include "worker/job.h"
#include "worker/registry.h"
#include "worker/worker.h"

struct engine;

/* What a step was, and what it took; told once it was read. */
struct engine_stepped {
    uint32_t tokens, rows;            /* rows: those that sampled */
    uint32_t prompt_tokens;           /* of the tokens, those of chunks of more than one */
    uint32_t segments, adapter_pages; /* none of a merged step's */
    bool merged, switched; /* switched: it began with a merge, or with the base's return */
    uint64_t kv_tokens;    /* sum over chunks: tokens whose KV it reads */
    uint64_t pairs;        /* sum over tokens: positions that it attends to */
    uint32_t pages_kv, pages_adapters, running; /* when it had been read */
    struct kern_span span;
    int64_t read_us; /* monotonic: when it was read */
    /* the loop's time: until its plan stood, from there to the launch, in it; then waiting for its
     * end, and handing out what it gave */
    uint32_t plan_us, build_us, launch_us, wait_us, take_us;
};

struct engine_observer {
    void (*stepped)(void *context, const struct engine_stepped *step); /* Thread: the loop */
    void *context;
};

struct engine_options {
    const struct config *config;
    const struct model_facts *model;
    const struct kern_ops *ops;
    struct kern_device *device; /* weights loaded, pool of plan.page_count pages made */
    struct worker_plan plan;
    struct kern_limits limits; /* none above those that the device was opened with */
    struct registry *registry; /* may be set later, by engine_registry() */
    struct metrics *metrics;
    struct health *health;       /* NULL = none */
    struct pool_store *store;    /* the caller's, that outlives the engine; NULL = one of its own */
    struct adapters_maker maker; /* where adapters come from; empty = from adapters.dir */
    struct engine_observer observer; /* empty = nobody */
    /* Live epoch of each partition slot; a job of another epoch is dropped. Written by the source
     * thread, which then calls engine_wake(). */
    const _Atomic uint32_t *epochs;
    _Atomic uint64_t *revocations; /* counts changes of epochs */
    /* The job has news: 0 = it started or has new tokens, JOB_ENDED = it is publish's alone now. */
    void (*publish)(void *context, struct job *job, uint32_t what);
    void *context;
};

/* A host store as an engine on this device opens for itself. */
NODISCARD enum err engine_store_open(struct pool_store **out, const struct kern_ops *ops,
                                     uint64_t bytes);

NODISCARD enum err engine_open(struct engine **out, const struct engine_options *options,
                               struct err_text *why);
void engine_close(struct engine *e); /* NULL is fine */
void engine_registry(struct engine *e, struct registry *registry);

/* Thread: any. A job that admit and the registry are done with. */
void engine_give(struct engine *e, struct job *job);
/* Thread: any. */
void engine_wake(struct engine *e);
/* Thread: any. Jobs that wait are dropped at once, running ones go on for at most `budget_ms`, then
 * are dropped too; engine_run() returns. */
void engine_drain(struct engine *e, uint32_t budget_ms);
/* Thread: any. engine_run() returns at its next turn, and may be called again; all jobs must have
 * ended before. */
void engine_stop(struct engine *e);

/* Turns until stopped or drained. Errors  ERR_DEVICE, ERR_NO_MEMORY: the process must exit. */
NODISCARD enum err engine_run(struct engine *e, struct err_text *why);

struct engine_report { /* of a drain */
    uint32_t finished, dropped;
};
struct engine_report engine_report(const struct engine *e);
struct pool_counts engine_pool_counts(const struct engine *e); /* Thread: the loop's */

#endif
