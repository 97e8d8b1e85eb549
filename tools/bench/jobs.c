/* A workload's jobs, from a seed: lengths, prompts of random tokens, adapters, times. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tools/bench/bench.h"

enum {
    TOKEN_FIRST = 10,  /* the ids below are special ones of most vocabularies */
    WARM_JOBS = 64,    /* of the base, at most */
    WARM_OUTPUT = 16,  /* tokens */
    WARM_PROMPT = 512, /* at most */
};

/* splitmix64 */
static uint64_t next(uint64_t *seed) {
    uint64_t z = (*seed += 0x9e3779b97f4a7c15U);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9U;
    z = (z ^ z >> 27) * 0x94d049bb133111ebU;
    return z ^ z >> 31;
}

static double unit(uint64_t *seed) { /* [0, 1) */
    return (double)(next(seed) >> 11) * 0x1p-53;
}

static uint32_t below(uint64_t *seed, uint32_t bound) {
    return (uint32_t)(unit(seed) * bound);
}

static uint32_t draw_length(uint64_t *seed, struct bench_length l) {
    return l.high > l.low ? l.low + below(seed, l.high - l.low) : l.low;
}

/* ---- adapters ----------------------------------------------------------------------------- */

static double weight(const struct bench_case *c, uint32_t adapter) {
    return c->order == BENCH_SKEWED ? pow(adapter + 1.0, -c->alpha)
                                    : pow(c->alpha, -(double)adapter);
}

