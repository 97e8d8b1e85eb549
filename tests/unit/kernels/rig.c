#include "tests/unit/kernels/rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/seed.h"

/* Of the greatest entry of a row: f32 through a few layers of these sizes stays well below. */
static const double tolerance = 2e-5;

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
        f[i] = uniform(r, around, width);
    }
    return f;
}

static void give(struct rig *r, struct kern_weight w, const float *data, uint64_t rows,
                 uint64_t columns) {
    w.dtype = KERN_F32;
    w.data = data;
    w.rows = rows;
    w.columns = columns;
    struct err_text why = {0};
    assert_int_equal(r->ops->weight(r->device, &w, &why), ERR_OK);
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

static void weights_give(struct rig *r, bool tied) {
    const struct kern_shape *s = &r->shape;
    uint64_t table = (uint64_t)s->vocab * s->hidden;
    struct twin_weights *w = &r->weights;
    w->embed = random_floats(r, table, 0, 1);
    w->lm_head = tied ? w->embed : random_floats(r, table, 0, 1);
    w->final_norm = random_floats(r, s->hidden, 1, 0.3f);
    w->layers = zeroed(s->layers, sizeof w->layers[0]);
    give(r, (struct kern_weight){.tensor = KERN_EMBED}, w->embed, s->vocab, s->hidden);
    if (!tied) {
        give(r, (struct kern_weight){.tensor = KERN_LM_HEAD}, w->lm_head, s->vocab, s->hidden);
    }
    give(r, (struct kern_weight){.tensor = KERN_FINAL_NORM}, w->final_norm, 1, s->hidden);
    for (uint32_t i = 0; i < s->layers; i++) {
        layer_give(r, i);
    }
}

void rig_open(struct rig *r, const struct kern_shape *shape, uint32_t page_tokens, uint32_t threads,
              bool tied) {
    memset(r, 0, sizeof *r);
    r->seed = seed_take(42);
    r->ops = kern_cpu();
    r->shape = *shape;
    for (uint32_t i = 0; i < shape->head_dim / 2; i++) {
        r->rope_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)shape->head_dim);
    }
    r->shape.rope_freq = r->rope_freq;
    r->limits = (struct kern_limits){.slots = RIG_SEQUENCES,
                                     .adapters = RIG_ADAPTERS,
                                     .step_tokens = RIG_TOKENS,
                                     .step_samples = RIG_SEQUENCES,
                                     .slot_pages = RIG_TOKENS / page_tokens,
                                     .adapter_pages = RIG_PAGES,
                                     .page_tokens = page_tokens,
                                     .threads = threads};
    struct err_text why = {0};
    assert_int_equal(r->ops->open(&r->device, &r->shape, &r->limits, &why), ERR_OK);
    weights_give(r, tied);
    assert_int_equal(r->ops->pool(r->device, RIG_PAGES, &why), ERR_OK);
    for (uint32_t i = 0; i < RIG_PAGES; i++) { /* shuffled: no list is ascending */
        uint32_t at = seed_below(&r->seed, i + 1);
        r->free_pages[i] = r->free_pages[at];
        r->free_pages[at] = i;
    }
    r->free_count = RIG_PAGES;
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
}

