#include "worker/bench.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

enum {
    STEPS_ROOM = 4096,  /* of the report, at first */
    GIVE_AHEAD_US = 50, /* a job that is due so soon is given now */
};

struct worker_bench {
    struct worker_bench_options options;
    const struct kern_ops *ops;
    struct kern_device *device;
    struct pool_store *store;
    struct worker_bench_device facts;
    uint32_t rows, step_tokens; /* of a run that does not say: those of the plan at first */
};

/* ---- the device --------------------------------------------------------------------------- */

static double seconds_since(int64_t begin_us) {
    return (double)(clock_mono_us() - begin_us) / 1e6;
}

static void weights_progress(void *context, uint64_t done, uint64_t all) {
    (void)context;
    log_debug("bench", "weights loaded bytes=%llu of=%llu", (unsigned long long)done,
              (unsigned long long)all);
}

static enum err open_weights(struct worker_bench *b, struct err_text *why) {
    const struct worker_bench_options *o = &b->options;
    int64_t begin_us = clock_mono_us();
    enum err e = o->random ? b->ops->weights_random(b->device, o->seed, why)
                           : model_weights(o->model, b->ops, b->device, weights_progress, b, why);
    b->facts.weights_s = seconds_since(begin_us);
    if (e != ERR_OK) {
        return e;
    }
    begin_us = clock_mono_us();
    e = model_warm(model_facts(o->model), b->ops, b->device);
    b->facts.warm_s = seconds_since(begin_us);
    return e == ERR_OK ? e : err_set(why, e, "the model's step shapes: %s", err_text(e));
}

static enum err open_device(struct worker_bench *b, struct err_text *why) {
    const struct worker_bench_options *o = &b->options;
    const struct model_facts *model = model_facts(o->model);
    struct worker_plan *plan = &b->facts.plan;
    b->ops = kern_find(o->config->device_kind, why);
    if (b->ops == NULL) {
        return ERR_BAD_CONFIG;
    }
    b->facts.name = b->ops->name;
    struct config config = *o->config;
    config.store_bytes = INT64_MAX; /* the bench's own; a pool of any size is fine beside it */
    enum err e = worker_plan(&config, b->ops, model, plan, why);
    if (e != ERR_OK) {
        return e;
    }
    b->rows = plan->rows;
    b->step_tokens = plan->step_tokens;
    plan->rows = o->rows_max > plan->rows ? o->rows_max : plan->rows;
    if (o->step_tokens_max > plan->step_tokens) {
        plan->step_tokens = o->step_tokens_max;
    }
    if (b->ops != kern_cpu()) {
        worker_state_dir(o->config);
    }
    struct kern_limits limits = worker_limits(o->config, plan);
    e = b->ops->open(&b->device, &model->shape, &limits, why);
    if (e == ERR_OK) {
        e = open_weights(b, why);
    }
    if (e == ERR_OK) { /* before the pool takes the memory that this needs for a moment */
        e = b->ops->peaks(b->device, &b->facts.peaks);
        (void)(e == ERR_OK ? e : err_set(why, e, "measuring the device's peaks: %s", err_text(e)));
    }
    if (e == ERR_OK) {
        e = worker_plan_pool(o->config, b->ops, b->device, model, plan, why);
    }
    return e == ERR_OK ? b->ops->pool(b->device, plan->page_count, why) : e;
}

enum err worker_bench_open(struct worker_bench **out, const struct worker_bench_options *options,
                           struct err_text *why) {
    struct worker_bench *b = calloc(1, sizeof *b);
    if (b == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the bench");
    }
    b->options = *options;
    enum err e = open_device(b, why);
    if (e == ERR_OK) {
        uint64_t bytes = (uint64_t)options->config->store_bytes;
        bytes = options->store_bytes > bytes ? options->store_bytes : bytes;
        e = engine_store_open(&b->store, b->ops, bytes);
        if (e != ERR_OK) {
            (void)err_set(why, e, "no memory for the host store");
        }
    }
    if (e != ERR_OK) {
        worker_bench_close(b);
        return e == ERR_NO_SPACE ? ERR_NO_MEMORY : e;
    }
    *out = b;
    return ERR_OK;
}

void worker_bench_close(struct worker_bench *b) {
    if (b == NULL) {
        return;
    }
    pool_store_close(b->store);
    if (b->ops != NULL) {
        b->ops->close(b->device);
    }
    free(b);
}

const struct worker_bench_device *worker_bench_device(const struct worker_bench *b) {
    return &b->facts;
}

struct pool_store *worker_bench_store(struct worker_bench *b) {
    return b->store;
}

/* ---- a run -------------------------------------------------------------------------------- */

