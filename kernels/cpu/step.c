/* A step's metadata: checks, the deltas of the tables, and the tickets of its results. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/checks.h"
#include "kernels/cpu/cpu.h"

/* ---- deltas ------------------------------------------------------------------------------- */

/* Counts the token at a position of the slot's sequence. */
static void slot_see(const struct kern_device *d, struct cpu_slot *slot, uint32_t position,
                     uint32_t token) {
    CHECK(token < d->shape.vocab);
    if (position < slot->params.prompt_tokens) {
        slot->seen[token] |= KERN_SEEN_PROMPT;
    } else {
        slot->seen[token]++;
    }
}

static void slot_open(struct kern_device *d, const struct kern_slot_set *set) {
    kern_slot_check(&d->limits, set);
    struct cpu_slot *slot = &d->slots[set->slot];
    uint32_t *pages = slot->pages, *seen = slot->seen;
    for (uint32_t i = 0; i < d->limits.slot_pages; i++) {
        pages[i] = CPU_NO_PAGE;
    }
    *slot = (struct cpu_slot){.params = *set, .pages = pages, .seen = seen, .open = true};
    slot->params.prompt = slot->params.output = NULL; /* the caller's, until step_begin returns */
    slot->penalises = kern_penalises(set);
    if (slot->penalises) {
        memset(seen, 0, d->shape.vocab * sizeof seen[0]);
        for (uint32_t i = 0; i < set->known_count; i++) {
            bool prompt = i < set->prompt_tokens;
            slot_see(d, slot, i, prompt ? set->prompt[i] : set->output[i - set->prompt_tokens]);
        }
    }
}

static void slot_page_set(struct kern_device *d, const struct kern_slot_page *set) {
    CHECK(set->slot < d->limits.slots);
    CHECK(set->index < d->limits.slot_pages);
    CHECK(set->page < d->page_count);
    struct cpu_slot *slot = &d->slots[set->slot];
    CHECK(slot->open);
    slot->pages[set->index] = set->page;
}

static void adapter_set(struct kern_device *d, const struct kern_adapter_set *set) {
    kern_adapter_check(&d->shape, &d->limits, d->page_count, set);
    struct cpu_adapter *adapter = &d->adapters[set->adapter];
    memcpy(adapter->lora, set->lora, kern_lora_count(d->shape.layers) * sizeof set->lora[0]);
    memcpy(adapter->pages, set->pages, set->page_count * sizeof set->pages[0]);
    adapter->page_count = set->page_count;
    adapter->outer_pages = set->outer_pages;
    if (set->adapter == d->merged) {
        d->merged = CPU_MERGED_GONE;
    }
}

/* ---- the batch ---------------------------------------------------------------------------- */

static void chunk_check(const struct kern_device *d, const struct kern_chunk *chunk) {
    CHECK(chunk->slot < d->limits.slots);
    CHECK(chunk->token_count >= 1);
    CHECK(chunk->position < d->positions && chunk->token_count <= d->positions - chunk->position);
    const struct cpu_slot *slot = &d->slots[chunk->slot];
    CHECK(slot->open);
    CHECK(slot->step != d->ended + 1); /* one chunk a slot and step */
    uint32_t first = cpu_position_first(d, chunk->position);
    uint32_t end = chunk->position + chunk->token_count, t = d->limits.page_tokens;
    for (uint32_t page = first / t; page <= (end - 1) / t; page++) {
        CHECK(slot->pages[page] != CPU_NO_PAGE);
    }
}

static void chunk_take(struct kern_device *d, const struct kern_step *step,
                       const struct kern_chunk *chunk) {
    chunk_check(d, chunk);
    struct cpu_slot *slot = &d->slots[chunk->slot];
    slot->step = d->ended + 1;
    for (uint32_t i = 0; i < chunk->token_count; i++) {
        uint32_t id = step->tokens[chunk->token_begin + i];
        if (id == KERN_TOKEN_LAST) {
            CHECK(slot->sampled);
            CHECK(chunk->token_count == 1);
            id = slot->last;
        }
        CHECK(id < d->shape.vocab);
        if (slot->penalises) {
            slot_see(d, slot, chunk->position + i, id);
        }
        d->tokens[chunk->token_begin + i] =
            (struct cpu_token){.id = id, .slot = chunk->slot, .position = chunk->position + i};
    }
    if (chunk->sample) {
        CHECK(d->sample_count < d->limits.step_samples);
        d->samples[d->sample_count++] =
            (struct cpu_row_sample){.token = chunk->token_begin + chunk->token_count - 1,
                                    .slot = chunk->slot,
                                    .position = chunk->position + chunk->token_count};
    }
}

