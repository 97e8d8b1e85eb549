/* merge.c - when steps run with an adapter's product in the weights.
 *
 * A step that has rows of one adapter alone may run as the base's do, at no cost of LoRA, once that
 * adapter is merged; and every switch, there and back, costs a pass over all weights. Nothing else
 * depends on it: who starts, and when, is settled before, so that nobody waits for it. A step with
 * anybody else's rows is unmerged, at once.
 *
 * The rule. Let c be what LoRA costs a step by the model, and S two switches. An adapter that has
 * the steps to itself is merged
 * - when the steps that it will surely have to itself save more than S: as long as its longest
 *   sequence may go on, and its waiting ones after that; where others wait, only until a row comes
 *   free for them, and not at all if one is free now;
 * - but not before the steps that it has had to itself have cost S in LoRA. Outputs end before
 *   their limit and jobs come unannounced, so what is predicted may never come; this way switches
 *   cost at most as much as LoRA did without them, whatever comes, and never follow each other
 *   closely. What it gives away is little where merging pays: a few steps of many. */
#include "base/check.h"
#include "scheduler/sched_internal.h"

/* The one whose rows alone the plan computes; NONE: several. The work is sorted. */
static uint32_t sole_queue(const struct sched *s) {
    uint32_t first = s->jobs[s->work[0].job].queue;
    uint32_t last = s->jobs[s->work[s->work_count - 1].job].queue;
    return first == last ? first : SCHED_NONE;
}

static bool mergeable(const struct sched *s, const struct sched_turn *t, uint32_t queue) {
    return queue != SCHED_NONE && !sched_is_base(s, queue) &&
           t->snapshot->adapters[queue].mergeable;
}

/* Steps until an aged job of another adapter goes before all waiting ones of this. */
static double until_aged(const struct sched *s, uint32_t queue) {
    double steps = s->options.wait_steps;
    for (uint32_t i = 0; i < s->waiting.count; i++) {
        uint32_t other = s->waiting.items[i];
        if (other == queue) {
            continue;
        }
        uint32_t oldest = s->queues[other].oldest;
        if (sched_aged(s, oldest)) {
            return 0;
        }
        double left = s->options.wait_steps - (double)(s->steps - s->jobs[oldest].enter_step);
        steps = left < steps ? left : steps;
    }
    return steps;
}

/* Steps that the adapter, whose rows are all that runs, will have to itself. */
static double steps_ahead(const struct sched *s, uint32_t queue) {
    const struct sched_queue *q = &s->queues[queue];
    uint32_t most = 0, least = UINT32_MAX;
    for (uint32_t job = s->run_first; job != SCHED_NONE; job = s->jobs[job].younger) {
        uint32_t left = s->jobs[job].output_tokens - s->jobs[job].sampled;
        most = left > most ? left : most;
        least = sched_min(left, least);
    }
    double later = 0;
    if (q->waiting > 0) {
        later = (double)q->waiting / s->options.rows_max * s->jobs[q->best].output_tokens;
    }
    bool others = s->waiting.count > (q->waiting > 0 ? 1 : 0);
    if (!others) {
        return most + later;
    }
    if (s->running_count < s->options.rows_max) {
        return 0;
    }
    double aged = until_aged(s, queue);
    return least + (later < aged ? later : aged);
}

uint32_t sched_merge(struct sched *s, const struct sched_turn *t) {
    const uint32_t base = s->options.adapters_max;
    if (!s->options.merging || s->work_count == 0) {
        return SCHED_BASE;
    }
    uint32_t queue = sole_queue(s);
    if (queue != s->alone) {
        s->alone = queue;
        s->alone_us = 0;
    }
    if (!mergeable(s, t, queue)) {
        s->merged = base;
        return SCHED_BASE;
    }
    if (s->merged == queue) {
        return queue;
    }
    uint32_t tokens = s->options.step_tokens - t->tokens_left;
    double step_us = sched_step_us(s, tokens, 0);
    double lora_us = sched_step_us(s, tokens, sched_adapter_pages(s, t, queue)) - step_us +
                     s->options.lora_share * step_us;
    double switches_us = 2 * sched_scaled_us(s, s->options.merge_us);
    if (s->queues[queue].running < s->running_count || s->alone_us < switches_us ||
        steps_ahead(s, queue) * lora_us < switches_us) {
        s->alone_us += lora_us;
        s->merged = base;
        return SCHED_BASE;
    }
    s->merged = queue;
    s->merges++;
    return queue;
}

void sched_merge_forget(struct sched *s, uint32_t queue) {
    if (s->merged == queue) {
        s->merged = SCHED_NONE;
    }
    if (s->alone == queue) {
        s->alone = SCHED_NONE;
    }
}
