#include "tests/unit/kernels/rig.h"

#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/kernels/half.h"
#include "tests/unit/seed.h"

enum { HOST_PAGE = 4096 }; /* of memory that is pinned */

/* ---- making things up --------------------------------------------------------------------- */

static void *zeroed(uint64_t count, uint64_t bytes) {
    void *p = calloc(count > 0 ? count : 1, bytes);
    assert_non_null(p);
    return p;
}

static float uniform(struct rig *r, float around, float width) {
    double unit = (double)(seed_next(&r->seed) >> 40) * 0x1p-24;
    return around + width * (float)(2 * unit - 1);
}

static float *random_floats(struct rig *r, uint64_t count, float around, float width) {
    float *f = zeroed(count, sizeof *f);
    for (uint64_t i = 0; i < count; i++) {
        f[i] = half_round(uniform(r, around, width), r->shape.dtype);
    }
    return f;
}

/* Fails with the reason that the device gave. */
static void demand(enum err e, const struct err_text *why) {
    if (e != ERR_OK) {
        fail_msg("%s: %s", err_name(e), why->message);
    }
}

/* A tensor in the shape's type; one of 16 bits at an odd address, as files have them. */
static void give(struct rig *r, struct kern_weight w, const float *data, uint64_t rows,
                 uint64_t columns) {
    w.dtype = r->shape.dtype;
    w.data = data;
    w.rows = rows;
    w.columns = columns;
    unsigned char *halves = NULL;
    if (w.dtype != KERN_F32) {
        halves = zeroed(rows * columns + 1, 2);
        for (uint64_t i = 0; i < rows * columns; i++) {
            uint16_t half = half_of(data[i], w.dtype);
            memcpy(halves + 1 + 2 * i, &half, sizeof half);
        }
        w.data = halves + 1;
    }
    struct err_text why = {0};
    demand(r->ops->weight(r->device, &w, &why), &why);
    free(halves);
}

static void layer_give(struct rig *r, uint32_t layer) {
    const struct kern_shape *s = &r->shape;
    struct twin_layer *t = &r->weights.layers[layer];
    for (uint32_t m = 0; m < KERN_MODULES; m++) {
        uint32_t in = kern_module_in(s, m), out = kern_module_out(s, m);
        t->module[m] = random_floats(r, (uint64_t)in * out, 0, 1.7f / sqrtf((float)in));
        give(r, (struct kern_weight){.tensor = KERN_WEIGHT, .layer = layer, .module = m},
             t->module[m], out, in);
        if (m <= KERN_V && s->qkv_bias) {
            t->bias[m] = random_floats(r, out, 0, 0.5f);
            give(r, (struct kern_weight){.tensor = KERN_BIAS, .layer = layer, .module = m},
                 t->bias[m], 1, out);
        }
    }
    t->input_norm = random_floats(r, s->hidden, 1, 0.3f);
    t->post_norm = random_floats(r, s->hidden, 1, 0.3f);
    give(r, (struct kern_weight){.tensor = KERN_INPUT_NORM, .layer = layer}, t->input_norm, 1,
         s->hidden);
    give(r, (struct kern_weight){.tensor = KERN_POST_NORM, .layer = layer}, t->post_norm, 1,
         s->hidden);
    if (s->qk_norm) {
        t->q_norm = random_floats(r, s->head_dim, 1, 0.3f);
        t->k_norm = random_floats(r, s->head_dim, 1, 0.3f);
        give(r, (struct kern_weight){.tensor = KERN_Q_NORM, .layer = layer}, t->q_norm, 1,
             s->head_dim);
        give(r, (struct kern_weight){.tensor = KERN_K_NORM, .layer = layer}, t->k_norm, 1,
             s->head_dim);
    }
}

/* Rows that repeat after `period`, for ties. */
static void rows_repeat(float *rows, uint32_t count, uint32_t columns, uint32_t period) {
    for (uint32_t i = period; period != 0 && i < count; i++) {
        memcpy(rows + (uint64_t)i * columns, rows + (uint64_t)(i - period) * columns,
               columns * sizeof *rows);
    }
}

