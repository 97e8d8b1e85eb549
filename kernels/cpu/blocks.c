/* blocks.c - the blocks of the layer loop but attention: embedding, norms, rope, activation.
 *
 *   norm   x · w / √(mean(x²) + ε)
 *   rope   halves (a, b) of a head → (a cos − b sin, b cos + a sin)
 *   act    silu(gate) · up, silu(g) = g / (1 + e⁻ᵍ)
 *
 * The linears and LoRA are linear.c's; everything else here is one parallel loop over tokens. */
#include <string.h>

#include "kernels/cpu/cpu.h"

struct work {
    struct kern_device *d;
    uint32_t layer;
    const struct cpu_vector *norm; /* of the norm that ends the block */
};

static void rope_head(float *head, const float *c, const float *s, uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * c[i] - b * s[i];
        head[i + half] = b * c[i] + a * s[i];
    }
}

static void norm_token(const struct work *w, uint32_t token) {
    struct kern_device *d = w->d;
    uint64_t at = (uint64_t)token * d->hidden_row;
    d->vector->norm(d->x + at, w->norm->elements, d->normed + at, d->hidden_row, d->shape.hidden,
                    d->shape.norm_eps);
}

/* ---- embed -------------------------------------------------------------------------------- */

static void embed_token(void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    struct kern_device *d = w->d;
    cpu_matrix_row(&d->embed, d->tokens[token].id, d->x + (uint64_t)token * d->hidden_row);
}

static void embed_piece(void *context, uint32_t item, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    struct kern_device *d = w->d;
    cpu_lora_gather(d, &d->pieces[item]);
    cpu_lora_expand(d, &d->pieces[item], d->x, d->hidden_row, d->shape.hidden);
}

static void embed_norm(void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    norm_token(context, token);
}

void cpu_embed(struct kern_device *d) {
    CHECK(d->phase == CPU_IN_STEP);
    struct work w = {.d = d, .norm = &d->layers[0].input_norm};
    threads_run(d->threads, embed_token, &w, d->token_count);
    threads_run(d->threads, embed_piece, &w, cpu_lora_embed_pieces(d));
    threads_run(d->threads, embed_norm, &w, d->token_count);
}

/* ---- qkv ---------------------------------------------------------------------------------- */

static struct cpu_projection projection(const struct kern_device *d, uint32_t layer,
                                        enum kern_module module) {
    return (struct cpu_projection){.module = module, .w = &d->layers[layer].module[module]};
}

/* The norm over each head by itself, in place. */
static void norm_heads(const struct kern_device *d, float *x, uint32_t heads,
                       const struct cpu_vector *norm) {
    uint32_t head_dim = d->shape.head_dim;
    for (uint32_t head = 0; head < heads; head++) {
        float *one = x + (size_t)head * head_dim;
        d->vector->norm(one, norm->elements, one, head_dim, head_dim, d->shape.norm_eps);
    }
}

/* Bias, norms and rope; then K and V into the token's place in its page. */
static void qkv_token(void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct work *work = context;
    struct kern_device *d = work->d;
    const struct kern_shape *s = &d->shape;
    const struct cpu_layer *layer = &d->layers[work->layer];
    float *q = d->q + (uint64_t)token * d->q_row;
    float *k = d->k + (uint64_t)token * d->kv_row;
    float *v = d->v + (uint64_t)token * d->kv_row;
    if (s->qkv_bias) {
        d->vector->add(q, layer->bias[KERN_Q].elements, d->q_row);
        d->vector->add(k, layer->bias[KERN_K].elements, d->kv_row);
        d->vector->add(v, layer->bias[KERN_V].elements, d->kv_row);
    }
    if (s->qk_norm) {
        norm_heads(d, q, s->heads, &layer->q_norm);
        norm_heads(d, k, s->kv_heads, &layer->k_norm);
    }
    uint32_t half = s->head_dim / 2;
    const float *cosines = d->cos + (uint64_t)token * half,
                *sines = d->sin + (uint64_t)token * half;
    for (uint32_t head = 0; head < s->heads; head++) {
        rope_head(q + (size_t)head * s->head_dim, cosines, sines, half);
    }
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        rope_head(k + (size_t)head * s->head_dim, cosines, sines, half);
    }
    const struct cpu_token *t = &d->tokens[token];
    uint32_t page_tokens = d->limits.page_tokens, token_row = s->kv_heads * s->head_dim;
    float *page = cpu_page(d, work->layer, d->slots[t->slot].pages[t->position / page_tokens]);
    float *keys = page + (uint64_t)(t->position % page_tokens) * token_row;
    float *values = keys + (uint64_t)page_tokens * token_row;
    memcpy(keys, k, token_row * sizeof(float));
    memcpy(values, v, token_row * sizeof(float));
}

