#include "tests/sim/sim_world.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/seed.h"

uint32_t sim_below(struct sim_world *w, uint32_t below) {
    return seed_below(&w->seed, below);
}

bool sim_chance(struct sim_world *w, uint32_t percent) {
    return sim_below(w, 100) < percent;
}

static uint32_t between(struct sim_world *w, uint32_t from, uint32_t to) {
    return from + sim_below(w, to - from + 1);
}

uint32_t sim_pages_of(const struct sim_world *w, uint32_t tokens) {
    uint32_t t = w->knobs.options.page_tokens;
    return (tokens + t - 1) / t;
}

/* ---- the knobs ---------------------------------------------------------------------------- */

static void turn_knobs(struct sim_world *w) {
    struct sim_knobs *k = &w->knobs;
    bool tiny = sim_chance(w, 50); /* a pool of hardly one adapter and a few pages */
    k->options = (struct sched_options){
        .jobs_max = between(w, 8, SIM_JOBS_MAX),
        .adapters_max = between(w, 1, SIM_ADAPTERS_MAX),
        .rows_max = between(w, 1, sim_chance(w, 30) ? 3 : SIM_ROWS_MAX),
        .step_tokens = between(w, 1, sim_chance(w, 20) ? 8 : 128),
        .chunk_tokens = between(w, 1, 64),
        .page_tokens = 1U << between(w, 0, 4),
        .pages = tiny ? between(w, 4, 24) : between(w, 32, SIM_PAGES_MAX),
        .slot_pages = between(w, 2, SIM_SLOT_PAGES_MAX),
        .wait_steps = between(w, 1, sim_chance(w, 50) ? 8 : 400),
        .step_us_fixed = 1000,
        .step_us_row = between(w, 1, 100),
        .load_us_page = between(w, 1, 1000),
    };
    k->adapter_slots = between(w, 1, sim_chance(w, 50) ? 2 : 16);
    k->store_images = between(w, 1, sim_chance(w, 30) ? 2 : 32);
    k->jobs = between(w, 20, 400);
    k->burst = between(w, 1, sim_chance(w, 50) ? 2 : 40);
    uint32_t slot = k->options.slot_pages * k->options.page_tokens;
    k->prompt_max = between(w, 1, slot < 200 ? slot : 200);
    k->output_max = between(w, 1, 60);
    k->fetch_ticks = between(w, 1, 30);
    k->load_ticks = between(w, 1, 10);
    k->fault_percent = sim_chance(w, 50) ? 0 : between(w, 1, 40);
    k->cancel_percent = sim_chance(w, 50) ? 0 : between(w, 1, 30);
    k->deadline_percent = sim_chance(w, 50) ? 0 : between(w, 1, 60);
    k->base_percent = sim_chance(w, 30) ? 0 : between(w, 1, 60);
    k->prefixes = sim_chance(w, 75);
    k->groups = between(w, 1, 3);
    k->common_max = sim_chance(w, 50) ? slot : between(w, 0, k->prompt_max);
    k->options.policy = sim_chance(w, 40) ? SCHED_ARRIVAL : SCHED_BACKLOG;
    k->options.split_pages = sim_chance(w, 80) ? 0 : between(w, 1, k->options.pages - 1);
}

/* From numbers of their own: the others are the same with and without. */
static void turn_merging(struct sched_options *o, uint64_t seed, bool merging) {
    o->merging = merging;
    o->merge_us = seed_below(&seed, seed_below(&seed, 2) == 0 ? 1000 : 20000);
    o->lora_share = seed_below(&seed, 50) / 100.0;
}

void sim_open(struct sim_world *w, uint64_t seed, bool merging) {
    *w = (struct sim_world){.seed = seed, .now_ms = 1000000};
    turn_knobs(w);
    turn_merging(&w->knobs.options, ~seed, merging);
    if (sched_open(&w->sched, &w->knobs.options) != ERR_OK) {
        sim_fail("no memory", 0);
    }
    struct pool_options pool = {.page_count = w->knobs.options.pages,
                                .prefix_tokens =
                                    w->knobs.prefixes ? w->knobs.options.page_tokens : 0};
    if (pool_open(&w->pool, &pool) != ERR_OK) {
        sim_fail("no memory", 0);
    }
    w->slots_free = w->knobs.options.rows_max;
    w->adapter_slots_free = w->knobs.adapter_slots;
}

