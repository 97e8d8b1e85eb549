#include "scheduler/scheduler.h"

#include <stdlib.h>

#include "base/check.h"
#include "scheduler/sched_internal.h"

enum {
    LAG_STEPS = 4
}; /* a job's end is read so many steps late at most, and its pages come back */

/* ---- open, close -------------------------------------------------------------------------- */

static bool take(struct sched_list *list, uint32_t count) {
    list->items = calloc(count, sizeof *list->items);
    return list->items != NULL;
}

static bool take_lists(struct sched *s) {
    uint32_t queues = s->options.adapters_max + 1;
    return take(&s->waiting, queues) && take(&s->residents, queues) &&
           take(&s->deadlines, s->options.jobs_max) && take(&s->aged, queues) &&
           take(&s->preempts, s->options.rows_max) && take(&s->evicts, queues) &&
           take(&s->loads, queues) && take(&s->fetches, SCHED_FETCH_AHEAD);
}

enum err sched_open(struct sched **out, const struct sched_options *options) {
    CHECK(options->jobs_max >= 1);
    CHECK(options->jobs_max < SCHED_NONE);
    CHECK(options->adapters_max < SCHED_NONE);
    CHECK(options->rows_max >= 1);
    CHECK(options->step_tokens >= 1);
    CHECK(options->chunk_tokens >= 1);
    CHECK(options->page_tokens >= 1);
    CHECK(options->pages >= 1);
    CHECK(options->split_pages < options->pages);
    CHECK(options->slot_pages >= 1);
    struct sched *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return ERR_NO_MEMORY;
    }
    s->options = *options;
    uint32_t queues = options->adapters_max + 1;
    s->jobs = calloc(options->jobs_max, sizeof *s->jobs);
    s->queues = calloc(queues, sizeof *s->queues);
    s->aborts = calloc(options->jobs_max, sizeof *s->aborts);
    s->work = calloc(options->rows_max, sizeof *s->work);
    s->work_scratch = calloc(options->rows_max, sizeof *s->work_scratch);
    if (s->jobs == NULL || s->queues == NULL || s->aborts == NULL || s->work == NULL ||
        s->work_scratch == NULL || !take_lists(s)) {
        sched_close(s);
        return ERR_NO_MEMORY;
    }
    for (uint32_t i = 0; i < queues; i++) {
        struct sched_queue *q = &s->queues[i];
        q->best = q->oldest = q->newest = SCHED_NONE;
        q->waiting_at = q->resident_at = SCHED_NONE;
    }
    s->run_first = s->run_last = SCHED_NONE;
    s->merged = options->adapters_max;
    s->alone = SCHED_NONE;
    s->fetch_limit = SCHED_FETCH_AHEAD;
    s->ready.most = s->stored.most = SCHED_RANKED_MAX;
    s->away.most = SCHED_FETCH_AHEAD;
    sched_cost_open(s);
    *out = s;
    return ERR_OK;
}

void sched_close(struct sched *s) {
    if (s == NULL) {
        return;
    }
    free(s->jobs);
    free(s->queues);
    free(s->waiting.items);
    free(s->residents.items);
    free(s->deadlines.items);
    free(s->aged.items);
    free(s->preempts.items);
    free(s->evicts.items);
    free(s->loads.items);
    free(s->fetches.items);
    free(s->aborts);
    free(s->work);
    free(s->work_scratch);
    free(s);
}

/* ---- the bound of a wait ------------------------------------------------------------------ */

/* Steps in which a job is surely over once it is the oldest that runs: then it gets work in every
 * plan with work (sched_plan serves it first and never preempts it), but for those that wait for
 * the pages it lacks. Its tokens may have to be computed anew, a chunk a step; each page it takes
 * may cost two steps of waiting, as many again where what it waited for turns out to be shared with
 * others, and cut one chunk short; then come the outputs. */
static uint64_t cost_steps(const struct sched *s, uint64_t prompt, uint64_t output) {
    uint64_t most = (uint64_t)s->options.slot_pages * s->options.page_tokens;
    uint64_t tokens = prompt + output < most ? prompt + output : most;
    uint64_t outputs = output < most ? output : most;
    uint64_t chunk = sched_min(s->options.chunk_tokens, s->options.step_tokens);
    return (tokens + chunk - 1) / chunk + outputs + 5 * (uint64_t)sched_pages(s, tokens) +
           LAG_STEPS;
}

