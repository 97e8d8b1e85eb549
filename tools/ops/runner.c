/* runner.c - batches, steps, and the time of a block as the difference of two. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "tools/ops/inner.h"

enum {
    CALLS_MIN = 4,   /* of a block in a round */
    CALLS_MAX = 96,  /* more launches than a stream takes would stop the host */
    CALLS_TRIED = 4, /* to find how many make a round */
    LEAD_MAX = 32,
    COLD_BYTES = 128 << 20, /* of matrices: more than any last cache holds */
    TOP_K = 50,
    TOP_LOGPROBS = 5,
};
static const double host_bound_share = 0.95; /* of the device's time, spent launching */
static const double lead_share = 0.5, lead_margin = 1.5;

/* ---- blocks ------------------------------------------------------------------------------- */

static void run_block(struct ops_runner *r, enum ops_block block, uint32_t layer) {
    const struct kern_ops *ops = r->ops;
    switch (block) {
    case OPS_EMBED:
        ops->embed(r->device);
        break;
    case OPS_QKV:
        ops->qkv(r->device, layer);
        break;
    case OPS_ATTENTION:
        ops->attention(r->device, layer);
        break;
    case OPS_ATTN_OUT:
        ops->attn_out(r->device, layer);
        break;
    case OPS_GATE_UP:
        ops->gate_up(r->device, layer);
        break;
    case OPS_DOWN:
        ops->down(r->device, layer);
        break;
    case OPS_HEAD:
        ops->head(r->device);
        break;
    case OPS_SAMPLE:
        ops->sample(r->device);
        break;
    case OPS_PASS:
        ops_pass(r);
        break;
    }
}

void ops_pass(struct ops_runner *r) {
    run_block(r, OPS_EMBED, 0);
    for (uint32_t layer = 0; layer < r->shape.layers; layer++) {
        for (int b = OPS_QKV; b <= OPS_DOWN; b++) {
            run_block(r, (enum ops_block)b, layer);
        }
    }
    run_block(r, OPS_HEAD, 0);
    run_block(r, OPS_SAMPLE, 0);
}

/* ---- a batch ------------------------------------------------------------------------------ */

static uint32_t page_take(struct ops_runner *r) {
    uint32_t page = r->pages[r->page_next];
    r->page_next = (r->page_next + 1) % r->page_count;
    return page;
}

static void slot_add(struct ops_runner *r, const struct ops_group *g, enum ops_sampling sampling) {
    struct kern_step *s = &r->step;
    const uint32_t slot = s->chunk_count;
    r->chunks[s->chunk_count++] = (struct kern_chunk){.slot = slot,
                                                      .token_begin = s->token_count,
                                                      .token_count = g->tokens,
                                                      .position = g->position,
                                                      .sample = true};
    struct kern_slot_set *set = &r->slot_sets[s->slot_set_count++];
    *set = (struct kern_slot_set){.slot = slot, .top_p = 1, .seed = slot};
    if (sampling == OPS_TOP_P_K) {
        set->temperature = 0.8f;
        set->top_p = 0.9f;
        set->top_k = TOP_K;
    } else if (sampling == OPS_LOGPROBS) {
        set->logprobs = true;
        set->top_logprobs = TOP_LOGPROBS;
    }
    uint32_t pages = ops_ceil_div((uint64_t)g->position + g->tokens, r->limits.page_tokens);
    CHECK(pages <= r->limits.slot_pages && s->slot_page_count + (uint64_t)pages <= r->page_room);
    for (uint32_t i = 0; i < pages; i++) {
        r->slot_pages[s->slot_page_count++] =
            (struct kern_slot_page){.slot = slot, .index = i, .page = page_take(r)};
    }
    for (uint32_t i = 0; i < g->tokens; i++) {
        r->tokens[s->token_count++] = (uint32_t)(ops_random(&r->random) % r->shape.vocab);
    }
}

static void lora_add(struct ops_runner *r, const struct ops_lora *lora) {
    struct kern_step *s = &r->step;
    uint32_t pages = ops_ceil_div(ops_lora_place(r, lora->rank), ops_page_elems(r)), row = 0;
    CHECK(pages <= r->limits.adapter_pages && lora->adapters <= OPS_ADAPTERS_MAX);
    CHECK(lora->segments <= OPS_CHUNKS_MAX);
    for (uint32_t i = 0; i < lora->adapters; i++) {
        uint32_t *list = r->adapter_pages + (size_t)i * r->limits.adapter_pages;
        for (uint32_t p = 0; p < pages; p++) {
            list[p] = page_take(r);
        }
        r->adapter_sets[s->adapter_set_count++] = (struct kern_adapter_set){
            .adapter = i, .lora = r->lora, .pages = list, .page_count = pages};
    }
    for (uint32_t i = 0; i < lora->segments; i++) {
        CHECK(lora->adapter[i] < lora->adapters);
        r->segments[s->segment_count++] = (struct kern_segment){
            .adapter = lora->adapter[i], .token_begin = row, .token_count = lora->rows[i]};
        row += lora->rows[i];
    }
    CHECK(row == s->token_count);
}