static void weights_give(struct rig *r, const struct rig_options *o) {
    const struct kern_shape *s = &r->shape;
    uint64_t table = (uint64_t)s->vocab * s->hidden;
    struct twin_weights *w = &r->weights;
    w->embed = random_floats(r, table, 0, 1);
    w->lm_head = o->tied ? w->embed : random_floats(r, table, 0, 1);
    rows_repeat(w->lm_head, s->vocab, s->hidden, o->head_period);
    w->final_norm = random_floats(r, s->hidden, 1, 0.3f);
    w->layers = zeroed(s->layers, sizeof w->layers[0]);
    give(r, (struct kern_weight){.tensor = KERN_EMBED}, w->embed, s->vocab, s->hidden);
    if (!o->tied) {
        give(r, (struct kern_weight){.tensor = KERN_LM_HEAD}, w->lm_head, s->vocab, s->hidden);
    }
    give(r, (struct kern_weight){.tensor = KERN_FINAL_NORM}, w->final_norm, 1, s->hidden);
    for (uint32_t i = 0; i < s->layers; i++) {
        layer_give(r, i);
    }
}

/* Shows the device its step shapes, as model_warm() does. */
static void warm(struct rig *r) {
    for (uint32_t i = 0; i < r->ops->bucket_count(r->device); i++) {
        assert_int_equal(r->ops->bucket_begin(r->device, i), ERR_OK);
        rig_blocks(r, NULL);
        assert_int_equal(r->ops->bucket_end(r->device), ERR_OK);
    }
}

static uint32_t usual(uint32_t value, uint32_t otherwise) {
    return value != 0 ? value : otherwise;
}

static void limits_set(struct rig *r, const struct rig_options *o) {
    uint32_t sequences = usual(o->sequences, RIG_SEQUENCES), pages = usual(o->pages, RIG_PAGES);
    r->sequence_tokens = usual(o->sequence_tokens, RIG_TOKENS);
    assert_true(sequences <= RIG_SEQUENCES_MAX && pages <= RIG_PAGES);
    assert_true(r->sequence_tokens <= RIG_TOKENS_MAX && o->step_tokens <= RIG_TOKENS_MAX);
    assert_true(o->page_tokens >= 8);
    r->limits = (struct kern_limits){.slots = sequences,
                                     .adapters = RIG_ADAPTERS,
                                     .step_tokens = usual(o->step_tokens, RIG_TOKENS),
                                     .step_samples = sequences,
                                     .slot_pages = r->sequence_tokens / o->page_tokens,
                                     .adapter_pages = pages,
                                     .page_tokens = o->page_tokens,
                                     .threads = o->threads,
                                     .merging = o->merging};
    r->merged = KERN_BASE;
}

void rig_open_with(struct rig *r, const struct kern_shape *shape, const struct rig_options *o) {
    memset(r, 0, sizeof *r);
    r->seed = seed_take(42);
    r->ops = o->ops == NULL ? kern_cpu() : o->ops;
    r->shape = *shape;
    for (uint32_t i = 0; i < shape->head_dim / 2; i++) {
        r->rope_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)shape->head_dim);
    }
    r->shape.rope_freq = r->rope_freq;
    limits_set(r, o);
    struct err_text why = {0};
    demand(r->ops->open(&r->device, &r->shape, &r->limits, &why), &why);
    weights_give(r, o);
    if (o->warm) {
        warm(r);
    }
    uint32_t pages = r->limits.adapter_pages;
    demand(r->ops->pool(r->device, pages, &why), &why);
    for (uint32_t i = 0; i < pages; i++) { /* shuffled: no list is ascending */
        uint32_t at = seed_below(&r->seed, i + 1);
        r->free_pages[i] = r->free_pages[at];
        r->free_pages[at] = i;
    }
    r->free_count = pages;
}

void rig_open(struct rig *r, const struct kern_shape *shape, uint32_t page_tokens, uint32_t threads,
              bool tied) {
    rig_open_with(
        r, shape,
        &(struct rig_options){.page_tokens = page_tokens, .threads = threads, .tied = tied});
}

