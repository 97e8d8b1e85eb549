/* Weights: a checkpoint's tensors, checked against the shape and converted to f32.
 *
 * A matrix is kept once, in the panels that the GEMM reads (linear.c); the embedding too, since a
 * tied head is the same matrix: a token's row is then gathered with a stride, which costs little.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum { NAME_BYTES = 64 };

/* ---- memory ------------------------------------------------------------------------------- */

static struct cpu_matrix matrix_carve(struct cpu_carver *c, uint32_t out, uint32_t in) {
    return (struct cpu_matrix){
        .panels = cpu_carve(c, (uint64_t)out * in * sizeof(float)), .out = out, .in = in};
}

static struct cpu_vector vector_carve(struct cpu_carver *c, uint32_t count) {
    return (struct cpu_vector){.elements = cpu_carve(c, cpu_row(count) * sizeof(float)),
                               .count = count};
}

static void layer_carve(struct cpu_layer *layer, const struct kern_shape *s, struct cpu_carver *c) {
    for (enum kern_module m = KERN_Q; m < KERN_MODULES; m++) {
        layer->module[m] = matrix_carve(c, kern_module_out(s, m), kern_module_in(s, m));
    }
    for (enum kern_module m = KERN_Q; m <= KERN_V; m++) {
        layer->bias[m] = vector_carve(c, kern_module_out(s, m));
    }
    layer->input_norm = vector_carve(c, s->hidden);
    layer->post_norm = vector_carve(c, s->hidden);
    layer->q_norm = vector_carve(c, s->head_dim);
    layer->k_norm = vector_carve(c, s->head_dim);
}

static void weights_carve(struct kern_device *d, struct cpu_carver *c) {
    const struct kern_shape *s = &d->shape;
    d->layers = cpu_carve(c, s->layers * sizeof d->layers[0]);
    d->embed = matrix_carve(c, s->vocab, s->hidden);
    d->final_norm = vector_carve(c, s->hidden);
    for (uint32_t i = 0; i < s->layers; i++) {
        struct cpu_layer counted; /* while counting there is no layer yet */
        layer_carve(c->base == NULL ? &counted : &d->layers[i], s, c);
    }
}

static enum err no_memory(uint64_t bytes, struct err_text *why) {
    return err_set(why, ERR_NO_SPACE, "no memory for %llu bytes of weights: %s",
                   (unsigned long long)bytes, strerror(errno));
}

enum err cpu_weights_reserve(struct kern_device *d, struct err_text *why) {
    struct cpu_carver counter = {0};
    weights_carve(d, &counter);
    if (cpu_memory_reserve(&d->weight_memory, counter.bytes) != ERR_OK) {
        return no_memory(counter.bytes, why);
    }
    struct cpu_carver carver = {.base = d->weight_memory.base};
    weights_carve(d, &carver);
    CHECK(carver.bytes == d->weight_memory.bytes);
    return ERR_OK;
}

void cpu_weights_release(struct kern_device *d) {
    cpu_memory_release(&d->head_memory);
    cpu_memory_release(&d->weight_memory);
}

/* ---- names, for errors -------------------------------------------------------------------- */

static const char *tensor_name(char *room, enum kern_tensor tensor, uint32_t layer,
                               enum kern_module module) {
    const char *last = NULL;
    switch (tensor) {
    case KERN_EMBED:
        return "embed_tokens.weight";
    case KERN_LM_HEAD:
        return "lm_head.weight";
    case KERN_FINAL_NORM:
        return "norm.weight";
    case KERN_INPUT_NORM:
        last = "input_layernorm.weight";
        break;
    case KERN_POST_NORM:
        last = "post_attention_layernorm.weight";
        break;
    case KERN_Q_NORM:
        last = "self_attn.q_norm.weight";
        break;
    case KERN_K_NORM:
        last = "self_attn.k_norm.weight";
        break;
    case KERN_WEIGHT:
    case KERN_BIAS:
        last = tensor == KERN_WEIGHT ? "weight" : "bias";
        (void)snprintf(room, NAME_BYTES, "layers.%u.%s.%s", layer, kern_module_name(module), last);
        return room;
    }
    CHECK(last != NULL);
    (void)snprintf(room, NAME_BYTES, "layers.%u.%s", layer, last);
    return room;
}