/* ---- steps -------------------------------------------------------------------------------- */

/* What a step does: `block` `calls` times, `before` (OPS_BLOCKS: nothing) in front of each. */
struct program {
    enum ops_block block, before;
    uint32_t calls;
    uint32_t lead; /* calls of the head in front of all, while which the host launches the rest */
    bool no_block; /* only what is before it */
    bool no_lora;  /* all rows are base rows */
    bool head;     /* ends with logits */
};

static void run_program(struct ops_runner *r, const struct program *p) {
    run_block(r, OPS_EMBED, 0);
    for (uint32_t i = 0; i < p->lead; i++) {
        run_block(r, OPS_HEAD, 0);
    }
    for (uint32_t i = 0; i < p->calls; i++) {
        if (p->before != OPS_BLOCKS) {
            run_block(r, p->before, i % r->shape.layers);
        }
        if (!p->no_block) {
            run_block(r, p->block, i % r->shape.layers);
        }
    }
    if (p->head) {
        run_block(r, OPS_HEAD, 0);
    }
    run_block(r, OPS_SAMPLE, 0); /* a step has results */
}

/* program NULL: a whole pass. */
static enum err run_step(struct ops_runner *r, const struct program *p, double *busy_us,
                         double *host_us, struct err_text *why) {
    struct kern_step step = r->step;
    if (!r->fresh) {
        step.slot_set_count = step.slot_page_count = step.adapter_set_count = 0;
    }
    if (p != NULL && p->no_lora) {
        step.segment_count = 0;
    }
    enum err e = r->ops->step_begin(r->device, &step);
    if (e != ERR_OK) {
        return ops_failed(e, "step_begin", why);
    }
    r->fresh = false;
    int64_t begin_us = clock_mono_us();
    if (p == NULL) {
        ops_pass(r);
    } else {
        run_program(r, p);
    }
    *host_us = (double)(clock_mono_us() - begin_us);
    uint64_t ticket = 0;
    e = r->ops->step_end(r->device, &ticket);
    if (e == ERR_OK) {
        e = r->ops->step_read(r->device, ticket, r->results, step.chunk_count);
    }
    if (e != ERR_OK) {
        return ops_failed(e, "a step", why);
    }
    struct kern_span span;
    r->ops->span(r->device, &span);
    *busy_us = (double)span.busy_us;
    return ERR_OK;
}

enum err ops_prepare(struct ops_runner *r, const struct ops_batch *batch,
                     const struct ops_lora *lora, enum ops_sampling sampling,
                     struct err_text *why) {
    CHECK(ops_samples(batch) <= OPS_CHUNKS_MAX && ops_tokens(batch) <= r->limits.step_tokens);
    r->step = (struct kern_step){.tokens = r->tokens,
                                 .chunks = r->chunks,
                                 .segments = r->segments,
                                 .slot_sets = r->slot_sets,
                                 .slot_pages = r->slot_pages,
                                 .adapter_sets = r->adapter_sets};
    r->page_next = 0;
    for (uint32_t i = 0; i < OPS_GROUPS; i++) {
        for (uint32_t k = 0; k < batch->groups[i].chunks; k++) {
            slot_add(r, &batch->groups[i], sampling);
        }
    }
    if (lora != NULL && lora->segments > 0) {
        lora_add(r, lora);
    }
    r->fresh = true;
    r->calls_most = 1;
    double busy_us, host_us;
    enum err e = run_step(r, NULL, &busy_us, &host_us, why);
    if (e == ERR_OK) {
        const struct program heads = {
            .block = OPS_HEAD, .before = OPS_BLOCKS, .calls = CALLS_TRIED};
        e = run_step(r, &heads, &busy_us, &host_us, why);
        r->head_us = busy_us / CALLS_TRIED;
    }
    return e;
}

/* ---- measuring ---------------------------------------------------------------------------- */

/* What is called before each call so that the caches are as in a step; see the header. */
static enum ops_block before_of(const struct ops_runner *r, enum ops_block block) {
    if (r->peaks.pinned_bytes_s <= 0) {
        return OPS_BLOCKS; /* a CPU: its time is no matter of caches */
    }
    const struct ops_batch none = {0};
    switch (block) {
    case OPS_EMBED:
        return OPS_GATE_UP;
    case OPS_ATTENTION:
        return OPS_QKV;
    case OPS_SAMPLE:
        return OPS_HEAD;
    case OPS_QKV:
    case OPS_ATTN_OUT:
    case OPS_DOWN:
        break;
    case OPS_GATE_UP:
    case OPS_HEAD:
    case OPS_PASS:
        return OPS_BLOCKS;
    }
    double weights = ops_work(&r->shape, r->elem_bytes, &none, block).bytes * r->shape.layers;
    return weights < COLD_BYTES ? OPS_GATE_UP : OPS_BLOCKS;
}

