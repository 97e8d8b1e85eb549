#include "worker/intake.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/ring.h"
#include "worker/acks.h"

enum {
    POLL_MS = 10, /* how long a delivered outcome may wait for its commit */
};

struct intake {
    struct intake_options options;
    struct acks *acks;
    struct job *table; /* [jobs_max] */
    struct job **free; /* stack */
    uint32_t free_count, jobs_max;
    uint64_t bytes_held;
    bool holding;      /* all partitions are held: no free job, or no bytes */
    bool source_ended; /* a file was read to its end */
    bool ended_told;
    int64_t commit_due_us;
    struct ring returned; /* of struct job */
    pthread_t thread;
    bool started;
    _Atomic bool stopping, finishing;
    _Atomic uint32_t partitions;
};

static struct source *source_of(const struct intake *i) {
    return i->options.source;
}

/* ---- jobs come back ----------------------------------------------------------------------- */

/* The flag travels in the job: it is the intake's alone by then. */
void intake_return(struct intake *i, struct job *job, bool delivered) {
    job->outcome = delivered ? JOB_STOPPED : JOB_DROPPED;
    CHECK(ring_push(&i->returned, job)); /* a cell for every job there is */
}

static void take_returned(struct intake *i) {
    struct job *job = NULL;
    while ((job = ring_pop(&i->returned)) != NULL) {
        if (job->outcome != JOB_DROPPED) {
            acks_deliver(i->acks, job->slot, job->epoch, job->at.offset);
        }
        i->bytes_held -= job->record->value_bytes;
        i->options.ops->free_record(source_of(i), job->record);
        job_reset(job, job->index);
        i->free[i->free_count++] = job;
    }
    metrics_set(i->options.metrics, METRIC_JOBS_HELD, i->jobs_max - i->free_count);
}

/* ---- commits ------------------------------------------------------------------------------ */

static void commit_ended(struct intake *i, const struct source_at *at, int64_t next, enum err e,
                         const struct err_text *why) {
    uint32_t slot = 0;
    if (acks_find(i->acks, at->topic, at->partition, &slot)) {
        acks_commit_ended(i->acks, slot, acks_epoch(i->acks, slot), next, e == ERR_OK);
    }
    if (e != ERR_OK) {
        char quoted[ERR_TEXT_BYTES];
        metrics_add(i->options.metrics, METRIC_COMMIT_ERRORS, 1);
        log_warn("source", "commit failed topic=%s partition=%d next=%lld why=%s",
                 i->options.ops->topic_name(source_of(i), at->topic), at->partition,
                 (long long)next, log_quote(quoted, sizeof quoted, why->message));
    }
}

static void commit(struct intake *i, const struct acks_commit *c, bool wait) {
    struct err_text why = {0};
    acks_commit_sent(i->acks, c->slot, c->next);
    metrics_add(i->options.metrics, METRIC_COMMITS, 1);
    enum err e =
        i->options.ops->commit(source_of(i), c->topic, c->partition, c->next, "", wait, &why);
    if (wait || e != ERR_OK) {
        struct source_at at = {.topic = c->topic, .partition = c->partition};
        commit_ended(i, &at, c->next, e, &why);
    }
}

static void commit_all(struct intake *i, bool wait) {
    for (uint32_t slot = 0; slot < acks_slots(i->acks); slot++) {
        struct acks_commit c;
        if (acks_commit_due(i->acks, slot, &c)) {
            commit(i, &c, wait);
        }
    }
}

static void commit_when_due(struct intake *i) {
    int64_t now_us = clock_mono_us();
    if (now_us >= i->commit_due_us) {
        commit_all(i, false);
        i->commit_due_us = now_us + i->options.config->kafka_commit_ms * 1000;
    }
}

/* ---- events ------------------------------------------------------------------------------- */

static void assigned(struct intake *i, const struct source_at *at) {
    uint32_t slot = 0;
    uint32_t epoch = 0;
    if (acks_assign(i->acks, at->topic, at->partition, at->offset, &slot, &epoch) != ERR_OK) {
        struct err_text why = {0};
        (void)err_set_field(&why, ERR_BAD_CONFIG, "kafka.jobs",
                            "more than %d partitions assigned to one worker",
                            INTAKE_PARTITIONS_MAX);
        i->options.fatal(i->options.context, ERR_BAD_CONFIG, &why);
        return;
    }
    CHECK(slot < INTAKE_PARTITIONS_MAX);
    atomic_store_explicit(&i->options.epochs[slot], epoch, memory_order_release);
    metrics_set(i->options.metrics, METRIC_PARTITIONS, atomic_fetch_add(&i->partitions, 1) + 1);
    log_info("source", "assigned topic=%s partition=%d next=%lld",
             i->options.ops->topic_name(source_of(i), at->topic), at->partition,
             (long long)at->offset);
}

static void unassigned(struct intake *i, const struct source_at *at, bool may_commit) {
    uint32_t slot = 0;
    if (!acks_find(i->acks, at->topic, at->partition, &slot)) {
        return;
    }
    take_returned(i);
    struct acks_commit c;
    if (may_commit && acks_commit_due(i->acks, slot, &c)) {
        commit(i, &c, true);
    }
    atomic_store_explicit(&i->options.epochs[slot], 0, memory_order_release);
    acks_unassign(i->acks, slot);
    atomic_fetch_add(i->options.revocations, 1);
    i->options.revoked(i->options.context);
    metrics_set(i->options.metrics, METRIC_PARTITIONS, atomic_fetch_sub(&i->partitions, 1) - 1);
    log_info("source", "%s topic=%s partition=%d", may_commit ? "revoked" : "lost",
             i->options.ops->topic_name(source_of(i), at->topic), at->partition);
}