/* Loads beside the steps: an image, and where it goes. */
struct beside {
    const struct pool_image *image;      /* NULL: none */
    uint32_t *pages[WORKER_BENCH_LOADS]; /* [image's pages] each */
    uint64_t events[WORKER_BENCH_LOADS]; /* ring of loads under way */
    uint64_t begun, done;                /* loads */
    int64_t begin_us, done_us;           /* of the first, and when `done` was last seen to rise */
};

struct session {
    struct config config;
    const struct worker_bench *bench;
    struct beside beside;
    struct worker_bench_report *report;
    struct engine *engine;
    struct registry *registry;
    struct metrics *metrics;
    struct job *table; /* [config.backlog_jobs] */
    struct worker_bench_job *jobs;
    uint32_t job_count, left;
    int64_t begin_us;
    uint32_t steps_room;
    bool measured, no_memory;
    bool files; /* adapters come from files */
    _Atomic uint32_t epoch;
    _Atomic uint64_t revocations;
};

static enum err beside_open(struct beside *l, const struct worker_bench *b, uint32_t first_page,
                            const struct pool_image *image) {
    if (image == NULL) {
        return ERR_OK;
    }
    uint64_t end = (uint64_t)first_page + (uint64_t)WORKER_BENCH_LOADS * image->page_count;
    if (first_page == 0 || end > b->facts.plan.page_count || image->outer_pages > 0) {
        return ERR_BAD_CONFIG;
    }
    for (uint32_t i = 0; i < WORKER_BENCH_LOADS; i++) {
        l->pages[i] = calloc(image->page_count, sizeof *l->pages[i]);
        if (l->pages[i] == NULL) {
            return ERR_NO_MEMORY;
        }
        for (uint32_t k = 0; k < image->page_count; k++) {
            l->pages[i][k] = first_page + k * WORKER_BENCH_LOADS + i;
        }
    }
    l->image = image;
    return ERR_OK;
}

static void beside_poll(struct beside *l, const struct worker_bench *b) {
    while (l->done < l->begun &&
           b->ops->event_done(b->device, l->events[l->done % WORKER_BENCH_LOADS])) {
        l->done++;
        l->done_us = clock_mono_us();
    }
}

/* Keeps the bus busy. Thread: the loop. */
static void beside_fill(struct beside *l, const struct worker_bench *b) {
    beside_poll(l, b);
    while (l->image != NULL && l->begun - l->done < WORKER_BENCH_LOADS) {
        uint32_t at = (uint32_t)(l->begun % WORKER_BENCH_LOADS);
        l->begin_us = l->begun == 0 ? clock_mono_us() : l->begin_us;
        if (b->ops->load(b->device, l->image->elements, l->pages[at], l->image->page_count,
                         &l->events[at]) != ERR_OK) {
            return; /* the next step says so */
        }
        l->begun++;
    }
}

/* What they brought; waits for those on their way. */
static void beside_close(struct beside *l, const struct worker_bench *b,
                         struct worker_bench_report *r) {
    if (l->done > 0) {
        r->beside_bytes = l->done * l->image->bytes;
        r->beside_s = (double)(l->done_us - l->begin_us) / 1e6;
    }
    while (l->done < l->begun) {
        beside_poll(l, b);
    }
    for (uint32_t i = 0; i < WORKER_BENCH_LOADS; i++) {
        free(l->pages[i]);
    }
}

/* Thread: the loop. */
static void stepped(void *context, const struct engine_stepped *step) {
    struct session *s = context;
    struct worker_bench_report *r = s->report;
    if (!s->measured || s->no_memory) {
        return;
    }
    if (step->prompt_tokens == 0) { /* of decode steps alone: they take less than the loads */
        beside_fill(&s->beside, s->bench);
    }
    if (r->step_count == s->steps_room) {
        uint32_t room = s->steps_room > 0 ? s->steps_room * 2 : STEPS_ROOM;
        struct engine_stepped *grown = realloc(r->steps, room * sizeof *grown);
        if (grown == NULL) {
            s->no_memory = true;
            return;
        }
        r->steps = grown;
        s->steps_room = room;
    }
    r->steps[r->step_count++] = *step;
}

static void job_give(struct session *s, uint32_t index) {
    s->table[index].received_us = clock_mono_us();
    engine_give(s->engine, &s->table[index]);
}

