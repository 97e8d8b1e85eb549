/* choose.c - whom to let in, adapter by adapter, and which adapters to bring nearer.
 *
 * One pass over the adapters with waiting jobs sorts them by where they are. Aged ones (their
 * oldest job has waited for wait_steps) take turns, strictly by age: the first that finds no room
 * closes the door for all others, so that room comes to it. The rest goes by priority, then by the
 * least predicted time per row.
 *
 * In the order of arrival all are aged from the start, and a turn is one job's. */
#include "base/check.h"
#include "scheduler/sched_internal.h"

enum admitted { ADMITTED, ABORTED, NO_ROWS, NO_TOKENS, NO_PAGES };

/* ---- what is ahead ------------------------------------------------------------------------ */

/* Rows that an adapter's waiting jobs may take, and the pages that these want to start with. */
static uint32_t wanted_rows(const struct sched *s, uint32_t queue) {
    return sched_min(s->queues[queue].waiting, s->options.rows_max);
}

static uint64_t wanted_pages(const struct sched *s, uint32_t queue) {
    uint64_t pages = sched_pages(s, s->jobs[s->queues[queue].best].known) + SCHED_OUTPUT_PAGES + 1;
    return wanted_rows(s, queue) * pages;
}

static void ahead_put(struct sched *s, struct sched_turn *t, uint32_t queue) {
    t->load_ahead++;
    t->rows_ahead += wanted_rows(s, queue);
    t->pages_ahead += wanted_pages(s, queue);
}

/* The jobs that wait are those of when it was put, or fewer. */
static void ahead_take(struct sched *s, struct sched_turn *t, uint32_t queue) {
    uint64_t pages = wanted_pages(s, queue);
    DCHECK(t->load_ahead > 0);
    t->load_ahead--;
    t->rows_ahead -= sched_min(t->rows_ahead, wanted_rows(s, queue));
    t->pages_ahead -= pages < t->pages_ahead ? pages : t->pages_ahead;
}

/* A few adapters come into pages while others are run, so that nobody waits for a copy. Where rows
 * are free, as many as fill them; but only into pages that neither running sequences nor those rows
 * will want. */
static bool enough_ahead(const struct sched *s, const struct sched_turn *t, uint32_t queue) {
    if (t->load_ahead + t->loads_owed < SCHED_LOAD_AHEAD || t->loads_owed > 0) {
        return t->load_ahead + t->loads_owed >= SCHED_LOAD_AHEAD;
    }
    uint64_t pages = t->snapshot->adapters[queue].pages;
    uint64_t rows = wanted_pages(s, queue) + t->pages_ahead + t->pages_promised;
    bool fits = sched_split(s) ? pages <= t->adapter_free : pages + rows <= t->pages_free;
    return t->rows_ahead >= s->options.rows_max - s->running_count || !fits;
}

/* ---- admission ---------------------------------------------------------------------------- */

static void start(struct sched *s, struct sched_turn *t, uint32_t job, struct sched_found found,
                  uint32_t tokens) {
    struct sched_seq *j = &s->jobs[job];
    uint32_t end = found.tokens + tokens;
    bool sample = end == j->known;
    if (t->placed && !sched_is_base(s, j->queue) && s->queues[j->queue].running == 0) {
        ahead_take(s, t, j->queue); /* it begins */
    }
    sched_run(s, job);
    DCHECK(found.pages <= t->pages_free);
    sched_take(t, found.pages); /* twice where two find the same page: the next plan knows */
    j->found_pages = found.tokens / s->options.page_tokens;
    sched_emit(s, t,
               &(struct sched_work){
                   .job = job,
                   .adapter = sched_is_base(s, j->queue) ? SCHED_BASE : j->queue,
                   .position = found.tokens,
                   .tokens = tokens,
                   .pages = sched_pages(s, end) - j->found_pages,
                   .starts = true,
                   .sample = sample,
               });
    t->pages_promised += sched_pages(s, j->known) - sched_pages(s, end) + 1;
    j->computed = end;
    if (sample) {
        j->known++;
        j->sampled++;
    }
    sched_mark_read(s, t, j->queue);
}

