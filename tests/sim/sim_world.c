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
        .pages = tiny ? between(w, 4, 24) : between(w, 32, 400),
        .slot_pages = between(w, 2, 40),
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
}

void sim_open(struct sim_world *w, uint64_t seed) {
    *w = (struct sim_world){.seed = seed, .now_ms = 1000000};
    turn_knobs(w);
    if (sched_open(&w->sched, &w->knobs.options) != ERR_OK) {
        sim_fail("no memory", 0);
    }
    w->pages_free = w->knobs.options.pages;
    w->slots_free = w->knobs.options.rows_max;
    w->adapter_slots_free = w->knobs.adapter_slots;
}

void sim_close(struct sim_world *w) {
    sched_close(w->sched);
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
                              .size = between(w, 1, sim_chance(w, 5) ? most + 1 : (most + 3) / 4)};
    a->refused = sim_chance(w, w->knobs.fault_percent / 4);
    a->bad_until = sim_chance(w, w->knobs.fault_percent) ? w->tick + sim_below(w, 2000) : 0;
}

static void stored(struct sim_world *w, uint32_t i) {
    w->adapters[i].cached = false;
    w->view[i].state = SCHED_STORED;
    w->view[i].pages = w->adapters[i].size;
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

uint32_t sim_pending(const struct sim_world *w) {
    uint32_t pages = 0;
    for (uint32_t i = 0; i < w->step_count; i++) {
        pages += w->steps[i].pages_after;
    }
    return pages;
}

/* Pages come back when the last step in flight ends. */
static void release(struct sim_world *w, uint32_t pages) {
    if (w->step_count == 0) {
        w->pages_free += pages;
    } else {
        w->steps[w->step_count - 1].pages_after += pages;
    }
}

static void unseat(struct sim_world *w, struct sim_job *j) {
    release(w, j->pages);
    j->pages = 0;
    j->computed = 0;
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
    enum err e = sched_enter(w->sched, &j->entry, &j->bound);
    uint32_t room =
        k->options.slot_pages < k->options.pages ? k->options.slot_pages : k->options.pages;
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

struct sched_snapshot sim_snapshot(const struct sim_world *w) {
    return (struct sched_snapshot){.now_ms = w->now_ms,
                                   .pages_free = w->pages_free,
                                   .pages_pending = sim_pending(w),
                                   .adapter_slots_free = w->adapter_slots_free,
                                   .adapters = w->view};
}

/* ---- carrying out a plan ------------------------------------------------------------------ */

static void apply_adapters(struct sim_world *w, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        uint32_t a = plan->evicts[i];
        release(w, w->view[a].pages);
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
        w->pages_free -= w->view[a].pages;
        w->adapter_slots_free--;
        w->view[a].state = SCHED_LOADING;
        w->adapters[a].due = w->tick + between(w, 0, w->knobs.load_ticks);
        w->loads++;
    }
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        fetch(w, plan->fetches[i]);
    }
}

static void launch(struct sim_world *w, const struct sched_plan *plan) {
    struct sim_step *step = &w->steps[w->step_count];
    *step = (struct sim_step){0};
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
        j->pages += work->pages;
        w->pages_free -= work->pages;
        j->computed += work->tokens;
        if (work->sample) {
            j->known++;
            j->sampled++;
            step->jobs[step->count] = work->job;
            step->serials[step->count++] = j->serial;
        }
    }
    w->step_count++;
    w->step_total++;
    w->row_total += plan->work_count;
    w->token_total += plan->tokens;
}

static void read_step(struct sim_world *w) {
    struct sim_step step = w->steps[0];
    w->step_count--;
    memmove(w->steps, w->steps + 1, w->step_count * sizeof *w->steps);
    w->pages_free += step.pages_after;
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
    apply_adapters(w, plan);
    if (plan->work_count > 0) {
        launch(w, plan);
    }
    uint32_t ahead = plan->work_count > 0 ? 1 : 0;
    while (w->step_count > ahead) {
        read_step(w);
    }
}
