#include "tests/unit/model/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/clock.h"
#include "tests/unit/seed.h"

enum { PAGE_TOKENS = 16 };

static void demand(enum err e, const struct err_text *why) {
    if (e != ERR_OK) {
        fail_msg("%s: %s", err_name(e), why->message);
    }
}

static uint32_t row_pages(const struct rig *r) {
    return (r->limits.row_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
}

void rig_open(struct rig *r, const char *model_dir, const char *adapters_root,
              const struct rig_limits *limits) {
    struct err_text why = {0};
    *r = (struct rig){.ops = limits->ops == NULL ? kern_cpu() : limits->ops,
                      .limits = *limits,
                      .merged = KERN_BASE};
    demand(model_open(&r->model, model_dir, &why), &why);
    struct kern_limits device = {.slots = limits->rows,
                                 .adapters = limits->adapters,
                                 .step_tokens = limits->step_tokens,
                                 .step_samples = limits->rows,
                                 .slot_pages = row_pages(r),
                                 .adapter_pages = limits->adapter_pages,
                                 .page_tokens = PAGE_TOKENS,
                                 .threads = 2,
                                 .merging = limits->merging};
    demand(r->ops->open(&r->device, &model_facts(r->model)->shape, &device, &why), &why);
    demand(model_weights(r->model, r->ops, r->device, NULL, NULL, &why), &why);
    demand(model_warm(model_facts(r->model), r->ops, r->device), &why);
    demand(r->ops->pool(r->device, limits->pages, &why), &why);
    struct pool_options pool = {.page_count = limits->pages,
                                .adapters = limits->adapters,
                                .adapter_pages = limits->adapter_pages,
                                .ops = r->ops,
                                .device = r->device};
    demand(pool_open(&r->pool, &pool), &why);
    struct pool_store_options store = {.bytes = limits->store_bytes,
                                       .chunk_bytes = 8 << 20,
                                       .pin = r->ops->pin,
                                       .unpin = r->ops->unpin};
    demand(pool_store_open(&r->store, &store), &why);
    r->options = (struct model_adapter_options){.root = adapters_root,
                                                .page_tokens = PAGE_TOKENS,
                                                .elem = r->ops->elem(r->device),
                                                .page_count_max = limits->adapter_pages};
}

void rig_close(struct rig *r) {
    pool_check(r->pool);
    pool_close(r->pool);
    pool_store_close(r->store);
    r->ops->close(r->device);
    model_close(r->model);
}

void rig_scatter(struct rig *r, uint64_t seed) {
    uint32_t count = pool_counts(r->pool).free;
    uint32_t *pages = malloc(count * sizeof *pages);
    CHECK(pages != NULL);
    assert_int_equal(pool_reserve(r->pool, count, pages), ERR_OK);
    for (uint32_t i = count - 1; i > 0; i--) {
        uint32_t k = seed_below(&seed, i + 1);
        uint32_t page = pages[i];
        pages[i] = pages[k];
        pages[k] = page;
    }
    for (uint32_t i = 0; i < count; i++) {
        pool_release(r->pool, &pages[i], 1, 0);
    }
    free(pages);
}

uint32_t rig_adapter(struct rig *r, const char *id) {
    if (id == NULL) {
        return KERN_BASE;
    }
    struct err_text why = {0};
    struct pool_image *image = NULL;
    struct model_adapter_facts facts;
    uint32_t adapter = 0;
    demand(
        model_adapter_load(model_facts(r->model), &r->options, id, r->store, &image, &facts, &why),
        &why);
    assert_int_equal(pool_adapter_load(r->pool, r->store, image, &adapter), ERR_OK);
    while (pool_adapter_poll(r->pool, adapter) != POOL_RESIDENT) {
        clock_sleep_ms(1);
    }
    return adapter; /* the device learns of it by a step's delta: add_adapters() */
}

void rig_evict(struct rig *r, uint32_t adapter) {
    pool_adapter_evict(r->pool, r->store, adapter, r->ticket);
    pool_steps_ended(r->pool, r->ticket);
}

bool rig_mergeable(const struct rig *r, uint32_t adapter) {
    return adapter != KERN_BASE && kern_lora_mergeable(pool_adapter_set(r->pool, adapter).lora,
                                                       model_facts(r->model)->shape.layers);
}

void rig_merge(struct rig *r, uint32_t adapter) {
    r->ops->merge(r->device, adapter);
    r->merged = adapter;
}

/* ---- one step ----------------------------------------------------------------------------- */

struct row_state {
    uint32_t *pages; /* [row_pages] */
    uint32_t done;   /* tokens in the cache */
    uint32_t sampled;
    bool open;
};

/* A step's arrays, as large as they can get. */
struct batch {
    struct kern_step step;
    uint32_t *tokens;
    struct kern_chunk *chunks;
    struct kern_segment *segments;
    struct kern_slot_set *slot_sets;
    struct kern_slot_page *slot_pages;
    struct kern_adapter_set *adapter_sets;
    uint32_t *sampled_rows;
    uint32_t sample_count;
};

static void *take(size_t count, size_t size) {
    void *p = calloc(count, size);
    CHECK(p != NULL);
    return p;
}

static void batch_init(struct batch *b, const struct rig *r) {
    uint32_t rows = r->limits.rows;
    b->tokens = take(r->limits.step_tokens, sizeof *b->tokens);
    b->chunks = take(rows, sizeof *b->chunks);
    b->segments = take(rows, sizeof *b->segments);
    b->slot_sets = take(rows, sizeof *b->slot_sets);
    b->slot_pages = take((size_t)rows * row_pages(r), sizeof *b->slot_pages);
    b->adapter_sets = take(r->limits.adapters, sizeof *b->adapter_sets);
    b->sampled_rows = take(rows, sizeof *b->sampled_rows);
}

static void batch_deinit(struct batch *b) {
    free(b->tokens);
    free(b->chunks);
    free(b->segments);
    free(b->slot_sets);
    free(b->slot_pages);
    free(b->adapter_sets);
    free(b->sampled_rows);
}

static void open_slot(struct rig *r, struct batch *b, struct row_state *s, uint32_t slot) {
    assert_int_equal(pool_reserve(r->pool, row_pages(r), s->pages), ERR_OK);
    b->slot_sets[b->step.slot_set_count++] =
        (struct kern_slot_set){.slot = slot, .temperature = 0, .top_p = 1};
    for (uint32_t i = 0; i < row_pages(r); i++) {
        b->slot_pages[b->step.slot_page_count++] =
            (struct kern_slot_page){.slot = slot, .index = i, .page = s->pages[i]};
    }
    s->open = true;
}

/* Appends a row's part of the step. */
static void add_row(const struct rig *r, struct batch *b, const struct rig_row *row,
                    struct row_state *s, uint32_t slot) {
    uint32_t begin = b->step.token_count;
    uint32_t count = 1;
    bool sample = true;
    if (s->done < row->prompt_count) {
        uint32_t left = row->prompt_count - s->done;
        count = row->chunk == 0 || row->chunk > left ? left : row->chunk;
        sample = count == left || row->forced;
        memcpy(b->tokens + begin, row->prompt + s->done, count * sizeof *b->tokens);
    } else {
        b->tokens[begin] = KERN_TOKEN_LAST;
    }
    b->chunks[b->step.chunk_count++] = (struct kern_chunk){.slot = slot,
                                                           .token_begin = begin,
                                                           .token_count = count,
                                                           .position = s->done,
                                                           .sample = sample};
    b->step.token_count += count;
    if (sample) {
        b->sampled_rows[b->sample_count++] = slot;
    }
    s->done += count;
    if (row->adapter == KERN_BASE || row->adapter == r->merged) {
        return;
    }
    uint32_t segments = b->step.segment_count;
    struct kern_segment *last = &b->segments[segments > 0 ? segments - 1 : 0];
    if (segments > 0 && last->adapter == row->adapter &&
        last->token_begin + last->token_count == begin) {
        last->token_count += count;
    } else {
        b->segments[b->step.segment_count++] = (struct kern_segment){
            .adapter = row->adapter, .token_begin = begin, .token_count = count};
    }
}

/* Tells the device of each adapter of the rows once, at the first step. */
static void add_adapters(struct rig *r, struct batch *b, const struct rig_row *rows,
                         uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (rows[i].adapter != KERN_BASE && (i == 0 || rows[i].adapter != rows[i - 1].adapter)) {
            b->adapter_sets[b->step.adapter_set_count++] =
                pool_adapter_set(r->pool, rows[i].adapter);
        }
    }
}