static void ended(struct session *s, struct job *job) {
    struct worker_bench_job *j = &s->jobs[job->index];
    struct worker_bench_report *r = s->report;
    j->sampled = atomic_load_explicit(&job->output_count, memory_order_relaxed);
    j->first_us = job->first_token_us - s->begin_us;
    j->end_us = job->ended_us - s->begin_us;
    if (job->outcome != JOB_LENGTH || j->sampled != j->output_count) {
        if (r->failed == 0) {
            r->failure = job->why;
            if (job->why.message[0] == '\0') {
                (void)err_set(&r->failure, ERR_INTERNAL, "outcome %d after %u of %u tokens",
                              (int)job->outcome, j->sampled, j->output_count);
            }
        }
        r->failed++;
    }
    r->input_tokens += j->prompt_count;
    r->output_tokens += j->sampled;
    job->prompt = NULL; /* the caller's */
    job_reset(job, job->index);
    if (--s->left == 0) {
        engine_stop(s->engine);
    }
}

/* Thread: the loop. */
static void news(void *context, struct job *job, uint32_t what) {
    if (what == JOB_ENDED) {
        ended(context, job);
    }
}

static void job_fill(const struct session *s, struct job *job, const struct worker_bench_job *from,
                     uint32_t index) {
    job_reset(job, index);
    if (from->adapter != NULL) {
        (void)snprintf(job->adapter, sizeof job->adapter, "%s", from->adapter);
        job->stamp.bytes = 1; /* looked at, and never changed */
    }
    if (from->adapter != NULL && s->files &&
        model_adapter_stat(s->config.adapters_dir, from->adapter, &job->stamp, NULL) != ERR_OK) {
        job->stamp = (struct model_adapter_stamp){0}; /* the loaders will tell */
    }
    (void)snprintf(job->id, sizeof job->id, "%u", index);
    job->prompt = (uint32_t *)(uintptr_t)from->prompt; /* only read */
    job->prompt_count = from->prompt_count;
    job->output_max = from->output_count;
    job->sampling = (struct kern_slot_set){
        .top_p = 1, .repetition_penalty = 1, .prompt_tokens = from->prompt_count};
}

/* Gives what is due later. Thread: its own. */
static void *feed(void *argument) {
    struct session *s = argument;
    for (uint32_t i = 0; i < s->job_count; i++) {
        int64_t wait_us = s->jobs[i].at_us - (clock_mono_us() - s->begin_us);
        while (wait_us > GIVE_AHEAD_US) {
            clock_sleep_ms((uint32_t)(wait_us / 1000 > 0 ? wait_us / 1000 : 1));
            wait_us = s->jobs[i].at_us - (clock_mono_us() - s->begin_us);
        }
        job_give(s, i);
    }
    return NULL;
}

/* Runs jobs to their end. `jobs` are in the order of at_us. */
static enum err session_run(struct session *s, struct worker_bench_job *jobs, uint32_t count,
                            struct err_text *why) {
    pthread_t feeder;
    CHECK(s->table != NULL);
    if (count == 0) {
        return ERR_OK;
    }
    s->jobs = jobs;
    s->job_count = s->left = count;
    for (uint32_t i = 0; i < count; i++) {
        job_fill(s, &s->table[i], &jobs[i], i);
    }
    bool timed = jobs[count - 1].at_us > 0;
    s->begin_us = clock_mono_us();
    if (timed && pthread_create(&feeder, NULL, feed, s) != 0) {
        return err_set(why, ERR_NO_MEMORY, "no thread to give the jobs");
    }
    for (uint32_t i = 0; i < count && !timed; i++) {
        job_give(s, i);
    }
    enum err e = engine_run(s->engine, why);
    s->report->seconds = seconds_since(s->begin_us);
    if (timed) {
        (void)pthread_join(feeder, NULL);
    }
    return e;
}

