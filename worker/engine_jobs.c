/* engine_jobs.c - how jobs enter the loop and leave it. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/engine_internal.h"

static bool job_revoked(const struct engine *e, const struct job *job) {
    return atomic_load_explicit(&e->options.epochs[job->slot], memory_order_acquire) != job->epoch;
}

void engine_count_waiting(const struct engine *e, const struct job *job, int by) {
    metrics_shift_adapter(e->options.metrics, METRIC_ADAPTER_JOBS_WAITING, job->metrics_adapter,
                          by);
}

void engine_count_running(const struct engine *e, const struct job *job, int by) {
    metrics_shift_adapter(e->options.metrics, METRIC_ADAPTER_JOBS_RUNNING, job->metrics_adapter,
                          by);
}

void engine_unseat(struct engine *e, struct job *job) {
    CHECK(job->device_slot != JOB_NONE);
    engine_remember(e, job);
    pool_release(e->pool, job->pages, job->page_count, engine_ticket(e));
    if (job->entry != ADAPTERS_BASE) {
        adapters_unuse(e->adapters, job->entry);
    }
    uint32_t slot = (uint32_t)job->device_slot;
    CHECK(e->by_slot[slot] == job);
    e->by_slot[slot] = NULL;
    e->slots_free[e->slots_free_count++] = slot;
    job->device_slot = JOB_NONE;
    job->pages = NULL;
    job->page_count = 0;
    engine_count_running(e, job, -1);
    engine_count_waiting(e, job, 1);
}

void engine_end(struct engine *e, struct job *job, enum job_outcome outcome) {
    CHECK(outcome != JOB_RUNNING);
    CHECK(e->held[job->index] == job);
    if (job->device_slot != JOB_NONE) {
        engine_unseat(e, job);
    }
    if (job->in_scheduler) {
        sched_leave(e->sched, job->index);
        job->in_scheduler = false;
        engine_count_waiting(e, job, -1);
    }
    if (job->entry != ADAPTERS_BASE) {
        adapters_leave(e->adapters, job->entry, job->started_us != 0);
        job->entry = ADAPTERS_BASE;
    }
    e->held[job->index] = NULL;
    e->held_count--;
    job->ended_us = clock_mono_us();
    if (outcome == JOB_DROPPED) {
        metrics_add(e->options.metrics, METRIC_JOBS_DROPPED, 1);
    }
    if (e->drain_seen) {
        *(outcome == JOB_DROPPED ? &e->report.dropped : &e->report.finished) += 1;
    }
    job->outcome = outcome;
    e->options.publish(e->options.context, job, JOB_ENDED);
}

static void job_refuse(struct engine *e, struct job *job, enum err error,
                       const struct err_text *why) {
    job->error = error;
    job->why = *why;
    bool rejected = err_disposition(error) == ERR_REJECT;
    job->dead_letter = rejected;
    engine_end(e, job, rejected ? JOB_REJECTED : JOB_FAILED);
}

/* Finds the job's adapter and puts it into the waiting room. */
static void job_enter(struct engine *e, struct job *job) {
    struct err_text why = {0};
    if (job->adapter[0] != '\0') {
        job->entry = adapters_enter(e->adapters, job->adapter, &job->stamp);
        enum err refused = adapters_verdict(e->adapters, job->entry, &why);
        if (refused != ERR_OK) {
            job_refuse(e, job, refused, &why);
            return;
        }
    }
    struct sched_job entry = {
        .job = job->index,
        .adapter = job->entry,
        .prompt_tokens = job->prompt_count,
        .output_tokens = job->output_max,
        .priority = job->wire.priority,
        .deadline_ms = job->deadline_ms,
        .arrival = job->received_us,
    };
    uint64_t bound = 0;
    enum err entered = sched_enter(e->sched, &entry, &bound);
    if (entered != ERR_OK) {
        CHECK(entered != ERR_NO_SPACE); /* the waiting room has a place for every job */
        job_refuse(
            e, job, entered,
            &(struct err_text){.message = "the prompt and its adapter do not fit into the pool",
                               .field = "prompt"});
        return;
    }
    job->in_scheduler = true;
    engine_count_waiting(e, job, 1);
    log_debug("loop", "waiting adapter=%s prompt_tokens=%u bound_steps=%llu id=%s",
              job->adapter[0] != '\0' ? job->adapter : "base", job->prompt_count,
              (unsigned long long)bound, job->id);
}

