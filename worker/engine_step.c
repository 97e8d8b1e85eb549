/* engine_step.c - carries out plans: pages, slots, the batch, and what a step gave. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/engine_internal.h"

uint64_t engine_ticket(const struct engine *e) {
    return e->step_count > 0 ? e->ticket_launched : 0;
}

/* ---- plan → pool, slots ------------------------------------------------------------------- */

static void apply_aborts(struct engine *e, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->abort_count; i++) {
        struct job *job = e->held[plan->aborts[i].job];
        CHECK(job != NULL);
        switch (plan->aborts[i].reason) {
        case SCHED_EXPIRED:
            engine_end(e, job, JOB_EXPIRED);
            break;
        case SCHED_NO_ROOM: /* the whole pool is its context: what was made of it stands */
            if (atomic_load_explicit(&job->output_count, memory_order_relaxed) > 0) {
                engine_end(e, job, JOB_LENGTH);
                break;
            }
            job->error = ERR_PROMPT_TOO_LONG;
            (void)err_set_field(&job->why, job->error, "prompt",
                                "the prompt and its adapter do not fit into the pool");
            engine_end(e, job, JOB_FAILED);
            break;
        }
    }
}

static enum err apply_adapters(struct engine *e, const struct sched_plan *plan) {
    for (uint32_t i = 0; i < plan->load_count; i++) {
        enum err loaded = adapters_load(e->adapters, plan->loads[i]);
        if (loaded != ERR_OK && loaded != ERR_NO_SPACE) { /* for room the plan asks again */
            return loaded;
        }
    }
    int64_t now_us = clock_mono_us();
    for (uint32_t i = 0; i < plan->fetch_count; i++) {
        adapters_fetch(e->adapters, plan->fetches[i], now_us);
    }
    return ERR_OK;
}

/* Room for what the job will say; once. */
static enum err output_room(struct job *job) {
    if (job->output != NULL) {
        return ERR_OK;
    }
    size_t count = job->output_max, top = job->sampling.top_logprobs;
    if (job->sampling.logprobs && job->logprobs == NULL) {
        job->logprobs = malloc(count * sizeof *job->logprobs);
    }
    if (top > 0 && job->top == NULL) {
        job->top = malloc(count * top * sizeof *job->top);
    }
    if ((job->sampling.logprobs && job->logprobs == NULL) || (top > 0 && job->top == NULL)) {
        return ERR_NO_MEMORY;
    }
    job->output = malloc(count * sizeof *job->output);
    return job->output != NULL ? ERR_OK : ERR_NO_MEMORY;
}

/* Gives a job a slot, from `position` on: what is before lies in its pages. Its parameters travel
 * with the step. */
static enum err seat(struct engine *e, struct job *job, uint32_t position,
                     struct kern_slot_set *set) {
    CHECK(e->slots_free_count > 0);
    enum err room = output_room(job);
    if (room != ERR_OK) {
        return room;
    }
    uint32_t slot = e->slots_free[--e->slots_free_count];
    CHECK(e->by_slot[slot] == NULL);
    e->by_slot[slot] = job;
    job->device_slot = (int32_t)slot;
    job->pages = e->slot_pages + (size_t)slot * e->options.limits.slot_pages;
    job->page_count = 0;
    engine_share(e, job, position);
    if (job->entry != ADAPTERS_BASE) {
        adapters_use(e->adapters, job->entry);
    }
    engine_count_waiting(e, job, -1);
    engine_count_running(e, job, 1);
    if (job->started_us == 0) {
        job->started_us = clock_mono_us();
        job->cached = position;
        if (job->entry != ADAPTERS_BASE) {
            adapters_begin(e->adapters, job->entry);
            memcpy(job->revision, adapters_revision(e->adapters, job->entry), sizeof job->revision);
        }
        metrics_observe(e->options.metrics, METRIC_QUEUE_SECONDS,
                        (double)(job->started_us - job->received_us) / 1e6);
        e->options.publish(e->options.context, job, 0);
    } else if (job->entry != ADAPTERS_BASE) { /* all its tokens are of one revision */
        CHECK(strcmp(job->revision, adapters_revision(e->adapters, job->entry)) == 0);
    }
    *set = job->sampling;
    set->slot = slot;
    set->known_count = position;
    set->prompt = job->prompt;
    set->output = job->output;
    return ERR_OK;
}