void sim_close(struct sim_world *w) {
    sched_close(w->sched);
    pool_close(w->pool);
}

/* ---- adapters ----------------------------------------------------------------------------- */

static uint32_t images_held(const struct sim_world *w) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < w->knobs.options.adapters_max; i++) {
        enum sched_adapter_state state = w->view[i].state;
        held += state == SCHED_STORED || state == SCHED_LOADING || state == SCHED_RESIDENT;
    }
    return held;
}

/* As adapters.c: an index that nobody names and that holds nothing is used for others. */
static void settle(struct sim_world *w, uint32_t i) {
    enum sched_adapter_state state = w->view[i].state;
    if (w->adapters[i].jobs == 0 && (state == SCHED_AWAY || state == SCHED_STORED)) {
        w->adapters[i] = (struct sim_adapter){0};
        w->view[i] = (struct sched_adapter){.state = SCHED_AWAY};
    }
}

static void name_adapter(struct sim_world *w, uint32_t i) {
    struct sim_adapter *a = &w->adapters[i];
    if (a->jobs++ > 0 || w->view[i].state != SCHED_AWAY) {
        return;
    }
    uint32_t most = w->knobs.options.pages;
    *a = (struct sim_adapter){.jobs = 1,
                              .revision = ++w->revisions,
                              .size = between(w, 1, sim_chance(w, 5) ? most + 1 : (most + 3) / 4)};
    a->refused = sim_chance(w, w->knobs.fault_percent / 4);
    a->bad_until = sim_chance(w, w->knobs.fault_percent) ? w->tick + sim_below(w, 2000) : 0;
}

static void stored(struct sim_world *w, uint32_t i) {
    w->adapters[i].cached = false;
    w->view[i].state = SCHED_STORED;
    w->view[i].pages = w->adapters[i].size;
    w->view[i].mergeable = w->adapters[i].revision % 4 != 0;
}

static void leave(struct sim_world *w, uint32_t job);

static void fetched(struct sim_world *w, uint32_t i) {
    struct sim_adapter *a = &w->adapters[i];
    w->fetching--;
    w->view[i].state = SCHED_AWAY;
    if (a->refused) {
        for (uint32_t j = 0; j < w->knobs.options.jobs_max; j++) {
            if (w->jobs[j].held && w->jobs[j].entry.adapter == i) {
                w->refused++;
                leave(w, j);
            }
        }
    } else if (w->tick < a->bad_until || sim_chance(w, w->knobs.fault_percent)) {
        a->retry = w->tick + between(w, 1, 60);
    } else if (images_held(w) >= w->knobs.store_images) { /* as stored_release() */
        a->retry = w->tick + 1;
        for (uint32_t j = 0; j < w->knobs.options.adapters_max; j++) {
            if (w->view[j].state == SCHED_STORED) {
                w->view[j].state = SCHED_AWAY;
                w->adapters[j].cached = true;
            }
        }
    } else {
        stored(w, i);
    }
    settle(w, i);
}

static void adapters_turn(struct sim_world *w) {
    for (uint32_t i = 0; i < w->knobs.options.adapters_max; i++) {
        if (w->adapters[i].due > w->tick) {
            continue;
        }
        if (w->view[i].state == SCHED_FETCHING) {
            fetched(w, i);
        } else if (w->view[i].state == SCHED_LOADING) {
            w->view[i].state = SCHED_RESIDENT;
        }
    }
}

static void fetch(struct sim_world *w, uint32_t i) {
    struct sim_adapter *a = &w->adapters[i];
    if (a->cached && images_held(w) < w->knobs.store_images) {
        stored(w, i);
        return;
    }
    a->cached = false;
    if (w->tick < a->retry || w->fetching == 6) {
        return; /* silently, as the loop does */
    }
    w->view[i].state = SCHED_FETCHING;
    w->fetching++;
    a->due = w->tick + between(w, 0, w->knobs.fetch_ticks);
}

