/* A step of a rig: its batch, its blocks, and their comparison with the twin. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/unit/kernels/rig.h"

/* Of the greatest entry of a row: f32 through a few layers of these sizes stays well below. */
static const double tolerance = 2e-5;

/* ---- the batch ---------------------------------------------------------------------------- */

static void part_deltas(struct rig *r, struct rig_batch *b, const struct rig_part *part) {
    struct rig_sequence *s = &r->sequences[part->sequence];
    if (!s->open) {
        b->slot_sets[b->step.slot_set_count++] = s->params;
        s->open = true;
    }
    uint32_t t = r->limits.page_tokens, pages = (s->position + part->count + t - 1) / t;
    for (; s->pages_set < pages; s->pages_set++) {
        s->pages[s->pages_set] = rig_page_take(r);
        b->slot_pages[b->step.slot_page_count++] = (struct kern_slot_page){
            .slot = s->params.slot, .index = s->pages_set, .page = s->pages[s->pages_set]};
    }
}

static void part_segment(const struct rig *r, struct rig_batch *b, const struct rig_part *part) {
    uint32_t adapter = r->sequences[part->sequence].adapter;
    assert_true(r->merged == KERN_BASE || r->merged == adapter);
    if (adapter == KERN_BASE || adapter == r->merged) {
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

static void part_add(struct rig *r, struct rig_batch *b, const struct rig_part *part) {
    struct rig_sequence *s = &r->sequences[part->sequence];
    assert_true(part->count >= 1 && s->position + part->count <= r->sequence_tokens);
    assert_true(b->step.token_count + part->count <= r->limits.step_tokens);
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

struct rig_batch *rig_batch(struct rig *r, const struct rig_part *parts, uint32_t count) {
    struct rig_batch *b = calloc(1, sizeof *b);
    assert_non_null(b);
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
    for (uint32_t i = 0; i < count; i++) {
        part_add(r, b, &parts[i]);
        b->sample_count += parts[i].sample;
    }
    return b;
}

/* ---- the blocks --------------------------------------------------------------------------- */

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

static void block_compare(struct rig *r, const struct rig_batch *b, enum block block,
                          uint32_t layer) {
    for (uint32_t i = 0; b != NULL && r->compare && i < b->step.token_count; i++) {
        const struct twin_rows *rows = &r->sequences[b->sequence[i]].twin.rows[b->position[i]];
        token_compare(r, block, layer, i, rows, &r->device->tokens[i]);
    }
}

void rig_blocks(struct rig *r, const struct rig_batch *b) {
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

static void logits_compare(struct rig *r, const struct rig_batch *b) {
    float *logits = calloc(r->shape.vocab, sizeof *logits);
    assert_non_null(logits);
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
    struct rig_batch *b = rig_batch(r, parts, count);
    assert_int_equal(r->ops->step_begin(r->device, &b->step), ERR_OK);
    rig_blocks(r, b);
    uint64_t ticket = 0;
    assert_int_equal(r->ops->step_end(r->device, &ticket), ERR_OK);
    if (r->compare) {
        logits_compare(r, b);
    }
    assert_int_equal(r->ops->step_read(r->device, ticket, r->results, b->sample_count), ERR_OK);
    free(b);
}

void rig_logits(struct rig *r, uint32_t row, float *logits) {
    assert_int_equal(r->ops->logits(r->device, row, logits), ERR_OK);
}