/* The first adapter up to which the summed weights exceed u of all. */
static uint32_t draw_weighted(const double *sums, uint32_t count, double u) {
    uint32_t low = 0;
    uint32_t high = count - 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (sums[middle] > u * sums[count - 1]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static int by_number(const void *a, const void *b) {
    const uint32_t *x = a;
    const uint32_t *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Which adapter each job names. */
static enum err draw_adapters(const struct bench_case *c, uint64_t *seed, uint32_t *adapters) {
    double *sums = calloc(c->adapters, sizeof *sums);
    if (sums == NULL) {
        return ERR_NO_MEMORY;
    }
    double sum = 0;
    for (uint32_t i = 0; i < c->adapters; i++) {
        sum += weight(c, i);
        sums[i] = sum;
    }
    for (uint32_t i = 0; i < c->jobs; i++) {
        switch (c->order) {
        case BENCH_ROUND_ROBIN:
            adapters[i] = i % c->adapters;
            break;
        case BENCH_RANDOM:
        case BENCH_SORTED:
            adapters[i] = below(seed, c->adapters);
            break;
        case BENCH_SKEWED:
        case BENCH_GEOMETRIC:
            adapters[i] = draw_weighted(sums, c->adapters, unit(seed));
            break;
        case BENCH_POWER: /* the inverse of (k / adapters) ^ alpha */
            adapters[i] = (uint32_t)(c->adapters * pow(unit(seed), 1 / c->alpha));
            break;
        }
    }
    if (c->order == BENCH_SORTED) {
        qsort(adapters, c->jobs, sizeof *adapters, by_number);
    }
    free(sums);
    return ERR_OK;
}

/* ---- times -------------------------------------------------------------------------------- */

/* Marsaglia and Tsang's; below shape 1 by a power of a uniform. */
static double draw_gamma(uint64_t *seed, double shape) {
    double boost = shape < 1 ? pow(1 - unit(seed), 1 / shape) : 1;
    double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3;
    double c = 1 / sqrt(9 * d);
    for (;;) {
        double normal = sqrt(-2 * log(1 - unit(seed))) * cos(2 * 3.14159265358979 * unit(seed));
        double v = 1 + c * normal;
        v = v * v * v;
        double u = 1 - unit(seed);
        if (v > 0 && log(u) < 0.5 * normal * normal + d - d * v + d * log(v)) {
            return d * v * boost;
        }
    }
}

/* ---- jobs --------------------------------------------------------------------------------- */

static void fill_tokens(uint64_t *seed, uint32_t vocab, uint32_t *tokens, uint32_t count) {
    uint32_t first = vocab > 2 * TOKEN_FIRST ? TOKEN_FIRST : 0;
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = first + below(seed, vocab - first);
    }
}

static void fill_jobs(struct bench_jobs *out, const struct bench_case *c, uint64_t *seed,
                      const uint32_t *adapters) {
    double at_s = 0;
    for (uint32_t i = 0; i < c->jobs; i++) {
        struct worker_bench_job *j = &out->jobs[i];
        j->prompt_count = draw_length(seed, c->input);
        j->output_count = draw_length(seed, c->output);
        j->adapter = c->adapters > 0 && !c->idle ? out->ids[adapters[i]] : NULL;
        if (c->rate > 0) {
            double shape = 1 / (c->cv * c->cv);
            at_s += draw_gamma(seed, shape) / shape / c->rate;
            j->at_us = (int64_t)(at_s * 1e6);
        }
    }
}

/* What the prompts of an adapter's jobs begin with; at least a token of each is its own. */
static void fill_shared(const struct bench_case *c, const struct worker_bench_job *job,
                        uint32_t adapter, uint32_t vocab, uint32_t *tokens) {
    uint64_t seed = c->seed + ((uint64_t)adapter << 32);
    uint32_t most = job->prompt_count - 1;
    fill_tokens(&seed, vocab, tokens, c->shared < most ? c->shared : most);
}

/* Prompts of jobs lie one after the other; the warm-up's are beginnings of none. */
static enum err fill_prompts(struct bench_jobs *out, const struct bench_case *c, uint64_t *seed,
                             const uint32_t *adapters, uint32_t vocab) {
    uint64_t count = WARM_PROMPT;
    for (uint32_t i = 0; i < out->job_count; i++) {
        count += out->jobs[i].prompt_count;
    }
    out->tokens = malloc(count * sizeof *out->tokens);
    if (out->tokens == NULL) {
        return ERR_NO_MEMORY;
    }
    fill_tokens(seed, vocab, out->tokens, WARM_PROMPT);
    uint32_t *at = out->tokens + WARM_PROMPT;
    for (uint32_t i = 0; i < out->job_count; i++) {
        out->jobs[i].prompt = at;
        fill_tokens(seed, vocab, at, out->jobs[i].prompt_count);
        fill_shared(c, &out->jobs[i], adapters[i], vocab, at);
        at += out->jobs[i].prompt_count;
    }
    return ERR_OK;
}

static void fill_warm(struct bench_jobs *out, uint32_t resident_max) {
    uint32_t base = out->job_count < WARM_JOBS ? out->job_count : WARM_JOBS;
    for (uint32_t i = 0; i < base; i++) {
        uint32_t prompt = out->jobs[i].prompt_count;
        uint32_t output = out->jobs[i].output_count;
        out->warm[out->warm_count++] =
            (struct worker_bench_job){.prompt = out->tokens,
                                      .prompt_count = prompt < WARM_PROMPT ? prompt : WARM_PROMPT,
                                      .output_count = output < WARM_OUTPUT ? output : WARM_OUTPUT};
    }
    uint32_t resident = 0;
    for (uint32_t i = 0; i < out->adapter_count; i++) {
        if (out->named[i] && resident < resident_max) {
            resident++;
            out->warm[out->warm_count++] = (struct worker_bench_job){.adapter = out->ids[i],
                                                                     .prompt = out->tokens,
                                                                     .prompt_count = 1,
                                                                     .output_count = 2};
        }
    }
}

enum err bench_jobs_make(struct bench_jobs *out, const struct bench_case *c, uint32_t vocab,
                         uint32_t resident_max) {
    uint64_t seed = c->seed;
    struct bench_jobs j = {.job_count = c->jobs, .adapter_count = c->adapters};
    uint32_t *adapters = calloc(c->jobs, sizeof *adapters);
    enum err e = ERR_NO_MEMORY;
    CHECK(c->jobs > 0);
    j.jobs = calloc(c->jobs, sizeof *j.jobs);
    j.warm = calloc((size_t)c->adapters + WARM_JOBS, sizeof *j.warm);
    j.ids = calloc((size_t)c->adapters + 1, sizeof *j.ids);
    j.named = calloc((size_t)c->adapters + 1, sizeof *j.named);
    if (adapters == NULL || j.named == NULL || j.jobs == NULL || j.warm == NULL || j.ids == NULL) {
        goto out;
    }
    for (uint32_t i = 0; i < c->adapters; i++) {
        bench_adapter_id(j.ids[i], c, i);
        j.named[i] = c->idle;
    }
    e = c->adapters > 0 && !c->idle ? draw_adapters(c, &seed, adapters) : ERR_OK;
    if (e != ERR_OK) {
        goto out;
    }
    for (uint32_t i = 0; i < c->jobs && c->adapters > 0 && !c->idle; i++) {
        j.used += !j.named[adapters[i]];
        j.named[adapters[i]] = true;
    }
    fill_jobs(&j, c, &seed, adapters);
    e = fill_prompts(&j, c, &seed, adapters, vocab);
    if (e == ERR_OK) {
        fill_warm(&j, resident_max);
        *out = j;
        j = (struct bench_jobs){0};
    }
out:
    free(adapters);
    bench_jobs_free(&j);
    return e;
}

void bench_jobs_free(struct bench_jobs *j) {
    free(j->jobs);
    free(j->warm);
    free(j->tokens);
    free(j->ids);
    free(j->named);
    *j = (struct bench_jobs){0};
}
