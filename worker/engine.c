#include "worker/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/engine_internal.h"

enum {
    IDLE_WAIT_MS = 100,  /* at most; the bell ends it */
    LOADING_WAIT_MS = 1, /* while something is on its way and nothing can be computed */
    STORE_CHUNK_MIN = 64 << 20,
    STORE_CHUNK_MAX = 256 << 20, /* pinning one takes long enough */
    STORE_CHUNKS = 64,           /* of a store in between */
};

static void *room(size_t count, size_t bytes) {
    return calloc(count > 0 ? count : 1, bytes);
}

static enum err step_memory(struct engine *e) {
    const struct kern_limits *l = &e->options.limits;
    for (uint32_t i = 0; i < ENGINE_STEPS; i++) {
        e->steps[i].rows = room(l->step_samples, sizeof *e->steps[i].rows);
        if (e->steps[i].rows == NULL) {
            return ERR_NO_MEMORY;
        }
    }
    e->held = room(e->jobs_max, sizeof(struct job *));
    e->by_slot = room(l->slots, sizeof(struct job *));
    e->slots_free = room(l->slots, sizeof *e->slots_free);
    e->slot_pages = room((size_t)l->slots * l->slot_pages, sizeof *e->slot_pages);
    e->tokens = room(l->step_tokens, sizeof *e->tokens);
    e->chunks = room(l->slots, sizeof *e->chunks);
    e->segments = room(l->slots, sizeof *e->segments);
    e->slot_sets = room(l->slots, sizeof *e->slot_sets);
    /* a chunk adds pages for its tokens: at most one page a token, and one that was begun */
    size_t deltas = (size_t)l->step_tokens + l->slots;
    deltas += (size_t)l->slots * l->slot_pages; /* and those that were found computed */
    e->slot_page_deltas = room(deltas, sizeof *e->slot_page_deltas);
    e->prefix_tokens = room(l->page_tokens, sizeof *e->prefix_tokens);
    e->prefix_pages = room(l->slot_pages, sizeof *e->prefix_pages);
    e->adapter_sets = room((size_t)l->adapters + 1, sizeof *e->adapter_sets);
    e->samples = room(l->step_samples, sizeof *e->samples);
    if (e->held == NULL || e->by_slot == NULL || e->slots_free == NULL || e->slot_pages == NULL ||
        e->tokens == NULL || e->chunks == NULL || e->segments == NULL || e->slot_sets == NULL ||
        e->slot_page_deltas == NULL || e->adapter_sets == NULL || e->samples == NULL ||
        e->prefix_tokens == NULL || e->prefix_pages == NULL) {
        return ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < l->slots; i++) {
        e->slots_free[e->slots_free_count++] = l->slots - 1 - i;
    }
    return ring_init(&e->inbox, e->jobs_max);
}

static enum err store_open(struct pool_store **out, const struct kern_ops *ops, uint64_t bytes,
                           struct metrics *metrics) {
    uint64_t chunk_bytes = bytes / STORE_CHUNKS;
    chunk_bytes = chunk_bytes < STORE_CHUNK_MIN ? STORE_CHUNK_MIN : chunk_bytes;
    chunk_bytes = chunk_bytes > STORE_CHUNK_MAX ? STORE_CHUNK_MAX : chunk_bytes;
    return pool_store_open(out, &(struct pool_store_options){.bytes = bytes,
                                                             .chunk_bytes = chunk_bytes,
                                                             .pin = ops->pin,
                                                             .unpin = ops->unpin,
                                                             .metrics = metrics});
}

enum err engine_store_open(struct pool_store **out, const struct kern_ops *ops, uint64_t bytes) {
    return store_open(out, ops, bytes, NULL);
}

static enum err open_pool(struct engine *e) {
    const struct engine_options *o = &e->options;
    uint64_t store_bytes = (uint64_t)o->config->store_bytes;
    struct pool_options pool = {.page_count = o->plan.page_count,
                                .prefix_tokens =
                                    o->config->pool_prefixes ? o->limits.page_tokens : 0,
                                .adapters = o->limits.adapters,
                                .adapter_pages = o->limits.adapter_pages,
                                .ops = o->ops,
                                .device = o->device};
    if (store_bytes < o->plan.pool_bytes) { /* residents must not fill the store */
        pool.drop_images_of = o->model->shape.layers;
    }
    enum err err = pool_open(&e->pool, &pool);
    if (err != ERR_OK) {
        return err;
    }
    if (o->store != NULL) {
        e->store = o->store;
        return ERR_OK;
    }
    err = store_open(&e->store, o->ops, store_bytes, o->metrics);
    if (err == ERR_OK && o->ops->pin != NULL && o->config->adapters_dir[0] != '\0') {
        pool_store_prepare(e->store, 1); /* the first adapter's jobs need not wait for it */
    }
    return err;
}

