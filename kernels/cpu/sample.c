/* sample.c - the token a row draws: the reference for every device.
 *
 * Probabilities are e^((logit − greatest) / temperature) in f32 (each within 2e-7, zero below
 * e⁻⁸⁷), their sums in f64 in the order of ids. top_k and top_p find the least value that stays by
 * a radix select, in four passes over the row and without a sort. The draw inverts the distribution
 * function over ids in ascending order, at the first Philox word times 2⁻³². A NaN counts as −∞. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { RADIX_BITS = 8, RADIX_BINS = 1 << RADIX_BITS };

/* An integer that orders as the float does. */
static uint32_t order(float value) {
    uint32_t bits;
    value += 0.0f; /* −0 becomes +0: they tie */
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/* Finds the greatest key (an order() of values) such that all entries from it up weigh `target` or
 * more. `weights` NULL: one each. `above`: what lies strictly above the key weighs. */
static uint32_t key_reaching(const float *values, const float *weights, uint32_t count,
                             double target, double *above) {
    uint32_t key = 0, mask = 0;
    double sum = 0;
    for (int shift = 32 - RADIX_BITS; shift >= 0; shift -= RADIX_BITS) {
        double bins[RADIX_BINS] = {0};
        for (uint32_t i = 0; i < count; i++) {
            uint32_t k = order(values[i]);
            if ((k & mask) == key) {
                bins[k >> shift & (RADIX_BINS - 1)] += weights == NULL ? 1.0 : (double)weights[i];
            }
        }
        uint32_t bin = RADIX_BINS - 1;
        while (bin > 0 && sum + bins[bin] < target) {
            sum += bins[bin--];
        }
        key |= bin << shift;
        mask |= (uint32_t)(RADIX_BINS - 1) << shift;
    }
    *above = sum;
    return key;
}

static void top_k_keep(float *logits, uint32_t vocab, uint32_t k) {
    double above;
    uint32_t key = key_reaching(logits, NULL, vocab, k, &above);
    for (uint32_t i = 0; i < vocab; i++) {
        if (order(logits[i]) < key) {
            logits[i] = -INFINITY;
        }
    }
}

/* Of equal weights at the border the lowest ids stay. */
static void top_p_keep(float *weights, uint32_t vocab, double target) {
    double sum;
    target = target > DBL_MIN ? target : DBL_MIN; /* at least one token stays */
    uint32_t key = key_reaching(weights, weights, vocab, target, &sum);
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t k = order(weights[i]);
        if (k == key && sum < target) {
            sum += (double)weights[i];
        } else if (k <= key) {
            weights[i] = 0;
        }
    }
}

static void min_p_keep(float *weights, uint32_t vocab, float min_p) {
    for (uint32_t i = 0; i < vocab; i++) {
        weights[i] = weights[i] < min_p ? 0 : weights[i]; /* the greatest is 1 */
    }
}

static double weights_sum(const float *weights, uint32_t vocab) {
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        sum += (double)weights[i];
    }
    return sum;
}

/* Also makes −∞ of NaN. */
static uint32_t greatest(float *logits, uint32_t vocab) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        logits[i] = isnan(logits[i]) ? -INFINITY : logits[i];
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

uint32_t kern_sample_cpu(float *logits, uint32_t vocab, const struct kern_slot_set *params,
                         uint32_t position) {
    CHECK(vocab > 0);
    uint32_t best = greatest(logits, vocab);
    float max = logits[best];
    if (params->temperature <= 0 || isinf(max)) {
        return best;
    }
    if (params->top_k != 0 && params->top_k < vocab) {
        top_k_keep(logits, vocab, params->top_k);
    }
    float *weights = logits;                                            /* from here on */
    cpu_vector_best()->weigh(weights, vocab, max, params->temperature); /* the greatest is 1 */
    if (params->top_p < 1) {
        top_p_keep(weights, vocab, (double)params->top_p * weights_sum(weights, vocab));
    }
    if (params->min_p > 0) {
        min_p_keep(weights, vocab, params->min_p < 1 ? params->min_p : 1);
    }
    uint32_t random[4];
    kern_random(params->seed, position, 0, random);
    double target = random[0] * 0x1p-32 * weights_sum(weights, vocab);
    double sum = 0;
    uint32_t token = best;
    for (uint32_t i = 0; i < vocab; i++) {
        if (weights[i] > 0) {
            sum += (double)weights[i];
            token = i;
            if (sum > target) {
                break;
            }
        }
    }
    return token;
}

/* ---- penalties ---------------------------------------------------------------------------- */

