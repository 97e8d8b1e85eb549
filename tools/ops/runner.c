#include "tools/ops/runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"

enum {
    PAGE_TOKENS = 16,
    PAGE_ELEMS_MIN = KERN_TILE_ELEMENTS, /* of small shapes: more tokens a page */
    HOST_PAGE = 4096,
    IMAGE_BYTES = 64 << 20,  /* of random numbers that fill the pool, again and again */
    PATTERN_ELEMS = 1 << 20, /* of random numbers that fill the image */
    CALLS_MIN = 4,           /* of a block in a round */
    CALLS_MAX = 96,          /* more launches than a stream takes would stop the host */
    CALLS_TRIED = 4,         /* to find how many make a round */
    COLD_BYTES = 128 << 20,  /* of matrices: more than any last cache holds */
    WEIGHTS_SEED = 1,
    TOP_K = 50,
    TOP_LOGPROBS = 5,
};
static const uint64_t pool_bytes_cpu = UINT64_C(1) << 28, pool_bytes_gpu = UINT64_C(16) << 30;
static const double pool_room_share = 0.9; /* of what the device has left */
static const float pool_value_max = 0.125f, lora_scale = 0.25f;
static const double host_bound_share = 0.95; /* of the device's time, spent launching */

struct ops_runner {
    const struct kern_ops *ops;
    struct kern_device *device;
    struct kern_shape shape;
    struct kern_limits limits;
    struct kern_peaks peaks;
    uint32_t rounds, target_us, elem_bytes;
    uint32_t page_count, page_next;
    uint32_t *pages; /* [page_count], shuffled; handed out round and round */
    uint64_t random;

    struct kern_step step; /* its arrays are the following */
    uint32_t *tokens;      /* [tokens of the largest batch] */
    struct kern_chunk *chunks;
    struct kern_segment *segments;
    struct kern_slot_set *slot_sets;
    struct kern_slot_page *slot_pages; /* [page_room] */
    struct kern_adapter_set *adapter_sets;
    struct kern_lora *lora;  /* [kern_lora_count(layers)], of the rank that is set */
    uint32_t *adapter_pages; /* [OPS_ADAPTERS_MAX][limits.adapter_pages] */
    uint64_t page_room;
    struct kern_sample *results;
    float *logits;       /* [vocab] */
    bool fresh;          /* the step's deltas have yet to go */
    uint32_t calls_most; /* of a block in a step of this batch */
};