static enum err open_adapters(struct engine *e) {
    const struct config *c = e->options.config;
    const struct engine_options *o = &e->options;
    return adapters_open(&e->adapters,
                         &(struct adapters_options){
                             .model = o->model,
                             .maker = o->maker,
                             .files = {.root = c->adapters_dir,
                                       .page_tokens = o->limits.page_tokens,
                                       .elem = o->ops->elem(o->device),
                                       .page_count_max = o->limits.adapter_pages},
                             .state_dir = c->adapters_dir[0] != '\0' ? o->limits.cache_dir : NULL,
                             .pool = e->pool,
                             .store = e->store,
                             .jobs_max = e->jobs_max,
                             .resident_max = o->limits.adapters,
                             .loaders = (uint32_t)c->store_threads,
                             .retry_ms = (uint32_t)c->adapters_retry_ms,
                             .metrics = o->metrics,
                             .loop = &e->bell});
}

static enum err open_scheduler(struct engine *e) {
    const struct config *c = e->options.config;
    const struct kern_limits *l = &e->options.limits;
    bool arrival = strcmp(c->scheduler_policy, "arrival") == 0;
    uint64_t split = (uint64_t)e->options.plan.page_count * (uint64_t)c->pool_split;
    return sched_open(&e->sched, &(struct sched_options){
                                     .policy = arrival ? SCHED_ARRIVAL : SCHED_BACKLOG,
                                     .jobs_max = e->jobs_max,
                                     .adapters_max = adapters_max(e->adapters),
                                     .rows_max = l->slots,
                                     .step_tokens = l->step_tokens,
                                     .chunk_tokens = e->options.plan.chunk_tokens,
                                     .page_tokens = l->page_tokens,
                                     .pages = e->options.plan.page_count,
                                     .split_pages = (uint32_t)((split + 99) / 100),
                                     .slot_pages = l->slot_pages,
                                     .wait_steps = (uint32_t)c->scheduler_wait_steps,
                                     .step_us_fixed = e->options.plan.step_us_fixed,
                                     .step_us_row = e->options.plan.step_us_row,
                                     .load_us_page = e->options.plan.load_us_page,
                                     .merging = l->merging,
                                     .merge_us = e->options.plan.merge_us,
                                     .lora_share = e->options.plan.lora_share,
                                 });
}

enum err engine_open(struct engine **out, const struct engine_options *options,
                     struct err_text *why) {
    struct engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the loop");
    }
    e->options = *options;
    e->jobs_max = (uint32_t)options->config->backlog_jobs;
    e->merged = SCHED_BASE;
    bell_init(&e->bell);
    enum err err = step_memory(e);
    if (err == ERR_OK) {
        err = open_pool(e);
    }
    if (err == ERR_OK) {
        err = open_adapters(e);
    }
    if (err == ERR_OK) {
        err = open_scheduler(e);
    }
    if (err != ERR_OK) {
        engine_close(e);
        return err_set(why, err, "the loop's tables do not fit into memory");
    }
    *out = e;
    return ERR_OK;
}

void engine_close(struct engine *e) {
    if (e == NULL) {
        return;
    }
    sched_close(e->sched);
    adapters_close(e->adapters);
    pool_close(e->pool);
    if (e->options.store == NULL) {
        pool_store_close(e->store);
    }
    ring_deinit(&e->inbox);
    for (uint32_t i = 0; i < ENGINE_STEPS; i++) {
        free(e->steps[i].rows);
    }
    free(e->held);
    free(e->by_slot);
    free(e->slots_free);
    free(e->slot_pages);
    free(e->prefix_tokens);
    free(e->prefix_pages);
    free(e->tokens);
    free(e->chunks);
    free(e->segments);
    free(e->slot_sets);
    free(e->slot_page_deltas);
    free(e->adapter_sets);
    free(e->samples);
    free(e);
}

void engine_registry(struct engine *e, struct registry *registry) {
    e->options.registry = registry;
}

void engine_give(struct engine *e, struct job *job) {
    CHECK(ring_push(&e->inbox, job)); /* a cell for every job there is */
    bell_ring(&e->bell);
}

void engine_wake(struct engine *e) {
    bell_ring(&e->bell);
}

void engine_drain(struct engine *e, uint32_t budget_ms) {
    atomic_store(&e->drain_until_us, clock_mono_us() + (int64_t)budget_ms * 1000);
    atomic_store(&e->draining, true);
    bell_ring(&e->bell);
}

void engine_stop(struct engine *e) {
    atomic_store(&e->stopping, true);
    bell_ring(&e->bell);
}

struct engine_report engine_report(const struct engine *e) {
    return e->report;
}

struct pool_counts engine_pool_counts(const struct engine *e) {
    return pool_counts(e->pool);
}

/* ---- the loop ----------------------------------------------------------------------------- */

