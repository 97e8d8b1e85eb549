/* admit.h - from bytes to a job that can run: parse, check, look at the adapter's files, tokenise.
 *
 * Thread: `admit.threads` of its own. A job that is refused goes on with its error. */
#ifndef LORRY_WORKER_ADMIT_H
#define LORRY_WORKER_ADMIT_H

#include <stdint.h>

#include "base/err.h"
#include "base/metrics.h"
#include "config/config.h"
#include "model/model.h"
#include "text/text.h"
#include "worker/job.h"
#include "worker/source.h"

struct admit;

struct admit_options {
    const struct config *config;
    const struct model_facts *model;
    const char *model_name; /* an adapter of this name is the base */
    const struct text *text;
    const struct source_ops *ops;
    const struct source *source;
    struct metrics *metrics;
    uint32_t jobs_max;
    void (*admitted)(void *context, struct job *job); /* the job is the callee's */
    void *context;
};

NODISCARD enum err admit_open(struct admit **out, const struct admit_options *options);
void admit_close(struct admit *a); /* joins; jobs still inside are handed on first; NULL is fine */

/* Thread: source. Never full. */
void admit_give(struct admit *a, struct job *job);

/* What the threads do with one job; for tests. */
void admit_job(const struct admit_options *options, struct job *job);

#endif