static uint64_t random_next(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint32_t ceil_div(uint64_t value, uint64_t by) {
    return (uint32_t)((value + by - 1) / by);
}

static uint64_t page_elems(const struct ops_runner *r) {
    return kern_page_elems(&r->shape, r->limits.page_tokens);
}

static enum err device_failed(enum err e, const char *call, struct err_text *why) {
    return err_set(why, e, "the device failed in %s: %s", call, err_name(e));
}

/* ---- adapters ----------------------------------------------------------------------------- */

/* Fills r->lora for a rank; returns the elements of a layer's list. */
static uint64_t lora_place(struct ops_runner *r, uint32_t rank) {
    const uint64_t elems = page_elems(r);
    uint64_t end = 0;
    memset(r->lora, 0, kern_lora_count(r->shape.layers) * sizeof r->lora[0]);
    for (uint32_t m = 0; m < KERN_MODULES; m++) {
        struct kern_lora *first = &r->lora[m];
        *first = (struct kern_lora){.rank = kern_rank_padded(rank), .scale = lora_scale, .a = end};
        first->b = kern_matrix_end(elems, end, first->rank, kern_lora_in(&r->shape, m));
        end = kern_matrix_end(elems, first->b, first->rank, kern_lora_out(&r->shape, m));
        for (uint32_t layer = 1; layer < r->shape.layers; layer++) {
            r->lora[layer * KERN_MODULES + m] = *first;
        }
    }
    return end;
}

/* ---- open --------------------------------------------------------------------------------- */

static enum err room_take(struct ops_runner *r, const struct ops_options *o, struct err_text *why) {
    CHECK(r->limits.adapter_pages > 0);
    r->page_room = (uint64_t)OPS_CHUNKS_MAX * r->limits.slot_pages;
    r->tokens = calloc(o->tokens, sizeof r->tokens[0]);
    r->chunks = calloc(OPS_CHUNKS_MAX, sizeof r->chunks[0]);
    r->segments = calloc(OPS_CHUNKS_MAX, sizeof r->segments[0]);
    r->slot_sets = calloc(OPS_CHUNKS_MAX, sizeof r->slot_sets[0]);
    r->slot_pages = calloc(r->page_room, sizeof r->slot_pages[0]);
    r->adapter_sets = calloc(OPS_ADAPTERS_MAX, sizeof r->adapter_sets[0]);
    r->adapter_pages =
        calloc((size_t)OPS_ADAPTERS_MAX * r->limits.adapter_pages, sizeof r->adapter_pages[0]);
    r->results = calloc(OPS_CHUNKS_MAX, sizeof r->results[0]);
    r->logits = calloc(r->shape.vocab, sizeof r->logits[0]);
    bool all = r->tokens != NULL && r->chunks != NULL && r->segments != NULL &&
               r->slot_sets != NULL && r->slot_pages != NULL && r->adapter_sets != NULL &&
               r->adapter_pages != NULL && r->results != NULL && r->logits != NULL;
    return all ? ERR_OK : err_set(why, ERR_NO_MEMORY, "no memory for the steps");
}

/* Slots, samples and adapters are as many as in any batch, whichever are run: what bucket is the
 * last must not change (algorithms_choose). */
static enum err limits_set(struct ops_runner *r, const struct ops_options *o,
                           struct err_text *why) {
    struct kern_limits *l = &r->limits;
    *l = (struct kern_limits){.slots = OPS_CHUNKS_MAX,
                              .adapters = OPS_ADAPTERS_MAX,
                              .step_tokens = o->tokens,
                              .step_samples = OPS_CHUNKS_MAX,
                              .page_tokens = PAGE_TOKENS,
                              .threads = o->threads,
                              .cache_dir = o->cache_dir};
    while (kern_page_elems(&r->shape, l->page_tokens) < PAGE_ELEMS_MIN) {
        l->page_tokens *= 2;
    }
    l->slot_pages = ceil_div(o->context, l->page_tokens);
    r->shape.positions = l->slot_pages * l->page_tokens;
    r->lora = calloc(kern_lora_count(r->shape.layers), sizeof r->lora[0]);
    if (r->lora == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for an adapter's table");
    }
    l->adapter_pages =
        ceil_div(lora_place(r, o->rank > 0 ? o->rank : KERN_RANK_MULTIPLE), page_elems(r));
    return ERR_OK;
}

static void pass(struct ops_runner *r);

/* A GPU chooses the linears' algorithms when it is shown the first bucket. It is shown the last
 * one alone: of 1,024 samples with adapters, which no batch here has, so that no step finds a
 * graph, whose blocks could not be told apart. */
static enum err algorithms_choose(struct ops_runner *r, struct err_text *why) {
    uint32_t count = r->ops->bucket_count(r->device);
    if (count == 0) {
        return ERR_OK;
    }
    enum err e = r->ops->bucket_begin(r->device, count - 1);
    if (e == ERR_OK) {
        pass(r);
        e = r->ops->bucket_end(r->device);
    }
    return e == ERR_OK ? ERR_OK : device_failed(e, "bucket_begin", why);
}

static void image_fill(struct ops_runner *r, unsigned char *image, uint64_t elems, float *pattern) {
    const enum kern_dtype elem = r->ops->elem(r->device);
    for (uint32_t i = 0; i < PATTERN_ELEMS; i++) {
        double unit = (double)(random_next(&r->random) >> 11) * 0x1p-53;
        pattern[i] = pool_value_max * (float)(2 * unit - 1);
    }
    for (uint64_t begin = 0; begin < elems; begin += PATTERN_ELEMS) {
        uint64_t left = elems - begin;
        kern_convert(image + begin * r->elem_bytes, elem, pattern, KERN_F32,
                     left < PATTERN_ELEMS ? left : PATTERN_ELEMS);
    }
}

/* Loads the image into all pages, as an adapter is loaded. */
static enum err pool_load(struct ops_runner *r, const void *image, uint32_t image_pages,
                          struct err_text *why) {
    uint64_t event = 0;
    for (uint32_t begin = 0; begin < r->page_count; begin += image_pages) {
        uint32_t left = r->page_count - begin;
        enum err e = r->ops->load(r->device, image, r->pages + begin,
                                  left < image_pages ? left : image_pages, &event);
        if (e != ERR_OK) {
            return device_failed(e, "load", why);
        }
    }
    while (!r->ops->event_done(r->device, event)) {
        clock_sleep_ms(1);
    }
    return ERR_OK;
}

/* KV and adapters alike: small random numbers, for products of zeros take less power. */
static enum err pool_fill(struct ops_runner *r, struct err_text *why) {
    const uint64_t page_bytes = page_elems(r) * r->elem_bytes * r->shape.layers;
    uint64_t pages = IMAGE_BYTES / page_bytes;
    pages = pages < r->limits.adapter_pages ? pages : r->limits.adapter_pages;
    pages = pages < r->page_count ? pages : r->page_count;
    pages = pages > 0 ? pages : 1;
    uint64_t bytes = (uint64_t)ceil_div(pages * page_bytes, HOST_PAGE) * HOST_PAGE;
    unsigned char *image = aligned_alloc(HOST_PAGE, bytes);
    float *pattern = calloc(PATTERN_ELEMS, sizeof *pattern);
    enum err e = ERR_OK;
    bool pinned = false;
    if (image == NULL || pattern == NULL) {
        e = err_set(why, ERR_NO_MEMORY, "no memory for the pool's contents");
        goto out;
    }
    image_fill(r, image, bytes / r->elem_bytes, pattern);
    e = r->ops->pin(image, bytes);
    if (e != ERR_OK) {
        (void)err_set(why, e, "%llu bytes of host memory cannot be pinned",
                      (unsigned long long)bytes);
        goto out;
    }
    pinned = true;
    e = pool_load(r, image, (uint32_t)pages, why);
out:
    if (pinned) {
        r->ops->unpin(image, bytes);
    }
    free(image);
    free(pattern);
    return e;
}

static enum err pool_open(struct ops_runner *r, struct err_text *why) {
    const uint64_t page_bytes = page_elems(r) * r->elem_bytes * r->shape.layers;
    uint64_t room = r->ops->pool_room(r->device);
    uint64_t bytes = room == UINT64_MAX ? pool_bytes_cpu : pool_bytes_gpu;
    if ((double)bytes > pool_room_share * (double)room) {
        bytes = (uint64_t)(pool_room_share * (double)room);
    }
    uint64_t most = r->page_room + (uint64_t)OPS_ADAPTERS_MAX * r->limits.adapter_pages;
    uint64_t count = bytes / page_bytes < most ? bytes / page_bytes : most;
    if (count < r->limits.slot_pages) {
        return err_set(why, ERR_NO_SPACE, "the device has room for %llu pages, a sequence needs %u",
                       (unsigned long long)count, r->limits.slot_pages);
    }
    r->page_count = (uint32_t)count;
    r->pages = calloc(count, sizeof r->pages[0]);
    if (r->pages == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the pool's pages");
    }
    for (uint32_t i = 0; i < r->page_count; i++) {
        uint32_t at = (uint32_t)(random_next(&r->random) % (i + UINT64_C(1)));
        r->pages[i] = r->pages[at];
        r->pages[at] = i;
    }
    enum err e = r->ops->pool(r->device, r->page_count, why);
    return e == ERR_OK ? pool_fill(r, why) : e;
}

static enum err device_open(struct ops_runner *r, const struct ops_options *o,
                            struct err_text *why) {
    enum err e = limits_set(r, o, why);
    if (e == ERR_OK) {
        e = room_take(r, o, why);
    }
    if (e == ERR_OK) {
        e = r->ops->open(&r->device, &r->shape, &r->limits, why);
    }
    if (e == ERR_OK) {
        r->elem_bytes = kern_dtype_bytes(r->ops->elem(r->device));
        e = r->ops->weights_random(r->device, WEIGHTS_SEED, why);
    }
    if (e == ERR_OK) {
        e = algorithms_choose(r, why);
    }
    if (e == ERR_OK && (e = r->ops->peaks(r->device, &r->peaks)) != ERR_OK) {
        (void)device_failed(e, "peaks", why);
    }
    return e == ERR_OK ? pool_open(r, why) : e;
}

enum err ops_open(struct ops_runner **out, const struct ops_options *o, struct err_text *why) {
    CHECK(o->tokens >= OPS_CHUNKS_MAX && o->tokens <= OPS_TOKENS_MAX);
    CHECK(o->rank <= OPS_RANK_MAX && o->context > 0);
    CHECK(o->rounds >= 1 && o->rounds <= OPS_ROUNDS_MAX);
    struct ops_runner *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for the benchmark");
    }
    r->ops = o->ops;
    r->shape = o->shape;
    r->rounds = o->rounds;
    r->target_us = o->target_us;
    enum err e = device_open(r, o, why);
    if (e != ERR_OK) {
        ops_close(r);
        return e;
    }
    *out = r;
    return ERR_OK;
}