void cpu_qkv(struct kern_device *d, uint32_t layer) {
    CHECK(d->phase == CPU_IN_STEP);
    CHECK(layer < d->shape.layers);
    struct cpu_projection p[] = {projection(d, layer, KERN_Q), projection(d, layer, KERN_K),
                                 projection(d, layer, KERN_V)};
    float *const y[] = {d->q, d->k, d->v};
    const uint32_t y_row[] = {d->q_row, d->kv_row, d->kv_row};
    for (uint32_t i = 0; i < 3; i++) {
        p[i].x = d->normed;
        p[i].x_row = d->hidden_row;
        p[i].y = y[i];
        p[i].y_row = y_row[i];
    }
    cpu_project(d, layer, p, 3);
    struct work w = {.d = d, .layer = layer};
    threads_run(d->threads, qkv_token, &w, d->token_count);
}

/* ---- back into the residual --------------------------------------------------------------- */

static void add_token(void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    struct kern_device *d = w->d;
    uint64_t at = (uint64_t)token * d->hidden_row;
    d->vector->add(d->x + at, d->delta + at, d->hidden_row);
    norm_token(w, token);
}

static void project_and_add(struct kern_device *d, uint32_t layer, struct cpu_projection p,
                            const struct cpu_vector *norm) {
    p.y = d->delta;
    p.y_row = d->hidden_row;
    cpu_project(d, layer, &p, 1);
    struct work w = {.d = d, .layer = layer, .norm = norm};
    threads_run(d->threads, add_token, &w, d->token_count);
}

void cpu_attn_out(struct kern_device *d, uint32_t layer) {
    DCHECK(d->phase == CPU_IN_STEP && layer < d->shape.layers);
    struct cpu_projection p = projection(d, layer, KERN_O);
    p.x = d->attended;
    p.x_row = d->q_row;
    project_and_add(d, layer, p, &d->layers[layer].post_norm);
}

void cpu_down(struct kern_device *d, uint32_t layer) {
    DCHECK(d->phase == CPU_IN_STEP && layer < d->shape.layers);
    struct cpu_projection p = projection(d, layer, KERN_DOWN);
    p.x = d->gate;
    p.x_row = d->middle_row;
    bool last = layer + 1 == d->shape.layers;
    project_and_add(d, layer, p, last ? &d->final_norm : &d->layers[layer + 1].input_norm);
}

/* ---- gate_up ------------------------------------------------------------------------------ */

static void silu_token(void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct work *w = context;
    struct kern_device *d = w->d;
    uint64_t at = (uint64_t)token * d->middle_row;
    d->vector->silu(d->gate + at, d->up + at, d->middle_row);
}

void cpu_gate_up(struct kern_device *d, uint32_t layer) {
    DCHECK(d->phase == CPU_IN_STEP && layer < d->shape.layers);
    struct cpu_projection p[] = {projection(d, layer, KERN_GATE), projection(d, layer, KERN_UP)};
    for (uint32_t i = 0; i < 2; i++) {
        p[i].x = d->normed;
        p[i].x_row = d->hidden_row;
        p[i].y = i == 0 ? d->gate : d->up;
        p[i].y_row = d->middle_row;
    }
    cpu_project(d, layer, p, 2);
    struct work w = {.d = d, .layer = layer};
    threads_run(d->threads, silu_token, &w, d->token_count);
}

/* ---- head --------------------------------------------------------------------------------- */

void cpu_head(struct kern_device *d) {
    CHECK(d->phase == CPU_IN_STEP);
    for (uint32_t i = 0; i < d->sample_count; i++) {
        memcpy(d->head_in + (uint64_t)i * d->hidden_row,
               d->normed + (uint64_t)d->samples[i].token * d->hidden_row,
               d->hidden_row * sizeof(float));
    }
    const struct cpu_projection p = {.w = d->lm_head.panels != NULL ? &d->lm_head : &d->embed,
                                     .x = d->head_in,
                                     .x_row = d->hidden_row,
                                     .y = d->logits,
                                     .y_row = d->vocab_row};
    cpu_project_head(d, &p);
}