/* ---- the batch ---------------------------------------------------------------------------- */

/* The token at a position of the job's text, as far as the host knows it. */
static uint32_t job_token(const struct job *job, uint32_t position) {
    if (position < job->prompt_count) {
        return job->prompt[position];
    }
    uint32_t index = position - job->prompt_count;
    uint32_t known = atomic_load_explicit(&job->output_count, memory_order_relaxed);
    CHECK(index <= known); /* only the last sampled token may be unread */
    return index < known ? job->output[index] : KERN_TOKEN_LAST;
}

/* The device learns the job's pages from `first` on. */
static void tell_pages(struct engine *e, const struct job *job, uint32_t first,
                       struct kern_step *step) {
    for (uint32_t i = first; i < job->page_count; i++) {
        e->slot_page_deltas[step->slot_page_count++] = (struct kern_slot_page){
            .slot = (uint32_t)job->device_slot, .index = i, .page = job->pages[i]};
    }
}

/* Seats whom the plan starts, and gives them the pages that were found for them, before anything
 * else takes pages. */
static enum err apply_starts(struct engine *e, const struct sched_plan *plan,
                             struct kern_step *step) {
    for (uint32_t i = 0; i < plan->work_count; i++) {
        const struct sched_work *w = &plan->work[i];
        if (!w->starts) {
            continue;
        }
        struct job *job = e->held[w->job];
        CHECK(job != NULL);
        enum err seated = seat(e, job, w->position, &e->slot_sets[step->slot_set_count]);
        if (seated != ERR_OK) {
            return seated;
        }
        step->slot_set_count++;
        tell_pages(e, job, 0, step);
    }
    return ERR_OK;
}

static void add_pages(struct engine *e, struct job *job, uint32_t count, struct kern_step *step) {
    CHECK(job->page_count + count <= e->options.limits.slot_pages);
    uint32_t *pages = job->pages + job->page_count;
    enum err reserved = pool_reserve(e->pool, count, pages);
    CHECK(reserved == ERR_OK); /* the plan counted them */
    job->page_count += count;
    tell_pages(e, job, job->page_count - count, step);
}

static void add_segment(struct engine *e, const struct job *job, uint32_t tokens,
                        struct kern_step *step) {
    if (job->entry == ADAPTERS_BASE || job->entry == e->merged) {
        return;
    }
    uint32_t adapter = adapters_device_index(e->adapters, job->entry);
    if (step->segment_count > 0) {
        struct kern_segment *last = &e->segments[step->segment_count - 1];
        if (last->adapter == adapter &&
            last->token_begin + last->token_count == step->token_count) {
            last->token_count += tokens;
            return;
        }
    }
    e->segments[step->segment_count++] = (struct kern_segment){
        .adapter = adapter, .token_begin = step->token_count, .token_count = tokens};
}

/* What the chunk adds to the step's figures. Inside a window only its tokens are read. */
static void count_work(const struct engine *e, const struct sched_work *w,
                       struct engine_stepped *f) {
    uint64_t window = e->options.model->shape.window;
    uint64_t end = (uint64_t)w->position + w->tokens;
    uint64_t first = window == 0 || w->position < window ? 0 : w->position + 1 - window;
    f->kv_tokens += end - first;
    if (window == 0 || end <= window) {
        f->pairs += (uint64_t)w->position * w->tokens + (uint64_t)w->tokens * (w->tokens + 1) / 2;
    } else {
        for (uint64_t i = w->position; i < end; i++) {
            f->pairs += i < window ? i + 1 : window;
        }
    }
    f->prompt_tokens += w->tokens > 1 ? w->tokens : 0;
}

static void add_work(struct engine *e, const struct sched_work *w, struct kern_step *step,
                     struct engine_step *record) {
    struct job *job = e->held[w->job];
    CHECK(job != NULL);
    CHECK(job->device_slot != JOB_NONE);
    CHECK(job->computed == w->position);
    job->computed += w->tokens;
    add_pages(e, job, w->pages, step);
    add_segment(e, job, w->tokens, step);
    e->chunks[step->chunk_count++] = (struct kern_chunk){.slot = (uint32_t)job->device_slot,
                                                         .token_begin = step->token_count,
                                                         .token_count = w->tokens,
                                                         .position = w->position,
                                                         .sample = w->sample};
    for (uint32_t i = 0; i < w->tokens; i++) {
        e->tokens[step->token_count++] = job_token(job, w->position + i);
    }
    count_work(e, w, &record->facts);
    if (w->position < job->prompt_count) {
        metrics_add(e->options.metrics, METRIC_TOKENS_PROMPT, w->tokens);
    }
    if (w->sample) {
        record->rows[record->row_count++] =
            (struct engine_row){.job = job->index, .serial = job->serial};
    }
}