/* The same device time for every block, within bounds; whole rounds of the layers. */
static uint32_t calls_of(const struct ops_runner *r, enum ops_block block, double us) {
    double wanted = us > 0 ? r->target_us / us : CALLS_MAX;
    uint32_t calls = wanted > CALLS_MAX ? CALLS_MAX : (uint32_t)wanted;
    if (block == OPS_PASS) {
        return calls > CALLS_MAX / r->shape.layers ? CALLS_MAX / r->shape.layers + 1 : calls + 1;
    }
    calls = calls > CALLS_MIN ? calls : CALLS_MIN;
    uint32_t layers = r->shape.layers;
    return ops_in_layer(block) && layers <= CALLS_MAX ? ops_ceil_div(calls, layers) * layers
                                                      : calls;
}

/* How many calls of the head keep a GPU busy while the host launches what is measured, where that
 * is no quicker than the GPU. */
static uint32_t lead_of(const struct ops_runner *r, uint32_t calls, double busy_us,
                        double host_us) {
    if (r->peaks.pinned_bytes_s <= 0 || host_us < lead_share * busy_us || r->head_us <= 0) {
        return 0;
    }
    double heads = lead_margin * calls * host_us / r->head_us + 1;
    return heads < LEAD_MAX ? (uint32_t)heads : LEAD_MAX;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One round: what a step with `p` takes longer than one with `other`, by calls. */
static enum err run_round(struct ops_runner *r, const struct program *p,
                          const struct program *other, double *us, double *host_share,
                          struct err_text *why) {
    double other_us = 0, busy_us = 0, host_us = 0;
    enum err e = run_step(r, other, &other_us, &host_us, why);
    if (e == ERR_OK) {
        e = run_step(r, p, &busy_us, &host_us, why);
    }
    *us = (busy_us - other_us) / p->calls;
    *host_share = busy_us > 0 ? host_us / busy_us : 0;
    return e;
}

enum err ops_measure(struct ops_runner *r, enum ops_block block, enum ops_of of,
                     struct ops_time *out, struct err_text *why) {
    struct program p = {.block = block}, other;
    double us[OPS_ROUNDS_MAX], host_share = INFINITY, busy_us = 0, host_us = 0;
    p.before = of == OPS_WHOLE ? before_of(r, block) : OPS_BLOCKS;
    p.calls = block == OPS_PASS ? 1 : CALLS_TRIED;
    enum err e = run_step(r, &p, &busy_us, &host_us, why);
    busy_us /= p.calls;
    host_us /= p.calls;
    p.calls = calls_of(r, block, busy_us);
    p.lead = lead_of(r, p.calls, busy_us, host_us);
    if (block != OPS_PASS && p.calls > r->calls_most) {
        r->calls_most = p.calls;
    }
    other = p;
    other.no_block = of == OPS_WHOLE;
    other.no_lora = of == OPS_EXTRA;
    for (uint32_t i = 0; i < r->rounds && e == ERR_OK; i++) {
        double share = 0;
        e = run_round(r, &p, &other, &us[i], &share, why);
        host_share = fmin(host_share, share);
    }
    if (e != ERR_OK) {
        return e;
    }
    qsort(us, r->rounds, sizeof us[0], compare_doubles);
    *out = (struct ops_time){
        .us = us[r->rounds / 2],
        .low_us = us[0],
        .high_us = us[r->rounds - 1],
        .calls = p.calls,
        .host_bound = r->peaks.pinned_bytes_s > 0 && host_share > host_bound_share,
    };
    return ERR_OK;
}

enum err ops_check(struct ops_runner *r, struct err_text *why) {
    const struct program p = {
        .block = OPS_DOWN, .before = OPS_ATTN_OUT, .calls = r->calls_most, .head = true};
    double busy_us, host_us;
    enum err e = run_step(r, &p, &busy_us, &host_us, why);
    if (e != ERR_OK) {
        return e;
    }
    e = r->ops->logits(r->device, 0, r->logits);
    if (e != ERR_OK) {
        return ops_failed(e, "logits", why);
    }
    for (uint32_t i = 0; i < r->shape.vocab; i++) {
        if (!isfinite(r->logits[i])) {
            return err_set(why, ERR_DEVICE, "logit %u is no finite number", i);
        }
    }
    return ERR_OK;
}
