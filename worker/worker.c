#include "worker/worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "text/text.h"
#include "wire/wire.h"
#include "worker/admit.h"
#include "worker/engine.h"
#include "worker/health.h"
#include "worker/intake.h"
#include "worker/publish.h"
#include "worker/registry.h"

enum {
    FINISH_TIMEOUT_MS = 30000, /* for the last deliveries */
    PROGRESS_STEP_PERCENT = 10,
};
_Static_assert((int)WIRE_CANCELLED + 1 == (int)WORKER_STATUSES, "a count for each status");

struct worker {
    struct worker_options options;
    struct metrics *metrics;
    struct health *health;
    struct model *model;
    struct text *text;
    const struct kern_ops *ops;
    struct kern_device *device;
    struct worker_plan plan;
    char id[256];
    char http[300]; /* "host:port"; empty = none */
    int progress_percent;

    /* While it runs. */
    struct registry *registry;
    struct engine *engine;
    struct publish *publish;
    struct admit *admit;
    struct intake *intake;
    _Atomic uint32_t epochs[INTAKE_PARTITIONS_MAX];
    _Atomic uint64_t revocations;
    _Atomic bool draining;
    _Atomic(struct engine *) draining_engine;
    struct worker_report report;
};

/* ---- open --------------------------------------------------------------------------------- */

static void weights_progress(void *context, uint64_t done, uint64_t all) {
    struct worker *w = context;
    int percent = all > 0 ? (int)(done * 100 / all) : 100;
    if (percent >= w->progress_percent + PROGRESS_STEP_PERCENT || done == all) {
        w->progress_percent = percent;
        log_info("model", "weights loaded percent=%d bytes=%" PRIu64, percent, done);
    }
}

/* A device that is out of memory while it opens will not have more later. */
static enum err does_not_fit(enum err e) {
    return e == ERR_NO_SPACE ? ERR_NO_MEMORY : e;
}

static const char *no_shapes(enum err e) {
    return e == ERR_NO_SPACE ? "no memory is left on the device; take a smaller scheduler.rows or "
                               "scheduler.step_tokens, or see what else is on it"
                             : err_text(e);
}

/* Bytes of this process that were resident at most so far. */
static uint64_t resident_peak(void) {
    struct rusage usage = {0};
    (void)getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss << 10;
}

static enum err open_device(struct worker *w, struct err_text *why) {
    const struct config *c = w->options.config;
    const struct model_facts *facts = model_facts(w->model);
    const uint64_t peak = resident_peak();
    w->ops = kern_find(c->device_kind, why);
    if (w->ops == NULL) {
        return ERR_BAD_CONFIG;
    }
    enum err e = worker_plan(c, w->ops, facts, &w->plan, why);
    if (e != ERR_OK) {
        return e;
    }
    if (w->ops != kern_cpu() || c->adapters_dir[0] != '\0') {
        worker_state_dir(c);
    }
    struct kern_limits limits = worker_limits(c, &w->plan);
    e = w->ops->open(&w->device, &facts->shape, &limits, why);
    if (e == ERR_OK) {
        e = model_weights(w->model, w->ops, w->device, weights_progress, w, why);
    }
    if (e == ERR_OK) {
        e = model_warm(facts, w->ops, w->device);
        if (e != ERR_OK) {
            (void)err_set(why, e, "the model's step shapes were not made: %s", no_shapes(e));
        }
    }
    if (e == ERR_OK) {
        e = worker_plan_pool(c, w->ops, w->device, facts, &w->plan, why);
    }
    if (e == ERR_OK) {
        e = w->ops->pool(w->device, w->plan.page_count, why);
    }
    if (w->ops != kern_cpu()) { /* what driver, libraries and graphs take here shows only now */
        w->plan.memory_bytes += resident_peak() - peak;
    }
    return does_not_fit(e);
}

static void name_worker(struct worker *w) {
    const char *id = w->options.config->worker_id;
    char host[128] = "localhost";
    if (id[0] == '\0') {
        (void)gethostname(host, sizeof host - 1);
        (void)snprintf(w->id, sizeof w->id, "%s-%d", host, (int)getpid());
    } else {
        (void)snprintf(w->id, sizeof w->id, "%s", id);
    }
}

static void say_sizes(const struct worker *w) {
    const struct config *c = w->options.config;
    const struct model_facts *f = model_facts(w->model);
    log_info("model",
             "ready model=%s architecture=%s device=%s layers=%u pages=%u page_tokens=%u "
             "weights_bytes=%" PRIu64 " pool_bytes=%" PRIu64 " store_bytes_max=%" PRId64
             " backlog_bytes_max=%" PRId64 " memory_bytes_max=%" PRIu64,
             f->name, f->architecture, w->ops->name, f->shape.layers, w->plan.page_count,
             w->plan.page_tokens, w->plan.weight_bytes + w->plan.merge_bytes, w->plan.pool_bytes,
             c->store_bytes, c->backlog_bytes, w->plan.memory_bytes);
}