static enum err ready(bool given, const char *name, struct err_text *why) {
    return given ? ERR_OK : err_set_field(why, ERR_BAD_MODEL, name, "%s was not given", name);
}

static enum err layer_ready(const struct kern_device *d, uint32_t index, struct err_text *why) {
    const struct cpu_layer *layer = &d->layers[index];
    char room[NAME_BYTES];
    enum err e =
        ready(layer->input_norm.given, tensor_name(room, KERN_INPUT_NORM, index, KERN_Q), why);
    if (e == ERR_OK) {
        e = ready(layer->post_norm.given, tensor_name(room, KERN_POST_NORM, index, KERN_Q), why);
    }
    if (e == ERR_OK && d->shape.qk_norm) {
        e = ready(layer->q_norm.given, tensor_name(room, KERN_Q_NORM, index, KERN_Q), why);
    }
    if (e == ERR_OK && d->shape.qk_norm) {
        e = ready(layer->k_norm.given, tensor_name(room, KERN_K_NORM, index, KERN_K), why);
    }
    for (enum kern_module m = KERN_Q; m < KERN_MODULES && e == ERR_OK; m++) {
        e = ready(layer->module[m].given, tensor_name(room, KERN_WEIGHT, index, m), why);
        if (e == ERR_OK && m <= KERN_V && d->shape.qkv_bias) {
            e = ready(layer->bias[m].given, tensor_name(room, KERN_BIAS, index, m), why);
        }
    }
    return e;
}

enum err cpu_weights_ready(const struct kern_device *d, struct err_text *why) {
    enum err e = ready(d->embed.given, "embed_tokens.weight", why);
    if (e == ERR_OK) {
        e = ready(d->final_norm.given, "norm.weight", why);
    }
    for (uint32_t i = 0; i < d->shape.layers && e == ERR_OK; i++) {
        e = layer_ready(d, i, why);
    }
    return e;
}

/* ---- conversion --------------------------------------------------------------------------- */