static void adapter_free(struct rig *r, uint32_t adapter) {
    struct twin_adapter *t = &r->adapters[adapter];
    for (uint32_t i = 0; t->lora != NULL && i < kern_lora_count(r->shape.layers); i++) {
        free(t->lora[i].a);
        free(t->lora[i].b);
        free(t->lora[i].bias);
    }
    free(t->lora);
    free(r->loras[adapter]);
    t->lora = NULL;
    r->loras[adapter] = NULL;
    for (uint32_t i = 0; i < r->adapter_page_count[adapter]; i++) {
        r->free_pages[r->free_count++] = r->adapter_pages[adapter][i];
    }
    r->adapter_page_count[adapter] = 0;
    if (r->images[adapter] != NULL) {
        r->ops->unpin(r->images[adapter], r->image_bytes[adapter]);
        free(r->images[adapter]);
        r->images[adapter] = NULL;
    }
}

void rig_close(struct rig *r) {
    for (uint32_t i = 0; i < r->limits.slots; i++) {
        twin_sequence_free(&r->sequences[i].twin, &r->shape);
    }
    for (uint32_t i = 0; i < RIG_ADAPTERS; i++) {
        adapter_free(r, i);
    }
    for (uint32_t i = 0; i < r->shape.layers; i++) {
        struct twin_layer *t = &r->weights.layers[i];
        for (uint32_t m = 0; m < KERN_MODULES; m++) {
            free(t->module[m]);
        }
        for (uint32_t m = 0; m <= KERN_V; m++) {
            free(t->bias[m]);
        }
        free(t->input_norm);
        free(t->post_norm);
        free(t->q_norm);
        free(t->k_norm);
    }
    free(r->weights.layers);
    if (r->weights.lm_head != r->weights.embed) {
        free(r->weights.lm_head);
    }
    free(r->weights.embed);
    free(r->weights.final_norm);
    r->ops->close(r->device);
}

/* ---- adapters ----------------------------------------------------------------------------- */

uint32_t rig_page_take(struct rig *r) {
    assert_true(r->free_count > 0);
    return r->free_pages[--r->free_count];
}

/* One matrix pair of an adapter, and its bias where it gets one; returns the end of its place. */
static uint64_t lora_make(struct rig *r, uint32_t adapter, uint32_t entry, uint32_t rank,
                          uint64_t begin) {
    uint64_t page_elems = kern_page_elems(&r->shape, r->limits.page_tokens);
    uint32_t in = kern_lora_in(&r->shape, entry), out = kern_lora_out(&r->shape, entry);
    bool embed = entry == r->shape.layers * KERN_MODULES + KERN_OUTER_EMBED;
    struct twin_lora *t = &r->adapters[adapter].lora[entry];
    struct kern_lora *k = &r->loras[adapter][entry];
    t->rank = rank;
    t->scale = uniform(r, 1.5f, 0.5f) / sqrtf((float)rank);
    t->a = random_floats(r, (uint64_t)rank * in, 0, embed ? 1 : 1.7f / sqrtf((float)in));
    t->b = random_floats(r, (uint64_t)rank * out, 0, 1);
    k->rank = kern_rank_padded(rank);
    k->scale = t->scale;
    k->a = begin;
    k->b = kern_matrix_end(page_elems, k->a, k->rank, in);
    uint64_t end = kern_matrix_end(page_elems, k->b, k->rank, out);
    if (adapter % 2 == 1 && !embed && !r->limits.merging) {
        t->bias = random_floats(r, out, 0, 1);
        k->bias = end;
        end = kern_bias_end(end, out);
    }
    return end;
}

