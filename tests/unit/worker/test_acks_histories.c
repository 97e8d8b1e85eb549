/* 10^5 random histories of a simulated broker and two workers (invariant 1). Records lie at offsets
 * with gaps; jobs finish in any order; workers are killed, partitions are revoked and lost, commits
 * fail or only their answers do, the client rewinds. In the end all faults stop, and every record
 * must have an outcome and be committed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tests/unit/seed.h"
#include "worker/acks.h"

static struct acks *acks_of(uint32_t partitions, uint32_t received) {
    struct acks *a = NULL;
    struct acks_options options = {.partitions_max = partitions, .received_max = received};
    assert_int_equal(acks_open(&a, &options), ERR_OK);
    return a;
}

enum {
    SIM_HISTORIES = 100000,
    SIM_PARTITIONS = 3,
    SIM_RECORDS = 16, /* most of a partition */
    SIM_WORKERS = 2,
    SIM_JOBS = 64, /* of one worker, with those in limbo */
    SIM_COMMITS = 8,
    SIM_STEPS_MAX = 500,
    SIM_DRAIN_MAX = 8000,
};

enum sim_job_state { SIM_RUNNING, SIM_PRODUCED, SIM_DELIVERED }; /* DELIVERED: report under way */

struct sim_job {
    uint32_t partition, record, slot, epoch;
    enum sim_job_state state;
};

struct sim_commit { /* under way to the broker, or its report back */
    uint32_t partition, slot, epoch,
        owner; /* owner: the broker's count of owners when it was sent */
    int64_t next;
    bool ended, ok;
};

struct sim_partition { /* at the broker */
    uint32_t record_count;
    int64_t offsets[SIM_RECORDS];
    uint32_t delivered[SIM_RECORDS]; /* outcomes that name it */
    uint32_t assigned[SIM_RECORDS];  /* assignments that began at or below it */
    int64_t committed;               /* -1 = nothing yet */
    int worker;                      /* < 0: nobody's */
    uint32_t owner;                  /* counts owners: a commit of an older one is refused */
};

struct sim_view { /* of an assigned partition, at its worker */
    uint32_t slot, epoch;
    uint32_t position; /* record to come */
    int64_t start;
    uint32_t first;         /* record */
    bool done[SIM_RECORDS]; /* reported to acks in this epoch */
};

struct sim_worker {
    struct acks *acks;
    struct sim_job jobs[SIM_JOBS];
    struct sim_commit commits[SIM_COMMITS];
    uint32_t job_count, commit_count;
    struct sim_view views[SIM_PARTITIONS];
};

struct sim {
    uint64_t seed;
    uint32_t faults; /* 0 = none, else one in so many chances */
    uint32_t received_max;
    struct sim_partition partitions[SIM_PARTITIONS];
    struct sim_worker workers[SIM_WORKERS];
};

static struct { /* over all histories: they must go where it hurts */
    uint64_t kills, rebalances, lost, failures, duplicates, full, stale, refused, commits;
} sim_seen;

static bool sim_fault(struct sim *s) {
    return s->faults > 0 && seed_below(&s->seed, s->faults) == 0;
}

static void sim_open_worker(struct sim *s, struct sim_worker *w) {
    memset(w, 0, sizeof *w);
    w->acks = acks_of(SIM_PARTITIONS, s->received_max);
}

/* The watermark, the slow way: from what was received and reported in this epoch. */
static int64_t sim_watermark(const struct sim *s, const struct sim_worker *w, uint32_t partition) {
    const struct sim_view *v = &w->views[partition];
    int64_t next = v->start;
    for (uint32_t i = v->first; i < v->position && v->done[i]; i++) {
        next = s->partitions[partition].offsets[i] + 1;
    }
    return next;
}