static struct sched_found look_up(const struct sched *s, const struct sched_turn *t, uint32_t job) {
    struct sched_found found = {0};
    if (t->snapshot->found != NULL) {
        found = t->snapshot->found(t->snapshot->context, job);
        CHECK(found.tokens % s->options.page_tokens == 0);
        CHECK(found.tokens < s->jobs[job].known);
        CHECK(found.pages <= found.tokens / s->options.page_tokens);
    }
    return found;
}

/* Starts a waiting job if rows, tokens and pages allow. With others running, the rest of its prompt
 * and some output must find room beside what those were promised; alone it starts with what there
 * is. */
static enum admitted admit(struct sched *s, struct sched_turn *t, uint32_t job,
                           enum sched_force force) {
    const struct sched_seq *j = &s->jobs[job];
    if (sched_pages(s, j->known) > sched_pages_max(s, t, j->queue)) {
        sched_abort_job(s, job, SCHED_NO_ROOM);
        return ABORTED;
    }
    if (s->running_count == s->options.rows_max) {
        return NO_ROWS;
    }
    uint32_t most = sched_min(s->options.chunk_tokens, t->tokens_left);
    if (most == 0) {
        return NO_TOKENS;
    }
    struct sched_claim claim = {.queue = j->queue, .force = force, .order = j->order};
    struct sched_found found = look_up(s, t, job);
    if (s->running_count == 0) {
        if (t->pages_free == 0) {
            claim.force = SCHED_TAKE_ANY;
            (void)sched_make_kv_pages(s, t, 1, &claim);
            return NO_PAGES;
        }
        if (found.pages >= t->pages_free) {
            found = (struct sched_found){0}; /* what it found is all there is to go on with */
        }
        uint64_t fit = (uint64_t)(t->pages_free - found.pages) * s->options.page_tokens;
        most = fit < most ? (uint32_t)fit : most;
        start(s, t, job, found, sched_min(j->known - found.tokens, most));
        return ADMITTED;
    }
    uint64_t output = sched_min(sched_pages(s, j->output_tokens - j->sampled), SCHED_OUTPUT_PAGES);
    uint64_t rest = sched_pages(s, j->known) - found.tokens / s->options.page_tokens;
    uint64_t wanted = rest + found.pages + output + 1 + (uint64_t)t->pages_promised;
    if (wanted > t->pages_free) {
        uint64_t missing = wanted - t->pages_free;
        uint32_t pages = missing < UINT32_MAX ? (uint32_t)missing : UINT32_MAX;
        (void)sched_make_kv_pages(s, t, pages, &claim);
        return NO_PAGES;
    }
    start(s, t, job, found, sched_min(j->known - found.tokens, most));
    return ADMITTED;
}

/* What an admission that failed closes. Without rows or tokens adapters may still be brought in. */
static void close_door(struct sched_turn *t, enum admitted result) {
    t->admit_closed = true;
    if (result == NO_PAGES) {
        t->load_closed = true;
    }
}

/* ---- loads -------------------------------------------------------------------------------- */

/* Asks for an adapter's pages, or makes room for them. false: there is none yet. Room that was made
 * for one is not the next one's. */
static bool load(struct sched *s, struct sched_turn *t, uint32_t queue, enum sched_force force) {
    const struct sched_queue *q = &s->queues[queue];
    uint32_t pages = t->snapshot->adapters[queue].pages;
    while (sched_pages(s, s->jobs[q->best].known) > sched_pages_max(s, t, queue)) {
        sched_abort_job(s, q->best, SCHED_NO_ROOM);
        if (q->waiting == 0) {
            return true;
        }
    }
    struct sched_claim claim = {.queue = queue, .force = force, .order = s->jobs[q->oldest].order};
    uint32_t evicted = s->evicts.count;
    uint64_t wanted = pages + (uint64_t)t->pages_owed;
    if (s->running_count > 0 && !sched_split(s)) {
        wanted += t->pages_promised;
    }
    bool room = wanted <= sched_min(t->adapter_free, t->pages_left);
    uint32_t part = sched_split(s) ? t->adapter_free : t->pages_left;
    if (wanted > part) {
        uint64_t missing = wanted - part;
        (void)sched_make_pages(s, t, missing < UINT32_MAX ? (uint32_t)missing : UINT32_MAX, &claim);
    }
    if (t->adapter_slots == 0 && s->evicts.count == evicted) {
        (void)sched_evict_one(s, t, &claim);
    }
    if (t->adapter_slots == 0 || !room) {
        t->pages_owed += pages;
        t->loads_owed++;
        return false;
    }
    t->pages_left -= pages;
    t->pages_free = sched_min(t->pages_free, t->pages_left);
    t->adapter_free -= pages;
    t->adapter_slots--;
    t->loading++;
    ahead_put(s, t, queue);
    s->loads.items[s->loads.count++] = queue;
    s->queues[queue].load_mark = s->plans;
    sched_resident_note(s, queue);
    return true;
}

