/* engine_prefix.c - full pages that jobs share: ADR 0005. What a job's launched steps compute into
 * full pages can be found by whoever comes with the same tokens for the same adapter. */
#include <string.h>

#include "base/check.h"
#include "worker/engine_internal.h"

_Static_assert(sizeof(struct pool_scope) * 2 + 1 == POOL_REVISION_BYTES,
               "a scope holds a SHA-256 that is given in hex");

/* `hex`: as the revision of an adapter and the hash of a base are given. */
static struct pool_scope scope_of(const char *hex) {
    struct pool_scope scope;
    for (size_t i = 0; i < sizeof scope.bytes; i++) {
        uint32_t byte = 0;
        for (size_t k = 0; k < 2; k++) {
            char c = hex[2 * i + k];
            CHECK((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'));
            byte = byte * 16 + (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
        }
        scope.bytes[i] = (uint8_t)byte;
    }
    return scope;
}

/* Of the bytes that are in pages now: the job's adapter is resident. */
static struct pool_scope job_scope(const struct engine *e, const struct job *job) {
    return scope_of(job->entry == ADAPTERS_BASE ? e->options.model->hash
                                                : adapters_revision(e->adapters, job->entry));
}

/* Tokens that the host has read. The last of them is left out once it was sampled: the step that
 * computes it may be in flight, and in vain. */
static uint32_t known_tokens(const struct job *job) {
    uint32_t output = atomic_load_explicit(&job->output_count, memory_order_relaxed);
    return job->prompt_count + (output > 0 ? output - 1 : 0);
}

/* The tokens of a full page; `room` [page_tokens] is used where they do not lie side by side. */
static const uint32_t *page_tokens(const struct engine *e, const struct job *job, uint32_t page,
                                   uint32_t *room) {
    uint32_t count = e->options.limits.page_tokens;
    uint32_t begin = page * count;
    if (begin + count <= job->prompt_count) {
        return job->prompt + begin;
    }
    if (begin >= job->prompt_count) {
        return job->output + (begin - job->prompt_count);
    }
    uint32_t of_prompt = job->prompt_count - begin;
    memcpy(room, job->prompt + begin, of_prompt * sizeof *room);
    memcpy(room + of_prompt, job->output, (count - of_prompt) * sizeof *room);
    return room;
}

/* The job's first pages that can be found, `most` at most; returns how many. */
static uint32_t find(struct engine *e, const struct job *job, uint32_t most, uint32_t *pages,
                     uint64_t *chain) {
    struct pool_scope scope = job_scope(e, job);
    uint32_t count = 0;
    *chain = 0;
    while (count < most) {
        struct pool_prefix key = {.scope = &scope,
                                  .before = *chain,
                                  .tokens = page_tokens(e, job, count, e->prefix_tokens)};
        uint64_t name = pool_prefix_find(e->pool, &key, &pages[count]);
        if (name == 0) {
            break;
        }
        *chain = name;
        count++;
    }
    return count;
}

struct sched_found engine_found(void *context, uint32_t index) {
    struct engine *e = context;
    const struct job *job = e->held[index];
    CHECK(job != NULL);
    CHECK(job->device_slot == JOB_NONE);
    uint32_t output = atomic_load_explicit(&job->output_count, memory_order_relaxed);
    uint32_t most = (job->prompt_count + output - 1) / e->options.limits.page_tokens;
    uint64_t chain = 0;
    uint32_t count = find(e, job, most, e->prefix_pages, &chain);
    struct sched_found found = {.tokens = count * e->options.limits.page_tokens};
    for (uint32_t i = 0; i < count; i++) {
        found.pages += pool_page_cached(e->pool, e->prefix_pages[i]);
    }
    return found;
}

void engine_share(struct engine *e, struct job *job, uint32_t tokens) {
    CHECK(job->page_count == 0);
    CHECK(tokens % e->options.limits.page_tokens == 0);
    job->computed = tokens;
    job->entered = 0;
    job->chain = 0;
    if (!e->options.config->pool_prefixes) {
        CHECK(tokens == 0);
        return;
    }
    uint32_t count = tokens / e->options.limits.page_tokens;
    job->entered = find(e, job, count, job->pages, &job->chain);
    CHECK(job->entered == count); /* as the plan was told */
    pool_share(e->pool, job->pages, count);
    job->page_count = count;
    metrics_add(e->options.metrics, METRIC_TOKENS_CACHED, tokens);
}

void engine_remember(struct engine *e, struct job *job) {
    if (!e->options.config->pool_prefixes) {
        return;
    }
    uint32_t known = known_tokens(job);
    uint32_t full = (job->computed < known ? job->computed : known) / e->options.limits.page_tokens;
    if (job->entered == full) {
        return;
    }
    struct pool_scope scope = job_scope(e, job);
    for (; job->entered < full; job->entered++) {
        struct pool_prefix key = {.scope = &scope,
                                  .before = job->chain,
                                  .tokens = page_tokens(e, job, job->entered, e->prefix_tokens)};
        job->chain = pool_prefix_enter(e->pool, &key, job->pages[job->entered]);
    }
}
