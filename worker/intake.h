/* intake.h - the source thread: polls records, owns the acks and the table of jobs, commits.
 *
 * A record becomes a job when there is a free one and the backlog's bytes allow it; else the
 * partitions are held, and the rest waits on Kafka. Jobs come back when their outcomes are
 * delivered or when they were dropped. On revoke: commit at once, and the partition's jobs are
 * dropped. */
#ifndef LORRY_WORKER_INTAKE_H
#define LORRY_WORKER_INTAKE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "config/config.h"
#include "worker/health.h"
#include "worker/job.h"
#include "worker/source.h"

struct intake;

enum { INTAKE_PARTITIONS_MAX = 4096 }; /* assigned to one worker at once */

struct intake_options {
    const struct config *config;
    struct source *source;
    const struct source_ops *ops;
    struct metrics *metrics;
    struct health *health;    /* told whether the broker is reached; NULL = none */
    _Atomic uint32_t *epochs; /* [INTAKE_PARTITIONS_MAX], written here */
    _Atomic uint64_t *revocations;
    void (*received)(void *context, struct job *job); /* to admit */
    void (*revoked)(void *context);                   /* wakes the loop */
    void (*ended)(void *context); /* file: all was read, and all jobs have come back */
    void (*fatal)(void *context, enum err e, const struct err_text *why);
    void *context;
};

NODISCARD enum err intake_open(struct intake **out, const struct intake_options *options);

/* Thread: any. A job comes back; `delivered`: all its outcomes were. */
void intake_return(struct intake *i, struct job *job, bool delivered);

/* Thread: any. No record is taken any more; jobs inside go on. */
void intake_stop(struct intake *i);

/* Ends the thread after a last commit of what was delivered. Jobs that are still out are forgotten:
 * the queue redelivers them. */
void intake_finish(struct intake *i);
void intake_close(struct intake *i); /* NULL is fine */

uint32_t intake_partitions(const struct intake *i); /* assigned now; thread: any */

#endif