static enum err session_open(struct session *s, struct worker_bench *b,
                             const struct worker_bench_run *run, struct err_text *why) {
    struct worker_plan plan = b->facts.plan;
    uint32_t jobs_max = run->job_count > run->warm_count ? run->job_count : run->warm_count;
    s->config = *b->options.config;
    s->config.backlog_jobs = jobs_max;
    s->config.pool_prefixes = run->prefixes;
    if (run->split > 0) {
        s->config.pool_split = run->split;
    }
    if (run->adapters > 0 && run->adapters < s->config.pool_adapters) {
        s->config.pool_adapters = run->adapters;
    }
    s->files = run->maker.make == NULL;
    s->config.adapters_dir = run->root != NULL ? run->root : s->config.adapters_dir;
    s->config.state_dir = run->state_dir != NULL ? run->state_dir : s->config.state_dir;
    if (run->arrival) {
        s->config.scheduler_policy = "arrival";
    }
    plan.chunk_tokens = run->chunk_tokens > 0 ? run->chunk_tokens : plan.chunk_tokens;
    struct kern_limits limits = worker_limits(&s->config, &plan);
    limits.slots = run->rows > 0 ? run->rows : b->rows;
    limits.step_tokens = run->step_tokens > 0 ? run->step_tokens : b->step_tokens;
    if (limits.slots > plan.rows || limits.step_tokens > plan.step_tokens ||
        run->pages > plan.page_count || jobs_max == 0) {
        return err_set(why, ERR_BAD_CONFIG,
                       "the device was opened for %u rows, %u tokens a step and %u pages: %u, %u "
                       "and %u are too many, or there are no jobs",
                       plan.rows, plan.step_tokens, plan.page_count, limits.slots,
                       limits.step_tokens, run->pages);
    }
    limits.step_samples = limits.slots < limits.step_samples ? limits.slots : limits.step_samples;
    if (plan.chunk_tokens > limits.step_tokens) {
        plan.chunk_tokens = limits.step_tokens;
    }
    if (run->pages > 0) {
        plan.page_count = run->pages;
        plan.pool_bytes = run->pages * plan.page_bytes;
    }
    s->config.store_bytes = (int64_t)pool_store_counts(b->store).bytes_budget;
    s->report->rows = limits.slots;
    s->report->pages = plan.page_count;
    s->table = calloc(jobs_max, sizeof *s->table);
    if (s->table == NULL || metrics_open(&s->metrics, 0) != ERR_OK) {
        return err_set(why, ERR_NO_MEMORY, "no memory for %u jobs", jobs_max);
    }
    struct engine_options engine = {.config = &s->config,
                                    .model = model_facts(b->options.model),
                                    .ops = b->ops,
                                    .device = b->device,
                                    .plan = plan,
                                    .limits = limits,
                                    .store = b->store,
                                    .maker = run->maker,
                                    .observer = {.stepped = stepped, .context = s},
                                    .metrics = s->metrics,
                                    .epochs = &s->epoch,
                                    .revocations = &s->revocations,
                                    .publish = news,
                                    .context = s};
    enum err e = registry_open(&s->registry, &(struct registry_options){.url = ""}, why);
    if (e == ERR_OK) {
        engine.registry = s->registry;
        e = engine_open(&s->engine, &engine, why);
    }
    if (e == ERR_OK) {
        e = beside_open(&s->beside, b, run->pages, run->load);
        (void)(e == ERR_OK ? e : err_set(why, e, "no room for loads beside the steps"));
    }
    return e;
}

static void session_close(struct session *s) {
    engine_close(s->engine);
    registry_close(s->registry);
    metrics_close(s->metrics);
    free(s->table);
}

/* Counters rise over both parts: takes what the warm-up counted away. */
static void counts_take(const struct session *s, int64_t sign) {
    struct worker_bench_report *r = s->report;
    uint64_t factor = (uint64_t)sign;
    r->preemptions += factor * metrics_value(s->metrics, METRIC_PREEMPTIONS);
    r->loads += factor * metrics_value(s->metrics, METRIC_ADAPTER_LOADS);
    r->evictions += factor * metrics_value(s->metrics, METRIC_ADAPTER_EVICTIONS);
    r->fetches += factor * metrics_value(s->metrics, METRIC_ADAPTER_FETCHES);
    r->fetch_us += factor * metrics_value(s->metrics, METRIC_ADAPTER_FETCH_SECONDS);
    r->load_us += factor * metrics_value(s->metrics, METRIC_ADAPTER_LOAD_SECONDS);
    r->found_tokens += factor * metrics_value(s->metrics, METRIC_TOKENS_CACHED);
    r->load_pages += factor * engine_pool_counts(s->engine).load_pages;
}

enum err worker_bench_run(struct worker_bench *b, const struct worker_bench_run *run,
                          struct worker_bench_report *report, struct err_text *why) {
    struct worker_bench_report r = {0};
    struct session s = {.report = &r, .bench = b};
    enum err e = session_open(&s, b, run, why);
    if (e == ERR_OK) {
        e = session_run(&s, run->warm, run->warm_count, why);
    }
    if (e == ERR_OK) {
        r.input_tokens = r.output_tokens = 0;
        counts_take(&s, -1);
        s.measured = true;
        e = session_run(&s, run->jobs, run->job_count, why);
    }
    if (e == ERR_OK) {
        counts_take(&s, 1);
    }
    if (e == ERR_OK && s.no_memory) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for the figures of all steps");
    }
    beside_close(&s.beside, b, &r);
    session_close(&s);
    if (e != ERR_OK) {
        worker_bench_report_deinit(&r);
        return e;
    }
    *report = r;
    return ERR_OK;
}

void worker_bench_report_deinit(struct worker_bench_report *report) {
    free(report->steps);
    *report = (struct worker_bench_report){0};
}