static void record(struct intake *i, struct source_record *r) {
    uint32_t slot = 0;
    if (!acks_find(i->acks, r->at.topic, r->at.partition, &slot) ||
        !acks_receive(i->acks, slot, r->at.offset)) {
        i->options.ops->free_record(source_of(i), r); /* not ours, or seen before */
        return;
    }
    CHECK(i->free_count > 0); /* a full table holds the partitions */
    struct job *job = i->free[--i->free_count];
    job->record = r;
    job->at = r->at;
    job->slot = slot;
    job->epoch = acks_epoch(i->acks, slot);
    job->received_us = clock_mono_us();
    job->received_ms = clock_wall_ms();
    i->bytes_held += r->value_bytes;
    metrics_add(i->options.metrics, METRIC_JOBS_RECEIVED, 1);
    i->options.received(i->options.context, job);
}

static void hold_when_full(struct intake *i) {
    bool full = i->free_count == 0 || acks_full(i->acks) || atomic_load(&i->stopping) ||
                i->bytes_held >= (uint64_t)i->options.config->backlog_bytes;
    if (full && !i->holding) {
        i->options.ops->hold(source_of(i), 0, -1);
    } else if (!full && i->holding) {
        i->options.ops->release(source_of(i), 0, -1);
    }
    i->holding = full;
}

static void event(struct intake *i, struct source_event *e) {
    switch (e->kind) {
    case SOURCE_NOTHING:
        break;
    case SOURCE_RECORD:
        record(i, e->record);
        break;
    case SOURCE_ASSIGNED:
        assigned(i, &e->at);
        break;
    case SOURCE_REVOKED:
        unassigned(i, &e->at, true);
        break;
    case SOURCE_LOST:
        unassigned(i, &e->at, false);
        break;
    case SOURCE_COMMITTED:
        commit_ended(i, &e->at, e->at.offset, e->error, &e->why);
        break;
    case SOURCE_END:
        i->source_ended = true;
        break;
    case SOURCE_FATAL:
        i->options.fatal(i->options.context, e->error, &e->why);
        break;
    }
}

static void show_broker(struct intake *i) {
    bool up = i->options.ops->connected(source_of(i));
    metrics_set(i->options.metrics, METRIC_KAFKA_UP, up ? 1 : 0);
    if (i->options.health != NULL) {
        health_ready(i->options.health, true, up);
    }
}

static void *intake_main(void *argument) {
    struct intake *i = argument;
    while (!atomic_load(&i->finishing)) {
        take_returned(i);
        commit_when_due(i);
        hold_when_full(i);
        show_broker(i);
        struct source_event e = {.kind = SOURCE_NOTHING};
        i->options.ops->poll(source_of(i), &e, POLL_MS);
        event(i, &e);
        if (i->source_ended && !i->ended_told && i->free_count == i->jobs_max) {
            i->ended_told = true;
            i->options.ended(i->options.context);
        }
    }
    take_returned(i);
    commit_all(i, true);
    return NULL;
}

/* ---- open, close -------------------------------------------------------------------------- */

enum err intake_open(struct intake **out, const struct intake_options *options) {
    struct intake *i = calloc(1, sizeof *i);
    if (i == NULL) {
        return ERR_NO_MEMORY;
    }
    i->options = *options;
    i->jobs_max = (uint32_t)options->config->backlog_jobs;
    i->table = calloc(i->jobs_max, sizeof *i->table);
    i->free = calloc(i->jobs_max, sizeof(struct job *));
    struct acks_options acks = {
        .partitions_max = INTAKE_PARTITIONS_MAX,
        /* what is out, and what is done above an undone one: a long job must not stop the intake of
         * its partition soon */
        .received_max = i->jobs_max * 16,
    };
    if (i->table == NULL || i->free == NULL || ring_init(&i->returned, i->jobs_max) != ERR_OK ||
        acks_open(&i->acks, &acks) != ERR_OK) {
        intake_close(i);
        return ERR_NO_MEMORY;
    }
    for (uint32_t n = 0; n < i->jobs_max; n++) {
        job_reset(&i->table[n], n);
        i->free[i->free_count++] = &i->table[n];
    }
    if (pthread_create(&i->thread, NULL, intake_main, i) != 0) {
        intake_close(i);
        return ERR_NO_MEMORY;
    }
    i->started = true;
    *out = i;
    return ERR_OK;
}

void intake_stop(struct intake *i) {
    atomic_store(&i->stopping, true);
}

void intake_finish(struct intake *i) {
    CHECK(i->started);
    atomic_store(&i->finishing, true);
    (void)pthread_join(i->thread, NULL);
    i->started = false;
}

void intake_close(struct intake *i) {
    if (i == NULL) {
        return;
    }
    if (i->started) {
        intake_finish(i);
    }
    for (uint32_t n = 0; i->table != NULL && n < i->jobs_max; n++) {
        if (i->table[n].record != NULL) {
            i->options.ops->free_record(source_of(i), i->table[n].record);
        }
        job_reset(&i->table[n], n);
    }
    acks_close(i->acks);
    ring_deinit(&i->returned);
    free(i->free);
    free(i->table);
    free(i);
}

uint32_t intake_partitions(const struct intake *i) {
    return atomic_load(&i->partitions);
}