/* ---- where the adapters are --------------------------------------------------------------- */

/* A fetch that did not come about: the adapter cannot be read, or the host store is full. It is
 * asked for ever more rarely, so that others get their turn; fewer are asked for at once, as those
 * that came may have been dropped again for the others' sake; and after two in a row an idle
 * resident goes, whose image may be what fills the store. */
static void fetch_missed(struct sched *s, struct sched_turn *t, uint32_t queue) {
    struct sched_queue *q = &s->queues[queue];
    uint32_t shift = s->running_count > 0 ? SCHED_BACKOFF_MAX : SCHED_BACKOFF_IDLE_MAX;
    q->fetch_again = s->plans + (1ULL << sched_min(q->fetch_misses, shift));
    q->fetch_misses++;
    s->fetch_limit = (s->fetch_limit + 1) / 2;
    if (q->fetch_misses >= 2 && s->evicts.count == 0) {
        struct sched_claim claim = {.queue = queue, .force = SCHED_SPARE_WANTED};
        (void)sched_evict_one(s, t, &claim);
    }
}

static void watch_fetch(struct sched *s, struct sched_turn *t, uint32_t queue) {
    struct sched_queue *q = &s->queues[queue];
    switch (sched_state(s, t, queue)) {
    case SCHED_AWAY:
        if (q->fetch_asked) {
            fetch_missed(s, t, queue);
        }
        q->fetch_asked = false;
        break;
    case SCHED_FETCHING:
        q->fetch_asked = true; /* still */
        break;
    case SCHED_STORED: /* may be dropped again, and is then one that was missed */
        break;
    case SCHED_LOADING:
    case SCHED_RESIDENT:
        if (q->fetch_asked) {
            s->fetch_limit = sched_min(s->fetch_limit + 1, SCHED_FETCH_AHEAD);
        }
        q->fetch_asked = false;
        q->fetch_misses = 0;
        break;
    }
}

static void rank_ready(struct sched *s, const struct sched_turn *t, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    bool read = q->step_mark == s->plans || sched_is_base(s, queue);
    uint32_t rows = s->work_count + sched_min(q->waiting, s->options.rows_max - s->running_count);
    uint32_t pages = t->adapter_pages + (read ? 0 : sched_adapter_pages(s, t, queue));
    sched_rank_put(&s->ready, &(struct sched_rank){
                                  .first = s->jobs[q->best].priority,
                                  .second = read ? 0 : 1,
                                  .third = rows > 0 ? sched_step_us(s, rows, pages) / rows : 0,
                                  .order = s->jobs[q->oldest].order,
                                  .queue = queue,
                              });
}

static void rank_away(struct sched *s, uint32_t queue, struct sched_ranking *ranking) {
    const struct sched_queue *q = &s->queues[queue];
    bool aged = sched_aged(s, q->oldest);
    sched_rank_put(ranking, &(struct sched_rank){
                                .first = q->fetch_misses,
                                .second = aged ? INT64_MIN : s->jobs[q->best].priority,
                                .third = aged ? 0 : -(double)q->waiting,
                                .order = s->jobs[q->oldest].order,
                                .queue = queue,
                            });
}