static enum err open_parts(struct worker *w, struct err_text *why) {
    const struct config *c = w->options.config;
    if (c->model_dir[0] == '\0') {
        return err_set_field(why, ERR_BAD_CONFIG, "model.dir",
                             "no model: give --model DIR or set model.dir");
    }
    if (metrics_open(&w->metrics, (uint32_t)c->metrics_adapters) != ERR_OK) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the metrics");
    }
    enum err e = ERR_OK;
    if (w->options.http) { /* first: a taken port should not be found out after the weights */
        e = health_open(&w->health,
                        &(struct health_options){.host = c->http_host,
                                                 .port = (uint16_t)c->http_port,
                                                 .metrics = w->metrics},
                        why);
    }
    if (e == ERR_OK && w->health != NULL) {
        health_waiting(w->health, "model");
        log_info("http", "listening host=%s port=%u", c->http_host, health_port(w->health));
        (void)snprintf(w->http, sizeof w->http, "%s:%u", c->http_host, health_port(w->health));
    }
    if (e == ERR_OK) {
        e = model_open(&w->model, c->model_dir, why);
    }
    if (e == ERR_OK) {
        e = text_open(&w->text, c->model_dir, why);
    }
    return e == ERR_OK ? open_device(w, why) : e;
}

enum err worker_open(struct worker **out, const struct worker_options *options,
                     struct err_text *why) {
    struct worker *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the worker");
    }
    w->options = *options;
    name_worker(w);
    enum err e = open_parts(w, why);
    if (e != ERR_OK) {
        worker_close(w);
        return e;
    }
    say_sizes(w);
    *out = w;
    return ERR_OK;
}

void worker_close(struct worker *w) {
    if (w == NULL) {
        return;
    }
    health_close(w->health);
    if (w->ops != NULL) {
        w->ops->close(w->device);
    }
    text_close(w->text);
    model_close(w->model);
    metrics_close(w->metrics);
    free(w);
}

/* ---- from part to part -------------------------------------------------------------------- */

static _Noreturn void worker_fatal(void *context, enum err e, const struct err_text *why) {
    (void)context;
    char quoted[ERR_TEXT_BYTES];
    log_error(
        "worker", "exit code=%s exit=%d why=%s", err_name(e), (int)err_exit_code(e),
        log_quote(quoted, sizeof quoted, why->message[0] != '\0' ? why->message : err_text(e)));
    _exit((int)err_exit_code(e)); /* nothing more is committed: the queue redelivers */
}

static void fatal(void *context, enum err e, const struct err_text *why) {
    worker_fatal(context, e, why);
}

static void received(void *context, struct job *job) {
    struct worker *w = context;
    admit_give(w->admit, job);
}

static void admitted(void *context, struct job *job) {
    struct worker *w = context;
    if (job->error != ERR_OK) { /* nothing to look up: it only goes to its final */
        engine_give(w->engine, job);
    } else {
        registry_look(w->registry, job);
    }
}

static void looked(void *context, struct job *job) {
    struct worker *w = context;
    int64_t ttl_ms = w->options.config->jobs_ttl_ms;
    if (job->deadline_ms == INT64_MAX && ttl_ms > 0) {
        int64_t stamp_ms = job->record->timestamp_ms;
        job->deadline_ms = (stamp_ms >= 0 ? stamp_ms : job->received_ms) + ttl_ms;
    }
    engine_give(w->engine, job);
}

static void attempt_known(void *context, struct job *job) {
    struct worker *w = context;
    publish_job(w->publish, job, JOB_ATTEMPT);
}

static void news(void *context, struct job *job, uint32_t what) {
    struct worker *w = context;
    publish_job(w->publish, job, what);
}

static void wake(void *context) {
    struct worker *w = context;
    engine_wake(w->engine);
}

static void done(void *context, struct job *job, bool delivered) {
    struct worker *w = context;
    intake_return(w->intake, job, delivered);
}

static void ended(void *context) {
    struct worker *w = context;
    engine_stop(w->engine);
}

/* ---- run ---------------------------------------------------------------------------------- */