static void sim_assign(struct sim *s, uint32_t partition, uint32_t worker) {
    struct sim_partition *p = &s->partitions[partition];
    struct sim_worker *w = &s->workers[worker];
    struct sim_view *v = &w->views[partition];
    assert_true(p->worker < 0);
    p->worker = (int)worker;
    p->owner++;
    *v = (struct sim_view){.start = p->committed};
    while (v->position < p->record_count && p->offsets[v->position] < p->committed) {
        v->position++;
    }
    v->first = v->position;
    for (uint32_t i = v->first; i < p->record_count; i++) {
        p->assigned[i]++;
    }
    assert_int_equal(
        acks_assign(w->acks, partition % 2, (int32_t)partition, p->committed, &v->slot, &v->epoch),
        ERR_OK);
}

static void sim_poll(struct sim *s, uint32_t partition) {
    struct sim_partition *p = &s->partitions[partition];
    if (p->worker < 0) {
        return;
    }
    struct sim_worker *w = &s->workers[p->worker];
    struct sim_view *v = &w->views[partition];
    if (sim_fault(s) && v->position > v->first) { /* the client rewinds */
        uint32_t old = v->first + seed_below(&s->seed, v->position - v->first);
        assert_false(acks_receive(w->acks, v->slot, p->offsets[old]));
        sim_seen.refused++;
    }
    if (v->position == p->record_count || w->job_count == SIM_JOBS) {
        return;
    }
    if (acks_full(w->acks)) {
        sim_seen.full++;
        return;
    }
    uint32_t slot;
    assert_true(acks_find(w->acks, partition % 2, (int32_t)partition, &slot));
    assert_int_equal(slot, v->slot);
    assert_true(acks_receive(w->acks, slot, p->offsets[v->position]));
    w->jobs[w->job_count++] = (struct sim_job){.partition = partition,
                                               .record = v->position,
                                               .slot = slot,
                                               .epoch = acks_epoch(w->acks, slot)};
    v->position++;
}

/* Some job goes on: its outcome is produced, reaches the broker, is reported. */
static void sim_job_step(struct sim *s, struct sim_worker *w) {
    if (w->job_count == 0) {
        return;
    }
    uint32_t index = seed_below(&s->seed, w->job_count);
    struct sim_job *j = &w->jobs[index];
    switch (j->state) {
    case SIM_RUNNING:
        j->state = SIM_PRODUCED;
        break;
    case SIM_PRODUCED:
        if (sim_fault(s)) {
            j->state = SIM_RUNNING; /* the broker is away: once more */
            break;
        }
        s->partitions[j->partition].delivered[j->record]++;
        j->state = SIM_DELIVERED;
        break;
    case SIM_DELIVERED:
        if (w->views[j->partition].epoch == j->epoch) {
            w->views[j->partition].done[j->record] = true;
        } else {
            sim_seen.stale++;
        }
        acks_deliver(w->acks, j->slot, j->epoch, s->partitions[j->partition].offsets[j->record]);
        *j = w->jobs[--w->job_count];
        break;
    }
}

/* The broker takes a commit, or refuses it: of an older owner, or for no reason we know. */
static void sim_commit_arrives(struct sim *s, struct sim_commit *c) {
    struct sim_partition *p = &s->partitions[c->partition];
    c->ended = true;
    c->ok = c->owner == p->owner && p->worker >= 0;
    if (c->ok && sim_fault(s)) {
        sim_seen.failures++;
        c->ok = false;
        if (seed_below(&s->seed, 2) == 0) {
            return;
        } /* else only its answer was lost */
    } else if (!c->ok) {
        return;
    }
    for (uint32_t i = 0; i < p->record_count && p->offsets[i] < c->next; i++) {
        assert_true(p->delivered[i] > 0); /* invariant 1 */
    }
    assert_true(c->next >= p->committed); /* equal: sent again after a lost answer */
    assert_true(c->next <= p->offsets[p->record_count - 1] + 1);
    p->committed = c->next;
    sim_seen.commits++;
}

