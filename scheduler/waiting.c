/* waiting.c - the waiting room: per adapter a pairing heap by rank and a list by age over the same
 * jobs, a heap of all deadlines, and small helpers over preallocated lists. */
#include <string.h>

#include "base/check.h"
#include "scheduler/sched_internal.h"

void sched_list_put(struct sched_list *list, uint32_t item, uint32_t *place) {
    *place = list->count;
    list->items[list->count++] = item;
}

/* ---- by rank: a pairing heap -------------------------------------------------------------- */

static bool before(const struct sched *s, uint32_t a, uint32_t b) {
    const struct sched_seq *x = &s->jobs[a];
    const struct sched_seq *y = &s->jobs[b];
    if (x->preempted != y->preempted) {
        return x->preempted;
    }
    if (x->priority != y->priority) {
        return x->priority < y->priority;
    }
    if (x->arrival != y->arrival) {
        return x->arrival < y->arrival;
    }
    return x->order < y->order;
}

/* Joins two heaps whose roots have no siblings. */
static uint32_t meld(struct sched *s, uint32_t a, uint32_t b) {
    if (a == SCHED_NONE || b == SCHED_NONE) {
        return a == SCHED_NONE ? b : a;
    }
    if (before(s, b, a)) {
        uint32_t swap = a;
        a = b;
        b = swap;
    }
    struct sched_seq *top = &s->jobs[a];
    struct sched_seq *under = &s->jobs[b];
    under->prev = a;
    under->next = top->child;
    if (top->child != SCHED_NONE) {
        s->jobs[top->child].prev = b;
    }
    top->child = b;
    return a;
}

static uint32_t cut_first(struct sched *s, uint32_t *rest) {
    uint32_t first = *rest;
    if (first != SCHED_NONE) {
        *rest = s->jobs[first].next;
        s->jobs[first].next = SCHED_NONE;
        s->jobs[first].prev = SCHED_NONE;
    }
    return first;
}

/* One heap of a list of siblings: in pairs, then the pairs from last to first. */
static uint32_t meld_siblings(struct sched *s, uint32_t rest) {
    uint32_t pairs = SCHED_NONE;
    while (rest != SCHED_NONE) {
        uint32_t a = cut_first(s, &rest);
        uint32_t b = cut_first(s, &rest);
        uint32_t pair = meld(s, a, b);
        s->jobs[pair].next = pairs;
        pairs = pair;
    }
    uint32_t heap = SCHED_NONE;
    while (pairs != SCHED_NONE) {
        uint32_t pair = cut_first(s, &pairs);
        heap = meld(s, heap, pair);
    }
    return heap;
}

static void heap_remove(struct sched *s, struct sched_queue *q, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    uint32_t below = meld_siblings(s, j->child);
    j->child = SCHED_NONE;
    if (q->best == job) {
        q->best = below;
        return;
    }
    struct sched_seq *prev = &s->jobs[j->prev];
    if (prev->child == job) {
        prev->child = j->next;
    } else {
        prev->next = j->next;
    }
    if (j->next != SCHED_NONE) {
        s->jobs[j->next].prev = j->prev;
    }
    q->best = meld(s, q->best, below);
}

/* ---- by age: a list ----------------------------------------------------------------------- */

/* New jobs go to the end at once; a preempted one looks for its place from the front. */
static void age_put(struct sched *s, struct sched_queue *q, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    uint32_t older = q->newest;
    if (older != SCHED_NONE && s->jobs[older].order > j->order) {
        older = SCHED_NONE;
        uint32_t at = q->oldest;
        while (s->jobs[at].order < j->order) {
            older = at;
            at = s->jobs[at].younger;
        }
    }
    j->older = older;
    j->younger = older == SCHED_NONE ? q->oldest : s->jobs[older].younger;
    *(j->older == SCHED_NONE ? &q->oldest : &s->jobs[j->older].younger) = job;
    *(j->younger == SCHED_NONE ? &q->newest : &s->jobs[j->younger].older) = job;
}