static enum err start_middle(struct worker *w, struct source *source, const struct source_ops *ops,
                             struct err_text *why) {
    const struct config *c = w->options.config;
    uint32_t jobs_max = (uint32_t)c->backlog_jobs;
    struct registry_options registry = {.url = w->options.registry ? c->redis_url : "",
                                        .timeout_ms = (uint32_t)c->redis_timeout_ms,
                                        .jobs_max = jobs_max,
                                        .worker_id = w->id,
                                        .group = c->kafka_group,
                                        .http = w->http,
                                        .metrics = w->metrics,
                                        .looked = looked,
                                        .started = attempt_known,
                                        .changed = wake,
                                        .context = w};
    struct engine_options engine = {.config = c,
                                    .model = model_facts(w->model),
                                    .ops = w->ops,
                                    .device = w->device,
                                    .plan = w->plan,
                                    .limits = worker_limits(c, &w->plan),
                                    .metrics = w->metrics,
                                    .health = w->health,
                                    .epochs = w->epochs,
                                    .revocations = &w->revocations,
                                    .publish = news,
                                    .context = w};
    struct publish_options publish = {.source = source,
                                      .ops = ops,
                                      .text = w->text,
                                      .metrics = w->metrics,
                                      .worker_id = w->id,
                                      .group = c->kafka_group,
                                      .jobs_max = jobs_max,
                                      .frame_interval_ms = (uint32_t)c->frames_interval_ms,
                                      .epochs = w->epochs,
                                      .done = done,
                                      .fatal = fatal,
                                      .context = w};
    enum err e = engine_open(&w->engine, &engine, why);
    if (e == ERR_OK) {
        e = registry_open(&w->registry, &registry, why);
    }
    if (e == ERR_OK) {
        engine_registry(w->engine, w->registry);
        publish.registry = w->registry;
        e = publish_open(&w->publish, &publish);
    }
    return e;
}

static enum err start_intake(struct worker *w, struct source *source,
                             const struct source_ops *ops) {
    const struct config *c = w->options.config;
    struct admit_options admit = {
        .config = c,
        .model = model_facts(w->model),
        .model_name = c->model_name[0] != '\0' ? c->model_name : model_facts(w->model)->name,
        .text = w->text,
        .ops = ops,
        .source = source,
        .metrics = w->metrics,
        .jobs_max = (uint32_t)c->backlog_jobs,
        .admitted = admitted,
        .context = w};
    struct intake_options intake = {.config = c,
                                    .source = source,
                                    .ops = ops,
                                    .metrics = w->metrics,
                                    .health = w->health,
                                    .epochs = w->epochs,
                                    .revocations = &w->revocations,
                                    .received = received,
                                    .revoked = wake,
                                    .ended = ended,
                                    .fatal = fatal,
                                    .context = w};
    enum err e = admit_open(&w->admit, &admit);
    return e == ERR_OK ? intake_open(&w->intake, &intake) : e;
}

/* In the order of the flow, so that what is inside comes out before the next part ends. */
static void finish(struct worker *w, bool deliver) {
    if (w->intake != NULL) {
        intake_stop(w->intake);
    }
    admit_close(w->admit);
    if (w->publish != NULL && deliver) {
        w->report.all_delivered = publish_finish(w->publish, FINISH_TIMEOUT_MS);
    }
    if (w->intake != NULL) {
        intake_finish(w->intake);
    }
    if (w->engine != NULL) {
        struct engine_report r = engine_report(w->engine);
        w->report.drain_finished = r.finished;
        w->report.drain_dropped = r.dropped;
    }
    atomic_store(&w->draining_engine, NULL);
    registry_close(w->registry);
    publish_close(w->publish);
    engine_close(w->engine);
    intake_close(w->intake);
    w->registry = NULL;
    w->publish = NULL;
    w->engine = NULL;
    w->intake = NULL;
    w->admit = NULL;
}

enum err worker_run(struct worker *w, struct source *source, const struct source_ops *ops,
                    struct err_text *why) {
    enum err e = start_middle(w, source, ops, why);
    if (e == ERR_OK) {
        e = start_intake(w, source, ops);
    }
    if (e == ERR_OK) {
        atomic_store(&w->draining_engine, w->engine);
        if (atomic_load(&w->draining)) {
            worker_drain(w);
        }
        e = engine_run(w->engine, why);
    }
    if (e != ERR_OK && w->intake != NULL) {
        worker_fatal(w, e, why);
    }
    finish(w, e == ERR_OK);
    ops->close(source);
    return e;
}

void worker_drain(struct worker *w) {
    atomic_store(&w->draining, true);
    struct engine *engine = atomic_load(&w->draining_engine);
    if (engine != NULL) {
        intake_stop(w->intake);
        engine_drain(engine, (uint32_t)w->options.config->worker_drain_s * 1000);
    }
}

struct worker_report worker_report(const struct worker *w) {
    struct worker_report r = w->report;
    for (uint32_t i = 0; i < WORKER_STATUSES; i++) {
        r.finals[i] = metrics_status_value(w->metrics, METRIC_FINALS, i);
    }
    r.received = metrics_value(w->metrics, METRIC_JOBS_RECEIVED);
    return r;
}

struct metrics *worker_metrics(struct worker *w) {
    return w->metrics;
}

const struct model_facts *worker_model(const struct worker *w) {
    return model_facts(w->model);
}