/* Makes all matrices; returns the elements of the largest layer, and those outside the layers. */
static uint64_t adapter_make(struct rig *r, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                             uint32_t layer_mask, uint64_t *outer) {
    uint64_t largest = 0;
    for (uint32_t layer = 0; layer < r->shape.layers; layer++) {
        uint64_t cursor = 0;
        for (uint32_t m = 0; m < KERN_MODULES; m++) {
            if (ranks[m] != 0 && (layer_mask >> layer & 1) != 0) {
                cursor = lora_make(r, adapter, layer * KERN_MODULES + m, ranks[m], cursor);
            }
        }
        largest = cursor > largest ? cursor : largest;
    }
    uint32_t entry = r->shape.layers * KERN_MODULES;
    if (r->limits.merging) {
        return largest;
    }
    *outer = adapter % 3 == 1 ? lora_make(r, adapter, entry + KERN_OUTER_EMBED, 5, 0) : 0;
    if (adapter % 4 != 0) {
        *outer = lora_make(r, adapter, entry + KERN_OUTER_HEAD, 33 * (adapter % 4), *outer);
    }
    return largest;
}

static void lora_store(const struct rig *r, uint32_t adapter, uint32_t entry, float *list) {
    const struct twin_lora *t = &r->adapters[adapter].lora[entry];
    const struct kern_lora *k = &r->loras[adapter][entry];
    if (t->rank == 0) {
        return;
    }
    uint64_t elems = kern_page_elems(&r->shape, r->limits.page_tokens);
    uint32_t in = kern_lora_in(&r->shape, entry), out = kern_lora_out(&r->shape, entry);
    const struct kern_source a = {t->a, KERN_F32, t->rank, in}, b = {t->b, KERN_F32, t->rank, out};
    const struct kern_source bias = {t->bias, KERN_F32, t->rank, out};
    if (entry == r->shape.layers * KERN_MODULES + KERN_OUTER_EMBED) {
        kern_matrix_store_a_gathered(list, KERN_F32, elems, k, &a);
    } else {
        kern_matrix_store_a(list, KERN_F32, elems, k, &a);
    }
    kern_matrix_store_b(list, KERN_F32, elems, k, &b);
    if (t->bias != NULL) {
        kern_bias_store(list, KERN_F32, k, &bias);
    }
}

/* The image in the device's elements, in pinned memory that stays until the adapter goes. */
static void image_keep(struct rig *r, uint32_t adapter, const float *image, uint64_t elements) {
    enum kern_dtype elem = r->ops->elem(r->device);
    uint64_t bytes = elements * kern_dtype_bytes(elem);
    bytes = (bytes + HOST_PAGE - 1) / HOST_PAGE * HOST_PAGE;
    unsigned char *kept = aligned_alloc(HOST_PAGE, bytes);
    assert_non_null(kept);
    assert_int_equal(r->ops->pin(kept, bytes), ERR_OK);
    for (uint64_t i = 0; i < elements; i++) {
        if (elem == KERN_F32) {
            memcpy(kept + 4 * i, &image[i], 4);
        } else {
            uint16_t half = half_of(image[i], elem);
            memcpy(kept + 2 * i, &half, sizeof half);
        }
    }
    r->images[adapter] = kept;
    r->image_bytes[adapter] = bytes;
}

uint64_t rig_adapter_load(struct rig *r, uint32_t adapter, const void *image,
                          const uint32_t *pages) {
    uint32_t outer = r->adapter_outer_pages[adapter];
    uint32_t layer_pages = r->adapter_page_count[adapter] - outer;
    const unsigned char *bytes = image;
    uint64_t event = 0, elems = kern_page_elems(&r->shape, r->limits.page_tokens);
    if (layer_pages != 0) {
        assert_int_equal(r->ops->load(r->device, bytes, pages, layer_pages, &event), ERR_OK);
    }
    bytes += elems * layer_pages * r->shape.layers * kern_dtype_bytes(r->ops->elem(r->device));
    if (outer != 0) {
        assert_int_equal(r->ops->load(r->device, bytes, pages + layer_pages, outer, &event),
                         ERR_OK);
    }
    return event;
}

void rig_event_wait(struct rig *r, uint64_t event) {
    while (!r->ops->event_done(r->device, event)) {
        (void)sched_yield();
    }
}