/* Pages of the distinct adapters that a step reads: what the cost model learns from. */
static uint32_t step_adapter_pages(const struct engine *e, const struct sched_plan *plan) {
    uint32_t pages = 0;
    uint32_t last = SCHED_BASE;
    const struct sched_adapter *view = adapters_view(e->adapters);
    for (uint32_t i = 0; i < plan->work_count && plan->merged == SCHED_BASE; i++) {
        if (plan->work[i].adapter != last && plan->work[i].adapter != SCHED_BASE) {
            pages += view[plan->work[i].adapter].pages;
        }
        last = plan->work[i].adapter;
    }
    return pages;
}

/* Whose weights the step runs with. */
static void set_merged(struct engine *e, const struct sched_plan *plan,
                       struct engine_step *record) {
    struct metrics *m = e->options.metrics;
    if (!e->options.limits.merging) {
        return;
    }
    bool base = plan->merged == SCHED_BASE;
    uint32_t adapter = base ? KERN_BASE : adapters_device_index(e->adapters, plan->merged);
    e->options.ops->merge(e->options.device, adapter);
    if (plan->merged == e->merged) {
        return;
    }
    record->facts.switched = true;
    if (e->merged != SCHED_BASE) {
        metrics_shift_adapter(m, METRIC_ADAPTER_MERGED, e->merged_label, -1);
    }
    if (!base) {
        e->merged_label = e->held[plan->work[0].job]->metrics_adapter;
        metrics_shift_adapter(m, METRIC_ADAPTER_MERGED, e->merged_label, 1);
        metrics_add(m, METRIC_MERGES, 1);
    }
    e->merged = plan->merged;
}

static enum err launch(struct engine *e, const struct sched_plan *plan, struct kern_step *step) {
    CHECK(e->step_count < ENGINE_STEPS);
    struct engine_step *record = &e->steps[(e->step_head + e->step_count) % ENGINE_STEPS];
    record->row_count = 0;
    record->facts = (struct engine_stepped){.plan_us = (uint32_t)(e->planned_us - e->turn_us)};
    while (adapters_delta(e->adapters, &e->adapter_sets[step->adapter_set_count])) {
        step->adapter_set_count++;
    }
    set_merged(e, plan, record);
    for (uint32_t i = 0; i < plan->work_count; i++) {
        add_work(e, &plan->work[i], step, record);
    }
    record->facts.tokens = step->token_count;
    record->facts.rows = record->row_count;
    record->facts.segments = step->segment_count;
    record->facts.adapter_pages = step_adapter_pages(e, plan);
    record->facts.merged = e->merged != SCHED_BASE;
    record->launched_us = clock_mono_us();
    record->facts.build_us = (uint32_t)(record->launched_us - e->planned_us);
    enum err ran =
        model_step(e->options.model, e->options.ops, e->options.device, step, &record->ticket);
    if (ran != ERR_OK) {
        return ran;
    }
    record->facts.launch_us = (uint32_t)(clock_mono_us() - record->launched_us);
    e->ticket_launched = record->ticket;
    e->step_count++;
    metrics_add(e->options.metrics, METRIC_STEPS, 1);
    metrics_observe(e->options.metrics, METRIC_STEP_ADAPTERS, step->segment_count); /* sorted */
    for (uint32_t i = 0; i < plan->work_count; i++) {
        engine_remember(e, e->held[plan->work[i].job]);
    }
    return ERR_OK;
}