static void sim_commit_send(struct sim *s, struct sim_worker *w, uint32_t partition) {
    struct sim_view *v = &w->views[partition];
    struct acks_commit c;
    int64_t watermark = sim_watermark(s, w, partition);
    if (w->commit_count == SIM_COMMITS) {
        return;
    }
    if (!acks_commit_due(w->acks, v->slot, &c)) {
        return;
    }
    assert_int_equal(c.next, watermark);
    assert_int_equal(c.topic, partition % 2);
    assert_int_equal(c.partition, partition);
    acks_commit_sent(w->acks, v->slot, c.next);
    w->commits[w->commit_count++] = (struct sim_commit){.partition = partition,
                                                        .slot = v->slot,
                                                        .epoch = v->epoch,
                                                        .owner = s->partitions[partition].owner,
                                                        .next = c.next};
}

/* The oldest commit goes on. */
static void sim_commit_step(struct sim *s, struct sim_worker *w) {
    if (w->commit_count == 0) {
        return;
    }
    struct sim_commit *c = &w->commits[0];
    if (!c->ended) {
        sim_commit_arrives(s, c);
        return;
    }
    acks_commit_ended(w->acks, c->slot, c->epoch, c->next, c->ok);
    w->commit_count--;
    memmove(c, c + 1, w->commit_count * sizeof *c);
}

/* The partition leaves its worker: revoked with a last commit, or lost without. Its jobs go on in
 * limbo and deliver, without effect on what is committed. */
static void sim_revoke(struct sim *s, uint32_t partition) {
    struct sim_partition *p = &s->partitions[partition];
    struct sim_worker *w = &s->workers[p->worker];
    struct sim_view *v = &w->views[partition];
    if (seed_below(&s->seed, 4) == 0) {
        sim_seen.lost++;
    } else {
        while (w->commit_count > 0) { /* what is under way ends before a commit that waits does */
            sim_commit_step(s, w);
        }
        sim_commit_send(s, w, partition);
        while (w->commit_count > 0) {
            sim_commit_step(s, w);
        }
    }
    acks_unassign(w->acks, v->slot);
    v->epoch = 0;
    p->worker = -1;
}

static void sim_rebalance(struct sim *s) {
    sim_seen.rebalances++;
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        if (s->partitions[i].worker >= 0) {
            sim_revoke(s, i);
        }
    }
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        sim_assign(s, i, seed_below(&s->seed, SIM_WORKERS));
    }
}

/* All that the process knew is gone; what it had sent may still arrive. */
static void sim_kill(struct sim *s, uint32_t worker) {
    struct sim_worker *w = &s->workers[worker];
    sim_seen.kills++;
    for (uint32_t i = 0; i < w->job_count; i++) {
        struct sim_job *j = &w->jobs[i];
        if (j->state == SIM_PRODUCED && seed_below(&s->seed, 2) == 0) {
            s->partitions[j->partition].delivered[j->record]++;
        }
    }
    for (uint32_t i = 0; i < w->commit_count; i++) {
        if (!w->commits[i].ended && seed_below(&s->seed, 2) == 0) {
            sim_commit_arrives(s, &w->commits[i]);
        }
    }
    acks_close(w->acks);
    sim_open_worker(s, w);
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        if (s->partitions[i].worker == (int)worker) {
            s->partitions[i].worker = -1;
            sim_assign(s, i, seed_below(&s->seed, SIM_WORKERS));
        }
    }
}

static void sim_step(struct sim *s) {
    struct sim_worker *w = &s->workers[seed_below(&s->seed, SIM_WORKERS)];
    uint32_t partition = seed_below(&s->seed, SIM_PARTITIONS);
    switch (seed_below(&s->seed, 8)) {
    case 0:
    case 1:
        sim_poll(s, partition);
        break;
    case 2:
        if (s->partitions[partition].worker >= 0) {
            sim_commit_send(s, &s->workers[s->partitions[partition].worker], partition);
        }
        break;
    case 3:
        sim_commit_step(s, w);
        break;
    case 4:
        if (sim_fault(s)) {
            if (seed_below(&s->seed, 2) == 0) {
                sim_kill(s, seed_below(&s->seed, SIM_WORKERS));
            } else {
                sim_rebalance(s);
            }
        }
        break;
    default:
        sim_job_step(s, w);
        break;
    }
}