/* ---- jobs --------------------------------------------------------------------------------- */

/* Pages come back when the last step in flight ends. */
static void release(struct sim_world *w, const uint32_t *pages, uint32_t count) {
    pool_release(w->pool, pages, count, w->step_count == 0 ? 0 : w->step_total);
}

/* The tokens of a page, the revision, and what came before it. */
struct sim_page {
    uint32_t tokens[SIM_PAGE_TOKENS_MAX];
    struct pool_scope scope;
    struct pool_prefix key;
};

static void page_of(const struct sim_world *w, const struct sim_job *j, uint32_t index,
                    uint64_t before, struct sim_page *page) {
    uint32_t count = w->knobs.options.page_tokens;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = index * count + i;
        page->tokens[i] = at < j->common ? j->group * 1000 + at : (uint32_t)j->serial * 4096 + at;
    }
    uint64_t revision = j->entry.adapter == SCHED_BASE ? 0 : w->adapters[j->entry.adapter].revision;
    page->scope = (struct pool_scope){0};
    memcpy(page->scope.bytes, &revision, sizeof revision);
    page->key = (struct pool_prefix){&page->scope, before, page->tokens};
}

/* The pages of a waiting job that can be found, `most` at most; their names lead to `*chain`. */
static uint32_t find(const struct sim_world *w, const struct sim_job *j, uint32_t most,
                     uint32_t *pages, uint64_t *chain) {
    uint32_t count = 0;
    *chain = 0;
    while (count < most) {
        struct sim_page page;
        page_of(w, j, count, *chain, &page);
        uint64_t name = pool_prefix_find(w->pool, &page.key, &pages[count]);
        if (name == 0) {
            break;
        }
        *chain = name;
        count++;
    }
    return count;
}

struct sched_found sim_found(void *context, uint32_t job) {
    const struct sim_world *w = context;
    const struct sim_job *j = &w->jobs[job];
    uint32_t pages[SIM_SLOT_PAGES_MAX];
    uint64_t chain;
    uint32_t count = find(w, j, (j->known - 1) / w->knobs.options.page_tokens, pages, &chain);
    struct sched_found found = {.tokens = count * w->knobs.options.page_tokens};
    for (uint32_t i = 0; i < count; i++) {
        found.pages += pool_page_cached(w->pool, pages[i]);
    }
    return found;
}

/* Its full pages may be found from now on. */
static void enter_pages(struct sim_world *w, struct sim_job *j) {
    while (w->knobs.prefixes && (j->entered + 1) * w->knobs.options.page_tokens <= j->computed) {
        struct sim_page page;
        page_of(w, j, j->entered, j->chain, &page);
        j->chain = pool_prefix_enter(w->pool, &page.key, j->pages[j->entered]);
        j->entered++;
    }
}

static void unseat(struct sim_world *w, struct sim_job *j) {
    release(w, j->pages, j->page_count);
    j->page_count = 0;
    j->computed = 0;
    j->entered = 0;
    j->chain = 0;
    j->seated = false;
    w->slots_free++;
    if (j->entry.adapter != SCHED_BASE) {
        w->view[j->entry.adapter].users--;
    }
}

static void leave(struct sim_world *w, uint32_t job) {
    struct sim_job *j = &w->jobs[job];
    if (j->seated) {
        unseat(w, j);
    }
    sched_leave(w->sched, job);
    j->held = false;
    w->held--;
    if (j->entry.adapter != SCHED_BASE) {
        w->adapters[j->entry.adapter].jobs--;
        settle(w, j->entry.adapter);
    }
}

