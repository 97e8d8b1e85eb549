/* open.c - a runner's device, its weights and its pool. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "tools/ops/inner.h"

enum {
    PAGE_TOKENS = 16,
    PAGE_ELEMS_MIN = KERN_TILE_ELEMENTS, /* of small shapes: more tokens a page */
    HOST_PAGE = 4096,
    IMAGE_BYTES = 64 << 20,  /* of random numbers that fill the pool, again and again */
    PATTERN_ELEMS = 1 << 20, /* of random numbers that fill the image */
    WEIGHTS_SEED = 1,
};
static const uint64_t pool_bytes_cpu = UINT64_C(1) << 28, pool_bytes_gpu = UINT64_C(16) << 30;
static const double pool_room_share = 0.9; /* of what the device has left */
static const float pool_value_max = 0.125f, lora_scale = 0.25f;

uint64_t ops_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t ops_page_elems(const struct ops_runner *r) {
    return kern_page_elems(&r->shape, r->limits.page_tokens);
}

enum err ops_failed(enum err e, const char *call, struct err_text *why) {
    return err_set(why, e, "the device failed in %s: %s", call, err_name(e));
}

/* ---- adapters ----------------------------------------------------------------------------- */

/* Fills r->lora for a rank; returns the elements of a layer's list. */
uint64_t ops_lora_place(struct ops_runner *r, uint32_t rank) {
    const uint64_t elems = ops_page_elems(r);
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
    l->slot_pages = ops_ceil_div(o->context, l->page_tokens);
    r->shape.positions = l->slot_pages * l->page_tokens;
    r->lora = calloc(kern_lora_count(r->shape.layers), sizeof r->lora[0]);
    if (r->lora == NULL) {
        return err_set(why, ERR_NO_MEMORY, "no memory for an adapter's table");
    }
    l->adapter_pages = ops_ceil_div(ops_lora_place(r, o->rank > 0 ? o->rank : KERN_RANK_MULTIPLE),
                                    ops_page_elems(r));
    return ERR_OK;
}

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
        ops_pass(r);
        e = r->ops->bucket_end(r->device);
    }
    return e == ERR_OK ? ERR_OK : ops_failed(e, "bucket_begin", why);
}

static void image_fill(struct ops_runner *r, unsigned char *image, uint64_t elems, float *pattern) {
    const enum kern_dtype elem = r->ops->elem(r->device);
    for (uint32_t i = 0; i < PATTERN_ELEMS; i++) {
        double unit = (double)(ops_random(&r->random) >> 11) * 0x1p-53;
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
            return ops_failed(e, "load", why);
        }
    }
    while (!r->ops->event_done(r->device, event)) {
        clock_sleep_ms(1);
    }
    return ERR_OK;
}

/* KV and adapters alike: small random numbers, for products of zeros take less power. */
static enum err pool_fill(struct ops_runner *r, struct err_text *why) {
    const uint64_t page_bytes = ops_page_elems(r) * r->elem_bytes * r->shape.layers;
    uint64_t pages = IMAGE_BYTES / page_bytes;
    pages = pages < r->limits.adapter_pages ? pages : r->limits.adapter_pages;
    pages = pages < r->page_count ? pages : r->page_count;
    pages = pages > 0 ? pages : 1;
    uint64_t bytes = (uint64_t)ops_ceil_div(pages * page_bytes, HOST_PAGE) * HOST_PAGE;
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
    const uint64_t page_bytes = ops_page_elems(r) * r->elem_bytes * r->shape.layers;
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
        uint32_t at = (uint32_t)(ops_random(&r->random) % (i + UINT64_C(1)));
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
        (void)ops_failed(e, "peaks", why);
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