static void place(struct sched *s, struct sched_turn *t, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    watch_fetch(s, t, queue);
    enum sched_adapter_state state = sched_state(s, t, queue);
    bool here = state == SCHED_RESIDENT || state == SCHED_STORED;
    if (here && sched_aged(s, q->oldest)) {
        s->aged.items[s->aged.count++] = queue;
    }
    switch (state) {
    case SCHED_AWAY:
        if (s->plans >= q->fetch_again) {
            rank_away(s, queue, &s->away);
        }
        break;
    case SCHED_FETCHING:
        t->fetch_ahead++;
        break;
    case SCHED_STORED:
        t->fetch_ahead++;
        rank_away(s, queue, &s->stored);
        break;
    case SCHED_LOADING:
        t->loading++;
        ahead_put(s, t, queue);
        sched_resident_note(s, queue);
        break;
    case SCHED_RESIDENT:
        if (!sched_is_base(s, queue) && q->running == 0) {
            ahead_put(s, t, queue);
        }
        sched_resident_note(s, queue);
        if (sched_readable(s, t, queue)) {
            rank_ready(s, t, queue);
        }
        break;
    }
}

/* ---- the aged ----------------------------------------------------------------------------- */

static bool older(const struct sched *s, uint32_t a, uint32_t b) {
    return s->jobs[s->queues[a].oldest].order < s->jobs[s->queues[b].oldest].order;
}

static void aged_sift(struct sched *s, uint32_t at) {
    struct sched_list *heap = &s->aged;
    uint32_t queue = heap->items[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < heap->count && older(s, heap->items[child + 1], heap->items[child])) {
            child++;
        }
        if (child >= heap->count || !older(s, heap->items[child], queue)) {
            break;
        }
        heap->items[at] = heap->items[child];
        at = child;
    }
    heap->items[at] = queue;
}

static void aged_drop(struct sched *s) {
    s->aged.items[0] = s->aged.items[--s->aged.count];
    if (s->aged.count > 0) {
        aged_sift(s, 0);
    }
}

/* Gives an adapter its turn: its jobs by age, as many as wait now, over several plans if rows are
 * few; so its pages are read for all of them together. Preempted ones that come back take nobody
 * along, as that could go on without end. */
static void begin_turn(struct sched *s, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    s->turn_queue = queue;
    s->turn_left = sched_min(q->waiting, sched_turn_jobs(s));
    if (s->jobs[q->oldest].preempted) {
        s->turn_left = 1;
    }
}

static void continue_turn(struct sched *s, struct sched_turn *t) {
    const struct sched_queue *q = &s->queues[s->turn_queue];
    while (!t->admit_closed && s->turn_left > 0 && q->waiting > 0) {
        enum admitted result = admit(s, t, q->oldest, SCHED_TAKE_YOUNGER);
        if (result == ADMITTED || result == ABORTED) {
            s->turn_left--;
        } else {
            close_door(t, result);
        }
    }
    if (q->waiting == 0) {
        s->turn_left = 0;
    }
}

/* A turn, as far as this plan goes. true: the adapter may have another one. */
static bool serve_turn(struct sched *s, struct sched_turn *t, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    if (t->admit_closed || !sched_readable(s, t, queue)) {
        return false;
    }
    begin_turn(s, queue);
    continue_turn(s, t);
    return q->waiting > 0 && sched_aged(s, q->oldest);
}

/* In the order of arrival: each row that is free has an adapter on its way for it, and some more
 * are. Those that come after these would only take pages. */
static bool rows_are_awaited(const struct sched *s, const struct sched_turn *t) {
    uint32_t rows = s->options.rows_max - s->running_count;
    return s->options.policy == SCHED_ARRIVAL && t->loading >= rows + SCHED_LOAD_AHEAD;
}

static void serve_aged(struct sched *s, struct sched_turn *t) {
    for (uint32_t i = s->aged.count / 2; i-- > 0;) {
        aged_sift(s, i);
    }
    while (s->aged.count > 0 && !(t->admit_closed && t->load_closed)) {
        uint32_t queue = s->aged.items[0];
        if (sched_state(s, t, queue) == SCHED_RESIDENT) {
            if (serve_turn(s, t, queue)) {
                aged_sift(s, 0); /* its oldest is another one now */
            } else {
                aged_drop(s);
            }
            continue;
        }
        aged_drop(s);
        if (t->load_closed || (t->admit_closed && enough_ahead(s, t, queue))) {
            continue;
        }
        if (rows_are_awaited(s, t) || !load(s, t, queue, SCHED_TAKE_YOUNGER)) {
            t->admit_closed = true; /* what ends now makes room for it */
            t->load_closed = true;
        }
    }
}