static void send(struct sim_world *w) {
    const struct sim_knobs *k = &w->knobs;
    uint32_t i = sim_below(w, k->options.jobs_max);
    while (w->jobs[i].held) {
        i = (i + 1) % k->options.jobs_max;
    }
    struct sim_job *j = &w->jobs[i];
    w->sent++;
    *j = (struct sim_job){.serial = ++w->serials};
    j->entry = (struct sched_job){
        .job = i,
        .adapter =
            sim_chance(w, k->base_percent) ? SCHED_BASE : sim_below(w, k->options.adapters_max),
        .prompt_tokens = between(w, 1, k->prompt_max),
        .output_tokens = sim_chance(w, 10) ? 100000 : between(w, 1, k->output_max),
        .priority = sim_chance(w, 20) ? (int32_t)sim_below(w, 5) - 2 : 0,
        .deadline_ms =
            sim_chance(w, k->deadline_percent) ? w->now_ms + sim_below(w, 4000) - 10 : INT64_MAX,
        .arrival = w->sent,
    };
    uint32_t sampled = between(w, 1, k->output_max);
    j->stop_at = sampled < j->entry.output_tokens ? sampled : j->entry.output_tokens;
    j->known = j->entry.prompt_tokens;
    j->group = sim_below(w, k->groups);
    uint32_t common = sim_below(w, k->common_max + 1);
    j->common = common < j->known ? common : j->known;
    enum err e = sched_enter(w->sched, &j->entry, &j->bound);
    uint32_t kv_pages = k->options.pages - k->options.split_pages;
    uint32_t room = k->options.slot_pages < kv_pages ? k->options.slot_pages : kv_pages;
    bool too_long = sim_pages_of(w, j->entry.prompt_tokens + 1) > room;
    if ((e == ERR_PROMPT_TOO_LONG) != too_long || (e != ERR_OK && !too_long)) {
        sim_fail("refused, or taken in, wrongly", i);
    }
    if (e != ERR_OK) {
        return;
    }
    j->held = true;
    w->held++;
    if (j->entry.adapter != SCHED_BASE) {
        name_adapter(w, j->entry.adapter);
    }
}

static void people(struct sim_world *w) {
    const struct sim_knobs *k = &w->knobs;
    uint32_t burst = sim_below(w, k->burst + 1);
    for (uint32_t n = 0; n < burst && w->sent < k->jobs && w->held < k->options.jobs_max; n++) {
        send(w);
    }
    uint32_t job = sim_below(w, k->options.jobs_max);
    if (w->jobs[job].held && sim_chance(w, k->cancel_percent)) {
        w->cancels++;
        leave(w, job);
    } else if (w->jobs[job].held && sim_chance(w, k->deadline_percent / 4)) {
        int64_t deadline =
            sim_chance(w, 30) ? INT64_MAX : w->now_ms + (int64_t)sim_below(w, 2000) - 10;
        w->jobs[job].entry.deadline_ms = deadline;
        sched_deadline(w->sched, job, deadline);
    }
}

void sim_outside(struct sim_world *w) {
    w->tick++;
    w->now_ms += sim_below(w, 20);
    people(w);
    adapters_turn(w);
    if (sim_chance(w, 30)) {
        sched_learn(w->sched, 1 + sim_below(w, 64), sim_below(w, 64), 1 + sim_below(w, 100000));
    }
}

uint32_t sim_adapters_pages(const struct sim_world *w) {
    uint32_t pages = 0;
    for (uint32_t i = 0; i < w->knobs.options.adapters_max; i++) {
        enum sched_adapter_state state = w->view[i].state;
        pages += state == SCHED_LOADING || state == SCHED_RESIDENT ? w->view[i].pages : 0;
    }
    return pages;
}

struct sched_snapshot sim_snapshot(struct sim_world *w) {
    struct pool_counts pages = pool_counts(w->pool);
    uint32_t adapters = sim_adapters_pages(w);
    return (struct sched_snapshot){.now_ms = w->now_ms,
                                   .pages_free = pages.free + pages.cached,
                                   .pages_pending = pages.pending,
                                   .pages_kv = pages.kv - adapters,
                                   .pages_adapters = adapters,
                                   .found = w->knobs.prefixes ? sim_found : NULL,
                                   .context = w,
                                   .adapter_slots_free = w->adapter_slots_free,
                                   .adapters = w->view};
}

/* ---- carrying out a plan ------------------------------------------------------------------ */

