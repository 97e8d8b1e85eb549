/* sim_check.c - what must hold of every plan, judged by the world's own counts. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/sim/sim_world.h"

static uint64_t fail_seed;
static const struct sim_world *fail_world;

void sim_fail_context(uint64_t seed, const struct sim_world *w) {
    fail_seed = seed;
    fail_world = w;
}

void sim_fail(const char *what, uint32_t job) {
    (void)fprintf(stderr, "sim_scheduler --seed %llu: tick %u: %s (%u)\n",
                  (unsigned long long)fail_seed, fail_world == NULL ? 0 : fail_world->tick, what,
                  job);
    exit(1);
}

static void require(bool holds, const char *what, uint32_t job) {
    if (!holds) {
        sim_fail(what, job);
    }
}

enum touch { ABORTED = 1, PREEMPTED = 2, WORKED = 4, EVICTED = 8, LOADED = 16, FETCHED = 32 };

struct touches { /* what the plan does to whom, to find doubles */
    uint8_t jobs[SIM_JOBS_MAX], adapters[SIM_ADAPTERS_MAX];
};

static uint32_t adapter_pages(const struct sim_world *w, uint32_t adapter) {
    return adapter == SCHED_BASE ? 0 : w->view[adapter].pages;
}

/* The pool's pages beside the adapter, or those of a slot. */
static uint32_t room_of(const struct sim_world *w, const struct sim_job *j) {
    const struct sched_options *o = &w->knobs.options;
    uint32_t taken = adapter_pages(w, j->entry.adapter);
    uint32_t room = taken < o->pages ? o->pages - taken : 0;
    if (o->split_pages > 0) {
        room = taken <= o->split_pages ? o->pages - o->split_pages : 0;
    }
    return room < o->slot_pages ? room : o->slot_pages;
}

static void check_aborts(const struct sim_world *w, const struct sched_plan *plan,
                         struct touches *seen) {
    for (uint32_t i = 0; i < plan->abort_count; i++) {
        uint32_t job = plan->aborts[i].job;
        const struct sim_job *j = &w->jobs[job];
        require(j->held && seen->jobs[job] == 0, "aborts a job twice, or one that is gone", job);
        seen->jobs[job] = ABORTED;
        require(plan->aborts[i].running == j->seated, "abort's `running` is wrong", job);
        if (plan->aborts[i].reason == SCHED_EXPIRED) {
            require(j->entry.deadline_ms <= w->now_ms, "expires too early", job);
        } else {
            uint32_t tokens = j->seated ? j->computed + 1 : j->known;
            require(sim_pages_of(w, tokens) > room_of(w, j), "there is room", job);
        }
    }
    int64_t next = INT64_MAX;
    for (uint32_t job = 0; job < w->knobs.options.jobs_max; job++) {
        const struct sim_job *j = &w->jobs[job];
        if (j->held && seen->jobs[job] == 0) {
            require(j->entry.deadline_ms > w->now_ms, "expired and not told", job);
            next = j->entry.deadline_ms < next ? j->entry.deadline_ms : next;
        }
    }
    require(plan->next_event_ms == next, "next_event_ms is wrong", 0);
}

static void check_preempts(const struct sim_world *w, const struct sched_plan *plan,
                           struct touches *seen) {
    for (uint32_t i = 0; i < plan->preempt_count; i++) {
        uint32_t job = plan->preempts[i];
        const struct sim_job *j = &w->jobs[job];
        require(j->held && j->seated && seen->jobs[job] == 0, "preempts what does not run", job);
        seen->jobs[job] = PREEMPTED;
    }
    for (uint32_t i = 0; i < plan->preempt_count; i++) { /* one as old, or older, goes on */
        uint32_t job = plan->preempts[i];
        bool survivor = false;
        for (uint32_t k = 0; k < w->knobs.options.jobs_max; k++) {
            const struct sim_job *o = &w->jobs[k];
            survivor =
                survivor || (o->held && o->seated && seen->jobs[k] == 0 &&
                             o->sampled < o->entry.output_tokens && o->seat <= w->jobs[job].seat);
        }
        require(survivor, "preempts the oldest", job);
    }
}

static uint32_t check_adapters(const struct sim_world *w, const struct sched_plan *plan,
                               struct touches *seen) {
    uint32_t pages = 0;
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        uint32_t a = plan->evicts[i];
        require(a < w->knobs.options.adapters_max && seen->adapters[a] == 0, "evicts twice", a);
        require(w->view[a].state == SCHED_RESIDENT, "evicts what is not resident", a);
        require(w->view[a].users == 0, "evicts what is in use", a);
        seen->adapters[a] = EVICTED;
    }
    for (uint32_t i = 0; i < plan->load_count; i++) {
        uint32_t a = plan->loads[i];
        require(a < w->knobs.options.adapters_max && seen->adapters[a] == 0, "loads twice", a);
        require(w->view[a].state == SCHED_STORED, "loads what is not stored", a);
        require(w->adapters[a].jobs > 0, "loads for nobody", a);
        seen->adapters[a] = LOADED;
        pages += w->view[a].pages;
    }
    require(plan->load_count <= w->adapter_slots_free, "loads beyond the table", 0);
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        uint32_t a = plan->fetches[i];
        require(a < w->knobs.options.adapters_max && seen->adapters[a] == 0, "fetches twice", a);
        require(w->view[a].state == SCHED_AWAY, "fetches what is not away", a);
        require(w->adapters[a].jobs > 0, "fetches for nobody", a);
        seen->adapters[a] = FETCHED;
    }
    return pages;
}

