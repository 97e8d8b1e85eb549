/* registry.h - Redis beside the worker: deadlines and cancels from outside, attempts, adapter
 * facts.
 *
 * Redis is a cache and a hint, never the truth: with it away or empty every call is answered at
 * once as if the key were absent, nothing waits and nothing is rejected for it; the gauge REDIS_UP
 * says so and the registry reconnects with growing pauses. A hung server is cut off by
 * redis.timeout_ms. After reconnecting all held jobs are read again.
 *
 * One thread of its own, hiredis' blocking API with pipelining on one connection for commands and a
 * second one subscribed to `lorry:events`. All calls below only push into bounded rings.
 *
 * Keys (hashes): lorry:job:<id>      deadline_ms, cancel (from outside), attempt (ours; 7 days)
 *                lorry:adapter:<id>  revision, rank, bytes, state, message (ours), ttl_ms,
 *                                    ttft_slo_ms (from outside)
 *                lorry:worker:<id>   heartbeat_ms, partitions, adapters, running, waiting, tokens,
 *                                    tokens_s (of the last seconds), http (30 s; away at the end)
 * and, sorted by heartbeat_ms, lorry:workers:<group>: the ids of the group's workers.
 * Events on channel lorry:events: "job <id>", "adapter <id>". */
#ifndef LORRY_WORKER_REGISTRY_H
#define LORRY_WORKER_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "base/ring.h"
#include "worker/job.h"

struct registry;

/* What changed outside, for the loop. */
struct registry_update {
    enum { REGISTRY_JOB, REGISTRY_ADAPTER } kind;
    char id[JOB_ID_BYTES]; /* of the job or of the adapter */
    bool cancelled;
    bool deadline_given;
    int64_t deadline_ms;
};

struct registry_options {
    const char *url; /* redis:// or unix://; empty = no Redis: everything is answered at once */
    uint32_t timeout_ms;
    uint32_t jobs_max; /* held at once */
    const char *worker_id;
    const char *group;       /* of Kafka */
    const char *http;        /* "host:port" of /metrics; empty = none */
    struct metrics *metrics; /* REDIS_UP; what the heartbeat says is read from it */
    /* A looked-up job goes on to the loop; called by the registry's thread. */
    void (*looked)(void *context, struct job *job);
    /* job->attempt is set; called by the registry's thread, which then touches the job no more. */
    void (*started)(void *context, struct job *job);
    /* Wakes the loop: an update waits in registry_update(). */
    void (*changed)(void *context);
    void *context;
};

/* Starts the thread; does not wait for Redis. Errors  ERR_BAD_CONFIG (url), ERR_NO_MEMORY. */
NODISCARD enum err registry_open(struct registry **out, const struct registry_options *options,
                                 struct err_text *why);
/* Stops the thread and closes; jobs still inside are handed on first. NULL is fine. */
void registry_close(struct registry *r);

/* Thread: admit. Looks up the job's deadline and cancel, and its adapter's default ttl_ms, sets
 * job->deadline_ms and job->cancelled, and hands the job to `looked`. job->deadline_ms comes in as
 * the job's own (INT64_MAX = none); Redis' deadline_ms wins over it; the adapter's ttl_ms (from the
 * record's timestamp job->record->timestamp_ms, else received_ms) counts only where the job brought
 * none. From now on the job is held: events about it are passed on until registry_leave(). */
void registry_look(struct registry *r, struct job *job);

/* Thread: publish. Raises the attempt of a job that has started; sets job->attempt (≥ 1), then
 * calls `started`. */
void registry_start(struct registry *r, struct job *job);

/* Thread: publish. The job is over: it is held no longer. On return the registry does not touch it.
 */
void registry_leave(struct registry *r, struct job *job);

/* Thread: loop. An adapter was read from the root, or refused: its facts are written for others to
 * see. `why` NULL = usable. Best effort. */
void registry_adapter(struct registry *r, const struct model_adapter_facts *facts,
                      const struct err_text *why);

/* Thread: loop. Takes one update; false: none. */
bool registry_update(struct registry *r, struct registry_update *update);

struct registry_heartbeat {
    uint32_t adapters_resident, running, waiting;
};
/* Thread: loop. What the next heartbeat says. */
void registry_heartbeat(struct registry *r, const struct registry_heartbeat *beat);

#endif