/* Why job J starts before this many steps (plans with work) in which its adapter can be had:
 * 1. After wait_steps J is aged. From then on jobs start by turns of adapters: the turn goes to the
 *    one whose oldest job is the oldest, starts jobs by age, at most sched_turn_jobs() of them, and
 *    while the one whose turn it is finds no room nobody else is admitted. Let W jobs of A adapters
 *    wait when J comes. Each turn before J's start begins with one of W that has not started yet
 *    (preempted ones take nobody along) and starts all of its adapter's share of W or a full turn's
 *    number: there are at most A + W / turn_jobs such turns, and one that was under way. So at most
 *    (A + 1) × turn_jobs + W jobs that came after J start before it.
 * 2. The oldest running sequence is always served first and never preempted: if R is the set of
 *    jobs that run after J has come and before it starts, all of R is over, or J has started, after
 *    the sum of cost_steps over R. When nothing runs, the first in order needs no head-room and may
 *    evict every idle resident, so that it starts; plans meanwhile have no work and do not count.
 *    In the order of arrival a job is aged at once and a turn is one job's, so that this holds as
 *    well; what passes it over while its adapter is on its way came in steps that do not count.
 * 3. R is within: the jobs known now; at most rows_max unknown ones that run when J becomes aged;
 *    those of 1. Of an unknown job the cost is at most that of a whole slot.
 * It is a bound for proofs and alarms, not an estimate. */
static uint64_t sched_bound(const struct sched *s) {
    uint64_t slot = (uint64_t)s->options.slot_pages * s->options.page_tokens;
    uint64_t unknown = s->options.rows_max + s->waiting_count +
                       (uint64_t)(s->waiting.count + 1) * sched_turn_jobs(s);
    return s->options.wait_steps + s->cost_known + unknown * cost_steps(s, 0, slot) + LAG_STEPS;
}

/* ---- jobs --------------------------------------------------------------------------------- */

enum err sched_enter(struct sched *s, const struct sched_job *job, uint64_t *bound_steps) {
    CHECK(job->prompt_tokens >= 1);
    CHECK(job->output_tokens >= 1);
    CHECK(job->adapter == SCHED_BASE || job->adapter < s->options.adapters_max);
    if (job->job >= s->options.jobs_max) {
        return ERR_NO_SPACE;
    }
    struct sched_seq *j = &s->jobs[job->job];
    CHECK(j->state == SCHED_FREE);
    if (sched_pages(s, (uint64_t)job->prompt_tokens + 1) >
        sched_min(s->options.slot_pages, sched_kv_pages(s))) {
        return ERR_PROMPT_TOO_LONG;
    }
    *j = (struct sched_seq){
        .queue = job->adapter == SCHED_BASE ? s->options.adapters_max : job->adapter,
        .priority = job->priority,
        .deadline_ms = job->deadline_ms,
        .arrival = job->arrival,
        .order = s->orders++,
        .enter_step = s->steps,
        .cost_steps = cost_steps(s, job->prompt_tokens, job->output_tokens),
        .output_tokens = job->output_tokens,
        .known = job->prompt_tokens,
        .deadline_at = SCHED_NONE,
        .work_at = SCHED_NONE,
    };
    *bound_steps = sched_bound(s);
    s->cost_known += j->cost_steps;
    sched_queue_put(s, job->job);
    sched_deadline_put(s, job->job);
    return ERR_OK;
}

void sched_detach(struct sched *s, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    struct sched_queue *q = &s->queues[j->queue];
    sched_deadline_remove(s, job);
    s->cost_known -= j->cost_steps;
    if (j->state == SCHED_WAITING) {
        sched_queue_remove(s, job);
    } else {
        CHECK(j->state == SCHED_RUNNING);
        *(j->older == SCHED_NONE ? &s->run_first : &s->jobs[j->older].younger) = j->younger;
        *(j->younger == SCHED_NONE ? &s->run_last : &s->jobs[j->younger].older) = j->older;
        q->running--;
        s->running_count--;
    }
    if (q->waiting + q->running == 0) { /* its index may come back as another adapter */
        q->fetch_misses = 0;
        q->fetch_asked = false;
        q->fetch_again = 0;
        if (s->turn_queue == j->queue) {
            s->turn_left = 0;
        }
    }
}

void sched_leave(struct sched *s, uint32_t job) {
    CHECK(job < s->options.jobs_max);
    struct sched_seq *j = &s->jobs[job];
    CHECK(j->state != SCHED_FREE);
    if (j->state != SCHED_ABORTED) {
        sched_detach(s, job);
    }
    j->state = SCHED_FREE;
}

void sched_deadline(struct sched *s, uint32_t job, int64_t deadline_ms) {
    CHECK(job < s->options.jobs_max);
    struct sched_seq *j = &s->jobs[job];
    CHECK(j->state != SCHED_FREE);
    if (j->state == SCHED_ABORTED) {
        return; /* reported already */
    }
    sched_deadline_remove(s, job);
    j->deadline_ms = deadline_ms;
    sched_deadline_put(s, job);
}

struct sched_counts sched_counts(const struct sched *s) {
    return (struct sched_counts){.waiting = s->waiting_count,
                                 .running = s->running_count,
                                 .adapters_waiting = s->waiting.count,
                                 .plans = s->plans,
                                 .admitted = s->admitted,
                                 .preempted = s->preempted,
                                 .expired = s->expired,
                                 .merges = s->merges};
}