void rig_close(struct rig *r) {
    for (uint32_t i = 0; i < RIG_SEQUENCES; i++) {
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

static uint32_t page_take(struct rig *r) {
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
    if (adapter % 2 == 1 && !embed) {
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
    if (entry == r->shape.layers * KERN_MODULES + KERN_OUTER_EMBED) {
        kern_matrix_store_a_gathered(list, elems, k, t->a, t->rank, in);
    } else {
        kern_matrix_store_a(list, elems, k, t->a, t->rank, in);
    }
    kern_matrix_store_b(list, elems, k, t->b, t->rank, out);
    if (t->bias != NULL) {
        kern_bias_store(list, k, t->bias, out);
    }
}

static void list_load(struct rig *r, const float *image, const uint32_t *pages, uint32_t count) {
    uint64_t event = 0;
    if (count != 0) {
        assert_int_equal(r->ops->load(r->device, image, pages, count, &event), ERR_OK);
        assert_true(r->ops->event_done(r->device, event));
    }
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
    float *image = zeroed(layers_elems + (uint64_t)s->layers * outer * elems, sizeof *image);
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t begin =
            i < modules ? (uint64_t)(i / KERN_MODULES) * layer_pages * elems : layers_elems;
        lora_store(r, adapter, i, image + begin);
    }
    uint32_t *pages = r->adapter_pages[adapter];
    for (uint32_t i = 0; i < layer_pages + outer; i++) {
        pages[i] = page_take(r);
    }
    r->adapter_page_count[adapter] = layer_pages + outer;
    r->adapter_outer_pages[adapter] = outer;
    r->adapter_pending[adapter] = true;
    list_load(r, image, pages, layer_pages);
    list_load(r, image + layers_elems, pages + layer_pages, outer);
    free(image);
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
    for (uint32_t i = 0; i < RIG_TOKENS; i++) {
        s->ids[i] = seed_below(&r->seed, r->shape.vocab);
    }
}

void rig_rewind(struct rig *r, uint32_t number, uint32_t position) {
    assert_true(position <= r->sequences[number].position);
    r->sequences[number].position = position;
}

/* ---- a step ------------------------------------------------------------------------------- */

struct batch {
    struct kern_step step;
    uint32_t tokens[RIG_TOKENS];
    uint32_t sequence[RIG_TOKENS], position[RIG_TOKENS]; /* of each token */
    struct kern_chunk chunks[RIG_SEQUENCES];
    struct kern_segment segments[RIG_SEQUENCES];
    struct kern_slot_set slot_sets[RIG_SEQUENCES];
    struct kern_slot_page slot_pages[RIG_TOKENS * 2];
    struct kern_adapter_set adapter_sets[RIG_ADAPTERS];
};

static void part_deltas(struct rig *r, struct batch *b, const struct rig_part *part) {
    struct rig_sequence *s = &r->sequences[part->sequence];
    if (!s->open) {
        b->slot_sets[b->step.slot_set_count++] = s->params;
        s->open = true;
    }
    uint32_t t = r->limits.page_tokens, pages = (s->position + part->count + t - 1) / t;
    for (; s->pages_set < pages; s->pages_set++) {
        s->pages[s->pages_set] = page_take(r);
        b->slot_pages[b->step.slot_page_count++] = (struct kern_slot_page){
            .slot = s->params.slot, .index = s->pages_set, .page = s->pages[s->pages_set]};
    }
}

static void part_segment(const struct rig *r, struct batch *b, const struct rig_part *part) {
    uint32_t adapter = r->sequences[part->sequence].adapter;
    if (adapter == KERN_BASE) {
        return;
    }
    struct kern_segment *last = &b->segments[b->step.segment_count];
    if (b->step.segment_count > 0 && last[-1].adapter == adapter &&
        last[-1].token_begin + last[-1].token_count == b->step.token_count) {
        last[-1].token_count += part->count;
        return;
    }
    *last = (struct kern_segment){
        .adapter = adapter, .token_begin = b->step.token_count, .token_count = part->count};
    b->step.segment_count++;
}

static void part_add(struct rig *r, struct batch *b, const struct rig_part *part) {
    struct rig_sequence *s = &r->sequences[part->sequence];
    assert_true(part->count >= 1 && s->position + part->count <= RIG_TOKENS);
    assert_true(b->step.token_count + part->count <= RIG_TOKENS);
    part_deltas(r, b, part);
    part_segment(r, b, part);
    b->chunks[b->step.chunk_count++] = (struct kern_chunk){.slot = s->params.slot,
                                                           .token_begin = b->step.token_count,
                                                           .token_count = part->count,
                                                           .position = s->position,
                                                           .sample = part->sample};
    for (uint32_t i = 0; i < part->count; i++) {
        bool last = r->token_last && part->count == 1 && s->position > 0;
        b->tokens[b->step.token_count] = last ? KERN_TOKEN_LAST : s->ids[s->position];
        b->sequence[b->step.token_count] = part->sequence;
        b->position[b->step.token_count++] = s->position++;
    }
    const struct twin_adapter *adapter = s->adapter == KERN_BASE ? NULL : &r->adapters[s->adapter];
    while (r->compare && s->twin.count < s->position) {
        twin_token(&s->twin, &r->shape, &r->weights, adapter, s->ids[s->twin.count]);
    }
}

static void row_compare(struct rig *r, const char *what, const float *row, const double *twin,
                        uint32_t count) {
    double size = 1e-30, worst = 0;
    for (uint32_t i = 0; i < count; i++) {
        double difference = fabs((double)row[i] - twin[i]);
        size = fabs(twin[i]) > size ? fabs(twin[i]) : size;
        worst = difference <= worst ? worst : difference; /* NaN stays */
    }
    r->worst = worst / size > r->worst ? worst / size : r->worst;
    if (!(worst <= tolerance * size)) {
        fail_msg("%s differs by %g of %g", what, worst, size);
    }
}

enum block { EMBED, QKV, ATTENTION, ATTN_OUT, GATE_UP, DOWN };

static void token_compare(struct rig *r, enum block block, uint32_t layer, uint32_t token,
                          const struct twin_rows *rows, const struct cpu_token *t) {
    const struct kern_device *d = r->device;
    const struct kern_shape *s = &r->shape;
    const struct twin_layer_rows *l = &rows->layers[layer];
    const float *x = d->x + (uint64_t)token * d->hidden_row;
    const float *normed = d->normed + (uint64_t)token * d->hidden_row;
    uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const float *page =
        cpu_page(d, layer, d->slots[t->slot].pages[t->position / d->limits.page_tokens]);
    const float *keys = page + (uint64_t)(t->position % d->limits.page_tokens) * kv;
    switch (block) {
    case EMBED:
        row_compare(r, "embed", x, rows->x, s->hidden);
        row_compare(r, "the first norm", normed, rows->normed, s->hidden);
        break;
    case QKV:
        row_compare(r, "q", d->q + (uint64_t)token * d->q_row, l->q, q);
        row_compare(r, "k in its page", keys, l->k, kv);
        row_compare(r, "v in its page", keys + (uint64_t)d->limits.page_tokens * kv, l->v, kv);
        break;
    case ATTENTION:
        row_compare(r, "attention", d->attended + (uint64_t)token * d->q_row, l->attended, q);
        break;
    case ATTN_OUT:
        row_compare(r, "attn_out", x, l->x_middle, s->hidden);
        row_compare(r, "the norm before the MLP", normed, l->normed_middle, s->hidden);
        break;
    case GATE_UP:
        row_compare(r, "gate_up", d->gate + (uint64_t)token * d->middle_row, l->activation,
                    s->intermediate);
        break;
    case DOWN:
        row_compare(r, "down", x, l->x, s->hidden);
        row_compare(r, "the next norm", normed, l->normed, s->hidden);
        break;
    }
}

static void block_compare(struct rig *r, const struct batch *b, enum block block, uint32_t layer) {
    for (uint32_t i = 0; r->compare && i < b->step.token_count; i++) {
        const struct twin_rows *rows = &r->sequences[b->sequence[i]].twin.rows[b->position[i]];
        token_compare(r, block, layer, i, rows, &r->device->tokens[i]);
    }
}

static void blocks_run(struct rig *r, const struct batch *b) {
    const struct kern_ops *ops = r->ops;
    ops->embed(r->device);
    block_compare(r, b, EMBED, 0);
    for (uint32_t layer = 0; layer < r->shape.layers; layer++) {
        ops->qkv(r->device, layer);
        block_compare(r, b, QKV, layer);
        ops->attention(r->device, layer);
        block_compare(r, b, ATTENTION, layer);
        ops->attn_out(r->device, layer);
        block_compare(r, b, ATTN_OUT, layer);
        ops->gate_up(r->device, layer);
        block_compare(r, b, GATE_UP, layer);
        ops->down(r->device, layer);
        block_compare(r, b, DOWN, layer);
    }
    ops->head(r->device);
    ops->sample(r->device);
}

static void logits_compare(struct rig *r, const struct batch *b) {
    float *logits = zeroed(r->shape.vocab, sizeof *logits);
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->step.chunk_count; i++) {
        const struct kern_chunk *c = &b->chunks[i];
        if (c->sample) {
            uint32_t last = c->token_begin + c->token_count - 1;
            rig_logits(r, row++, logits);
            row_compare(r, "logits", logits,
                        r->sequences[b->sequence[last]].twin.rows[b->position[last]].logits,
                        r->shape.vocab);
        }
    }
    free(logits);
}

void rig_step(struct rig *r, const struct rig_part *parts, uint32_t count) {
    struct batch *b = zeroed(1, sizeof *b);
    b->step = (struct kern_step){.tokens = b->tokens,
                                 .chunks = b->chunks,
                                 .segments = b->segments,
                                 .slot_sets = b->slot_sets,
                                 .slot_pages = b->slot_pages,
                                 .adapter_sets = b->adapter_sets};
    for (uint32_t i = 0; i < RIG_ADAPTERS; i++) {
        if (r->adapter_pending[i]) {
            b->adapter_sets[b->step.adapter_set_count++] =
                (struct kern_adapter_set){.adapter = i,
                                          .lora = r->loras[i],
                                          .pages = r->adapter_pages[i],
                                          .page_count = r->adapter_page_count[i],
                                          .outer_pages = r->adapter_outer_pages[i]};
            r->adapter_pending[i] = false;
        }
    }
    uint32_t samples = 0;
    for (uint32_t i = 0; i < count; i++) {
        part_add(r, b, &parts[i]);
        samples += parts[i].sample;
    }
    assert_int_equal(r->ops->step_begin(r->device, &b->step), ERR_OK);
    blocks_run(r, b);
    uint64_t ticket = 0;
    assert_int_equal(r->ops->step_end(r->device, &ticket), ERR_OK);
    if (r->compare) {
        logits_compare(r, b);
    }
    assert_int_equal(r->ops->step_read(r->device, ticket, r->results, samples), ERR_OK);
    free(b);
}

void rig_logits(struct rig *r, uint32_t row, float *logits) {
    assert_int_equal(r->ops->logits(r->device, row, logits), ERR_OK);
}