bool kern_penalises(const struct kern_slot_set *params) {
    return (params->repetition_penalty != 0 && params->repetition_penalty != 1) ||
           params->presence_penalty != 0 || params->frequency_penalty != 0;
}

void kern_penalties_cpu(float *logits, uint32_t vocab, const struct kern_slot_set *params,
                        const uint32_t *seen) {
    float repetition = params->repetition_penalty != 0 ? params->repetition_penalty : 1;
    for (uint32_t i = 0; i < vocab; i++) {
        if (seen[i] == 0) {
            continue;
        }
        logits[i] = logits[i] > 0 ? logits[i] / repetition : logits[i] * repetition;
        uint32_t count = seen[i] & ~KERN_SEEN_PROMPT;
        if (count > 0) {
            logits[i] -= params->frequency_penalty * (float)count;
            logits[i] -= params->presence_penalty;
        }
    }
}

/* ---- log-probabilities -------------------------------------------------------------------- */

static float number(float logit) {
    return isnan(logit) ? -INFINITY : logit;
}

/* The logarithm of the sum of e^logit, in f64. */
static double log_sum(const float *logits, uint32_t vocab) {
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        max = (double)logits[i] > max ? (double)logits[i] : max; /* not for a NaN */
    }
    if (isinf(max)) {
        return max;
    }
    for (uint32_t i = 0; i < vocab; i++) {
        sum += isnan(logits[i]) ? 0 : exp((double)logits[i] - max);
    }
    return max + log(sum);
}

static float logprob_of(float logit, double log_all) {
    if (isinf(log_all)) { /* one logit is +∞, or none is a number: no distribution */
        return number(logit) == INFINITY ? 0 : -INFINITY;
    }
    return (float)((double)number(logit) - log_all);
}

void kern_logprobs_cpu(const float *logits, uint32_t vocab, uint32_t top_count,
                       struct kern_sample *out) {
    CHECK(out->token < vocab);
    CHECK(top_count <= KERN_LOGPROBS_MAX);
    double log_all = log_sum(logits, vocab);
    uint32_t count = 0;
    /* Insertion into a short sorted list: after some hundred ids nearly none gets in. */
    for (uint32_t i = 0; i < vocab && top_count > 0; i++) {
        float logit = number(logits[i]);
        if (count == top_count && logit <= out->top[count - 1].logprob) {
            continue;
        }
        uint32_t at = count < top_count ? count++ : count - 1;
        for (; at > 0 && logit > out->top[at - 1].logprob; at--) {
            out->top[at] = out->top[at - 1];
        }
        out->top[at] = (struct kern_logprob){.token = i, .logprob = logit};
    }
    for (uint32_t i = 0; i < count; i++) {
        out->top[i].logprob = logprob_of(out->top[i].logprob, log_all);
    }
    out->top_count = count;
    out->logprob = logprob_of(logits[out->token], log_all);
}

/* ---- the block ---------------------------------------------------------------------------- */

static bool is_stop(const struct kern_slot_set *params, uint32_t token) {
    for (uint32_t i = 0; i < params->stop_count; i++) {
        if (params->stop[i] == token) {
            return true;
        }
    }
    return false;
}

static void sample_row(void *context, uint32_t row, uint32_t thread) {
    struct kern_device *d = context;
    const struct cpu_row_sample *sample = &d->samples[row];
    struct cpu_slot *slot = &d->slots[sample->slot];
    float *scratch = d->draws + (uint64_t)thread * d->vocab_row; /* logits() shows the row itself */
    memcpy(scratch, d->logits + (uint64_t)row * d->vocab_row, d->shape.vocab * sizeof(float));
    if (slot->penalises) {
        kern_penalties_cpu(scratch, d->shape.vocab, &slot->params, slot->seen);
    }
    slot->last = kern_sample_cpu(scratch, d->shape.vocab, &slot->params, sample->position);
    slot->sampled = true;
    slot->done = slot->done || is_stop(&slot->params, slot->last);
    struct kern_sample *result = &d->results[(d->ended + 1) % CPU_UNREAD_MAX].samples[row];
    result->slot = sample->slot;
    result->token = slot->last;
    result->done = slot->done;
    result->top_count = 0;
    result->logprob = 0;
    if (slot->params.logprobs) {
        kern_logprobs_cpu(d->logits + (uint64_t)row * d->vocab_row, d->shape.vocab,
                          slot->params.top_logprobs, result);
    }
}

void cpu_sample(struct kern_device *d) {
    CHECK(d->phase == CPU_IN_STEP);
    threads_run(d->threads, sample_row, d, d->sample_count);
    d->results[(d->ended + 1) % CPU_UNREAD_MAX].count = d->sample_count;
}