/* ---- the others --------------------------------------------------------------------------- */

/* Whether the step should read one more adapter.
 *
 * All that waits is computed some time, so that a row's own time is no reason; what can be saved is
 * the weights, read once a step for all rows, and an adapter's pages, read in each step that any of
 * its jobs runs in. Where all its jobs fit into the rows that are free, its pages are read as often
 * whenever it starts, and rows left empty would only make more steps: it starts. Unless it is so
 * dear a row (rank 512 with one job) that a wait for more of its jobs may be worth more than the
 * rows. Where some would have to wait, it starts if the step gets cheaper a row by it: else others
 * take the few rows better, and it finds more of them later. A step that is not half full takes it
 * anyway, and whoever has waited for wait_steps is not asked. */
static bool pays(const struct sched *s, const struct sched_turn *t, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    uint32_t rows = s->work_count;
    if (rows == 0 || rows < s->options.rows_max / 2 || q->step_mark == s->plans ||
        sched_is_base(s, queue)) {
        return true;
    }
    uint32_t free = s->options.rows_max - s->running_count;
    uint32_t more = sched_min(q->waiting, free);
    uint32_t pages = t->adapter_pages + sched_adapter_pages(s, t, queue);
    double before = sched_step_us(s, rows, t->adapter_pages);
    double after = sched_step_us(s, rows + more, pages);
    double limit = q->waiting <= free ? SCHED_DEAR : 1;
    return (after - before) / more <= limit * before / rows;
}

static void serve_ready(struct sched *s, struct sched_turn *t) {
    for (uint32_t i = 0; i < s->ready.count && !t->admit_closed; i++) {
        uint32_t queue = s->ready.ranks[i].queue;
        const struct sched_queue *q = &s->queues[queue];
        if (!sched_readable(s, t, queue) || s->running_count == s->options.rows_max ||
            !pays(s, t, queue)) {
            continue;
        }
        while (!t->admit_closed && q->waiting > 0) {
            enum admitted result = admit(s, t, q->best, SCHED_SPARE_WANTED);
            if (result != ADMITTED && result != ABORTED) {
                close_door(t, result);
            }
        }
    }
}

static void serve_stored(struct sched *s, struct sched_turn *t) {
    for (uint32_t i = 0; i < s->stored.count && !t->load_closed; i++) {
        uint32_t queue = s->stored.ranks[i].queue;
        const struct sched_queue *q = &s->queues[queue];
        if (q->waiting == 0 || sched_aged(s, q->oldest) || q->load_mark == s->plans) {
            continue; /* aborted, or dealt with among the aged */
        }
        if (enough_ahead(s, t, queue)) {
            return;
        }
        (void)load(s, t, queue, SCHED_SPARE_WANTED);
    }
}

static void serve_away(struct sched *s, struct sched_turn *t) {
    for (uint32_t i = 0; i < s->away.count && t->fetch_ahead < s->fetch_limit; i++) {
        uint32_t queue = s->away.ranks[i].queue;
        s->fetches.items[s->fetches.count++] = queue;
        s->queues[queue].fetch_asked = true;
        t->fetch_ahead++;
    }
}

void sched_choose(struct sched *s, struct sched_turn *t) {
    s->ready.count = s->stored.count = s->away.count = s->aged.count = 0;
    if (s->options.policy == SCHED_ARRIVAL) {
        s->turn_left = 0; /* the oldest may be another one than in the last plan */
    }
    if (s->turn_left > 0 && sched_readable(s, t, s->turn_queue)) {
        continue_turn(s, t);
    }
    for (uint32_t i = 0; i < s->waiting.count; i++) {
        place(s, t, s->waiting.items[i]);
    }
    t->placed = true;
    serve_aged(s, t);
    serve_ready(s, t);
    serve_stored(s, t);
    serve_away(s, t);
}
