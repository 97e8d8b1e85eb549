/* worker.h - the whole worker in one process: `lorryd`, and `lorry run` without a queue.
 *
 *   struct worker *w;
 *   worker_open(&w, config, …);            model, tokenizer, device: slow, prints progress
 *   source_open_kafka(&source, &ops, …);
 *   worker_run(w, source, ops, …);         until the source ends or worker_drain()
 *   worker_close(w);
 *
 * A failure that the process cannot outlive (device, broker) ends it from inside worker_run() with
 * the error's exit code and without committing: the queue redelivers. */
#ifndef LORRY_WORKER_WORKER_H
#define LORRY_WORKER_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "config/config.h"
#include "model/model.h"
#include "worker/source.h"

struct worker;

struct worker_options {
    const struct config *config;
    bool http;     /* serve metrics and health */
    bool registry; /* use Redis, if redis.url names one */
};

/* Errors  ERR_BAD_CONFIG, ERR_BAD_MODEL, ERR_DEVICE, ERR_NO_MEMORY: why says what. */
NODISCARD enum err worker_open(struct worker **out, const struct worker_options *options,
                               struct err_text *why);
void worker_close(struct worker *w); /* NULL is fine */

/* Takes over the source. Thread: the caller's becomes the loop. */
NODISCARD enum err worker_run(struct worker *w, struct source *source, const struct source_ops *ops,
                              struct err_text *why);

/* Thread: any. Ends worker_run() within worker.drain_s: intake stops, running jobs finish, what
 * waits goes back to the queue. */
void worker_drain(struct worker *w);

enum { WORKER_STATUSES = 5 }; /* as enum wire_status */

struct worker_report {
    uint64_t finals[WORKER_STATUSES]; /* delivered to the source, by status */
    uint64_t received;
    uint32_t drain_finished, drain_dropped;
    bool all_delivered; /* of the jobs that had ended */
};
/* Thread: any while it runs, exact afterwards. */
struct worker_report worker_report(const struct worker *w);
struct metrics *worker_metrics(struct worker *w);
const struct model_facts *worker_model(const struct worker *w);

/* The sizes of a worker on a device, as far as they follow from configuration and model; a GPU's
 * pool is what its memory has left in the end. */
struct worker_plan {
    uint32_t rows, step_tokens, chunk_tokens; /* the configuration's, or the device's own */
    uint32_t page_tokens, slot_pages;
    uint32_t page_count;    /* 0 = known when the device is open, by worker_plan_pool() */
    uint32_t adapter_pages; /* most of one adapter */
    enum kern_dtype elem;   /* of the device */
    uint64_t page_bytes;    /* over all layers */
    uint64_t pool_bytes, weight_bytes;
    uint64_t merge_bytes;  /* scheduler.merged: of the projections' copy, on the device */
    uint64_t memory_bytes; /* host: the sum of all that may become resident (invariant 7) */
    /* the priors of the scheduler's cost model, from the device's kind: mostly proportions matter,
     * which are much the same for all GPUs, and which it keeps to where steps do not show others */
    double step_us_fixed, step_us_row, load_us_page;
    double merge_us, lora_share; /* as struct sched_options has them */
};

/* Opens nothing: `lorry check`. `ops`: of kern_find(); kern_cpu() will do where no device matters.
 * Errors  ERR_BAD_CONFIG. */
NODISCARD enum err worker_plan(const struct config *config, const struct kern_ops *ops,
                               const struct model_facts *model, struct worker_plan *plan,
                               struct err_text *why);
/* Fills in the pool, after the weights and the step shapes have their memory.
 * Errors  ERR_BAD_CONFIG, ERR_NO_MEMORY: the model leaves no room; why has the figures. */
NODISCARD enum err worker_plan_pool(const struct config *config, const struct kern_ops *ops,
                                    struct kern_device *device, const struct model_facts *model,
                                    struct worker_plan *plan, struct err_text *why);
/* Makes state.dir, where devices keep what they measured, and the folders above it; without it
 * nothing is kept, which is said once. */
void worker_state_dir(const struct config *config);
/* What a device of this plan is opened with. */
struct kern_limits worker_limits(const struct config *config, const struct worker_plan *plan);

/* A connection to the Redis that `url` names, authenticated and its database selected, for whoever
 * writes beside the workers; redisFree() releases it. NULL: why says what; it names redis.url where
 * that is wrong, and else Redis is away. */
struct redisContext;
struct redisContext *registry_connect(const char *url, uint32_t timeout_ms, struct err_text *why);

#endif