void engine_drain_inbox(struct engine *e) {
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        struct job *job = ring_pop(&e->inbox);
        if (job == NULL) {
            return;
        }
        CHECK(e->held[job->index] == NULL);
        e->held[job->index] = job;
        e->held_count++;
        job->entry = ADAPTERS_BASE;
        job->device_slot = JOB_NONE;
        job->serial = ++e->serial;
        if (job_revoked(e, job) || e->drain_seen) {
            engine_end(e, job, JOB_DROPPED);
        } else if (job->error != ERR_OK) {
            bool rejected = err_disposition(job->error) == ERR_REJECT;
            engine_end(e, job, rejected ? JOB_REJECTED : JOB_FAILED);
        } else if (job->cancelled) {
            engine_end(e, job, JOB_CANCELLED);
        } else {
            job_enter(e, job);
        }
    }
}

/* Ends all jobs of an entry that turned out to be unusable. */
static void entry_refused(struct engine *e, uint32_t entry, enum err error,
                          const struct err_text *why) {
    char quoted[ERR_TEXT_BYTES];
    log_warn("adapters", "adapter refused adapter=%s code=%s field=%s why=%s",
             adapters_id(e->adapters, entry), err_name(error), why->field,
             log_quote(quoted, sizeof quoted, why->message));
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        if (e->held[i] != NULL && e->held[i]->entry == entry) {
            job_refuse(e, e->held[i], error, why);
        }
    }
}

/* Ends the jobs of an entry that have begun on a revision which cannot be had any more: they were
 * preempted, the files replaced, and the store had no room to keep the image. */
static void entry_changed(struct engine *e, uint32_t entry) {
    struct err_text why = {0};
    (void)err_set_field(&why, ERR_ADAPTER_CHANGED, "adapter",
                        "adapter %s was replaced while the job waited to go on",
                        adapters_id(e->adapters, entry));
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        if (e->held[i] != NULL && e->held[i]->entry == entry && e->held[i]->started_us != 0) {
            job_refuse(e, e->held[i], ERR_ADAPTER_CHANGED, &why);
        }
    }
}

void engine_take_adapters(struct engine *e, int64_t now_us) {
    struct adapters_news news;
    while (adapters_take(e->adapters, &news, now_us)) {
        enum err_disposition disposition = err_disposition(news.error);
        bool refused =
            disposition != ERR_DO_NOTHING && disposition != ERR_RETRY && disposition != ERR_LATER;
        if (refused) {
            (void)strncpy(news.facts.id, adapters_id(e->adapters, news.entry),
                          sizeof news.facts.id - 1);
            entry_refused(e, news.entry, news.error, &news.why);
        }
        if (news.changed) {
            entry_changed(e, news.entry);
        }
        if (refused || disposition == ERR_DO_NOTHING) {
            registry_adapter(e->options.registry, &news.facts, refused ? &news.why : NULL);
        }
        adapters_leave(e->adapters, news.entry, false);
    }
    adapters_poll(e->adapters);
}

static void job_updated(struct engine *e, const struct registry_update *u) {
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        struct job *job = e->held[i];
        if (job == NULL || strcmp(job->id, u->id) != 0) {
            continue;
        }
        if (u->cancelled) {
            engine_end(e, job, JOB_CANCELLED);
        } else if (u->deadline_given) {
            job->deadline_ms = u->deadline_ms;
            sched_deadline(e->sched, job->index, u->deadline_ms);
        }
    }
}

void engine_take_updates(struct engine *e) {
    struct registry_update u;
    while (registry_update(e->options.registry, &u)) {
        /* The registry gave us the job before it told of the change: without this look a job that
         * came since the last one would not be held yet, and its cancel would be lost. */
        engine_drain_inbox(e);
        if (u.kind == REGISTRY_JOB) {
            job_updated(e, &u);
        } else {
            adapters_forget(e->adapters, u.id);
        }
    }
}

void engine_sweep_revoked(struct engine *e) {
    uint64_t seen = atomic_load_explicit(e->options.revocations, memory_order_acquire);
    if (seen == e->revocations_seen) {
        return;
    }
    e->revocations_seen = seen;
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        if (e->held[i] != NULL && job_revoked(e, e->held[i])) {
            engine_end(e, e->held[i], JOB_DROPPED);
        }
    }
}

void engine_sweep_running(struct engine *e) {
    for (uint32_t i = 0; i < e->options.limits.slots; i++) {
        struct job *job = e->by_slot[i];
        if (job != NULL && atomic_load_explicit(&job->stop_found, memory_order_acquire)) {
            engine_end(e, job, JOB_STOPPED);
        }
    }
}

void engine_drop_waiting(struct engine *e) {
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        /* A preempted job has started: it may go on. */
        if (e->held[i] != NULL && e->held[i]->started_us == 0) {
            engine_end(e, e->held[i], JOB_DROPPED);
        }
    }
}

void engine_drop_all(struct engine *e) {
    for (uint32_t i = 0; i < e->jobs_max; i++) {
        if (e->held[i] != NULL) {
            engine_end(e, e->held[i], JOB_DROPPED);
        }
    }
}
