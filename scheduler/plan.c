/* plan.c - the frame of a plan: aborts, the work of what runs, and pages when they run short. */
#include <string.h>

#include "base/check.h"
#include "scheduler/sched_internal.h"

/* ---- aborts ------------------------------------------------------------------------------- */

void sched_abort_job(struct sched *s, uint32_t job, enum sched_reason reason) {
    struct sched_seq *j = &s->jobs[job];
    s->aborts[s->abort_count++] =
        (struct sched_abort){.job = job, .reason = reason, .running = j->state == SCHED_RUNNING};
    sched_detach(s, job);
    j->state = SCHED_ABORTED;
}

static void abort_expired(struct sched *s, int64_t now_ms) {
    while (s->deadlines.count > 0 && s->jobs[s->deadlines.items[0]].deadline_ms <= now_ms) {
        sched_abort_job(s, s->deadlines.items[0], SCHED_EXPIRED);
        s->expired++;
    }
}

/* ---- what runs ---------------------------------------------------------------------------- */

/* Puts a waiting job behind all that run. */
void sched_run(struct sched *s, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    sched_queue_remove(s, job);
    j->state = SCHED_RUNNING;
    j->older = s->run_last;
    j->younger = SCHED_NONE;
    *(s->run_last == SCHED_NONE ? &s->run_first : &s->jobs[s->run_last].younger) = job;
    s->run_last = job;
    s->queues[j->queue].running++;
    s->running_count++;
    s->admitted++;
}

/* Adds work to the plan and takes its pages and tokens. The job's own counts move in settle(). */
void sched_emit(struct sched *s, struct sched_turn *t, const struct sched_work *work) {
    DCHECK(s->work_count < s->options.rows_max);
    DCHECK(work->tokens <= t->tokens_left);
    DCHECK(work->pages <= t->pages_free);
    s->jobs[work->job].work_at = s->work_count;
    s->work[s->work_count++] = *work;
    t->tokens_left -= work->tokens;
    sched_take(t, work->pages);
}

/* Work for a running sequence, as far as tokens and pages go. */
static void continue_one(struct sched *s, struct sched_turn *t, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    uint32_t held = sched_pages(s, j->computed);
    uint32_t most = sched_pages_max(s, t, j->queue);
    if (sched_pages(s, (uint64_t)j->computed + 1) > most) {
        sched_abort_job(s, job, SCHED_NO_ROOM);
        return;
    }
    uint32_t pending = j->known - j->computed;
    uint32_t tokens = sched_min(sched_min(pending, s->options.chunk_tokens), t->tokens_left);
    if (tokens == 0) {
        return;
    }
    uint64_t room = held + (uint64_t)sched_min(t->pages_free, most - held);
    uint64_t fit = room * s->options.page_tokens - j->computed;
    if (fit == 0) {
        j->short_pages = sched_pages(s, (uint64_t)j->computed + tokens) - held;
        j->short_pages = sched_min(j->short_pages, most - held);
        t->pages_short += j->short_pages;
        return;
    }
    tokens = fit < tokens ? (uint32_t)fit : tokens;
    sched_emit(s, t,
               &(struct sched_work){
                   .job = job,
                   .adapter = sched_is_base(s, j->queue) ? SCHED_BASE : j->queue,
                   .position = j->computed,
                   .tokens = tokens,
                   .pages = sched_pages(s, (uint64_t)j->computed + tokens) - held,
                   .sample = tokens == pending,
               });
}

static uint32_t oldest_unfinished(const struct sched *s) {
    uint32_t job = s->run_first;
    while (job != SCHED_NONE && !sched_unfinished(&s->jobs[job])) {
        job = s->jobs[job].younger;
    }
    return job;
}

/* The oldest first, whatever it is at: its end is what bounds the others' wait. Then a token for
 * each that decodes, then prompts. */