static void segments_take(struct kern_device *d, const struct kern_step *step) {
    CHECK(step->segment_count <= step->token_count);
    uint32_t end = 0;
    for (uint32_t i = 0; i < step->segment_count; i++) {
        const struct kern_segment *s = &step->segments[i];
        CHECK(s->adapter < d->limits.adapters);
        CHECK(d->adapters[s->adapter].page_count != 0);
        CHECK(s->token_count >= 1 && s->token_begin >= end);
        CHECK(s->token_count <= step->token_count &&
              s->token_begin <= step->token_count - s->token_count);
        end = s->token_begin + s->token_count;
        d->segments[i] = *s;
    }
    d->segment_count = step->segment_count;
}

/* Angles in f32, as transformers computes them. */
static void rope_set(struct kern_device *d, uint32_t token) {
    uint32_t half = d->shape.head_dim / 2;
    float *c = d->cos + (uint64_t)token * half, *s = d->sin + (uint64_t)token * half;
    float position = (float)d->tokens[token].position;
    for (uint32_t i = 0; i < half; i++) {
        float angle = position * d->rope_freq[i];
        c[i] = cosf(angle) * d->shape.rope_scale;
        s[i] = sinf(angle) * d->shape.rope_scale;
    }
}

/* ---- begin, end, read --------------------------------------------------------------------- */

enum err cpu_step_begin(struct kern_device *d, const struct kern_step *step) {
    CHECK(d->phase == CPU_IDLE);
    CHECK(d->planes != NULL); /* so the weights are complete too */
    CHECK(d->ended - d->read < CPU_UNREAD_MAX);
    CHECK(step->token_count <= d->limits.step_tokens);
    d->begun_us = clock_mono_us();
    for (uint32_t i = 0; i < step->slot_set_count; i++) {
        slot_open(d, &step->slot_sets[i]);
    }
    for (uint32_t i = 0; i < step->slot_page_count; i++) {
        slot_page_set(d, &step->slot_pages[i]);
    }
    for (uint32_t i = 0; i < step->adapter_set_count; i++) {
        adapter_set(d, &step->adapter_sets[i]);
    }
    cpu_merge_step(d);
    CHECK(d->merged == KERN_BASE || step->segment_count == 0);
    uint32_t tokens = 0;
    d->sample_count = 0;
    for (uint32_t i = 0; i < step->chunk_count; i++) {
        const struct kern_chunk *chunk = &step->chunks[i];
        CHECK(chunk->token_begin == tokens);
        CHECK(chunk->token_count <= step->token_count - tokens);
        chunk_take(d, step, chunk);
        tokens += chunk->token_count;
    }
    CHECK(tokens == step->token_count);
    d->token_count = tokens;
    segments_take(d, step);
    for (uint32_t i = 0; i < tokens; i++) {
        rope_set(d, i);
    }
    d->results[(d->ended + 1) % CPU_UNREAD_MAX].count = 0; /* until sampled */
    d->phase = CPU_IN_STEP;
    return ERR_OK;
}

enum err cpu_step_end(struct kern_device *d, uint64_t *ticket) {
    CHECK(d->phase == CPU_IN_STEP);
    d->phase = CPU_IDLE;
    *ticket = ++d->ended;
    struct cpu_result *result = &d->results[*ticket % CPU_UNREAD_MAX];
    CHECK(result->count == d->sample_count);
    int64_t now_us = clock_mono_us();
    result->span = (struct kern_span){
        .busy_us = (float)(now_us - d->begun_us),
        .idle_us = d->ended_us == 0 ? 0 : (float)(d->begun_us - d->ended_us),
    };
    d->ended_us = now_us;
    return ERR_OK;
}

enum err cpu_step_read(struct kern_device *d, uint64_t ticket, struct kern_sample *samples,
                       uint32_t count) {
    CHECK(ticket == d->read + 1 && ticket <= d->ended);
    const struct cpu_result *result = &d->results[ticket % CPU_UNREAD_MAX];
    CHECK(count == result->count);
    if (count != 0) { /* `samples` may be NULL when nothing was sampled */
        memcpy(samples, result->samples, count * sizeof samples[0]);
    }
    d->read = ticket;
    return ERR_OK;
}

void cpu_span(const struct kern_device *d, struct kern_span *span) {
    CHECK(d->read > 0);
    *span = d->results[d->read % CPU_UNREAD_MAX].span;
}