/* Nothing ran when the first was started. */
static bool alone(const struct sim_world *w, const struct touches *seen) {
    bool any = false;
    for (uint32_t job = 0; job < w->knobs.options.jobs_max; job++) {
        bool gone = seen->jobs[job] == ABORTED || seen->jobs[job] == PREEMPTED;
        any = any || (w->jobs[job].held && w->jobs[job].seated && !gone);
    }
    return !any;
}

static void check_row(const struct sim_world *w, const struct sched_work *work,
                      struct sched_found found, struct touches *seen) {
    const struct sim_job *j = &w->jobs[work->job];
    require(j->held && seen->jobs[work->job] == 0, "works on what is gone", work->job);
    seen->jobs[work->job] = WORKED;
    require(work->adapter == j->entry.adapter, "another adapter", work->job);
    if (work->adapter != SCHED_BASE) {
        require(w->view[work->adapter].state == SCHED_RESIDENT &&
                    seen->adapters[work->adapter] == 0,
                "its adapter is not there", work->job);
    }
    require(work->starts == !j->seated, "`starts` is wrong", work->job);
    uint32_t held = j->page_count;
    if (work->starts) { /* from what is found on, or from the first token when it starts alone */
        require(work->position == found.tokens || (work->position == 0 && alone(w, seen)),
                "position is wrong", work->job);
        held = work->position / w->knobs.options.page_tokens;
    } else {
        require(work->position == j->computed, "position is wrong", work->job);
    }
    require(work->tokens >= 1 && work->tokens <= w->knobs.options.chunk_tokens, "bad chunk",
            work->job);
    require(work->tokens <= j->known - work->position, "beyond what is known", work->job);
    require(work->sample == (work->tokens == j->known - work->position), "`sample` is wrong",
            work->job);
    require(j->sampled < j->entry.output_tokens, "beyond its output", work->job);
    uint32_t pages = sim_pages_of(w, work->position + work->tokens);
    require(work->pages == pages - held, "pages are wrong", work->job);
    require(pages <= w->knobs.options.slot_pages, "beyond the slot", work->job);
}

/* A split pool's parts. A page that is found while a step in flight still names it is counted as in
 * use only afterwards, so that with prefixes the part for KV may be overdrawn by some. */
static void check_parts(const struct sim_world *w, uint32_t load_pages, uint32_t kv_pages) {
    const struct sched_options *o = &w->knobs.options;
    uint32_t adapters = sim_adapters_pages(w);
    uint32_t kv = pool_counts(w->pool).kv - adapters;
    if (o->split_pages == 0) {
        return;
    }
    require(adapters + load_pages <= o->split_pages, "beyond the adapters' part", load_pages);
    if (!w->knobs.prefixes) {
        require(kv + kv_pages <= o->pages - o->split_pages, "beyond KV's part", kv_pages);
    }
}

static void check_work(struct sim_world *w, const struct sched_plan *plan, struct touches *seen,
                       uint32_t load_pages) {
    uint32_t tokens = 0;
    uint32_t pages = load_pages;
    uint32_t starts = 0;
    for (uint32_t i = 0; i < plan->work_count; i++) {
        const struct sched_work *work = &plan->work[i];
        require(work->job < w->knobs.options.jobs_max, "no such job", work->job);
        struct sched_found found = {0};
        if (work->starts && w->knobs.prefixes) {
            found = sim_found(w, work->job);
        }
        check_row(w, work, found, seen);
        if (work->position > 0) {
            pages += found.pages;
        }
        tokens += work->tokens;
        pages += work->pages;
        starts += work->starts;
        require(i == 0 || work[-1].adapter + 1 <= work->adapter + 1, "rows are not sorted", i);
    }
    uint32_t slots = w->slots_free + plan->preempt_count;
    for (uint32_t i = 0; i < plan->abort_count; i++) {
        slots += plan->aborts[i].running;
    }
    require(tokens == plan->tokens, "tokens do not add up", tokens);
    require(tokens <= w->knobs.options.step_tokens, "beyond the step's tokens", tokens);
    struct pool_counts counts = pool_counts(w->pool);
    require(pages <= counts.free + counts.cached, "beyond the free pages", pages);
    check_parts(w, load_pages, pages - load_pages);
    require(starts <= slots, "beyond the slots", starts);
}