void ops_close(struct ops_runner *r) {
    if (r == NULL) {
        return;
    }
    r->ops->close(r->device);
    free(r->pages);
    free(r->tokens);
    free(r->chunks);
    free(r->segments);
    free(r->slot_sets);
    free(r->slot_pages);
    free(r->adapter_sets);
    free(r->lora);
    free(r->adapter_pages);
    free(r->results);
    free(r->logits);
    free(r);
}

const struct kern_peaks *ops_peaks(const struct ops_runner *r) {
    return &r->peaks;
}

uint32_t ops_elem_bytes(const struct ops_runner *r) {
    return r->elem_bytes;
}

uint32_t ops_page_count(const struct ops_runner *r) {
    return r->page_count;
}

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
        pass(r);
        break;
    }
}

static void pass(struct ops_runner *r) {
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
    uint32_t pages = ceil_div((uint64_t)g->position + g->tokens, r->limits.page_tokens);
    CHECK(pages <= r->limits.slot_pages && s->slot_page_count + (uint64_t)pages <= r->page_room);
    for (uint32_t i = 0; i < pages; i++) {
        r->slot_pages[s->slot_page_count++] =
            (struct kern_slot_page){.slot = slot, .index = i, .page = page_take(r)};
    }
    for (uint32_t i = 0; i < g->tokens; i++) {
        r->tokens[s->token_count++] = (uint32_t)(random_next(&r->random) % r->shape.vocab);
    }
}