static void continue_running(struct sched *s, struct sched_turn *t) {
    uint32_t oldest = oldest_unfinished(s);
    for (uint32_t job = s->run_first; job != SCHED_NONE; job = s->jobs[job].younger) {
        s->jobs[job].work_at = SCHED_NONE;
        s->jobs[job].short_pages = 0;
    }
    if (oldest != SCHED_NONE) {
        continue_one(s, t, oldest);
    }
    for (uint32_t prompts = 0; prompts < 2; prompts++) {
        uint32_t younger = SCHED_NONE;
        for (uint32_t job = s->run_first; job != SCHED_NONE; job = younger) {
            const struct sched_seq *j = &s->jobs[job];
            younger = j->younger;
            if (job != oldest && sched_unfinished(j) && (j->known - j->computed > 1) == prompts) {
                continue_one(s, t, job);
            }
        }
    }
}

/* ---- when pages run short ----------------------------------------------------------------- */

/* Pages that come back with a sequence. Those that it found stay while others use them; those that
 * it computed itself are shared by younger ones at most, which are preempted before it. */
static uint32_t own_pages(const struct sched *s, const struct sched_seq *j) {
    return sched_pages(s, j->computed) - j->found_pages;
}

static void preempt(struct sched *s, struct sched_turn *t, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    t->pages_short -= j->short_pages;
    t->pages_coming += own_pages(s, j);
    if (j->work_at != SCHED_NONE) {
        struct sched_work *w = &s->work[j->work_at];
        t->pages_free += w->pages;
        t->pages_left += w->pages;
        t->tokens_left += w->tokens;
        t->pages_coming += w->pages; /* they are free already, and serve the same need */
        w->tokens = 0;               /* settle() drops it */
    }
    s->preempts.items[s->preempts.count++] = job;
    s->preempted++;
    sched_detach(s, job);
    s->cost_known += j->cost_steps;
    j->computed = 0;
    j->preempted = true;
    j->work_at = SCHED_NONE;
    sched_queue_put(s, job);
    sched_deadline_put(s, job);
}

/* Finds the pages that running sequences lack: those that are coming anyway, then idle adapters,
 * then the youngest sequences. They are there in a later plan. */
static void relieve(struct sched *s, struct sched_turn *t) {
    if (t->pages_short == 0) {
        return;
    }
    t->admit_closed = true;
    t->load_closed = true;
    uint32_t oldest = oldest_unfinished(s);
    for (uint32_t job = s->run_first; job != SCHED_NONE; job = s->jobs[job].younger) {
        if (!sched_unfinished(&s->jobs[job])) {
            t->pages_coming += own_pages(s, &s->jobs[job]); /* about to leave */
        }
    }
    struct sched_claim claim = {.queue = SCHED_NONE, .force = SCHED_TAKE_ANY};
    if (sched_make_kv_pages(s, t, t->pages_short, &claim)) {
        return;
    }
    uint32_t older = SCHED_NONE;
    for (uint32_t job = s->run_last; job != oldest && job != SCHED_NONE; job = older) {
        older = s->jobs[job].older;
        if (t->pages_coming >= t->pages_short) {
            return;
        }
        if (sched_unfinished(&s->jobs[job])) {
            preempt(s, t, job);
        }
    }
}

/* This plan's step reads the adapter. */
void sched_mark_read(struct sched *s, struct sched_turn *t, uint32_t queue) {
    struct sched_queue *q = &s->queues[queue];
    q->used_step = s->steps;
    if (q->step_mark != s->plans) {
        q->step_mark = s->plans;
        t->adapter_pages += sched_adapter_pages(s, t, queue);
    }
}