static void age_remove(struct sched *s, struct sched_queue *q, uint32_t job) {
    const struct sched_seq *j = &s->jobs[job];
    *(j->older == SCHED_NONE ? &q->oldest : &s->jobs[j->older].younger) = j->younger;
    *(j->younger == SCHED_NONE ? &q->newest : &s->jobs[j->younger].older) = j->older;
}

/* ---- an adapter's queue ------------------------------------------------------------------- */

void sched_queue_put(struct sched *s, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    struct sched_queue *q = &s->queues[j->queue];
    j->state = SCHED_WAITING;
    j->child = j->next = j->prev = SCHED_NONE;
    q->best = meld(s, q->best, job);
    age_put(s, q, job);
    if (q->waiting++ == 0) {
        sched_list_put(&s->waiting, j->queue, &q->waiting_at);
    }
    s->waiting_count++;
}

void sched_queue_remove(struct sched *s, uint32_t job) {
    struct sched_seq *j = &s->jobs[job];
    struct sched_queue *q = &s->queues[j->queue];
    CHECK(j->state == SCHED_WAITING);
    heap_remove(s, q, job);
    age_remove(s, q, job);
    s->waiting_count--;
    if (--q->waiting == 0) {
        uint32_t last = s->waiting.items[--s->waiting.count];
        s->waiting.items[q->waiting_at] = last;
        s->queues[last].waiting_at = q->waiting_at;
        q->waiting_at = SCHED_NONE;
    }
}

/* ---- deadlines: a binary heap ------------------------------------------------------------- */

static bool sooner(const struct sched *s, uint32_t a, uint32_t b) {
    int64_t x = s->jobs[a].deadline_ms;
    int64_t y = s->jobs[b].deadline_ms;
    return x != y ? x < y : s->jobs[a].order < s->jobs[b].order;
}

static void deadline_at(struct sched *s, uint32_t job, uint32_t at) {
    s->deadlines.items[at] = job;
    s->jobs[job].deadline_at = at;
}

static void deadline_up(struct sched *s, uint32_t job, uint32_t at) {
    while (at > 0 && sooner(s, job, s->deadlines.items[(at - 1) / 2])) {
        deadline_at(s, s->deadlines.items[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    deadline_at(s, job, at);
}

static void deadline_down(struct sched *s, uint32_t job, uint32_t at) {
    const struct sched_list *heap = &s->deadlines;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < heap->count && sooner(s, heap->items[child + 1], heap->items[child])) {
            child++;
        }
        if (child >= heap->count || !sooner(s, heap->items[child], job)) {
            break;
        }
        deadline_at(s, heap->items[child], at);
        at = child;
    }
    deadline_at(s, job, at);
}

void sched_deadline_put(struct sched *s, uint32_t job) {
    if (s->jobs[job].deadline_ms != INT64_MAX) {
        deadline_up(s, job, s->deadlines.count++);
    }
}

void sched_deadline_remove(struct sched *s, uint32_t job) {
    uint32_t at = s->jobs[job].deadline_at;
    if (at == SCHED_NONE) {
        return;
    }
    s->jobs[job].deadline_at = SCHED_NONE;
    uint32_t last = s->deadlines.items[--s->deadlines.count];
    if (last == job) {
        return;
    }
    deadline_up(s, last, at);
    deadline_down(s, last, s->jobs[last].deadline_at);
}

/* ---- rankings ----------------------------------------------------------------------------- */

static bool ranks_before(const struct sched_rank *a, const struct sched_rank *b) {
    if (a->first != b->first) {
        return a->first < b->first;
    }
    if (a->second != b->second) {
        return a->second < b->second;
    }
    if (a->third < b->third || a->third > b->third) {
        return a->third < b->third;
    }
    return a->order < b->order;
}

void sched_rank_put(struct sched_ranking *ranking, const struct sched_rank *rank) {
    uint32_t at = ranking->count;
    if (at == ranking->most) {
        if (!ranks_before(rank, &ranking->ranks[at - 1])) {
            return;
        }
        at--;
    } else {
        ranking->count++;
    }
    while (at > 0 && ranks_before(rank, &ranking->ranks[at - 1])) {
        ranking->ranks[at] = ranking->ranks[at - 1];
        at--;
    }
    ranking->ranks[at] = *rank;
}