static float f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float f32_of_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: fraction · 2⁻²⁴, exact in f32 */
        float value = (float)fraction * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    if (exponent == 0x1f) {
        return f32_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    return f32_of_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

static uint32_t dtype_bytes(enum kern_dtype dtype) {
    return dtype == KERN_F32 ? 4 : 2;
}

/* Element `index` of a tensor that may lie at any address. */
static float element(const unsigned char *data, enum kern_dtype dtype, uint64_t index) {
    uint16_t half;
    float value;
    switch (dtype) {
    case KERN_F32:
        memcpy(&value, data + index * 4, sizeof value);
        return value;
    case KERN_F16:
        memcpy(&half, data + index * 2, sizeof half);
        return f32_of_f16(half);
    case KERN_BF16:
        memcpy(&half, data + index * 2, sizeof half);
        return f32_of_bits((uint32_t)half << 16);
    }
    CHECK(!"a dtype");
    return 0;
}

struct conversion {
    const struct cpu_matrix *to;
    const struct kern_weight *from;
};

/* One panel: rows become columns. */
static void panel_convert(void *context, uint32_t panel, uint32_t thread) {
    (void)thread;
    const struct conversion *c = context;
    const struct cpu_matrix *m = c->to;
    uint32_t begin = panel * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    float *to = m->panels + (uint64_t)begin * m->in;
    const unsigned char *data = c->from->data;
    data += (uint64_t)begin * m->in * dtype_bytes(c->from->dtype);
    for (uint32_t column = 0; column < columns; column++) {
        for (uint32_t k = 0; k < m->in; k++) {
            to[(uint64_t)k * columns + column] =
                element(data, c->from->dtype, (uint64_t)column * m->in + k);
        }
    }
}

void cpu_matrix_row(const struct cpu_matrix *m, uint32_t row, float *to) {
    DCHECK(row < m->out);
    uint32_t begin = row / CPU_PANEL_COLUMNS * CPU_PANEL_COLUMNS;
    uint32_t columns = m->out - begin < CPU_PANEL_COLUMNS ? m->out - begin : CPU_PANEL_COLUMNS;
    const float *panel = m->panels + (uint64_t)begin * m->in;
    for (uint32_t k = 0; k < m->in; k++) {
        to[k] = panel[(uint64_t)k * columns + (row - begin)];
    }
}

/* ---- a tensor ----------------------------------------------------------------------------- */

static enum err size_check(const struct kern_weight *w, uint64_t rows, uint64_t columns,
                           struct err_text *why) {
    if (w->rows == rows && w->columns == columns) {
        return ERR_OK;
    }
    char room[NAME_BYTES];
    const char *name = tensor_name(room, w->tensor, w->layer, w->module);
    return err_set_field(why, ERR_BAD_MODEL, name,
                         "%s is [%llu, %llu], but the model's shape asks for [%llu, %llu]", name,
                         (unsigned long long)w->rows, (unsigned long long)w->columns,
                         (unsigned long long)rows, (unsigned long long)columns);
}

static enum err matrix_set(struct kern_device *d, struct cpu_matrix *m, const struct kern_weight *w,
                           struct err_text *why) {
    enum err e = size_check(w, m->out, m->in, why);
    if (e != ERR_OK) {
        return e;
    }
    struct conversion c = {.to = m, .from = w};
    threads_run(d->threads, panel_convert, &c,
                (m->out + CPU_PANEL_COLUMNS - 1) / CPU_PANEL_COLUMNS);
    m->given = true;
    return ERR_OK;
}

static enum err vector_set(struct cpu_vector *v, const struct kern_weight *w,
                           struct err_text *why) {
    enum err e = size_check(w, 1, v->count, why);
    if (e != ERR_OK) {
        return e;
    }
    for (uint32_t i = 0; i < v->count; i++) {
        v->elements[i] = element(w->data, w->dtype, i);
    }
    v->given = true;
    return ERR_OK;
}

static enum err head_set(struct kern_device *d, const struct kern_weight *w, struct err_text *why) {
    const struct kern_shape *s = &d->shape;
    if (d->head_memory.base == NULL) {
        enum err e = size_check(w, s->vocab, s->hidden, why);
        if (e != ERR_OK) {
            return e;
        }
        uint64_t bytes = (uint64_t)s->vocab * s->hidden * sizeof(float);
        if (cpu_memory_reserve(&d->head_memory, bytes) != ERR_OK) {
            return no_memory(bytes, why);
        }
        d->lm_head =
            (struct cpu_matrix){.panels = d->head_memory.base, .out = s->vocab, .in = s->hidden};
    }
    return matrix_set(d, &d->lm_head, w, why);
}

enum err cpu_weight(struct kern_device *d, const struct kern_weight *w, struct err_text *why) {
    CHECK(w->dtype == KERN_F32 || w->dtype == KERN_F16 || w->dtype == KERN_BF16);
    CHECK(w->data != NULL);
    CHECK(d->phase == CPU_IDLE);
    switch (w->tensor) {
    case KERN_EMBED:
        return matrix_set(d, &d->embed, w, why);
    case KERN_LM_HEAD:
        return head_set(d, w, why);
    case KERN_FINAL_NORM:
        return vector_set(&d->final_norm, w, why);
    case KERN_INPUT_NORM:
        CHECK(w->layer < d->shape.layers);
        return vector_set(&d->layers[w->layer].input_norm, w, why);
    case KERN_POST_NORM:
        CHECK(w->layer < d->shape.layers);
        return vector_set(&d->layers[w->layer].post_norm, w, why);
    case KERN_Q_NORM:
        CHECK(w->layer < d->shape.layers && d->shape.qk_norm);
        return vector_set(&d->layers[w->layer].q_norm, w, why);
    case KERN_K_NORM:
        CHECK(w->layer < d->shape.layers && d->shape.qk_norm);
        return vector_set(&d->layers[w->layer].k_norm, w, why);
    case KERN_WEIGHT:
        CHECK(w->layer < d->shape.layers && w->module < KERN_MODULES);
        return matrix_set(d, &d->layers[w->layer].module[w->module], w, why);
    case KERN_BIAS:
        CHECK(w->layer < d->shape.layers && w->module <= KERN_V);
        CHECK(d->shape.qkv_bias);
        return vector_set(&d->layers[w->layer].bias[w->module], w, why);
    }
    CHECK(!"a tensor");
    return ERR_INTERNAL;
}
