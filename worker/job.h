/* job.h - one job on its way through the worker, and who may touch what.
 *
 * Jobs are taken from a table that is allocated at start; its size bounds everything downstream: a
 * job is in a ring at most once, so rings of backlog.jobs cells are never full. The job is handed
 * from thread to thread:
 *
 *   source → admit → (registry) → loop → publish → source
 *
 * Each section names its owner. While a job runs, loop and publish both hold it: what they share is
 * atomic, and the loop writes before it rings. A job that was refused in admit goes through the
 * loop all the same, so that there is one way out. */
#ifndef LORRY_WORKER_JOB_H
#define LORRY_WORKER_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "text/text.h"
#include "wire/wire.h"
#include "worker/source.h"

enum {
    JOB_ID_BYTES = 512, /* of an id made from coordinates: "@topic/partition/offset" */
    JOB_NONE = -1,
};

/* How a job ended, as the loop says it. */
enum job_outcome {
    JOB_RUNNING,
    JOB_STOPPED,  /* succeeded: a stop token or string */
    JOB_LENGTH,   /* succeeded: max_tokens or the context's end */
    JOB_FAILED,   /* error, why */
    JOB_REJECTED, /* error, why */
    JOB_EXPIRED,
    JOB_CANCELLED,
    JOB_DROPPED, /* its partition went, or we drain: no final, nothing committed */
};

/* Bits of job.news. A thread that sets one touches the job no more unless it is still its owner:
 * the publish thread may finish and give away the job as soon as it sees what it waits for. */
enum {
    JOB_QUEUED = 1, /* in publish's ring */
    JOB_ENDED = 2,  /* set by the loop, its last touch: outcome and all it owned are final */
    JOB_ATTEMPT =
        4, /* set by the registry, its last touch but for registry_leave(): attempt is known */
};

struct job;

/* Comes back in a delivery report. */
struct job_tag {
    struct job *job;
    bool dead; /* of the dead letter, else of the final */
};

struct job {
    uint32_t index;                     /* in the table; constant */
    struct job_tag tag_final, tag_dead; /* constant */

    /* ---- source; constant afterwards ---- */
    struct source_record *record; /* freed with the job: a dead letter needs its bytes */
    struct source_at at;
    uint32_t slot, epoch; /* of its partition's assignment, see acks.h */
    int64_t received_us;  /* monotonic */
    int64_t received_ms;  /* Unix time */

    /* ---- admit; constant afterwards ---- */
    struct wire_job wire;
    char id[JOB_ID_BYTES];
    char adapter[POOL_ID_BYTES]; /* empty = base */
    struct model_adapter_stamp stamp;
    uint32_t *prompt; /* [prompt_count] tokens; malloc'ed */
    uint32_t prompt_count;
    uint32_t output_max;
    struct kern_slot_set sampling; /* `slot` is set by the loop */
    bool stream;                   /* frames wanted */
    enum err error;                /* refused: with why */
    struct err_text why;
    bool dead_letter; /* the refusal also goes to the dead letters */

    /* ---- registry, before the loop has it; then the loop ---- */
    int64_t deadline_ms; /* INT64_MAX = none */
    bool cancelled;

    /* ---- loop ---- */
    uint32_t entry;      /* of the adapter table, or ADAPTERS_BASE */
    bool in_scheduler;   /* sched_enter() took it */
    int32_t device_slot; /* JOB_NONE = none */
    uint64_t serial;     /* names one stay in a slot: results of an older one are surplus */
    uint32_t *pages;     /* [page_count] of room slot_pages, while it has a slot */
    uint32_t page_count;
    uint32_t computed; /* tokens that its pages hold, or will hold once launched steps have ended */
    uint32_t entered;  /* of its pages, those that can be found as a prefix */
    uint64_t chain;    /* and the name of the last of these */

    /* ---- loop → publish ---- */
    uint32_t *output;              /* [output_max]; set before output_count first rises */
    struct wire_logprob *logprobs; /* [output_max] of the tokens; NULL: not asked for */
    struct wire_logprob *top;      /* [output_max][sampling.top_logprobs] */
    _Atomic uint32_t
        output_count;         /* release: output[0 .. count) may be read, and so may logprobs */
    enum job_outcome outcome; /* final once JOB_ENDED is set */
    _Atomic uint32_t news;    /* bits, see above */
    int64_t started_us, first_token_us, ended_us; /* monotonic; 0 = did not happen */
    char revision[POOL_REVISION_BYTES];
    uint32_t metrics_adapter;
    uint32_t cached; /* tokens of the prompt that were found computed when it first started */

    /* ---- publish → loop ---- */
    _Atomic bool stop_found; /* a stop string: the loop ends it at its next turn */

    /* ---- registry → publish ---- */
    uint32_t attempt; /* from 1 on, once JOB_ATTEMPT is set; 0 = never started */

    /* ---- publish ---- */
    bool opened;      /* it had news */
    bool start_asked; /* the attempt was asked for */
    char run[WIRE_ULID_BYTES + 1];
    struct text_stream *decoder;
    char *text;                              /* all text so far; malloc'ed */
    size_t text_bytes, text_room, text_sent; /* sent: by frames */
    uint32_t decoded;                        /* tokens fed to the decoder */
    uint32_t framed;                         /* tokens sent by frames */
    uint32_t kept; /* tokens of the final once a stop string cut it; else UINT32_MAX */
    uint32_t frame_seq;
    int64_t frame_due_us; /* 0 = nothing gathered */
    bool stop_cut;
    bool start_sent;
    uint32_t active;         /* place in publish's list of streaming jobs + 1; 0 = not in it */
    uint32_t deliveries;     /* outcomes not yet reported delivered */
    enum wire_status status; /* of the final that was sent */
    uint32_t shrink;         /* what was left out of the final: see publish.c */
};

/* Readies a table entry, zeroed or used, for its next job; frees what the last one held. */
void job_reset(struct job *job, uint32_t index);

#endif