static void run_step(struct rig *r, struct batch *b, struct rig_row *rows,
                     struct row_state *states) {
    b->step.tokens = b->tokens;
    b->step.chunks = b->chunks;
    b->step.segments = b->segments;
    b->step.slot_sets = b->slot_sets;
    b->step.slot_pages = b->slot_pages;
    b->step.adapter_sets = b->adapter_sets;
    const struct model_facts *facts = model_facts(r->model);
    assert_int_equal(model_step(facts, r->ops, r->device, &b->step, &r->ticket), ERR_OK);
    struct kern_sample samples[64];
    CHECK(b->sample_count <= 64);
    assert_int_equal(r->ops->step_read(r->device, r->ticket, samples, b->sample_count), ERR_OK);
    for (uint32_t i = 0; i < b->sample_count; i++) {
        struct rig_row *row = &rows[b->sampled_rows[i]];
        struct row_state *s = &states[b->sampled_rows[i]];
        assert_int_equal(samples[i].slot, b->sampled_rows[i]);
        if (row->logits != NULL) {
            float *out = row->logits + (uint64_t)s->sampled * facts->shape.vocab;
            assert_int_equal(r->ops->logits(r->device, i, out), ERR_OK);
        }
        if (!row->forced) {
            row->tokens[s->sampled] = samples[i].token;
        }
        s->sampled++;
    }
}