static void apply_adapters(struct sim_world *w, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        uint32_t a = plan->evicts[i];
        release(w, w->adapters[a].pages, w->adapters[a].size);
        w->adapter_slots_free++;
        w->view[a].state = SCHED_AWAY;
        w->adapters[a].cached = true;
        settle(w, a);
    }
    for (uint32_t i = 0; i < plan->load_count; i++) {
        uint32_t a = plan->loads[i];
        if (sim_chance(w, w->knobs.fault_percent / 4)) {
            continue; /* refused: the plan asks again */
        }
        if (pool_reserve(w->pool, w->adapters[a].size, w->adapters[a].pages) != ERR_OK) {
            sim_fail("no pages for an adapter", a);
        }
        w->adapter_slots_free--;
        w->view[a].state = SCHED_LOADING;
        w->adapters[a].due = w->tick + between(w, 0, w->knobs.load_ticks);
        w->loads++;
    }
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        fetch(w, plan->fetches[i]);
    }
}

static void apply_starts(struct sim_world *w, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->work_count; i++) {
        const struct sched_work *work = &plan->work[i];
        if (!work->starts) {
            continue;
        }
        struct sim_job *j = &w->jobs[work->job];
        uint32_t most = work->position / w->knobs.options.page_tokens;
        j->page_count = j->entered = find(w, j, most, j->pages, &j->chain);
        if (j->page_count != most) {
            sim_fail("what was found is gone", work->job);
        }
        pool_share(w->pool, j->pages, j->page_count);
        j->computed = work->position;
        w->found_total += work->position;
    }
}

static void launch(struct sim_world *w, const struct sched_plan *plan) {
    struct sim_step *step = &w->steps[w->step_count];
    *step = (struct sim_step){.ticket = w->step_total + 1};
    for (uint32_t i = 0; i < plan->work_count; i++) {
        const struct sched_work *work = &plan->work[i];
        struct sim_job *j = &w->jobs[work->job];
        if (work->starts) {
            j->seated = true;
            j->seat = w->step_total;
            j->started = true;
            w->slots_free--;
            if (work->adapter != SCHED_BASE) {
                w->view[work->adapter].users++;
            }
        }
        if (pool_reserve(w->pool, work->pages, j->pages + j->page_count) != ERR_OK) {
            sim_fail("no pages for a job", work->job);
        }
        j->page_count += work->pages;
        j->computed += work->tokens;
        if (work->sample) {
            j->known++;
            j->sampled++;
            step->jobs[step->count] = work->job;
            step->serials[step->count++] = j->serial;
        }
    }
    for (uint32_t i = 0; i < plan->work_count; i++) {
        enter_pages(w, &w->jobs[plan->work[i].job]);
    }
    w->merged_total += plan->merged != SCHED_BASE;
    w->step_count++;
    w->step_total++;
    w->row_total += plan->work_count;
    w->token_total += plan->tokens;
}

static void read_step(struct sim_world *w) {
    struct sim_step step = w->steps[0];
    w->step_count--;
    memmove(w->steps, w->steps + 1, w->step_count * sizeof *w->steps);
    pool_steps_ended(w->pool, step.ticket);
    for (uint32_t i = 0; i < step.count; i++) {
        struct sim_job *j = &w->jobs[step.jobs[i]];
        if (j->held && j->serial == step.serials[i] && ++j->read == j->stop_at) {
            w->finished++;
            leave(w, step.jobs[i]);
        }
    }
}

void sim_apply(struct sim_world *w, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->abort_count; i++) {
        *(plan->aborts[i].reason == SCHED_EXPIRED ? &w->aborts_expired : &w->aborts_no_room) += 1;
        leave(w, plan->aborts[i].job);
    }
    for (uint32_t i = 0; i < plan->preempt_count; i++) {
        unseat(w, &w->jobs[plan->preempts[i]]);
        w->preempts++;
    }
    apply_starts(w, plan);
    apply_adapters(w, plan);
    if (plan->work_count > 0) {
        launch(w, plan);
    }
    uint32_t ahead = plan->work_count > 0 ? 1 : 0;
    while (w->step_count > ahead) {
        read_step(w);
    }
}