/* Counts the running ones' work as carried out, and what they will want next. */
static void settle(struct sched *s, struct sched_turn *t) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->work_count; i++) {
        if (s->work[i].tokens > 0) {
            s->work[kept++] = s->work[i];
        }
    }
    s->work_count = kept;
    for (uint32_t i = 0; i < kept; i++) {
        struct sched_seq *j = &s->jobs[s->work[i].job];
        j->computed += s->work[i].tokens;
        if (s->work[i].sample) {
            j->known++;
            j->sampled++;
        }
        sched_mark_read(s, t, j->queue);
    }
    for (uint32_t job = s->run_first; job != SCHED_NONE; job = s->jobs[job].younger) {
        const struct sched_seq *j = &s->jobs[job];
        if (sched_unfinished(j)) {
            t->pages_promised += sched_pages(s, j->known) - sched_pages(s, j->computed) + 1;
        }
    }
}

/* ---- the plan ----------------------------------------------------------------------------- */

/* The base's rows, then each adapter's together, in the order of the plan: a stable merge sort,
 * as the C library's may take memory. */
static void sort_work(struct sched *s) {
    struct sched_work *from = s->work;
    struct sched_work *to = s->work_scratch;
    uint32_t count = s->work_count;
    for (uint32_t run = 1; run < count; run *= 2) {
        for (uint32_t begin = 0; begin < count; begin += 2 * run) {
            uint32_t middle = sched_min(begin + run, count);
            uint32_t end = sched_min(begin + 2 * run, count);
            uint32_t a = begin;
            uint32_t b = middle;
            for (uint32_t i = begin; i < end; i++) { /* SCHED_BASE + 1 is 0 */
                bool left =
                    b == end || (a < middle && from[a].adapter + 1U <= from[b].adapter + 1U);
                to[i] = left ? from[a++] : from[b++];
            }
        }
        struct sched_work *swap = from;
        from = to;
        to = swap;
    }
    s->work = from;
    s->work_scratch = to;
}

/* What a split pool's parts have left. What steps in flight still name is in neither part's use,
 * nor is it free: what is left of both may be more than what is free. */
static void split(const struct sched *s, struct sched_turn *t) {
    t->adapter_free = UINT32_MAX;
    if (sched_split(s)) {
        uint32_t kv = sched_min(t->snapshot->pages_kv, sched_kv_pages(s));
        uint32_t adapters = sched_min(t->snapshot->pages_adapters, s->options.split_pages);
        t->pages_free = sched_min(t->pages_free, sched_kv_pages(s) - kv);
        t->adapter_free = s->options.split_pages - adapters;
    }
}

void sched_plan(struct sched *s, const struct sched_snapshot *snapshot, struct sched_plan *plan) {
    CHECK(snapshot->adapters != NULL || s->options.adapters_max == 0);
    s->plans++;
    s->abort_count = s->work_count = 0;
    s->preempts.count = s->evicts.count = s->loads.count = s->fetches.count = 0;
    struct sched_turn t = {.snapshot = snapshot,
                           .pages_left = snapshot->pages_free,
                           .pages_free = snapshot->pages_free,
                           .pages_coming = snapshot->pages_pending,
                           .adapter_slots = snapshot->adapter_slots_free,
                           .tokens_left = s->options.step_tokens};
    split(s, &t);
    sched_residents_refresh(s, &t);
    abort_expired(s, snapshot->now_ms);
    continue_running(s, &t);
    relieve(s, &t);
    settle(s, &t);
    sched_choose(s, &t);
    sort_work(s);
    if (s->work_count > 0) {
        s->steps++;
    }
    *plan = (struct sched_plan){
        .aborts = s->aborts,
        .abort_count = s->abort_count,
        .preempts = s->preempts.items,
        .preempt_count = s->preempts.count,
        .evicts = s->evicts.items,
        .evict_count = s->evicts.count,
        .loads = s->loads.items,
        .load_count = s->loads.count,
        .fetches = s->fetches.items,
        .fetch_count = s->fetches.count,
        .work = s->work,
        .work_count = s->work_count,
        .tokens = s->options.step_tokens - t.tokens_left,
        .merged = sched_merge(s, &t),
        .next_event_ms =
            s->deadlines.count > 0 ? s->jobs[s->deadlines.items[0]].deadline_ms : INT64_MAX,
    };
}