void rig_run(struct rig *r, struct rig_row *rows, uint32_t count) {
    CHECK(count <= r->limits.rows);
    struct row_state *states = take(count, sizeof *states);
    uint32_t *pages = take((size_t)count * row_pages(r), sizeof *pages);
    struct batch b = {0};
    batch_init(&b, r);
    bool more = true;
    for (uint32_t step = 0; more; step++) {
        more = false;
        b.step = (struct kern_step){0};
        b.sample_count = 0;
        if (step == 0) {
            add_adapters(r, &b, rows, count);
        }
        for (uint32_t i = 0; i < count; i++) {
            struct row_state *s = &states[i];
            if (s->sampled == rows[i].token_count) {
                continue;
            }
            more = true;
            if (step < rows[i].start) {
                continue;
            }
            if (!s->open) {
                s->pages = pages + (size_t)i * row_pages(r);
                open_slot(r, &b, s, i);
            }
            add_row(r, &b, &rows[i], s, i);
        }
        if (b.step.token_count > 0) {
            run_step(r, &b, rows, states);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        pool_release(r->pool, states[i].pages, row_pages(r), r->ticket);
    }
    pool_steps_ended(r->pool, r->ticket);
    batch_deinit(&b);
    free(pages);
    free(states);
}

uint32_t *rig_tokens(const json_t *prompt, const char *key, uint32_t *count) {
    const json_t *list = json_object_get(prompt, key);
    *count = (uint32_t)json_array_size(list);
    CHECK(*count > 0);
    uint32_t *tokens = take(*count, sizeof *tokens);
    for (uint32_t i = 0; i < *count; i++) {
        tokens[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    }
    return tokens;
}