static bool sim_finished(const struct sim *s) {
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        const struct sim_partition *p = &s->partitions[i];
        if (p->record_count > 0 && p->committed != p->offsets[p->record_count - 1] + 1) {
            return false;
        }
    }
    return s->workers[0].job_count + s->workers[1].job_count == 0;
}

static void sim_open(struct sim *s, uint64_t seed) {
    memset(s, 0, sizeof *s);
    s->seed = seed;
    const uint32_t faults[] = {0, 40, 12, 5};
    s->faults = faults[seed_below(&s->seed, 4)];
    s->received_max = 2 + seed_below(&s->seed, 24);
    for (uint32_t i = 0; i < SIM_WORKERS; i++) {
        sim_open_worker(s, &s->workers[i]);
    }
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        struct sim_partition *p = &s->partitions[i];
        p->record_count = seed_below(&s->seed, SIM_RECORDS + 1);
        p->committed = seed_below(&s->seed, 2) == 0 ? -1 : 1000;
        p->worker = -1;
        int64_t offset = p->committed < 0 ? 0 : p->committed;
        for (uint32_t r = 0; r < p->record_count; r++) {
            if (seed_below(&s->seed, 3) == 0) { /* compaction, markers, retention */
                offset += 1 + seed_below(&s->seed, 50);
            }
            p->offsets[r] = offset++;
        }
        sim_assign(s, i, seed_below(&s->seed, SIM_WORKERS));
    }
}

static void sim_history(uint64_t seed) {
    struct sim *s = malloc(sizeof *s);
    assert_non_null(s);
    sim_open(s, seed);
    uint32_t faults = s->faults;
    uint32_t steps = seed_below(&s->seed, SIM_STEPS_MAX);
    for (uint32_t i = 0; i < steps; i++) {
        sim_step(s);
    }
    s->faults = 0; /* all will be well */
    uint32_t drain = 0;
    while (!sim_finished(s)) {
        assert_true(drain++ < SIM_DRAIN_MAX);
        sim_step(s);
    }
    for (uint32_t i = 0; i < SIM_PARTITIONS; i++) {
        struct sim_partition *p = &s->partitions[i];
        for (uint32_t r = 0; r < p->record_count; r++) {
            assert_true(p->delivered[r] >= 1);
            assert_true(p->delivered[r] <= p->assigned[r]); /* once an assignment at most */
            assert_true(faults > 0 || p->delivered[r] == 1);
            sim_seen.duplicates += p->delivered[r] > 1;
        }
    }
    for (uint32_t i = 0; i < SIM_WORKERS; i++) {
        assert_int_equal(acks_open_offsets(s->workers[i].acks), 0);
        assert_false(acks_full(s->workers[i].acks));
        acks_close(s->workers[i].acks);
    }
    free(s);
}

static void test_histories(void **state) {
    (void)state;
    uint64_t seed = seed_take(1);
    print_message("seeds %llu + 0 .. %d (LORRY_SEED)\n", (unsigned long long)seed,
                  SIM_HISTORIES - 1);
    for (uint64_t i = 0; i < SIM_HISTORIES; i++) {
        sim_history(seed + i);
    }
    print_message("kills %llu rebalances %llu commits %llu of which failed %llu duplicates %llu\n",
                  (unsigned long long)sim_seen.kills, (unsigned long long)sim_seen.rebalances,
                  (unsigned long long)sim_seen.commits, (unsigned long long)sim_seen.failures,
                  (unsigned long long)sim_seen.duplicates);
    assert_true(sim_seen.kills > 10000);
    assert_true(sim_seen.rebalances > 10000);
    assert_true(sim_seen.lost > 10000);
    assert_true(sim_seen.failures > 10000);
    assert_true(sim_seen.duplicates > 10000);
    assert_true(sim_seen.full > 10000);
    assert_true(sim_seen.stale > 10000);
    assert_true(sim_seen.refused > 10000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_histories)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