/* A merged step is all the adapter's own, and it is there. */
static void check_merged(const struct sim_world *w, const struct sched_plan *plan) {
    uint32_t a = plan->merged;
    if (a == SCHED_BASE) {
        return;
    }
    require(w->knobs.options.merging && plan->work_count > 0, "merges unasked", a);
    require(a < w->knobs.options.adapters_max && w->view[a].state == SCHED_RESIDENT &&
                w->view[a].mergeable,
            "merges what cannot be", a);
    for (uint32_t i = 0; i < plan->work_count; i++) {
        require(plan->work[i].adapter == a, "a row of another's weights", plan->work[i].job);
    }
}

static void mix(struct sim_world *w, uint64_t value) {
    w->digest = (w->digest ^ value) * 1099511628211ULL;
}

static void digest(struct sim_world *w, const struct sched_plan *plan) {
    mix(w, plan->abort_count);
    for (uint32_t i = 0; i < plan->preempt_count; i++) {
        mix(w, plan->preempts[i]);
    }
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        mix(w, plan->evicts[i]);
    }
    for (uint32_t i = 0; i < plan->load_count; i++) {
        mix(w, plan->loads[i]);
    }
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        mix(w, plan->fetches[i]);
    }
    for (uint32_t i = 0; i < plan->work_count; i++) {
        mix(w, plan->work[i].job);
        mix(w, plan->work[i].tokens);
    }
}

/* Counts the wait of jobs that could have started, against the bound given (invariant 5). */
static void check_waits(struct sim_world *w, const struct sched_plan *plan,
                        const struct touches *seen) {
    if (plan->work_count == 0) {
        return;
    }
    for (uint32_t job = 0; job < w->knobs.options.jobs_max; job++) {
        struct sim_job *j = &w->jobs[job];
        if (!j->held || j->started || seen->jobs[job] != 0) {
            continue;
        }
        uint32_t a = j->entry.adapter;
        enum sched_adapter_state state = a == SCHED_BASE ? SCHED_RESIDENT : w->view[a].state;
        if (state == SCHED_AWAY || state == SCHED_FETCHING || state == SCHED_LOADING) {
            continue;
        }
        j->waited++;
        require(j->waited < j->bound, "waits beyond its bound", job);
        w->waited_max = j->waited > w->waited_max ? j->waited : w->waited_max;
        double share = (double)j->waited / (double)j->bound;
        w->bound_share_max = share > w->bound_share_max ? share : w->bound_share_max;
    }
}

/* In the order of arrival nobody starts before an older one, but where that one's adapter is on its
 * way. */
static void check_order(const struct sim_world *w, const struct sched_plan *plan,
                        const struct touches *seen) {
    uint64_t youngest = 0; /* that starts */
    for (uint32_t i = 0; i < plan->work_count; i++) {
        uint64_t serial = w->jobs[plan->work[i].job].serial;
        youngest = plan->work[i].starts && serial > youngest ? serial : youngest;
    }
    for (uint32_t job = 0; job < w->knobs.options.jobs_max; job++) {
        const struct sim_job *j = &w->jobs[job];
        uint32_t a = j->entry.adapter;
        bool waits =
            j->held && ((!j->seated && seen->jobs[job] == 0) || seen->jobs[job] == PREEMPTED);
        if (!waits || j->serial > youngest) {
            continue;
        }
        enum sched_adapter_state state = a == SCHED_BASE ? SCHED_RESIDENT : w->view[a].state;
        require(state != SCHED_RESIDENT || (a != SCHED_BASE && seen->adapters[a] == EVICTED),
                "an older one waits, whose adapter is there", job);
        require(state != SCHED_STORED || seen->adapters[a] == LOADED,
                "an older one waits, whose adapter is not asked for", job);
    }
}

void sim_check(struct sim_world *w, const struct sched_plan *plan) {
    struct touches seen = {0};
    check_aborts(w, plan, &seen);
    check_preempts(w, plan, &seen);
    uint32_t load_pages = check_adapters(w, plan, &seen);
    check_work(w, plan, &seen, load_pages);
    check_merged(w, plan);
    check_waits(w, plan, &seen);
    if (w->knobs.options.policy == SCHED_ARRIVAL) {
        check_order(w, plan, &seen);
    }
    digest(w, plan);
}

void sim_check_world(struct sim_world *w) {
    bool seen[SIM_PAGES_MAX] = {false};
    uint32_t pages = 0;
    uint32_t running = 0;
    for (uint32_t i = 0; i < w->knobs.options.jobs_max; i++) {
        const struct sim_job *j = &w->jobs[i];
        running += j->held && j->seated;
        for (uint32_t k = 0; j->held && k < j->page_count; k++) {
            pages += !seen[j->pages[k]]; /* shared ones once */
            seen[j->pages[k]] = true;
        }
    }
    pages += sim_adapters_pages(w);
    require(pages == pool_counts(w->pool).kv, "pages do not add up", pages);
    if (w->tick % 64 == 0) {
        pool_check(w->pool);
    }
    struct sched_counts c = sched_counts(w->sched);
    require(c.running == running, "another count of running jobs", c.running);
    require(c.waiting + c.running == w->held, "another count of jobs", c.waiting);
}