static void lora_add(struct ops_runner *r, const struct ops_lora *lora) {
    struct kern_step *s = &r->step;
    uint32_t pages = ceil_div(lora_place(r, lora->rank), page_elems(r)), row = 0;
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
    bool block_runs; /* else only `before` */
    bool head;       /* ends with logits */
};

static void run_program(struct ops_runner *r, const struct program *p) {
    run_block(r, OPS_EMBED, 0);
    for (uint32_t i = 0; i < p->calls; i++) {
        if (p->before != OPS_BLOCKS) {
            run_block(r, p->before, i % r->shape.layers);
        }
        if (p->block_runs) {
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
    enum err e = r->ops->step_begin(r->device, &step);
    if (e != ERR_OK) {
        return device_failed(e, "step_begin", why);
    }
    r->fresh = false;
    int64_t begin_us = clock_mono_us();
    if (p == NULL) {
        pass(r);
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
        return device_failed(e, "a step", why);
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
    return e == ERR_OK ? run_step(r, NULL, &busy_us, &host_us, why) : e;
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
    return ops_in_layer(block) && layers <= CALLS_MAX ? ceil_div(calls, layers) * layers : calls;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One round: a step with `p`, less one with what stands before the block alone. */
static enum err run_round(struct ops_runner *r, const struct program *p, double *us,
                          double *host_share, struct err_text *why) {
    struct program without = *p;
    double base_us = 0, busy_us = 0, host_us = 0;
    without.block_runs = false;
    enum err e = run_step(r, &without, &base_us, &host_us, why);
    if (e == ERR_OK) {
        e = run_step(r, p, &busy_us, &host_us, why);
    }
    *us = (busy_us - base_us) / p->calls;
    *host_share = busy_us > 0 ? host_us / busy_us : 0;
    return e;
}

enum err ops_measure(struct ops_runner *r, enum ops_block block, struct ops_time *out,
                     struct err_text *why) {
    struct program p = {.block = block, .before = before_of(r, block), .block_runs = true};
    double us[OPS_ROUNDS_MAX], host_share = INFINITY, busy_us = 0, host_us = 0;
    p.calls = block == OPS_PASS ? 1 : CALLS_TRIED;
    enum err e = run_step(r, &p, &busy_us, &host_us, why);
    p.calls = calls_of(r, block, busy_us / p.calls);
    if (block != OPS_PASS && p.calls > r->calls_most) {
        r->calls_most = p.calls;
    }
    for (uint32_t i = 0; i < r->rounds && e == ERR_OK; i++) {
        double share = 0;
        e = run_round(r, &p, &us[i], &share, why);
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
    const struct program p = {.block = OPS_DOWN,
                              .before = OPS_ATTN_OUT,
                              .calls = r->calls_most,
                              .block_runs = true,
                              .head = true};
    double busy_us, host_us;
    enum err e = run_step(r, &p, &busy_us, &host_us, why);
    if (e != ERR_OK) {
        return e;
    }
    e = r->ops->logits(r->device, 0, r->logits);
    if (e != ERR_OK) {
        return device_failed(e, "logits", why);
    }
    for (uint32_t i = 0; i < r->shape.vocab; i++) {
        if (!isfinite(r->logits[i])) {
            return err_set(why, ERR_DEVICE, "logit %u is no finite number", i);
        }
    }
    return ERR_OK;
}