void rig_poison(struct rig *r) {
    enum { AT_ONCE = 32 };
    assert_int_not_equal(r->ops->elem(r->device), KERN_F32);
    uint64_t elements = kern_page_elems(&r->shape, r->limits.page_tokens);
    uint64_t bytes = AT_ONCE * elements * r->shape.layers * sizeof(uint16_t), event = 0;
    uint16_t *image = aligned_alloc(HOST_PAGE, bytes); /* a page is 4 KiB at least */
    assert_non_null(image);
    assert_int_equal(r->ops->pin(image, bytes), ERR_OK);
    for (uint64_t i = 0; i < bytes / sizeof *image; i++) {
        image[i] = 0x7fff;
    }
    for (uint32_t i = 0; i < r->free_count; i += AT_ONCE) {
        uint32_t count = r->free_count - i < AT_ONCE ? r->free_count - i : AT_ONCE;
        assert_int_equal(r->ops->load(r->device, image, &r->free_pages[i], count, &event), ERR_OK);
    }
    rig_event_wait(r, event);
    r->ops->unpin(image, bytes);
    free(image);
}

void rig_adapter(struct rig *r, uint32_t adapter, const uint32_t ranks[KERN_MODULES],
                 uint32_t layer_mask) {
    const struct kern_shape *s = &r->shape;
    uint32_t modules = s->layers * KERN_MODULES, entries = kern_lora_count(s->layers);
    adapter_free(r, adapter);
    r->adapters[adapter].lora = zeroed(entries, sizeof(struct twin_lora));
    r->loras[adapter] = zeroed(entries, sizeof(struct kern_lora));
    uint64_t elems = kern_page_elems(s, r->limits.page_tokens), outer_elems = 0;
    uint64_t largest = adapter_make(r, adapter, ranks, layer_mask, &outer_elems);
    uint32_t layer_pages = (uint32_t)((largest + elems - 1) / elems);
    uint32_t outer = (uint32_t)((outer_elems + elems * s->layers - 1) / (elems * s->layers));
    if (layer_pages + outer == 0) {
        layer_pages = 1;
    }
    uint64_t layers_elems = (uint64_t)s->layers * layer_pages * elems;
    uint64_t elements = layers_elems + (uint64_t)s->layers * outer * elems;
    float *image = zeroed(elements, sizeof *image);
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t begin =
            i < modules ? (uint64_t)(i / KERN_MODULES) * layer_pages * elems : layers_elems;
        lora_store(r, adapter, i, image + begin);
    }
    for (uint32_t i = 0; i < layer_pages + outer; i++) {
        r->adapter_pages[adapter][i] = rig_page_take(r);
    }
    r->adapter_page_count[adapter] = layer_pages + outer;
    r->adapter_outer_pages[adapter] = outer;
    r->adapter_pending[adapter] = true;
    image_keep(r, adapter, image, elements);
    free(image);
    rig_event_wait(r, rig_adapter_load(r, adapter, r->images[adapter], r->adapter_pages[adapter]));
}

void rig_merge(struct rig *r, uint32_t adapter) {
    r->ops->merge(r->device, adapter);
    r->merged = adapter;
}

/* ---- sequences ---------------------------------------------------------------------------- */

void rig_sequence(struct rig *r, uint32_t number, uint32_t adapter) {
    struct rig_sequence *s = &r->sequences[number];
    for (uint32_t i = 0; i < s->pages_set; i++) {
        r->free_pages[r->free_count++] = s->pages[i];
    }
    twin_sequence_free(&s->twin, &r->shape);
    memset(s, 0, sizeof *s);
    s->adapter = adapter;
    s->params = (struct kern_slot_set){.slot = number, .top_p = 1};
    for (uint32_t i = 0; i < r->sequence_tokens; i++) {
        s->ids[i] = seed_below(&r->seed, r->shape.vocab);
    }
}

void rig_rewind(struct rig *r, uint32_t number, uint32_t position) {
    assert_true(position <= r->sequences[number].position);
    r->sequences[number].position = position;
}
