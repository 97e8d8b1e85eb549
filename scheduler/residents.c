/* residents.c - which adapters may be in pages, and which of them go. */
#include "base/check.h"
#include "scheduler/sched_internal.h"

/* Adapters come into pages by plans only, so a list of those that were asked for, or that were seen
 * there, has them all; what was refused or evicted drops out here. */
void sched_residents_refresh(struct sched *s, const struct sched_turn *t) {
    for (uint32_t i = 0; i < s->residents.count;) {
        uint32_t queue = s->residents.items[i];
        enum sched_adapter_state state = sched_state(s, t, queue);
        if (state == SCHED_RESIDENT || state == SCHED_LOADING) {
            i++;
            continue;
        }
        uint32_t last = s->residents.items[--s->residents.count];
        s->residents.items[i] = last;
        s->queues[last].resident_at = i;
        s->queues[queue].resident_at = SCHED_NONE;
    }
}

void sched_resident_note(struct sched *s, uint32_t queue) {
    if (!sched_is_base(s, queue) && s->queues[queue].resident_at == SCHED_NONE) {
        sched_list_put(&s->residents, queue, &s->queues[queue].resident_at);
    }
}

static bool may_go(const struct sched *s, const struct sched_turn *t, uint32_t queue,
                   const struct sched_claim *claim) {
    const struct sched_queue *q = &s->queues[queue];
    if (queue == claim->queue || !sched_readable(s, t, queue) || q->running > 0 ||
        t->snapshot->adapters[queue].users > 0) {
        return false;
    }
    if (q->waiting == 0) {
        return true;
    }
    switch (claim->force) {
    case SCHED_SPARE_WANTED:
        return false;
    case SCHED_TAKE_YOUNGER:
        return s->jobs[q->oldest].order > claim->order &&
               !(queue == s->turn_queue && s->turn_left > 0);
    case SCHED_TAKE_ANY:
        return true;
    }
    return false;
}

/* Those that nobody waits for go first, least recently used; then the youngest claims. */
static bool goes_before(const struct sched *s, uint32_t a, uint32_t b) {
    const struct sched_queue *x = &s->queues[a];
    const struct sched_queue *y = &s->queues[b];
    if ((x->waiting == 0) != (y->waiting == 0)) {
        return x->waiting == 0;
    }
    if (x->waiting > 0) {
        return s->jobs[x->oldest].order > s->jobs[y->oldest].order;
    }
    return x->used_step != y->used_step ? x->used_step < y->used_step : a < b;
}

bool sched_evict_one(struct sched *s, struct sched_turn *t, const struct sched_claim *claim) {
    uint32_t victim = SCHED_NONE;
    for (uint32_t i = 0; i < s->residents.count; i++) {
        uint32_t queue = s->residents.items[i];
        if (may_go(s, t, queue, claim) && (victim == SCHED_NONE || goes_before(s, queue, victim))) {
            victim = queue;
        }
    }
    if (victim == SCHED_NONE) {
        return false;
    }
    s->queues[victim].evict_mark = s->plans;
    s->evicts.items[s->evicts.count++] = victim;
    sched_merge_forget(s, victim);
    *(sched_split(s) ? &t->adapter_coming : &t->pages_coming) +=
        t->snapshot->adapters[victim].pages;
    return true;
}

bool sched_make_pages(struct sched *s, struct sched_turn *t, uint32_t pages,
                      const struct sched_claim *claim) {
    const uint32_t *coming = sched_split(s) ? &t->adapter_coming : &t->pages_coming;
    while (*coming < pages) {
        if (!sched_evict_one(s, t, claim)) {
            return false;
        }
    }
    return true;
}

bool sched_make_kv_pages(struct sched *s, struct sched_turn *t, uint32_t pages,
                         const struct sched_claim *claim) {
    return sched_split(s) ? t->pages_coming >= pages : sched_make_pages(s, t, pages, claim);
}
