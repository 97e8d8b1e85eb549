/* publish.h - outcomes: text from tokens, frames, finals, dead letters, delivery reports.
 *
 * Thread: one of its own, that alone calls the source's produce and reports. A job comes here when
 * its state has changed and goes back to the intake once each of its outcomes was delivered, or it
 * was dropped. Errors of a record are outcomes; errors of the cluster that last end the process. */
#ifndef LORRY_WORKER_PUBLISH_H
#define LORRY_WORKER_PUBLISH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "text/text.h"
#include "worker/job.h"
#include "worker/registry.h"
#include "worker/source.h"

struct publish;

struct publish_options {
    struct source *source;
    const struct source_ops *ops;
    const struct text *text;
    struct registry *registry;
    struct metrics *metrics;
    const char *worker_id;
    const char *group; /* named in dead letters */
    uint32_t jobs_max;
    uint32_t frame_interval_ms;
    const _Atomic uint32_t
        *epochs; /* as the engine's: nothing is produced for a partition that went */
    void (*done)(void *context, struct job *job, bool delivered); /* the job is the callee's */
    void (*fatal)(void *context, enum err e, const struct err_text *why);
    void *context;
};

NODISCARD enum err publish_open(struct publish **out, const struct publish_options *options);

/* Thread: any. The job has news: `what` is 0, JOB_ENDED or JOB_ATTEMPT, after which the caller
 * touches it no more. Never blocks, never full. */
void publish_job(struct publish *p, struct job *job, uint32_t what);

/* Ends the thread after all jobs that ended were delivered, or after `timeout_ms`. true: all were.
 */
bool publish_finish(struct publish *p, uint32_t timeout_ms);
void publish_close(struct publish *p); /* NULL is fine */

#endif
