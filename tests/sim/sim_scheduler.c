/* sim_scheduler - drives the scheduler through made-up workers, each from a seed: every plan is
 * legal, every job ends, none waits beyond its bound, and a seed always gives the same plans, may
 * steps run merged or not.
 *
 *   sim_scheduler --seeds N [--from S]    seeds S .. S+N-1 (1 and 200)
 *   sim_scheduler --seed N                one, with what came of it */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_world.h"

enum { TICKS_MAX = 2000000, TICKS_IDLE_MAX = 20000 };

static void run(struct sim_world *w, uint64_t seed, bool merging) {
    sim_fail_context(seed, w);
    sim_open(w, seed, merging);
    uint32_t busy_tick = 0; /* the last one that launched a step or saw a job go */
    while (w->sent < w->knobs.jobs || w->held > 0) {
        uint32_t held = w->held;
        sim_outside(w);
        struct sched_snapshot snapshot = sim_snapshot(w);
        struct sched_plan plan;
        sched_plan(w->sched, &snapshot, &plan);
        sim_check(w, &plan);
        sim_apply(w, &plan);
        sim_check_world(w);
        if (plan.work_count > 0 || w->held != held) {
            busy_tick = w->tick;
        }
        if (w->tick - busy_tick > TICKS_IDLE_MAX || w->tick > TICKS_MAX) {
            sim_fail("stuck", w->held);
        }
    }
    if (w->step_count > 1 || w->slots_free != w->knobs.options.rows_max) {
        sim_fail("slots are missing at the end", w->slots_free);
    }
    sim_close(w);
}

static void report(uint64_t seed, const struct sim_world *w) {
    const struct sim_knobs *k = &w->knobs;
    (void)printf("seed %" PRIu64
                 ": policy=%s split=%u adapters=%u rows=%u step_tokens=%u chunk=%u T=%u pages=%u "
                 "slot_pages=%u wait_steps=%u table=%u store=%u\n",
                 seed, k->options.policy == SCHED_ARRIVAL ? "arrival" : "backlog",
                 k->options.split_pages, k->options.adapters_max, k->options.rows_max,
                 k->options.step_tokens, k->options.chunk_tokens, k->options.page_tokens,
                 k->options.pages, k->options.slot_pages, k->options.wait_steps, k->adapter_slots,
                 k->store_images);
    (void)printf(
        "  ticks=%u steps=%" PRIu64 " merged=%" PRIu64 " rows/step=%.1f tokens=%" PRIu64
        " loads=%" PRIu64 " preempted=%" PRIu64 " found=%" PRIu64 "\n  finished=%" PRIu64
        " expired=%" PRIu64 " no_room=%" PRIu64 " cancelled=%" PRIu64 " refused=%" PRIu64
        "\n  longest wait=%" PRIu64 " steps, at most %.3f%% of its bound, digest=%016" PRIx64 "\n",
        w->tick, w->step_total, w->merged_total,
        w->step_total > 0 ? (double)w->row_total / (double)w->step_total : 0, w->token_total,
        w->loads, w->preempts, w->found_total, w->finished, w->aborts_expired, w->aborts_no_room,
        w->cancels, w->refused, w->waited_max, 100 * w->bound_share_max, w->digest);
}

static void usage(void) {
    (void)fprintf(stderr, "usage: sim_scheduler --seeds N [--from S] | --seed N\n");
    exit(2);
}

int main(int argc, char **argv) {
    static struct sim_world w;
    uint64_t count = 200;
    uint64_t from = 1;
    bool one = false;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) {
            usage();
        }
        uint64_t value = strtoull(argv[i + 1], NULL, 0);
        if (strcmp(argv[i], "--seeds") == 0) {
            count = value;
        } else if (strcmp(argv[i], "--from") == 0) {
            from = value;
        } else if (strcmp(argv[i], "--seed") == 0) {
            from = value;
            count = 1;
            one = true;
        } else {
            usage();
        }
    }
    struct sim_world sum = {0};
    for (uint64_t seed = from; seed < from + count; seed++) {
        bool merging = seed % 3 != 0;
        run(&w, seed, merging);
        uint64_t digest = w.digest;
        if (one) {
            report(seed, &w);
        }
        sum.step_total += w.step_total;
        sum.preempts += w.preempts;
        sum.aborts_no_room += w.aborts_no_room;
        sum.finished += w.finished;
        sum.loads += w.loads;
        sum.found_total += w.found_total;
        sum.merged_total += w.merged_total;
        if (one || seed % 8 == 0) {
            run(&w, seed, !merging);
            if (w.digest != digest) {
                sim_fail("the same seed gave other plans", 0);
            }
        }
    }
    if (count >= 200 && sum.merged_total == 0) {
        sim_fail("no step ran merged", 0);
    }
    (void)printf("%" PRIu64 " seeds: steps=%" PRIu64 " finished=%" PRIu64 " loads=%" PRIu64
                 " preempted=%" PRIu64 " found=%" PRIu64 " no_room=%" PRIu64 " merged=%" PRIu64
                 "\n",
                 count, sum.step_total, sum.finished, sum.loads, sum.preempts, sum.found_total,
                 sum.aborts_no_room, sum.merged_total);
    return 0;
}