enum err engine_apply(struct engine *e, const struct sched_plan *plan, bool *launched) {
    *launched = false;
    apply_aborts(e, plan);
    for (uint32_t i = 0; i < plan->preempt_count; i++) {
        engine_unseat(e, e->held[plan->preempts[i]]);
        metrics_add(e->options.metrics, METRIC_PREEMPTIONS, 1);
    }
    for (uint32_t i = 0; i < plan->evict_count; i++) {
        adapters_evict(e->adapters, plan->evicts[i], engine_ticket(e));
    }
    struct kern_step step = {.tokens = e->tokens,
                             .chunks = e->chunks,
                             .segments = e->segments,
                             .slot_sets = e->slot_sets,
                             .slot_pages = e->slot_page_deltas,
                             .adapter_sets = e->adapter_sets};
    enum err ran = apply_starts(e, plan, &step);
    if (ran == ERR_OK) {
        ran = apply_adapters(e, plan);
    }
    if (ran != ERR_OK || plan->work_count == 0) {
        return ran;
    }
    ran = launch(e, plan, &step);
    *launched = ran == ERR_OK;
    return ran;
}

/* ---- what a step gave --------------------------------------------------------------------- */

static void take_logprobs(struct job *job, uint32_t index, const struct kern_sample *sample) {
    if (job->logprobs == NULL) {
        return;
    }
    uint32_t count = job->sampling.top_logprobs;
    CHECK(sample->top_count == count);
    job->logprobs[index] = (struct wire_logprob){sample->token, sample->logprob};
    for (uint32_t i = 0; i < count; i++) {
        job->top[(size_t)index * count + i] =
            (struct wire_logprob){sample->top[i].token, sample->top[i].logprob};
    }
}

static void take_token(struct engine *e, struct job *job, const struct kern_sample *sample) {
    uint32_t count = atomic_load_explicit(&job->output_count, memory_order_relaxed);
    CHECK(count < job->output_max);
    job->output[count] = sample->token;
    take_logprobs(job, count, sample);
    metrics_add(e->options.metrics, METRIC_TOKENS_SAMPLED, 1);
    metrics_add_adapter(e->options.metrics, METRIC_ADAPTER_TOKENS_SAMPLED, job->metrics_adapter, 1);
    if (count == 0) {
        job->first_token_us = clock_mono_us();
        metrics_observe(e->options.metrics, METRIC_FIRST_TOKEN_SECONDS,
                        (double)(job->first_token_us - job->received_us) / 1e6);
    }
    atomic_store_explicit(&job->output_count, count + 1, memory_order_release);
    if (sample->done) {
        engine_end(e, job, JOB_STOPPED);
    } else if (count + 1 == job->output_max) {
        engine_end(e, job, JOB_LENGTH);
    } else {
        e->options.publish(e->options.context, job, 0);
    }
}

static void observe(const struct engine *e, struct engine_stepped *facts, int64_t read_us) {
    const struct engine_observer *o = &e->options.observer;
    if (o->stepped != NULL) {
        struct pool_counts pages = pool_counts(e->pool);
        facts->pages_kv = pages.kv;
        facts->pages_adapters = pages.adapters;
        facts->running = sched_counts(e->sched).running;
        facts->read_us = read_us;
        facts->take_us = (uint32_t)(clock_mono_us() - read_us);
        o->stepped(o->context, facts);
    }
}

enum err engine_read(struct engine *e) {
    CHECK(e->step_count > 0);
    struct engine_step *record = &e->steps[e->step_head];
    struct engine_stepped *facts = &record->facts;
    int64_t begin_us = clock_mono_us();
    enum err read =
        e->options.ops->step_read(e->options.device, record->ticket, e->samples, record->row_count);
    if (read != ERR_OK) {
        return read;
    }
    int64_t read_us = clock_mono_us();
    e->step_head = (e->step_head + 1) % ENGINE_STEPS;
    e->step_count--;
    pool_steps_ended(e->pool, record->ticket);
    facts->wait_us = (uint32_t)(read_us - begin_us);
    e->options.ops->span(e->options.device, &facts->span);
    if (!facts->switched) { /* it says nothing of others */
        sched_learn(e->sched, facts->tokens, facts->adapter_pages, (double)facts->span.busy_us);
    }
    metrics_observe(e->options.metrics, METRIC_STEP_SECONDS,
                    (double)(read_us - record->launched_us) / 1e6);
    for (uint32_t i = 0; i < record->row_count; i++) {
        struct job *job = e->held[record->rows[i].job];
        if (job == NULL || job->serial != record->rows[i].serial) {
            metrics_add(e->options.metrics, METRIC_TOKENS_SURPLUS, 1);
            continue;
        }
        take_token(e, job, &e->samples[i]);
    }
    observe(e, facts, read_us);
    return ERR_OK;
}