static void show(struct engine *e) {
    struct metrics *m = e->options.metrics;
    struct sched_counts s = sched_counts(e->sched);
    struct pool_counts p = pool_counts(e->pool);
    const struct metrics_level levels[] = {
        {METRIC_JOBS_WAITING, s.waiting},
        {METRIC_JOBS_RUNNING, s.running},
        {METRIC_POOL_PAGE_BYTES, (double)e->options.plan.page_bytes},
        {METRIC_POOL_PAGES, p.pages},
        {METRIC_POOL_PAGES_FREE, p.free},
        {METRIC_POOL_PAGES_CACHED, p.cached},
        {METRIC_POOL_PAGES_KV, p.kv},
        {METRIC_POOL_PAGES_ADAPTERS, p.adapters},
        {METRIC_POOL_PAGES_PENDING, p.pending},
        {METRIC_ADAPTERS_RESIDENT, p.adapters_resident},
        {METRIC_STORE_BYTES, (double)pool_store_counts(e->store).bytes_used},
    };
    metrics_set_all(m, levels, sizeof levels / sizeof levels[0]);
    registry_heartbeat(e->options.registry,
                       &(struct registry_heartbeat){.adapters_resident = p.adapters_resident,
                                                    .running = s.running,
                                                    .waiting = s.waiting});
}

static void inboxes(struct engine *e, int64_t now_us) {
    engine_sweep_revoked(e);
    engine_drain_inbox(e);
    engine_take_adapters(e, now_us);
    engine_take_updates(e);
    engine_sweep_running(e);
}

/* Draining: what waits goes at once, what runs goes on until the time is up. true: all is gone. */
static bool drained(struct engine *e, int64_t now_us) {
    if (!atomic_load(&e->draining)) {
        return false;
    }
    if (!e->drain_seen) {
        e->drain_seen = true;
        engine_drop_waiting(e);
    }
    if (now_us >= atomic_load(&e->drain_until_us)) {
        engine_drop_all(e);
    }
    return e->held_count == 0;
}

static void plan(struct engine *e, struct sched_plan *plan) {
    struct pool_counts p = pool_counts(e->pool);
    struct sched_snapshot snapshot = {.now_ms = clock_wall_ms(),
                                      .pages_free = p.free + p.cached,
                                      .pages_pending = p.pending,
                                      .pages_kv = p.kv,
                                      .pages_adapters = p.adapters,
                                      .adapter_slots_free = adapters_slots_free(e->adapters),
                                      .adapters = adapters_view(e->adapters),
                                      .context = e};
    if (e->options.config->pool_prefixes) {
        snapshot.found = engine_found;
    }
    sched_plan(e->sched, &snapshot, plan);
}

/* Nothing to compute: sleeps until something comes or time itself changes the plan. */
static void idle(struct engine *e, const struct sched_plan *plan) {
    struct sched_counts s = sched_counts(e->sched);
    uint32_t wait_ms = s.waiting > 0 ? LOADING_WAIT_MS : IDLE_WAIT_MS;
    int64_t until_event = plan->next_event_ms - clock_wall_ms();
    if (until_event < (int64_t)wait_ms) {
        wait_ms = until_event > 0 ? (uint32_t)until_event : 1;
    }
    if (e->options.health != NULL) {
        health_waiting(e->options.health, s.waiting > 0 ? "adapters" : "jobs");
    }
    show(e);
    (void)bell_wait(&e->bell, wait_ms);
    if (e->options.health != NULL) {
        health_turned(e->options.health); /* the wait is over: what comes now must move on */
    }
}

static enum err turn(struct engine *e) {
    struct sched_plan p = {0};
    bool launched = false;
    plan(e, &p);
    e->planned_us = clock_mono_us();
    enum err err = engine_apply(e, &p, &launched);
    if (err != ERR_OK) {
        return err;
    }
    uint32_t ahead = launched ? 1 : 0; /* one step ahead of what was read */
    while (e->step_count > ahead) {
        err = engine_read(e);
        if (err != ERR_OK) {
            return err;
        }
    }
    if (launched) {
        if (e->options.health != NULL) {
            health_turned(e->options.health);
        }
        if (e->ticket_launched % 16 == 0) {
            show(e);
        }
    } else if (p.abort_count + p.preempt_count + p.evict_count + p.load_count == 0) {
        idle(e, &p);
    }
    return ERR_OK;
}

enum err engine_run(struct engine *e, struct err_text *why) {
    enum err err = ERR_OK;
    while (err == ERR_OK && !atomic_load(&e->stopping)) {
        e->turn_us = clock_mono_us();
        inboxes(e, e->turn_us);
        if (drained(e, e->turn_us)) {
            break;
        }
        err = turn(e);
    }
    while (err == ERR_OK && e->step_count > 0) {
        err = engine_read(e);
    }
    if (err == ERR_OK) {
        adapters_rest(e->adapters);
    }
    atomic_store(&e->stopping, false);
    if (err != ERR_OK) {
        return err_set(why, err, "step %llu: %s", (unsigned long long)e->ticket_launched + 1,
                       err_text(err));
    }
    pool_check(e->pool);
    return ERR_OK;
}
